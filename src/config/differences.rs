//! What two configs say differently, key by key.

use super::Config;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use toml::Value;

/// A key that two configs set otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The key with its table, and its place in a list: `data.train.0.weight`.
    pub key: String,
    then: Option<Value>,
    now: Option<Value>,
}

/// `checkpoint.every: 5 -> 2`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| value.as_ref().map_or_else(|| "not set".to_owned(), Value::to_string);
        write!(f, "{}: {} -> {}", self.key, text(&self.then), text(&self.now))
    }
}

impl Config {
    /// Every key whose value is another one in `now`, in alphabetical order.
    ///
    /// # Errors
    /// A value that TOML cannot hold; a loaded config has none.
    pub fn differences(&self, now: &Self) -> Result<Vec<Difference>> {
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

    fn leaves(&self) -> Result<BTreeMap<String, Value>> {
        fn walk(value: Value, key: String, into: &mut BTreeMap<String, Value>) {
            let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
            match value {
                Value::Table(table) => table.into_iter().for_each(|(name, value)| walk(value, below(&name), into)),
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
pub fn listed(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named_with_its_table() {
        let config = |keys: &str| {
            let text = format!("model.path = 'm'\ndata.train = [{{ path = 'p' }}]\noutput.dir = 'r'\n{keys}");
            Config::parse("test", &text, &[]).unwrap()
        };
        let then = config("eval.every = 5\ntrain.steps = 9\nloss.alpha = 0.5");
        assert_eq!(then.differences(&then).unwrap(), []);
        let now = config("checkpoint.every = 2\neval.every = 5\ntrain.epochs = 1\nlora.targets = ['a']");
        let told = listed(&then.differences(&now).unwrap());
        for expected in [
            "checkpoint.every: 50 -> 2",
            "loss.alpha: 0.5 -> 0.2",
            "train.steps: 9 -> not set",
            "train.epochs: not set -> 1",
            "lora.targets: not set -> [\"a\"]",
        ] {
            assert!(told.contains(expected), "{told}");
        }
        assert!(!told.contains("eval.every"), "{told}");
    }
}
