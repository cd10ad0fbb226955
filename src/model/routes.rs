//! Chooses each token's experts by a router's shares, and lists the rows of each expert.
//!
//! Not here: what experts compute (`experts.rs`).
//!
//! Legend: T tokens, D width, X experts, K of them a token, A = T K rows within.

use super::architecture::Experts;
use crate::error::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Which experts each token goes through.
pub(crate) struct Chosen {
    /// [T, K] i64, the experts of each token, that of the largest share first.
    pub(crate) experts: Tensor,
    /// [T, K] f32, the factors of their results.
    pub(crate) weights: Tensor,
    /// The smallest difference between the last chosen share and the next one, one f32; infinite if all are chosen.
    pub(crate) gap: Tensor,
}

/// Which rows go through which experts.
pub(crate) struct Routes {
    /// The choice that the rows follow from.
    pub(crate) chosen: Chosen,
    /// `[A]` i64: for each row, in the order of experts, its place among the T K choices.
    order: Tensor,
    /// [T, K] i64, the inverse: the row of each choice.
    pub(crate) rows: Tensor,
    /// Rows of each expert.
    pub(crate) counts: Vec<i64>,
}

impl Chosen {
    /// Chooses by the shares [T, X]. Of equal shares that of the expert with the lower number counts as larger.
    ///
    /// # Errors
    /// A device out of memory.
    pub(crate) fn of(shares: &Tensor, Experts { count, top_k, normalized }: Experts) -> Result<Self> {
        let (sorted, experts) = shares.f_sort_stable(true, -1, true)?;
        let gap = match top_k < count {
            true => (sorted.select(1, top_k as i64 - 1) - sorted.select(1, top_k as i64)).f_min()?,
            false => Tensor::from(f32::INFINITY),
        };
        let first = |of: Tensor| of.narrow(1, 0, top_k as i64).contiguous();
        let (mut weights, experts) = (first(sorted), first(experts));
        if normalized {
            weights /= weights.sum_dim_intlist(-1, true, Kind::Float);
        }
        Ok(Self { experts, weights, gap })
    }
}

impl Routes {
    /// The routes for a choice among `count` experts.
    ///
    /// # Errors
    /// As [`Chosen::of`].
    pub(crate) fn of(chosen: Chosen, count: usize) -> Result<Self> {
        let flat = chosen.experts.view([-1]);
        let (_, order) = flat.f_sort_stable(true, 0, false)?;
        let numbers = Tensor::f_arange(order.size()[0], (Kind::Int64, order.device()))?;
        let rows = order.f_zeros_like()?.f_scatter_(0, &order, &numbers)?.view_as(&chosen.experts);
        let counts = Vec::try_from(flat.f_bincount(None::<Tensor>, count as i64)?.f_to_device(Device::Cpu)?)?;
        Ok(Self { chosen, order, rows, counts })
    }

    /// `[A]` i64, the token of each row.
    pub(crate) fn tokens(&self) -> Tensor {
        self.order.floor_divide_scalar(self.chosen.experts.size()[1])
    }

    /// [A, 1] f32, the factor of each row's result.
    pub(crate) fn row_weights(&self) -> Tensor {
        self.chosen.weights.view([-1]).index_select(0, &self.order).unsqueeze(-1)
    }

    /// [T, D] f32: sums of each token's rows of `values` [A, D], `weighted` or not.
    ///
    /// # Errors
    /// As [`Routes::of`].
    pub(crate) fn gathered(&self, values: &Tensor, weighted: bool) -> Result<Tensor> {
        let [tokens, each] = self.rows.size()[..] else { return Err(Error::runtime("routes are no matrix")) };
        let mut sum = Tensor::f_zeros([tokens, values.size()[1]], (Kind::Float, values.device()))?;
        for number in 0..each {
            let rows = values.f_index_select(0, &self.rows.select(1, number))?;
            let _ = match weighted {
                true => sum.f_addcmul_(&rows.f_to_kind(Kind::Float)?, &self.chosen.weights.narrow(1, number, 1))?,
                false => sum.f_add_(&rows)?,
            };
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(shares: &[&[f32]], top_k: usize) -> Vec<Vec<i64>> {
        let (count, shares) = (shares[0].len(), Tensor::from_slice2(shares));
        Vec::try_from(Chosen::of(&shares, Experts { count, top_k, normalized: true }).unwrap().experts).unwrap()
    }

    #[test]
    fn of_equal_shares_the_lower_number_is_chosen() {
        assert_eq!(chosen(&[&[0.25; 4]], 2), [[0, 1]]);
        assert_eq!(chosen(&[&[0.2, 0.3, 0.3, 0.2], &[0.1, 0.3, 0.3, 0.3]], 3), [[1, 2, 0], [1, 2, 3]]);
        // More than are sorted in one piece.
        let mut shares = [1.0 / 4096.0; 4096];
        assert_eq!(chosen(&[&shares], 8), [[0, 1, 2, 3, 4, 5, 6, 7]]);
        // Control: the least difference that f32 has counts more than the number.
        shares[4000] = shares[4000].next_up();
        assert_eq!(chosen(&[&shares], 3), [[4000, 0, 1]]);
    }

    #[test]
    fn the_gap_is_that_of_the_token_nearest_to_another_choice() {
        let gap = |top_k| {
            let shares = Tensor::from_slice2(&[[0.5f32, 0.125, 0.375], [0.25, 0.5, 0.25]]);
            Chosen::of(&shares, Experts { count: 3, top_k, normalized: false }).unwrap().gap.double_value(&[])
        };
        assert_eq!((gap(1), gap(2), gap(3)), (0.125, 0.0, f64::INFINITY));
    }
}
