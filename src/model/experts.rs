//! Experts in place of a block's MLP, forward and backward (arXiv 1701.06538; Mixtral, arXiv 2401.04088).
//!
//! The router's shares decide which rows go through which expert; rows are gathered, sorted by expert, multiplied expert by
//! expert, and the results of a token are summed in the order of its shares, in f32. No token is dropped: an expert takes all
//! rows that choose it. Not here: which rows go where (`routes.rs`), the products (`ops/`), the norms around it
//! (`decoder.rs`).
//!
//! Legend: T tokens, D width, X experts, K of them a token, A = T K rows within, F width of an expert.

use super::architecture::{Experts, Mlp};
use super::balance::{Balance, Routing};
use super::layout::Places;
use super::routes::{Chosen, Routes};
use super::segment::{Bucket, Weights};
use super::workspace::{Buffers, Slot};
use crate::error::Result;
use crate::ops::Scratch;
use tch::{Kind, Tensor};

/// The experts of one block.
pub(crate) struct ExpertMlp<'a> {
    mlp: Mlp,
    experts: Experts,
    weights: &'a Weights,
    places: &'a Places,
    router: usize,
}

impl<'a> ExpertMlp<'a> {
    /// Those of a block, if it has any.
    pub(crate) fn of(mlp: Mlp, weights: &'a Weights, places: &'a Places) -> Option<Self> {
        Some(Self { mlp, experts: mlp.experts?, weights, places, router: places.router? })
    }

    /// x [T, D] -> `output` [T, D]; fills the buffers, and returns the routes for the backward pass.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates, or a device out of memory.
    pub(crate) fn forward(&self, x: &Tensor, at: &Buffers, output: &Tensor) -> Result<Routes> {
        let ops = self.weights.ops;
        let routes = Routes::of(self.choose(x, at)?, self.experts.count)?;
        let [routed, inner, activated] = [Slot::Routed, Slot::Inner, Slot::Activated].map(|slot| rows_of(&at[slot]));
        let _ = x.f_index_select_out(&routed, 0, &routes.tokens())?;
        ops.grouped_product(&routed, &self.up(), &routes.counts, &inner)?;
        ops.activate(self.mlp.kind, &inner, &activated)?;
        ops.grouped_product(&activated, &self.down(), &routes.counts, &routed)?;
        output.shallow_clone().copy_(&routes.gathered(&routed, true)?);
        Ok(routes)
    }

    /// Computes each expert's share of x [T, D], in `Slot::Shares`, and chooses experts by it.
    ///
    /// # Errors
    /// As [`ExpertMlp::forward`].
    pub(crate) fn choose(&self, x: &Tensor, at: &Buffers) -> Result<Chosen> {
        self.weights.ops.route(x, self.weights.view(self.router), &at[Slot::Shares])?;
        Chosen::of(&at[Slot::Shares], self.experts)
    }

