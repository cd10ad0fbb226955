//! Rotary positions of a `config.json`, in the spelling of Transformers 4 or 5.
//!
//! Not here: the frequencies that follow from them (`model/rope.rs`).

use super::keys::{Keys, not_computed};
use super::{QueryGrowth, Rope, RopeScaling, Rotation};
use crate::error::Error;

/// The keys that determine the width of a head.
pub(crate) const HEAD_WIDTH: [&str; 3] = ["hidden_size", "num_attention_heads", "head_dim"];

/// The set of rotary keys in Transformers 4, and in Transformers 5.
const OLD: &str = "rope_scaling";
const NEW: &str = "rope_parameters";

/// The names of a family's rotary keys outside `rope_parameters`, and their defaults.
pub(crate) struct RopeKeys {
    /// The key of the base of the frequencies, and its default.
    pub(crate) theta: (&'static str, f64),
    /// The share of a head that is rotated; none in families that rotate whole heads.
    pub(crate) share: Option<(&'static str, f64)>,
    /// The same as `theta` for blocks with a window, in families where these have their own rotation; if there is no key for
    /// it outside `rope_parameters`, the default counts.
    pub(crate) theta_of_windows: Option<(Option<&'static str>, f64)>,
    /// Default of the context length, in tokens.
    pub(crate) positions: usize,
    /// Whether it has Phi-3's names and defaults for LongRoPE.
    pub(crate) is_phi3: bool,
    /// Whether queries may grow with their position.
    pub(crate) query_growth: bool,
}

impl RopeKeys {
    /// Whole heads, under the usual key.
    pub(crate) const WHOLE_HEADS: Self = Self {
        theta: ("rope_theta", 10_000.0),
        share: None,
        theta_of_windows: None,
        positions: 2048,
        is_phi3: false,
        query_growth: false,
    };

    /// The rotations for heads of this width: one, or one for blocks without and one for blocks with a window.
    pub(crate) fn read(&self, keys: &Keys, head_width: usize) -> Vec<Rotation> {
        // An empty object says nothing, as in Transformers.
        let old = keys.object(OLD).filter(|old| !old.is_empty());
        let new = keys.object(NEW);
        let theta = (Some(self.theta.0), self.theta.1);
        let Some(theta_of_windows) = self.theta_of_windows else {
            // With both, as in Transformers, the older one counts.
            let inner = old.or(new);
            if inner.as_ref().is_some_and(Keys::has_objects) {
                let error = Error::input(format!("{NEW}: this family has one rotation for all blocks"));
                keys.fault(NEW, error.hint("one set of rope_theta, rope_type ... was expected"));
                return vec![self.rotation(keys, None, theta, head_width)];
            }
            return vec![self.rotation(keys, inner.as_ref(), theta, head_width)];
        };
        if new.as_ref().is_some_and(|new| !new.has_objects()) {
            keys.fault(
                NEW,
                Error::input(format!("{NEW}: this family has two rotations")).hint(
                    "expected \"full_attention\" and \"sliding_attention\" in it, each with rope_theta, rope_type ...",
                ),
            );
        }
        let of = |kind: &str| new.as_ref().and_then(|new| new.object(kind));
        // The older keys scale blocks without a window only.
        let full = old.or(of("full_attention"));
        vec![
            self.rotation(keys, full.as_ref(), theta, head_width),
            self.rotation(keys, of("sliding_attention").as_ref(), theta_of_windows, head_width),
        ]
    }

    fn rotation(
        &self,
        keys: &Keys,
        inner: Option<&Keys>,
        (theta, default): (Option<&str>, f64),
        head_width: usize,
    ) -> Rotation {
        let outer = theta.map_or(default, |theta| keys.number_or(theta, default));
        let theta = inner.map_or(outer, |inner| inner.number_or("rope_theta", outer));
        let period = self.rotated_columns(keys, inner, head_width);
        // Transformers rounds an odd number up, and rotates by its own frequencies.
        let width = period.next_multiple_of(2);
        let (scaling, query_growth) = match inner {
            Some(inner) => (self.scaling(inner, keys, width / 2), self.query_growth(inner, keys)),
            None => (RopeScaling::None, None),
        };
        Rotation { rope: Rope { theta, scaling }, width, period, neighbors: false, query_growth }
    }

    fn query_growth(&self, keys: &Keys, outer: &Keys) -> Option<QueryGrowth> {
        const KEY: &str = "llama_4_scaling_beta";
        let beta = keys.number_but_zero(KEY)?;
        if !self.query_growth {
            keys.not_computed(
                KEY,
                "queries that grow with their position in this family",
                "none (Ministral 3 has them)",
            );
            return None;
        }
        let most = outer.length_or("max_position_embeddings", self.positions);
        Some(QueryGrowth { beta, original: self.original(keys, outer, most) })
    }

    fn rotated_columns(&self, keys: &Keys, inner: Option<&Keys>, head_width: usize) -> usize {
        const KEY: &str = "partial_rotary_factor";
        let (outer, default) = self.share.unwrap_or((KEY, 1.0));
        let (key, share) = match inner.and_then(|inner| inner.number_if_any(KEY, None)) {
            Some(share) => (KEY, share),
            None => (outer, keys.number_or(outer, default)),
        };
        if self.share.is_none() && share != 1.0 {
            let found = format!("{key} = {share}");
            keys.fault(
                key,
                not_computed(&found, "a rotation of a part of each head in this family", "whole heads rotated"),
            );
            return head_width;
        }
        let rotated = (head_width as f64 * share) as usize;
        if share > 1.0 || rotated == 0 {
            if keys.are_right(&HEAD_WIDTH) {
                keys.unfit(
                    key,
                    format!(
                        "{key} = {share} of head_dim = {head_width} must be from 1 to {head_width} columns, not {rotated}"
                    ),
                );
            }
            return head_width;
        }
        rotated
    }

    /// The scaling of `count` frequencies.
    fn scaling(&self, keys: &Keys, outer: &Keys, count: usize) -> RopeScaling {
        // `type` is the name before Transformers 4.43; files saved again since then hold both.
        let (key, kind) = match keys.text("rope_type") {
            Some(kind) => ("rope_type", kind),
            None => ("type", keys.text("type").unwrap_or("default")),
        };
        let most = outer.length_or("max_position_embeddings", self.positions);
        match kind {
            // Phi-3's files first used these names.
            "su" | "yarn" if self.is_phi3 => self.long(keys, outer, count, most),
            "longrope" => self.long(keys, outer, count, most),
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: keys.number("factor") },
            "llama3" => RopeScaling::Llama3 {
                factor: keys.number("factor"),
                low_factor: keys.number("low_freq_factor"),
                high_factor: keys.number("high_freq_factor"),
                original: self.original(keys, outer, most),
            },
            "dynamic" => {
                // Its base grows by a power of d / (d - 2) for d columns.
                if count < 2 && keys.are_right(&HEAD_WIDTH) {
                    keys.unfit(key, format!("{key} \"dynamic\" divides by zero for two rotated columns"));
                }
                RopeScaling::Dynamic { factor: keys.number("factor"), original: most }
            }
            "yarn" => self.yarn(keys, outer, most),
            _ => {
                keys.not_computed(
                    key,
                    "this scaling of rotary positions",
                    "default, linear, dynamic, yarn, longrope or llama3",
                );
                RopeScaling::None
            }
        }
    }

    fn yarn(&self, keys: &Keys, outer: &Keys, most: usize) -> RopeScaling {
        let original = self.original(keys, outer, most);
        let factor = keys.number_or("factor", most as f64 / original);
        let of_paper = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        // In these two 0 counts as missing.
        let scales = (keys.number_but_zero("mscale"), keys.number_but_zero("mscale_all_dim"));
        let magnitude = match (keys.number_if_any("attention_factor", None), scales) {
            (Some(given), _) => given,
            (None, (Some(one), Some(all))) => of_paper(one) / of_paper(all),
            (None, _) => of_paper(1.0),
        };
        let fast = keys.number_or("beta_fast", 32.0);
        let slow = keys.number_or("beta_slow", 1.0);
        // Transformers does not read it if there is a set for each kind of block.
        let truncate = self.theta_of_windows.is_some() || keys.flag_or("truncate", true);
        RopeScaling::Yarn { factor, fast, slow, original, truncate, magnitude }
    }

    fn long(&self, keys: &Keys, outer: &Keys, count: usize, most: usize) -> RopeScaling {
        let divisors = |key: &str| {
            let divisors = keys.numbers(key, count);
            if divisors.len() != count && keys.are_right(&HEAD_WIDTH) {
                keys.unfit(key, format!("{key} has {} numbers, expected {count}", divisors.len()));
            }
            divisors
        };
        let original = self.original(keys, outer, most);
        let factor = keys.number_or("factor", most as f64 / original);
        let of_paper = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let magnitude = keys.number_or("attention_factor", of_paper);
        let (short, long) = (divisors("short_factor"), divisors("long_factor"));
        RopeScaling::Long { short, long, original: original as usize, magnitude }
    }

    /// The context length that the model was first trained with, in tokens: outside the set (Phi-3), in it, or `most`.
    fn original(&self, keys: &Keys, outer: &Keys, most: usize) -> f64 {
        const KEY: &str = "original_max_position_embeddings";
        let found = match outer.length_if_any(KEY, None) {
            None if self.is_phi3 => Some(4096),
            None => keys.length_if_any(KEY, None),
            found => found,
        };
        found.unwrap_or(most) as f64
    }
}
