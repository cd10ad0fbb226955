//! Reference log-probs on disk: two f32 per pair, under a key of all that they depend on.
//!
//! Not here: computing them (`evaluate/reference.rs`).

use crate::data::container::{Container, Contents, Tensor, hex, warn_unusable};
use crate::error::{Error, Result};
use crate::files::{self, fingerprint_parts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Changes whenever the numbers or their layout change.
const VERSION: &str = "haf-dist reference 2";

/// The file that keeps, for every pair of one prepared data set, the log-prob sums of both answers under the
/// starting model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceCache {
    path: PathBuf,
    key: u128,
}

impl ReferenceCache {
    /// Names the file: nothing is read or written yet.
    ///
    /// * `prepared`: [`PreparedData::key`](super::prepared::PreparedData::key), which covers text, template,
    ///   tokenizer and truncation.
    /// * `model`: fingerprint of the starting model's weights and config.
    /// * `dtype`: precision of the computation, as in `model.dtype` after `auto` is resolved.
    pub fn new(cache_dir: &Path, prepared: u128, model: u128, dtype: &str) -> Self {
        let parts = [&prepared.to_le_bytes()[..], &model.to_le_bytes(), dtype.as_bytes(), VERSION.as_bytes()];
        let key = fingerprint_parts(parts);
        Self { path: cache_dir.join(format!("reference-{}.safetensors", hex(key))), key }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `[chosen, rejected]` log-prob sums of `pairs` pairs, in their order, NaN for pairs that no run has needed yet;
    /// `None` if all must be computed: there is no file, or it is stale or damaged (which is logged as a warning).
    pub fn load(&self, pairs: usize) -> Option<Vec<[f32; 2]>> {
        self.read(pairs).unwrap_or_else(|why| {
            warn_unusable(&self.path, &why);
            None
        })
    }

    fn read(&self, pairs: usize) -> std::result::Result<Option<Vec<[f32; 2]>>, String> {
        let Some(container) = Container::open(&self.path, VERSION, self.key)? else { return Ok(None) };
        let (chosen, rejected) = (container.column("chosen")?, container.column("rejected")?);
        let (chosen, rejected) = (container.values(&chosen), container.values(&rejected));
        if chosen.len() != pairs || rejected.len() != pairs {
            return Err(format!("it holds {} pairs, not {pairs}", chosen.len()));
        }
        Ok(Some(chosen.iter().zip(rejected).map(|(&chosen, &rejected)| [chosen, rejected]).collect()))
    }

    /// Writes the file atomically, and replaces any other with this key. Two NaNs stand for a pair that is not computed.
    ///
    /// # Errors
    /// A computed value that is not finite (it would poison every later run), or a folder that cannot be written to.
    pub fn store(&self, log_probs: &[[f32; 2]]) -> Result<()> {
        let sound = |sums: &[f32; 2]| sums.iter().all(|sum| sum.is_finite()) || sums.iter().all(|sum| sum.is_nan());
        if let Some(pair) = log_probs.iter().position(|sums| !sound(sums)) {
            let [chosen, rejected] = log_probs[pair];
            return Err(Error::runtime(format!(
                "the reference log-probs of pair {pair} are {chosen} (chosen) and {rejected} (rejected): finite numbers were expected"
            ))
            .hint("check the model's weights; try model.dtype = \"f32\""));
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        files::make_writable_folder(folder).map_err(|error| error.at("data.cache_dir").hint(CACHE_DIR_HINT))?;
        let [chosen, rejected] = [0, 1].map(|answer| log_probs.iter().map(|sums| sums[answer]).collect::<Vec<f32>>());
        let tensors = BTreeMap::from([("chosen", Tensor::of(&chosen)), ("rejected", Tensor::of(&rejected))]);
        Contents { tensors, texts: BTreeMap::new() }.save(&self.path, VERSION, self.key)
    }
}

/// Hint for a cache folder that cannot be written.
pub(super) const CACHE_DIR_HINT: &str = "set data.cache_dir to a folder that you may write to";

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [[f32; 2]; 3] = [[-1.5, -2.25], [0.0, -1e-8], [-1234.567, -3.0]];

    #[test]
    fn stored_log_probs_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ReferenceCache::new(&folder.path().join("new/folder"), 1, 2, "f32");
        assert_eq!(cache.load(3), None);
        cache.store(&VALUES).unwrap();
        assert_eq!(cache.load(3), Some(VALUES.to_vec()));
    }

    #[test]
    fn another_data_set_model_or_precision_finds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        ReferenceCache::new(folder.path(), 1, 2, "f32").store(&VALUES).unwrap();
        for (prepared, model, dtype) in [(9, 2, "f32"), (1, 9, "f32"), (1, 2, "bf16")] {
            assert_eq!(ReferenceCache::new(folder.path(), prepared, model, dtype).load(3), None);
        }
    }

    #[test]
    fn a_cut_damaged_renamed_or_outgrown_file_is_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ReferenceCache::new(folder.path(), 1, 2, "f32");
        cache.store(&VALUES).unwrap();
        assert_eq!(cache.load(4), None, "another number of pairs");
        let whole = std::fs::read(cache.path()).unwrap();

        for length in [0, 4, 60, whole.len() - 1] {
            std::fs::write(cache.path(), &whole[..length]).unwrap();
            assert_eq!(cache.load(3), None, "cut to {length} bytes");
        }
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(cache.path(), damaged).unwrap();
        assert_eq!(cache.load(3), None, "one bit differs");

        let other = ReferenceCache::new(folder.path(), 5, 2, "f32");
        std::fs::write(other.path(), &whole).unwrap();
        assert_eq!(other.load(3), None, "a file made for another key");

        cache.store(&VALUES).unwrap();
        assert_eq!(cache.load(3), Some(VALUES.to_vec()), "a damaged file can be replaced");
    }

    #[test]
    fn a_log_prob_that_is_not_finite_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ReferenceCache::new(folder.path(), 1, 2, "f32");
        let error = cache.store(&[[0.0, 0.0], [0.0, f32::NAN]]).unwrap_err();
        assert!(error.message.contains("pair 1"), "{error}");
        assert!(!cache.path().exists());
    }
}