    /// From the `gradient` [T, D] of [`ExpertMlp::forward`]'s output to that of x, in `output`, which may be the gradient's
    /// own memory; parameter gradients go to the `bucket`, if they are trained. With a `balance` the gradient of its loss is
    /// added, and the routing returned.
    ///
    /// # Errors
    /// As [`ExpertMlp::forward`].
    pub(crate) fn backward(
        &self,
        [x, gradient, output]: [&Tensor; 3],
        (routes, balance): (&Routes, Option<&Balance>),
        at: &Buffers,
        mut bucket: Option<&mut Bucket>,
        scratch: &mut Scratch,
    ) -> Result<Option<Routing>> {
        let (ops, counts, tokens) = (self.weights.ops, &routes.counts, routes.tokens());
        let [routed, inner, mut activated] =
            [Slot::Routed, Slot::Inner, Slot::Activated].map(|slot| rows_of(&at[slot]));
        let [inner_gradient, through] = [Slot::InnerGradient, Slot::ActivatedGradient].map(|slot| rows_of(&at[slot]));
        // First as if every weight were 1; the weights are multiplied in below, since all is linear in the gradient.
        let _ = gradient.f_index_select_out(&routed, 0, &tokens)?;
        ops.grouped_input_gradient(&routed, &self.down(), counts, &through)?;
        ops.activate_backward(self.mlp.kind, &inner, &through, &activated, &inner_gradient)?;
        let weight_gradient = (through.f_to_kind(Kind::Float)? * &activated).sum_dim_intlist(-1, false, Kind::Float);
        let weight_gradient =
            weight_gradient.f_index_select(0, &routes.rows.view([-1]))?.view_as(&routes.chosen.weights);
        let row_weights = routes.row_weights();
        let _ = inner_gradient.shallow_clone().f_mul_(&row_weights)?;
        if let Some(bucket) = bucket.as_deref_mut() {
            let _ = activated.f_mul_(&row_weights)?;
            ops.add_grouped_product([&routed, &activated], counts, &self.down_of(bucket), scratch)?;
            let _ = x.f_index_select_out(&routed, 0, &tokens)?;
            ops.add_grouped_product([&inner_gradient, &routed], counts, &self.up_of(bucket), scratch)?;
        }
        ops.grouped_input_gradient(&inner_gradient, &self.up(), counts, &routed)?;
        let shares = &at[Slot::Shares];
        let (routing, of_shares) = balance.map(|balance| balance.of(shares, &routes.chosen)).transpose()?.unzip();
        let logits = self.router_gradient(&weight_gradient, (routes, of_shares.flatten().as_ref()), shares)?;
        if let Some(bucket) = bucket {
            ops.add_product(&logits, &x.f_to_kind(Kind::Float)?, &bucket.sums()[self.router], scratch)?;
        }
        let router = self.weights.view(self.router).f_to_kind(Kind::Float)?;
        output.shallow_clone().copy_(&(routes.gathered(&routed, false)? + logits.f_mm(&router)?));
        Ok(routing)
    }

    /// The gradient [T, X] f32 of the router's logits, from that of the weights [T, K] and an additional one of the shares
    /// [T, X].
    fn router_gradient(
        &self,
        weight_gradient: &Tensor,
        (routes, of_shares): (&Routes, Option<&Tensor>),
        shares: &Tensor,
    ) -> Result<Tensor> {
        let Chosen { experts, weights, .. } = &routes.chosen;
        let of_chosen = if self.experts.normalized {
            let common = (weight_gradient * weights).sum_dim_intlist(-1, true, Kind::Float);
            let sum = shares.f_gather(-1, experts, false)?.sum_dim_intlist(-1, true, Kind::Float);
            (weight_gradient - common) / sum
        } else {
            weight_gradient.shallow_clone()
        };
        let mut gradient = shares.f_zeros_like()?.f_scatter_(-1, experts, &of_chosen)?;
        if let Some(of_shares) = of_shares {
            let _ = gradient.f_add_(of_shares)?;
        }
        let common = (&gradient * shares).sum_dim_intlist(-1, true, Kind::Float);
        Ok((gradient - common) * shares)
    }

    /// [X, 2 F, D] with a gate, else [X, F, D].
    fn up(&self) -> Tensor {
        self.apart(self.weights.stacked(self.places.up.weights.clone()))
    }

    /// [X, D, F].
    fn down(&self) -> Tensor {
        self.apart(self.weights.stacked(self.places.down.weights.clone()))
    }

    fn up_of(&self, bucket: &mut Bucket) -> Tensor {
        self.apart(bucket.stacked(self.places.up.weights.clone()))
    }

    fn down_of(&self, bucket: &mut Bucket) -> Tensor {
        self.apart(bucket.stacked(self.places.down.weights.clone()))
    }

    /// Matrices of all experts one below the other -> [X, rows, columns], a view.
    fn apart(&self, stacked: Tensor) -> Tensor {
        stacked.view([self.experts.count as i64, -1, stacked.size()[1]])
    }
}

/// [T, K, columns] -> [A, columns], a view.
fn rows_of(buffer: &Tensor) -> Tensor {
    buffer.view([-1, buffer.size()[2]])
}
