//! Rotary positions of a `config.json`, in the spelling of Transformers 4 or 5.
//!
//! Not here: the frequencies that follow from them (`model/rope.rs`).

use super::keys::Keys;
use super::{QueryGrowth, Rope, RopeScaling, Rotation};
use crate::error::{Error, Result};

/// Where errors are.
const PLACE: &str = "rotary positions";

/// What a family's rotary keys are called outside `rope_parameters`, and what they are where they are missing.
pub struct RopeKeys {
    /// The key of the base of the frequencies, and its default.
    pub theta: (&'static str, f64),
    /// The share of a head that is rotated; none in families that rotate whole heads.
    pub share: Option<(&'static str, f64)>,
    /// The same as `theta` for blocks with a window, in families where these have a rotation of their own; without a key the
    /// default is all that stands outside.
    pub theta_of_windows: Option<(Option<&'static str>, f64)>,
    /// Tokens that the family is made for where no key says so.
    pub positions: usize,
    /// Whether it has Phi-3's names and defaults for LongRoPE.
    pub is_phi3: bool,
    /// Whether queries may grow with their position.
    pub query_growth: bool,
}

impl RopeKeys {
    /// Whole heads, under the usual key.
    pub const WHOLE_HEADS: Self = Self {
        theta: ("rope_theta", 10_000.0),
        share: None,
        theta_of_windows: None,
        positions: 2048,
        is_phi3: false,
        query_growth: false,
    };

    /// The rotary embeddings of heads of that width: one, or that of blocks without and that of blocks with a window.
    ///
    /// # Errors
    /// A scaling that is not known, or an impossible value.
    pub fn read(&self, keys: &Keys, head_width: usize) -> Result<Vec<Rotation>> {
        // An empty object says nothing, as in Transformers.
        let old = keys.object("rope_scaling")?.filter(|old| !old.is_empty());
        let new = keys.object("rope_parameters")?;
        let theta = (Some(self.theta.0), self.theta.1);
        let Some(theta_of_windows) = self.theta_of_windows else {
            // With both, as in Transformers, the older one counts.
            let inner = old.or(new);
            if inner.as_ref().is_some_and(Keys::has_objects) {
                return Err(Error::input("rope_parameters: this family has one rotation for all blocks")
                    .hint("one set of rope_theta, rope_type ... was expected"));
            }
            return Ok(vec![self.rotation(keys, inner.as_ref(), theta, head_width)?]);
        };
        if new.as_ref().is_some_and(|new| !new.has_objects()) {
            return Err(Error::input("rope_parameters: this family has two rotations").hint(
                "expected \"full_attention\" and \"sliding_attention\" in it, each with rope_theta, rope_type ...",
            ));
        }
        let of = |kind: &str| new.as_ref().map_or(Ok(None), |new| new.object(kind));
        // The older keys scale blocks without a window only.
        let full = old.or(of("full_attention")?);
        Ok(vec![
            self.rotation(keys, full.as_ref(), theta, head_width)?,
            self.rotation(keys, of("sliding_attention")?.as_ref(), theta_of_windows, head_width)?,
        ])
    }

    fn rotation(
        &self,
        keys: &Keys,
        inner: Option<&Keys>,
        (theta, default): (Option<&str>, f64),
        head_width: usize,
    ) -> Result<Rotation> {
        let outer = theta.map_or(Ok(default), |theta| keys.number_or(theta, default))?;
        let theta = inner.map_or(Ok(outer), |inner| inner.number_or("rope_theta", outer))?;
        let period = self.rotated_columns(keys, inner, head_width)?;
        // Transformers rounds an odd number up, and rotates by its own frequencies.
        let width = period.next_multiple_of(2);
        let Some(inner) = inner else {
            return Ok(Rotation {
                rope: Rope { theta, scaling: RopeScaling::None },
                width,
                period,
                neighbours: false,
                query_growth: None,
            });
        };
        let scaling = self.scaling(inner, keys, width / 2).map_err(|error| error.at(PLACE))?;
        let query_growth = match inner.number_if_any("llama_4_scaling_beta", None)? {
            Some(beta) if self.query_growth => {
                let most = keys.length_if_any("max_position_embeddings", None)?.unwrap_or(self.positions);
                Some(QueryGrowth { beta, original: self.original(inner, keys, most)? })
            }
            Some(_) => {
                let known = "only Ministral 3 is known to scale queries by their position";
                keys.fault(Error::input("llama_4_scaling_beta: this family has no such key").at(PLACE).hint(known));
                None
            }
            None => None,
        };
        Ok(Rotation { rope: Rope { theta, scaling }, width, period, neighbours: false, query_growth })
    }

    fn rotated_columns(&self, keys: &Keys, inner: Option<&Keys>, head_width: usize) -> Result<usize> {
        const KEY: &str = "partial_rotary_factor";
        let (outer, default) = self.share.unwrap_or((KEY, 1.0));
        let inner = inner.map_or(Ok(None), |inner| inner.number_if_any(KEY, None))?;
        let (key, share) = match inner {
            Some(share) => (KEY, share),
            None => (outer, keys.number_or(outer, default)?),
        };
        if self.share.is_none() && share != 1.0 {
            return Err(Error::input(format!("{key} = {share}: this family rotates whole heads")));
        }
        let rotated = (head_width as f64 * share) as usize;
        if share > 1.0 || rotated == 0 {
            return Err(Error::input(format!(
                "{key} = {share} of head_dim = {head_width} must be from 1 to {head_width} columns, not {rotated}"
            )));
        }
        Ok(rotated)
    }

    /// `count` frequencies.
    fn scaling(&self, keys: &Keys, outer: &Keys, count: usize) -> Result<RopeScaling> {
        // `type` is the name before Transformers 4.43; files saved again since then hold both.
        let kind = match keys.text("rope_type")? {
            Some(kind) => Some(kind),
            None => keys.text("type")?,
        };
        let most = outer.length_if_any("max_position_embeddings", None)?.unwrap_or(self.positions);
        match kind.unwrap_or("default") {
            // What Phi-3's files called it first.
            "su" | "yarn" if self.is_phi3 => self.long(keys, outer, count, most),
            "longrope" => self.long(keys, outer, count, most),
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: keys.number("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: keys.number("factor")?,
                low_factor: keys.number("low_freq_factor")?,
                high_factor: keys.number("high_freq_factor")?,
                original: self.original(keys, outer, most)?,
            }),
            // Its base grows by a power of d / (d - 2) for d columns.
            "dynamic" if count < 2 => {
                Err(Error::input("rope_type \"dynamic\" divides by zero for two rotated columns"))
            }
            "dynamic" => Ok(RopeScaling::Dynamic { factor: keys.number("factor")?, original: most }),
            "yarn" => {
                let original = self.original(keys, outer, most)?;
                let factor = keys.number_if_any("factor", None)?.unwrap_or(most as f64 / original);
                let of_paper = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                let scales = (keys.number_if_any("mscale", None)?, keys.number_if_any("mscale_all_dim", None)?);
                let magnitude = match (keys.number_if_any("attention_factor", None)?, scales) {
                    (Some(given), _) => given,
                    (None, (Some(one), Some(all))) => of_paper(one) / of_paper(all),
                    (None, _) => of_paper(1.0),
                };
                let fast = keys.number_or("beta_fast", 32.0)?;
                let slow = keys.number_or("beta_slow", 1.0)?;
                // Transformers does not look for it in sets by kind of block.
                let truncate = self.theta_of_windows.is_some() || keys.flag_or("truncate", true)?;
                Ok(RopeScaling::Yarn { factor, fast, slow, original, truncate, magnitude })
            }
            other => {
                keys.fault(
                    Error::input(format!("rope_type \"{other}\" is not known"))
                        .at(PLACE)
                        .hint("known: default, linear, dynamic, yarn, longrope, llama3"),
                );
                Ok(RopeScaling::None)
            }
        }
    }

    fn long(&self, keys: &Keys, outer: &Keys, count: usize, most: usize) -> Result<RopeScaling> {
        let divisors = |key: &str| {
            let divisors = keys.numbers(key)?.ok_or_else(|| Error::input(format!("{key} is missing")))?;
            match divisors.len() == count {
                true => Ok(divisors),
                false => Err(Error::input(format!("{key} has {} numbers, expected {count}", divisors.len()))),
            }
        };
        let original = self.original(keys, outer, most)?;
        let factor = keys.number_if_any("factor", None)?.unwrap_or(most as f64 / original);
        let of_paper = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let magnitude = keys.number_or("attention_factor", of_paper)?;
        Ok(RopeScaling::Long {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original: original as usize,
            magnitude,
        })
    }

    /// The length that the model was first trained with, in tokens: beside the set (Phi-3), in it, or the longest.
    fn original(&self, keys: &Keys, outer: &Keys, most: usize) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        let found = match outer.length_if_any(KEY, None)? {
            None if self.is_phi3 => Some(4096),
            None => keys.length_if_any(KEY, None)?,
            found => found,
        };
        Ok(found.unwrap_or(most) as f64)
    }
}
