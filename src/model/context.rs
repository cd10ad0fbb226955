//! What the blocks of one micro-batch share: which rows see which, and the rotations of their positions.
//!
//! Legend: T tokens.

use super::architecture::{Architecture, BlockDescription};
use super::balance::Balance;
use super::rope::Turned;
use crate::error::{Error, Result};
use crate::ops::{AttentionPlan, Ops};
use crate::packing::{AttentionRules, Group};
use tch::{Device, Kind, Tensor};

/// What the blocks of one micro-batch share.
pub struct Context {
    /// Which rows see which, under each of the model's rules.
    attention: Vec<(AttentionRules, AttentionPlan)>,
    /// The model's rotations, by position.
    pub(crate) rotations: Vec<Turned>,
    /// The load and loss of experts, in training of a model that has them.
    pub(crate) balance: Option<Balance>,
}

impl Context {
    /// For packed groups and their positions `[T]`.
    ///
    /// # Errors
    /// As [`Turned::new`].
    pub fn new(
        ops: &dyn Ops,
        architecture: &Architecture,
        (groups, positions): (&[Group], &Tensor),
        (kind, device): (Kind, Device),
    ) -> Result<Self> {
        let mut attention: Vec<(AttentionRules, AttentionPlan)> = Vec::new();
        for BlockDescription { rules, heads, .. } in &architecture.blocks {
            if !attention.iter().any(|(known, _)| known == rules) {
                attention.push((*rules, ops.plan_attention(groups, *heads, *rules, (kind, device))));
            }
        }
        let turned = |rotation| Turned::new(rotation, groups, positions, (kind, device));
        let rotations = architecture.rotations.iter().map(turned).collect::<Result<_>>()?;
        Ok(Self { attention, rotations, balance: None })
    }

    /// The same in training, with the weight of the loss that balances experts.
    pub(crate) fn training(
        self,
        architecture: &Architecture,
        groups: &[Group],
        coefficient: f64,
        device: Device,
    ) -> Self {
        let routed = architecture.blocks.iter().filter(|block| block.mlp.experts.is_some()).count();
        let balance = (routed > 0).then(|| Balance::new(groups, routed, coefficient, device));
        Self { balance, ..self }
    }

    /// Whether every row goes through every block to its end.
    pub(crate) fn routes_all(&self) -> bool {
        self.balance.as_ref().is_some_and(Balance::has_loss)
    }

    /// The plan of blocks with these rules.
    ///
    /// # Errors
    /// Rules that no block of the model has.
    pub(crate) fn attention(&self, rules: &AttentionRules) -> Result<&AttentionPlan> {
        let plan = self.attention.iter().find(|(known, _)| known == rules);
        plan.map(|(_, plan)| plan).ok_or_else(|| Error::runtime("a block has no attention plan"))
    }
}
