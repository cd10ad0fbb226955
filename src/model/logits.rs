//! Logits of response rows: log-probs at given places, then the gradient of a weighted sum of them, written over the
//! logits on CPUs.
//!
//! With a soft cap c the log-softmax is taken of c tanh(logit / c) (Gemma 2, arXiv 2408.00118).
//!
//! Legend: R rows, V vocabulary. On CPUs the fused loops of `kernels/softmax.rs` run, which write the gradient over the
//! logits; elsewhere the same formulas as tensor operations. Sums are f32 whatever the compute kind.

use crate::error::{Error, Result};
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, on_device, slice, slice_mut};
use half::bf16;
use tch::{Kind, Tensor};

/// A place in the logits: (row, token).
pub type Place = (usize, usize);

/// Logits [R, V] and the log-sum-exp of each row.
pub struct Logits {
    values: Tensor,
    /// `[R]` f32.
    sums: Tensor,
    soft_cap: Option<f64>,
}

impl Logits {
    /// Takes logits over; `soft_cap` is c > 0 where they are capped.
    ///
    /// # Errors
    /// A tensor that is not what this crate allocates.
    pub fn new(values: Tensor, soft_cap: Option<f64>) -> Result<Self> {
        fn on_cpu<E: Element + Number>(values: &Tensor, soft_cap: Option<f64>) -> Result<Tensor> {
            let (rows, width) = (values.size()[0], values.size()[1] as usize);
            let mut sums = Tensor::empty([rows], (Kind::Float, values.device()));
            let soft_cap = soft_cap.map(|cap| cap as f32);
            kernels::softmax::log_sum_exp(slice::<E>(values)?, width, soft_cap, slice_mut(&mut sums)?);
            Ok(sums)
        }
        let sums = match tensor::cpu_kind(&values) {
            Some(Kind::Float) => on_cpu::<f32>(&values, soft_cap)?,
            Some(Kind::BFloat16) => on_cpu::<bf16>(&values, soft_cap)?,
            _ => capped(&values, soft_cap).logsumexp([-1], false),
        };
        Ok(Self { values, sums, soft_cap })
    }

    /// Log-probs `[places]` f32 at places as [`Logits::indices`] gives them, on the logits' device.
    ///
    /// # Errors
    /// Tensors that are not what this crate allocates.
    pub fn log_probs(&self, at: &[Tensor; 2]) -> Result<Tensor> {
        fn on_cpu<E: Element + Number>(logits: &Logits, at: &[Tensor; 2]) -> Result<Tensor> {
            let read: Vec<f32> = logits.read::<E>(at)?.into_iter().map(|(_, log_prob, _)| log_prob).collect();
            Ok(Tensor::from_slice(&read))
        }
        match tensor::cpu_kind(&self.values) {
            Some(Kind::Float) => on_cpu::<f32>(self, at),
            Some(Kind::BFloat16) => on_cpu::<bf16>(self, at),
            _ => {
                let values = self.values.index(&[Some(&at[0]), Some(&at[1])]);
                Ok(capped(&values, self.soft_cap) - self.sums.index_select(0, &at[0]))
            }
        }
    }

    /// Places, log-probs there, and the derivatives of the cap there, on a CPU.
    fn read<E: Element + Number>(&self, [rows, tokens]: &[Tensor; 2]) -> Result<Vec<(Place, f32, f32)>> {
        let (width, values, sums) = (self.width(), slice::<E>(&self.values)?, slice::<f32>(&self.sums)?);
        let soft_cap = self.soft_cap.map(|cap| cap as f32);
        let read = |(&row, &token): (&i64, &i64)| {
            let (row, token) = (row as usize, token as usize);
            let (value, slope) = kernels::softmax::read(values[row * width + token], soft_cap);
            ((row, token), value - sums[row], slope)
        };
        Ok(slice::<i64>(rows)?.iter().zip(slice::<i64>(tokens)?).map(read).collect())
    }

