//! The load of experts, and the loss that balances it, sequence by sequence (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
//!
//! In a block, for a sequence of n tokens, with s_i(t) the router's shares, which sum to 1:
//!
//!   f_i = X / (K n) * tokens that go through expert i,  P_i = mean of s_i over the tokens,  loss = sum over i of f_i P_i
//!
//! which is 1 if all experts are used equally, and more otherwise. Only P has a gradient. A sequence is a prompt with one
//! answer, however it is packed: rows of a prefix count in each of its sequences. Losses are means over blocks with experts,
//! and over the two sequences of a pair, so neither micro-batches nor ranks change them.
//!
//! Legend: T rows, S sequences, Q parts (prefixes and suffixes) that they are made of, X experts, K of them a token.

use super::routes::Chosen;
use crate::error::Result;
use crate::ops::add_rows;
use crate::packing::Group;
use crate::tensor::on_device;
use tch::{Device, Kind, Tensor};

/// Which sequences the rows of a micro-batch belong to, and the weight of the loss.
pub(crate) struct Balance {
    /// `[T]` i64, the part of each row.
    parts: Tensor,
    /// [S, Q] f32, 1 where a part belongs to a sequence.
    members: Tensor,
    /// [S, 1] f32, tokens of each sequence.
    lengths: Tensor,
    /// Weight of a sequence's loss in one block; 0: only the load is counted.
    weight: f64,
}

/// How one block's router distributed the tokens.
pub struct Routing {
    /// `[X]` f32, tokens of all sequences that went through each expert.
    pub load: Tensor,
    /// The sequences' losses in this block, summed and weighted: one f32. None without a loss.
    pub balance: Option<Tensor>,
    /// The smallest difference between the last chosen share and the next one, one f32; infinite if all are chosen.
    pub gap: Tensor,
}

impl Balance {
    /// For packed groups in a model with experts in `blocks` blocks. `coefficient` is the weight of a pair's loss.
    pub(crate) fn new(groups: &[Group], blocks: usize, coefficient: f64, device: Device) -> Self {
        let (mut parts, mut sequences) = (Vec::new(), Vec::new());
        let mut count = 0;
        for group in groups {
            let prefix = (group.prefix > 0).then_some(count);
            let lengths = prefix.iter().map(|_| &group.prefix).chain(&group.suffixes);
            for (part, length) in lengths.enumerate() {
                parts.extend(std::iter::repeat_n((count + part) as i64, *length));
            }
            let first = count + prefix.iter().count();
            for (suffix, length) in group.suffixes.iter().enumerate() {
                sequences.push((prefix, first + suffix, (group.prefix + length) as f32));
            }
            count = first + group.suffixes.len();
        }
        let mut members = vec![0f32; sequences.len() * count];
        for (number, (prefix, suffix, _)) in sequences.iter().enumerate() {
            prefix.iter().chain([suffix]).for_each(|part| members[number * count + part] = 1.0);
        }
        let lengths: Vec<f32> = sequences.iter().map(|(_, _, length)| *length).collect();
        Self {
            parts: on_device(&parts, device),
            members: on_device(&members, device).view([sequences.len() as i64, count as i64]),
            lengths: on_device(&lengths, device).view([-1, 1]),
            weight: coefficient / (2 * blocks) as f64,
        }
    }

    /// Whether there is a loss: then every row goes through every block.
    pub(crate) fn has_loss(&self) -> bool {
        self.weight > 0.0
    }

    /// The routing of all rows in a block; and, if there is a loss, its gradient [T, X] with respect to the shares [T, X].
    ///
    /// # Errors
    /// A device out of memory.
    pub(crate) fn of(&self, shares: &Tensor, chosen: &Chosen) -> Result<(Routing, Option<Tensor>)> {
        let by_part = |values: &Tensor| -> Result<Tensor> {
            let sums = Tensor::f_zeros([self.members.size()[1], values.size()[1]], (Kind::Float, values.device()))?;
            add_rows(&sums, &self.parts, values)?;
            Ok(sums)
        };
        let goes_through = shares.f_zeros_like()?.f_scatter_value_(-1, &chosen.experts, 1.0)?;
        let counts = self.members.f_mm(&by_part(&goes_through)?)?;
        let mut routing = Routing {
            load: counts.sum_dim_intlist(0, false, Kind::Float),
            balance: None,
            gap: chosen.gap.shallow_clone(),
        };
        if !self.has_loss() {
            return Ok((routing, None));
        }
        let uniform = shares.size()[1] as f64 / chosen.experts.size()[1] as f64;
        let load = counts.f_div(&self.lengths)?.f_mul_scalar(uniform)?;
        let means = self.members.f_mm(&by_part(shares)?)?.f_div(&self.lengths)?;
        routing.balance = Some((&load * means).sum(Kind::Float) * self.weight);
        let of_parts = self.members.tr().f_mm(&(load.f_div(&self.lengths)? * self.weight))?;
        Ok((routing, Some(of_parts.f_index_select(0, &self.parts)?)))
    }
}
