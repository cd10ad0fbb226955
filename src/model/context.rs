//! What the blocks of one micro-batch share: which rows see which, and the angles of their positions.
//!
//! Legend: T tokens.

use super::architecture::{Architecture, BlockDescription};
use super::rope;
use crate::error::{Error, Result};
use crate::ops::{Angles, AttentionPlan, Ops};
use crate::packing::{AttentionRules, Group};
use tch::{Device, Kind, Tensor};

/// What the blocks of one micro-batch share.
pub struct Context {
    /// Which rows see which, under each of the model's rules.
    attention: Vec<(AttentionRules, AttentionPlan)>,
    /// The angles of each of the model's rotations, by position.
    pub angles: Vec<Angles>,
}

impl Context {
    /// For packed groups and their positions `[T]`; `frequencies` of each rotation, as from `rope::frequencies`.
    pub fn new(
        ops: &dyn Ops,
        architecture: &Architecture,
        (groups, positions): (&[Group], &Tensor),
        frequencies: &[Vec<f32>],
        (kind, device): (Kind, Device),
    ) -> Self {
        let mut attention: Vec<(AttentionRules, AttentionPlan)> = Vec::new();
        for BlockDescription { rules, heads, .. } in &architecture.blocks {
            if !attention.iter().any(|(known, _)| known == rules) {
                attention.push((*rules, ops.plan_attention(groups, *heads, *rules, (kind, device))));
            }
        }
        let angles = frequencies.iter().map(|frequencies| rope::angles(positions, frequencies, device)).collect();
        Self { attention, angles }
    }

    /// The plan of blocks with these rules.
    ///
    /// # Errors
    /// Rules of no block of the model.
    pub fn attention(&self, rules: &AttentionRules) -> Result<&AttentionPlan> {
        let plan = self.attention.iter().find(|(known, _)| known == rules);
        plan.map(|(_, plan)| plan).ok_or_else(|| Error::runtime("a block without a plan of attention"))
    }
}