    /// Gradient with respect to the logits [R, V], in their kind, of the sum over places of slope * log-prob: at (row,
    /// token) the slopes of that place, less the row's slopes in all times its softmax. Places as [`Logits::indices`]
    /// gives them, slopes `[places]` f32 on the logits' device.
    ///
    /// # Errors
    /// Tensors that are not what this crate allocates.
    pub fn into_gradient(self, at: &[Tensor; 2], slopes: &Tensor) -> Result<Tensor> {
        match tensor::cpu_kind(&self.values) {
            Some(Kind::Float) => self.gradient_on_cpu::<f32>(at, slopes),
            Some(Kind::BFloat16) => self.gradient_on_cpu::<bf16>(at, slopes),
            _ => Ok(self.gradient_of_tensors(at, slopes)),
        }
    }

    fn gradient_of_tensors(self, [rows, tokens]: &[Tensor; 2], slopes: &Tensor) -> Tensor {
        let values = capped(&self.values, self.soft_cap);
        let cap_slopes = cap_slopes(&values, self.soft_cap);
        let row_slopes = self.sums.zeros_like().index_add(0, rows, slopes);
        let softmax = (values - self.sums.unsqueeze(-1)).exp();
        let gradient = softmax * row_slopes.neg().unsqueeze(-1);
        // A token may be the target of both answers: slopes add up. Not `index_put_`, whose check of the indices waits.
        let _ = gradient.view([-1]).index_add_(0, &(rows * gradient.size()[1] + tokens), slopes);
        let gradient = match cap_slopes {
            Some(cap_slopes) => gradient * cap_slopes,
            None => gradient,
        };
        gradient.to_kind(self.values.kind())
    }

    /// Written over the logits.
    fn gradient_on_cpu<E: Element + Number>(mut self, at: &[Tensor; 2], slopes: &Tensor) -> Result<Tensor> {
        let (read, slopes) = (self.read::<E>(at)?, slice::<f32>(slopes)?);
        let mut row_slopes = vec![0f32; self.values.size()[0] as usize];
        for (&((row, _), ..), slope) in read.iter().zip(slopes) {
            row_slopes[row] += slope;
        }
        // A token may be the target of both answers; its entry is set once, exactly.
        let mut entries = std::collections::BTreeMap::new();
        for (&(place, log_prob, cap_slope), slope) in read.iter().zip(slopes) {
            *entries.entry(place).or_insert_with(|| -row_slopes[place.0] * log_prob.exp() * cap_slope) +=
                slope * cap_slope;
        }
        let width = self.width();
        let values = slice_mut::<E>(&mut self.values)?;
        let soft_cap = self.soft_cap.map(|cap| cap as f32);
        kernels::softmax::negative_softmax(values, width, soft_cap, slice(&self.sums)?, &row_slopes);
        for ((row, token), value) in entries {
            values[row * width + token] = E::narrow(value);
        }
        Ok(self.values)
    }

    fn width(&self) -> usize {
        self.values.size()[1] as usize
    }

    fn check(&self, places: &[Place]) -> Result<()> {
        let (rows, width) = (self.values.size()[0] as usize, self.width());
        match places.iter().find(|(row, token)| *row >= rows || *token >= width) {
            Some(place) => Err(Error::runtime(format!("{place:?} lies outside logits of {rows} x {width}"))),
            None => Ok(()),
        }
    }

    /// Rows and tokens of places, i64 on the logits' device.
    ///
    /// # Errors
    /// A place outside the logits.
    pub fn indices(&self, places: &[Place]) -> Result<[Tensor; 2]> {
        self.check(places)?;
        let index = |number: fn(&Place) -> usize| {
            let numbers: Vec<i64> = places.iter().map(|place| number(place) as i64).collect();
            on_device(&numbers, self.values.device())
        };
        Ok([index(|place| place.0), index(|place| place.1)])
    }
}

