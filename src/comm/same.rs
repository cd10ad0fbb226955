//! Compares facts that must be the same on all ranks: any difference is one error that names it.
//!
//! Not here: which facts must be the same, and when (`commands/alike.rs`).

use super::CommThread;
use super::watch::listed;
use crate::error::{Error, Result};
use crate::files::fingerprint_parts;
use crate::tensor::slice;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;

/// A name, as a user knows it, and a value, as a user writes it.
pub(crate) type Fact = (String, String);

/// Most differences shown.
const SHOWN: usize = 6;
/// Most characters shown of a value.
const LONGEST: usize = 80;

/// Ranks with the same facts.
struct Group {
    ranks: Vec<usize>,
    facts: BTreeMap<String, String>,
}

impl CommThread {
    /// Checks that these facts are the same on every rank, by one small collective if they are.
    ///
    /// # Errors
    /// An input error, the same on every rank: which facts differ, and on which ranks.
    #[track_caller]
    pub fn same(&self, facts: &[Fact]) -> Result<()> {
        let parts = facts.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        let digest = fingerprint_parts(parts);
        let mut all = Tensor::from_slice(&[digest as i64, (digest >> 64) as i64].repeat(self.world_size()));
        self.all_gather_blocking(&mut all)?;
        let all = slice::<i64>(&all)?;
        let (digests, _) = all.as_chunks::<2>();
        if digests.iter().all(|other| *other == digests[0]) {
            return Ok(());
        }
        let mut groups: BTreeMap<usize, Group> = BTreeMap::new();
        let own = serde_json::to_vec(facts).map_err(|error| Error::runtime(format!("facts as JSON: {error}")))?;
        let lengths = self.gather_number(own.len() as i64)?;
        for (rank, digest) in digests.iter().enumerate() {
            let first = digests.iter().position(|other| other == digest).unwrap_or(rank);
            if first == rank {
                let text = self.bytes_from(rank, &own, lengths[rank] as usize)?;
                let facts: Vec<Fact> = serde_json::from_slice(&text)
                    .map_err(|error| Error::runtime(format!("rank {rank}'s facts did not arrive whole: {error}")))?;
                groups.insert(rank, Group { ranks: Vec::new(), facts: facts.into_iter().collect() });
            }
            if let Some(group) = groups.get_mut(&first) {
                group.ranks.push(rank);
            }
        }
        let groups: Vec<_> = groups.into_values().collect();
        Err(Error::input(format!("ranks differ: {}", differences(&groups)))
            .hint("start every rank with the same program, command, config and files"))
    }
}

/// `loss.beta is 0.1 on rank 0 and 0.5 on rank 1; ...`
fn differences(groups: &[Group]) -> String {
    let names: BTreeSet<&String> = groups.iter().flat_map(|group| group.facts.keys()).collect();
    let mut differences = Vec::new();
    for name in names {
        // Value -> ranks, in the order of their first ranks.
        let mut values: Vec<(Option<&String>, Vec<usize>)> = Vec::new();
        for group in groups {
            let value = group.facts.get(name);
            match values.iter_mut().find(|(known, _)| *known == value) {
                Some((_, ranks)) => ranks.extend(&group.ranks),
                None => values.push((value, group.ranks.clone())),
            }
        }
        if values.len() > 1 {
            let values = values.iter().map(|(value, ranks)| {
                let value = value.map_or_else(|| "not set".to_owned(), |value| abbreviated(value));
                let mut ranks = ranks.clone();
                ranks.sort_unstable();
                format!("{value} on {}", listed(&ranks))
            });
            differences.push(format!("{name} is {}", values.collect::<Vec<_>>().join(" and ")));
        }
    }
    let more = differences.len().saturating_sub(SHOWN);
    differences.truncate(SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    differences.join("; ") + &more
}

fn abbreviated(value: &str) -> String {
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

/// [`leaves`], unless their names have more than `most` bytes together: each repeats all keys above it.
pub(crate) fn leaves_within(name: &str, value: &Value, most: usize) -> Option<Vec<Fact>> {
    (bytes_of_names(name.len(), value) <= most).then(|| leaves(name, value))
}

/// At least the bytes of the names that [`leaves`] gives, below a name with `above` bytes.
fn bytes_of_names(above: usize, value: &Value) -> usize {
    let longest_index = 20;
    let below: &mut dyn Iterator<Item = (usize, &Value)> = match value {
        Value::Object(keys) if !keys.is_empty() => &mut keys.iter().map(|(key, value)| (key.len(), value)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            &mut items.iter().map(|value| (longest_index, value))
        }
        _ => return above,
    };
    below.fold(0, |sum, (own, value)| sum.saturating_add(bytes_of_names(above + 1 + own, value)))
}

/// Every value of a JSON tree, named by its path below `name`: `name.table.key`.
pub(crate) fn leaves(name: &str, value: &Value) -> Vec<Fact> {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(keys) if !keys.is_empty() => {
            keys.iter().flat_map(|(key, value)| leaves(&below(key), value)).collect()
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().flat_map(|(index, value)| leaves(&below(&index.to_string()), value)).collect()
        }
        leaf => vec![(name.to_owned(), leaf.to_string())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn group(ranks: &[usize], facts: Value) -> Group {
        Group { ranks: ranks.to_vec(), facts: leaves("", &facts).into_iter().collect() }
    }

    #[test]
    fn differences_are_named_with_their_ranks() {
        let groups = [
            group(&[0, 2], json!({"loss": {"beta": 0.1, "alpha": 1}, "train": {"steps": 5}})),
            group(&[1], json!({"loss": {"beta": 0.5, "alpha": 1}})),
            group(&[3], json!({"loss": {"beta": 0.1, "alpha": 1}})),
        ];
        assert_eq!(
            differences(&groups),
            "loss.beta is 0.1 on ranks 0, 2 and 3 and 0.5 on rank 1; \
             train.steps is 5 on ranks 0 and 2 and not set on ranks 1 and 3"
        );
    }

    #[test]
    fn a_small_file_does_not_become_names_of_gigabytes() {
        let tree = json!({"k".repeat(1000): vec![json!({"a": 1}); 100], "b": [1, 2]});
        let names: usize = leaves("config.json:", &tree).iter().map(|(name, _)| name.len()).sum();
        assert!(names > 100_000 && bytes_of_names("config.json:".len(), &tree) >= names);
        assert_eq!(leaves_within("config.json:", &tree, 1 << 20).unwrap().len(), 101);
        let wide = json!({"k".repeat(1_000_000): vec![json!({"a": 1}); 100_000]});
        assert!(leaves_within("config.json:", &wide, 1 << 20).is_none());
    }

    #[test]
    fn many_and_long_differences_are_cut() {
        let facts = |value: &str| (0..9).map(|index| (format!("key-{index}"), value.repeat(100))).collect();
        let groups = [Group { ranks: vec![0], facts: facts("a") }, Group { ranks: vec![1], facts: facts("b") }];
        let text = differences(&groups);
        assert!(text.ends_with("; and 3 more") && text.contains(&format!("{}... on rank 1", "b".repeat(80))), "{text}");
    }

    #[test]
    fn a_tree_is_read_to_its_leaves() {
        let tree = json!({"a": [{"b": 1}, {"b": null}], "c": [1, 2], "d": {}, "e": "x"});
        let expected = [("a.0.b", "1"), ("a.1.b", "null"), ("c", "[1,2]"), ("d", "{}"), ("e", "\"x\"")];
        assert_eq!(leaves("", &tree), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
