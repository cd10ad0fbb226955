//! Rotary positions of a `config.json`, in the spelling of Transformers 4 or 5.
//!
//! Not here: the frequencies that follow from them (`model/rope.rs`).

use super::keys::Keys;
use super::{Rope, RopeScaling, Rotation};
use crate::error::{Error, Result};

/// Where errors are.
const PLACE: &str = "rotary positions";

/// What a family's rotary keys are called outside `rope_parameters`, and what they are where they are missing.
pub struct RopeKeys {
    /// The key of the base of the frequencies, and its default.
    pub theta: (&'static str, f64),
    /// The share of a head that is rotated; none in families that rotate whole heads.
    pub share: Option<(&'static str, f64)>,
    /// The same as `theta` for blocks with a window, in families where these have a rotation of their own.
    pub theta_of_windows: Option<(&'static str, f64)>,
}

impl RopeKeys {
    /// Whole heads, under the usual key.
    pub const WHOLE_HEADS: Self = Self { theta: ("rope_theta", 10_000.0), share: None, theta_of_windows: None };

    /// The rotary embeddings of heads of that width: one, or that of blocks without and that of blocks with a window.
    ///
    /// # Errors
    /// A scaling that is not known, or an impossible value.
    pub fn read(&self, keys: &Keys, head_width: usize) -> Result<Vec<Rotation>> {
        let (old, new) = (keys.object("rope_scaling")?, keys.object("rope_parameters")?);
        let Some(theta_of_windows) = self.theta_of_windows else {
            // With both, as in Transformers, the older one counts.
            let inner = old.or(new);
            if inner.as_ref().is_some_and(Keys::has_objects) {
                return Err(Error::input("rope_parameters: this family has one rotation for all blocks")
                    .hint("one set of rope_theta, rope_type ... was expected"));
            }
            return Ok(vec![self.rotation(keys, inner.as_ref(), self.theta, head_width)?]);
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
            self.rotation(keys, full.as_ref(), self.theta, head_width)?,
            self.rotation(keys, of("sliding_attention")?.as_ref(), theta_of_windows, head_width)?,
        ])
    }

    fn rotation(
        &self,
        keys: &Keys,
        inner: Option<&Keys>,
        (theta, default): (&str, f64),
        head_width: usize,
    ) -> Result<Rotation> {
        let outer = keys.number_or(theta, default)?;
        let theta = inner.map_or(Ok(outer), |inner| inner.number_or("rope_theta", outer))?;
        let scaling =
            inner.map_or(Ok(RopeScaling::None), |inner| scaling(inner, keys).map_err(|error| error.at(PLACE)))?;
        let width = self.rotated_width(keys, inner, head_width)?;
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
        other => {
            let hint =
                "known: default, linear, llama3; a model's variant for short contexts often has none of the others";
            keys.fault(Error::input(format!("rope_type \"{other}\" is not known")).at(PLACE).hint(hint));
            Ok(RopeScaling::None)
        }
    }
}