/// Accumulates the bias gradient, `[V]` f32, from the gradient of logits [R, V]: its column sums.
///
/// # Errors
/// A buffer that is not what this crate allocates.
pub fn add_bias_gradient(gradient: &Tensor, sum: &Tensor) -> Result<()> {
    let mut sum = sum.shallow_clone();
    match tensor::cpu_kind(gradient) {
        Some(Kind::Float) => kernels::accumulate::add_rows(slice::<f32>(gradient)?, slice_mut(&mut sum)?),
        Some(Kind::BFloat16) => kernels::accumulate::add_rows(slice::<bf16>(gradient)?, slice_mut(&mut sum)?),
        _ => {
            let _ = sum.g_add_(&gradient.sum_dim_intlist(0, false, Kind::Float));
        }
    }
    Ok(())
}

/// What the softmax is taken of, f32.
fn capped(logits: &Tensor, soft_cap: Option<f64>) -> Tensor {
    let logits = logits.to_kind(Kind::Float);
    match soft_cap {
        Some(cap) => (logits / cap).tanh() * cap,
        None => logits,
    }
}

/// Derivatives of what [`capped`] gave with respect to the logits, where there is a cap.
fn cap_slopes(capped: &Tensor, soft_cap: Option<f64>) -> Option<Tensor> {
    soft_cap.map(|cap| 1.0 - (capped / cap).square())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    /// Log-softmax of the capped logits, and the gradient of the sum over places of slope * log-prob, by libtorch.
    fn expected(logits: &Tensor, soft_cap: Option<f64>, places: &[Place], slopes: &[f32]) -> (Tensor, Tensor) {
        let leaf = logits.to_kind(Kind::Float).copy().detach().set_requires_grad(true);
        let capped = match soft_cap {
            Some(cap) => (&leaf / cap).tanh() * cap,
            None => leaf.shallow_clone(),
        };
        let log_softmax = capped.log_softmax(-1, Kind::Float);
        let loss: Tensor = places.iter().zip(slopes).fold(Tensor::from(0f32), |sum, (&(row, token), slope)| {
            sum + log_softmax.get(row as i64).get(token as i64) * f64::from(*slope)
        });
        let gradient = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0);
        (log_softmax.detach(), gradient)
    }

    #[test]
    fn log_probs_and_their_gradient_agree_with_automatic_differentiation() {
        // 67 columns leave a rest after whole lanes; (1, 5) is the target of two answers.
        let places = [(0, 3), (1, 5), (1, 5), (1, 66), (3, 0)];
        let slopes = [0.5f32, -0.25, 1.0, 2.0, -1.5];
        let distance = |left: &Tensor, right: &Tensor| ((left - right).norm() / right.norm()).double_value(&[]);
        // Doubles have no loops of their own: they go through the tensor operations.
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 5e-3), (Kind::Double, 1e-6)] {
            // A cap that bends most logits.
            for soft_cap in [None, Some(2.5)] {
                let logits = (waves(&[4, 67], 1.0) * 3.0).to_kind(kind);
                let (log_softmax, expected_gradient) = expected(&logits, soft_cap, &places, &slopes);
                let mine = Logits::new(logits.copy(), soft_cap).unwrap();
                let at = mine.indices(&places).unwrap();
                let read = Vec::<f32>::try_from(mine.log_probs(&at).unwrap()).unwrap();
                for (read, &(row, token)) in read.iter().zip(&places) {
                    let plain = log_softmax.double_value(&[row as i64, token as i64]);
                    assert!((f64::from(*read) - plain).abs() < 1e-5, "{read} is not {plain}");
                }
                let gradient = mine.into_gradient(&at, &Tensor::from_slice(&slopes)).unwrap().to_kind(Kind::Float);
                assert!(distance(&gradient, &expected_gradient) < bound);
                // Control: another cap gives another gradient.
                let (_, other) = expected(&logits, Some(2.0), &places, &slopes);
                assert!(distance(&gradient, &other) > 2e-2);
                assert!(Logits::new(logits, soft_cap).unwrap().indices(&[(4, 0)]).is_err());
            }
        }
    }
}
