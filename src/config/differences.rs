//! The differences between two configs, key by key; and the keys that must be equal on all ranks.

use super::Config;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use toml::Value;

/// Keys that may differ between ranks, and why. Every other key is compared, including new ones.
pub(crate) const MAY_DIFFER: [(&str, &str); 2] = [
    ("data.cache_dir", "a node may keep its cache on its own disk; the content is compared"),
    ("parallel.threads", "nodes may have different processors; a rank's share of a sum is the same up to rounding"),
];

/// A key with different values in two configs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    /// The key with its table, and its index in a list: `data.train.0.weight`.
    pub(crate) key: String,
    then: Option<Value>,
    now: Option<Value>,
}

impl Difference {
    /// The first config's value, as TOML writes it.
    pub(crate) fn then(&self) -> String {
        text(self.then.as_ref())
    }
}

/// `checkpoint.every: 5 -> 2`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, text(self.then.as_ref()), text(self.now.as_ref()))
    }
}

fn text(value: Option<&Value>) -> String {
    value.map_or_else(|| "not set".to_owned(), Value::to_string)
}

impl Config {
    /// Every key whose value differs in `now`, in alphabetical order.
    ///
    /// # Errors
    /// A value that TOML cannot hold; a loaded config has none.
    pub(crate) fn differences(&self, now: &Self) -> Result<Vec<Difference>> {
        let (then, mut now) = (self.leaves()?, now.leaves()?);
        let mut found = BTreeMap::new();
        for (key, value) in then {
            let other = now.remove(&key);
            if other.as_ref() != Some(&value) {
                found.insert(key, (Some(value), other));
            }
        }
        found.extend(now.into_iter().map(|(key, value)| (key, (None, Some(value)))));
        Ok(found.into_iter().map(|(key, (then, now))| Difference { key, then, now }).collect())
    }

    /// Every key with its value as text, except those that may differ between ranks (`MAY_DIFFER`).
    ///
    /// # Errors
    /// As [`differences`](Self::differences).
    pub(crate) fn in_common(&self) -> Result<Vec<(String, String)>> {
        let compared = |key: &str| MAY_DIFFER.iter().all(|(excluded, _)| *excluded != key);
        let leaves = self.leaves()?.into_iter().filter(|(key, _)| compared(key));
        Ok(leaves.map(|(key, value)| (key, value.to_string())).collect())
    }

    fn leaves(&self) -> Result<BTreeMap<String, Value>> {
        fn walk(value: Value, key: String, into: &mut BTreeMap<String, Value>) {
            let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
            match value {
                Value::Table(table) if !table.is_empty() => {
                    table.into_iter().for_each(|(name, value)| walk(value, below(&name), into))
                }
                Value::Array(rows) if rows.iter().any(Value::is_table) => {
                    rows.into_iter().enumerate().for_each(|(index, row)| walk(row, below(&index.to_string()), into));
                }
                leaf => {
                    into.insert(key, leaf);
                }
            }
        }
        let failed = |error| Error::runtime(format!("cannot write the config as TOML: {error}"));
        let mut leaves = BTreeMap::new();
        walk(Value::try_from(self).map_err(failed)?, String::new(), &mut leaves);
        Ok(leaves)
    }
}

/// Several differences on one line.
pub(crate) fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a key that can change a number or the order of collectives is compared between ranks. So is every new key,
    /// unless it is listed here and in `MAY_DIFFER` with a reason.
    #[test]
    fn every_key_is_compared_between_ranks_but_for_those_with_a_reason() {
        let complete: Config = super::super::keys::tree().try_into().unwrap();
        let compared: Vec<String> = complete.in_common().unwrap().into_iter().map(|(key, _)| key).collect();
        // A list of values is one key here, and its first element there.
        let known = super::super::known_keys().into_iter().map(|key| key.trim_end_matches(".0").to_owned());
        let missing: Vec<String> = known.filter(|key| !compared.contains(key)).collect();
        assert_eq!(missing, ["data.cache_dir", "parallel.threads"]);
        assert!(MAY_DIFFER.iter().zip(&missing).all(|((key, why), missing)| key == missing && !why.is_empty()));
    }

    #[test]
    fn every_difference_is_named_with_its_table() {
        let config = |keys: &str| {
            let text = format!("model.path = 'm'\ndata.train = [{{ path = 'p' }}]\noutput.dir = 'r'\n{keys}");
            Config::parse("test", &text, &[]).unwrap()
        };
        let then = config("eval.every = 5\ntrain.steps = 9\nloss.alpha = 0.5");
        assert_eq!(then.differences(&then).unwrap(), []);
        let now = config("checkpoint.every = 2\neval.every = 5\ntrain.epochs = 1\nlora.targets = ['a']");
        let text = listed(&then.differences(&now).unwrap());
        for expected in [
            "checkpoint.every: 50 -> 2",
            "loss.alpha: 0.5 -> 0.2",
            "train.steps: 9 -> not set",
            "train.epochs: not set -> 1",
            "lora.targets: not set -> [\"a\"]",
        ] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!text.contains("eval.every"), "{text}");
    }
}
