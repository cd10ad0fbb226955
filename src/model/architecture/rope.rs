//! Rotary positions of a `config.json`, in the spelling of Transformers 4 or 5.
//!
//! Not here: the frequencies that follow from them (`model/rope.rs`).

use super::keys::Keys;
use super::{Rope, RopeScaling, Rotation};
use crate::error::{Error, Result};

/// What a family's rotary keys are called outside `rope_parameters`, and what they are where they are missing.
pub struct RopeKeys {
    /// The base of the frequencies.
    pub theta: &'static str,
    /// The share of a head that is rotated; none in families that rotate whole heads.
    pub share: Option<(&'static str, f64)>,
}

impl RopeKeys {
    /// Whole heads, under the usual key.
    pub const WHOLE_HEADS: Self = Self { theta: "rope_theta", share: None };

    /// The rotary embedding of heads of that width.
    ///
    /// # Errors
    /// A scaling that is not known, or an impossible value.
    pub fn read(&self, keys: &Keys, head_width: usize) -> Result<Rotation> {
        // With both, as in Transformers, the older one counts.
        let inner = match keys.object("rope_scaling")? {
            Some(found) => Some(found),
            None => keys.object("rope_parameters")?,
        };
        if inner.as_ref().is_some_and(Keys::has_objects) {
            return Err(Error::input("rope_parameters: other rotary positions for other blocks are not known")
                .hint("one set of rope_theta, rope_type ... for all blocks was expected"));
        }
        let outer = keys.number_or(self.theta, 10_000.0)?;
        let theta = inner.as_ref().map_or(Ok(outer), |inner| inner.number_or("rope_theta", outer))?;
        let scaling = inner.as_ref().map_or(Ok(RopeScaling::None), |inner| {
            scaling(inner, keys).map_err(|error| error.at("rotary positions"))
        })?;
        let width = self.rotated_width(keys, inner.as_ref(), head_width)?;
        Ok(Rotation { rope: Rope { theta, scaling }, width })
    }

    fn rotated_width(&self, keys: &Keys, inner: Option<&Keys>, head_width: usize) -> Result<usize> {
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
        if share > 1.0 || rotated == 0 || !rotated.is_multiple_of(2) {
            return Err(Error::input(format!(
                "{key} = {share} of head_dim = {head_width} must be an even number of columns above 0, not {rotated}"
            )));
        }
        Ok(rotated)
    }
}

fn scaling(keys: &Keys, outer: &Keys) -> Result<RopeScaling> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    // `type` is the name before Transformers 4.43; files saved again since then hold both.
    let kind = match keys.text("rope_type")? {
        Some(kind) => Some(kind),
        None => keys.text("type")?,
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: keys.number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: keys.number("factor")?,
            low_factor: keys.number("low_freq_factor")?,
            high_factor: keys.number("high_freq_factor")?,
            original: match (outer.number_if_any(ORIGINAL, None)?, keys.number_if_any(ORIGINAL, None)?) {
                (Some(original), _) | (None, Some(original)) => original,
                (None, None) => outer.number("max_position_embeddings")?,
            },
        }),
        other => Err(Error::input(format!("rope_type \"{other}\" is not known"))
            .hint("known: default, linear, llama3; a model's variant for short contexts often has none of the others")),
    }
}
