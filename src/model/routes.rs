//! Which rows go through which experts, by a router's shares.
//!
//! Not here: what becomes of them there (`experts.rs`).
//!
//! Legend: T tokens, D width, X experts, K of them a token, A = T K rows within.

use super::architecture::Experts;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Which rows go through which experts.
pub struct Routes {
    /// [T, K] i64, the experts of each token, that of the largest share first.
    pub experts: Tensor,
    /// [T, K] f32, what their results are multiplied by.
    pub weights: Tensor,
    /// `[A]` i64, each row's place among tokens times K, sorted by expert.
    order: Tensor,
    /// [T, K] i64, the reverse of it: which row is the token's.
    pub rows: Tensor,
    /// Rows of each expert.
    pub counts: Vec<i64>,
    /// The smallest distance of the last share that was chosen from the next, one f32; infinite where all are chosen.
    pub gap: Tensor,
}

impl Routes {
    /// By the shares [T, X]. Of equal shares that of the expert with the lower number counts as larger.
    ///
    /// # Errors
    /// A device without memory.
    pub fn of(shares: &Tensor, Experts { count, top_k, normalised }: Experts) -> Result<Self> {
        let (sorted, experts) = shares.f_sort_stable(true, -1, true)?;
        let gap = match top_k < count {
            true => (sorted.select(1, top_k as i64 - 1) - sorted.select(1, top_k as i64)).f_min()?,
            false => Tensor::from(f32::INFINITY),
        };
        let first = |of: Tensor| of.narrow(1, 0, top_k as i64).contiguous();
        let (mut weights, experts) = (first(sorted), first(experts));
        if normalised {
            weights /= weights.sum_dim_intlist(-1, true, Kind::Float);
        }
        let flat = experts.view([-1]);
        let (_, order) = flat.f_sort_stable(true, 0, false)?;
        let numbers = Tensor::f_arange(order.size()[0], (Kind::Int64, order.device()))?;
        let rows = order.f_zeros_like()?.f_scatter_(0, &order, &numbers)?.view_as(&experts);
        let counts = Vec::try_from(flat.f_bincount(None::<Tensor>, count as i64)?.f_to_device(Device::Cpu)?)?;
        Ok(Self { experts, weights, order, rows, counts, gap })
    }

    /// `[A]` i64, the token of each row.
    pub fn tokens(&self) -> Tensor {
        self.order.floor_divide_scalar(self.experts.size()[1])
    }

    /// [A, 1] f32, what each row's result is multiplied by.
    pub fn row_weights(&self) -> Tensor {
        self.weights.view([-1]).index_select(0, &self.order).unsqueeze(-1)
    }

    /// [T, D] f32: sums of each token's rows of `values` [A, D], which may be weighted.
    ///
    /// # Errors
    /// As [`Routes::of`].
    pub fn gathered(&self, values: &Tensor, weighted: bool) -> Result<Tensor> {
        let [tokens, each] = self.rows.size()[..] else { return Err(Error::runtime("routes that are no matrix")) };
        let mut sum = Tensor::f_zeros([tokens, values.size()[1]], (Kind::Float, values.device()))?;
        for number in 0..each {
            let rows = values.f_index_select(0, &self.rows.select(1, number))?;
            let _ = match weighted {
                true => sum.f_addcmul_(&rows.f_to_kind(Kind::Float)?, &self.weights.narrow(1, number, 1))?,
                false => sum.f_add_(&rows)?,
            };
        }
        Ok(sum)
    }
}
