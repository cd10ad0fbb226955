//! Logits of response rows: log-probs at given places, then the gradient of a weighted sum of them in their stead.
//!
//! Legend: R rows, V vocabulary. On CPUs the fused loops of `kernels/softmax.rs` run, which write the gradient over the
//! logits; elsewhere the same formulas as tensor operations. Sums are f32 whatever the compute kind.

use crate::error::{Error, Result};
use crate::kernels::{self, Element};
use crate::tensor::{self, Number, slice, slice_mut};
use half::bf16;
use tch::{Kind, Tensor};

/// A place in the logits: (row, token).
pub type Place = (usize, usize);

/// Logits [R, V] and the log-sum-exp of each row.
pub struct Logits {
    values: Tensor,
    /// `[R]` f32.
    sums: Tensor,
}

impl Logits {
    /// Takes logits over.
    ///
    /// # Errors
    /// A tensor that is not what this crate allocates.
    pub fn new(values: Tensor) -> Result<Self> {
        fn on_cpu<E: Element + Number>(values: &Tensor) -> Result<Tensor> {
            let (rows, width) = (values.size()[0], values.size()[1] as usize);
            let mut sums = Tensor::empty([rows], (Kind::Float, values.device()));
            kernels::softmax::log_sum_exp(slice::<E>(values)?, width, slice_mut(&mut sums)?);
            Ok(sums)
        }
        let sums = match tensor::cpu_kind(&values) {
            Some(Kind::Float) => on_cpu::<f32>(&values)?,
            Some(Kind::BFloat16) => on_cpu::<bf16>(&values)?,
            _ => values.to_kind(Kind::Float).logsumexp([-1], false),
        };
        Ok(Self { values, sums })
    }

    /// Log-probs at places.
    ///
    /// # Errors
    /// A place outside the logits.
    pub fn log_probs(&self, places: &[Place]) -> Result<Vec<f32>> {
        fn on_cpu<E: Element + Number>(logits: &Logits, places: &[Place]) -> Result<Vec<f32>> {
            let (width, values, sums) = (logits.width(), slice::<E>(&logits.values)?, slice::<f32>(&logits.sums)?);
            Ok(places.iter().map(|&(row, token)| values[row * width + token].wide() - sums[row]).collect())
        }
        self.check(places)?;
        match tensor::cpu_kind(&self.values) {
            Some(Kind::Float) => on_cpu::<f32>(self, places),
            Some(Kind::BFloat16) => on_cpu::<bf16>(self, places),
            _ => {
                let [rows, tokens] = self.indices(places);
                let read = self.values.index(&[Some(&rows), Some(&tokens)]).to_kind(Kind::Float);
                let log_probs = read - self.sums.index_select(0, &rows);
                Ok(slice::<f32>(&log_probs.to_device(tch::Device::Cpu).contiguous())?.to_vec())
            }
        }
    }

    /// Gradient with respect to the logits [R, V], in their kind, of the sum over places of slope * log-prob: at (row,
    /// token) the slopes of that place, less the row's slopes in all times its softmax.
    ///
    /// # Errors
    /// A place outside the logits.
    pub fn into_gradient(self, places: &[Place], slopes: &[f32]) -> Result<Tensor> {
        let log_probs = self.log_probs(places)?;
        let mut row_slopes = vec![0f32; self.values.size()[0] as usize];
        for (&(row, _), slope) in places.iter().zip(slopes) {
            row_slopes[row] += slope;
        }
        // A token may be the target of both answers; its entry is set once, exactly.
        let mut entries = std::collections::BTreeMap::new();
        for ((&place, log_prob), slope) in places.iter().zip(&log_probs).zip(slopes) {
            *entries.entry(place).or_insert_with(|| -row_slopes[place.0] * log_prob.exp()) += slope;
        }
        match tensor::cpu_kind(&self.values) {
            Some(Kind::Float) => self.gradient_on_cpu::<f32>(&row_slopes, entries),
            Some(Kind::BFloat16) => self.gradient_on_cpu::<bf16>(&row_slopes, entries),
            _ => {
                let softmax = (self.values.to_kind(Kind::Float) - self.sums.unsqueeze(-1)).exp();
                let row_slopes = Tensor::from_slice(&row_slopes).to_device(self.values.device());
                let gradient = (softmax * row_slopes.neg().unsqueeze(-1)).to_kind(self.values.kind());
                let (places, values): (Vec<Place>, Vec<f32>) = entries.into_iter().unzip();
                let [rows, tokens] = self.indices(&places);
                let values = Tensor::from_slice(&values).to_device(gradient.device()).to_kind(gradient.kind());
                Ok(gradient.index_put(&[Some(rows), Some(tokens)], &values, false))
            }
        }
    }

    fn gradient_on_cpu<E: Element + Number>(
        mut self,
        row_slopes: &[f32],
        entries: impl IntoIterator<Item = (Place, f32)>,
    ) -> Result<Tensor> {
        let width = self.width();
        let values = slice_mut::<E>(&mut self.values)?;
        kernels::softmax::negative_softmax(values, width, slice(&self.sums)?, row_slopes);
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

    fn indices(&self, places: &[Place]) -> [Tensor; 2] {
        let index = |number: fn(&Place) -> usize| {
            let numbers: Vec<i64> = places.iter().map(|place| number(place) as i64).collect();
            Tensor::from_slice(&numbers).to_device(self.values.device())
        };
        [index(|place| place.0), index(|place| place.1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::waves;

    #[test]
    fn log_probs_and_their_gradient_agree_with_automatic_differentiation() {
        // 67 columns leave a rest after whole lanes; (1, 5) is the target of two answers.
        let places = [(0, 3), (1, 5), (1, 5), (1, 66), (3, 0)];
        let slopes = [0.5f32, -0.25, 1.0, 2.0, -1.5];
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::BFloat16, 5e-3)] {
            let logits = (waves(&[4, 67], 1.0) * 3.0).to_kind(kind);
            let leaf = logits.to_kind(Kind::Float).copy().detach().set_requires_grad(true);
            let log_softmax = leaf.log_softmax(-1, Kind::Float);
            let loss: Tensor = places.iter().zip(slopes).fold(Tensor::from(0f32), |sum, (&(row, token), slope)| {
                sum + log_softmax.get(row as i64).get(token as i64) * f64::from(slope)
            });
            let expected = Tensor::run_backward(&[loss], &[&leaf], false, false).remove(0);
            let mine = Logits::new(logits.copy()).unwrap();
            for (read, &(row, token)) in mine.log_probs(&places).unwrap().iter().zip(&places) {
                let plain = log_softmax.double_value(&[row as i64, token as i64]);
                assert!((f64::from(*read) - plain).abs() < 1e-5, "{read} is not {plain}");
            }
            let gradient = mine.into_gradient(&places, &slopes).unwrap().to_kind(Kind::Float);
            assert!(((&gradient - &expected).norm() / expected.norm()).double_value(&[]) < bound);
            assert!(Logits::new(logits).unwrap().log_probs(&[(4, 0)]).is_err());
        }
    }
}
