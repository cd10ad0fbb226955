//! The tree of keys a config file may hold, and the known key nearest to a mistyped one.
//!
//! The tree is read off a serialized [`Config`], so that it cannot drift from the structs. Not here: ranges.

use super::*;
use toml::Value;

/// Every key as a dotted path, sources under index 0: `model.path`, `data.train.0.path`, `loss.alpha`.
pub fn known_keys() -> Vec<String> {
    let mut keys = Vec::new();
    leaves(&tree(), "", &mut keys);
    keys
}

fn leaves(node: &Value, path: &str, keys: &mut Vec<String>) {
    match node {
        Value::Table(table) if !table.is_empty() => {
            table.iter().for_each(|(key, value)| leaves(value, &join(path, key), keys))
        }
        Value::Array(rows) => rows.iter().take(1).for_each(|row| leaves(row, &join(path, "0"), keys)),
        _ => keys.push(path.to_string()),
    }
}

/// The tree of keys: a config in which every optional key is present. Leaves have the type of their key.
pub(super) fn tree() -> Value {
    let source = || Source { domain: Some(String::from("domain")), ..Source::new("file") };
    let complete = Config {
        model: ModelConfig { path: "folder".into(), dtype: Dtype::Auto },
        data: DataConfig {
            train: vec![source()],
            dev: vec![source()],
            test: vec![source()],
            template: TemplateKind::Chat,
            max_length: defaults::max_length(),
            max_prompt_length: defaults::max_prompt_length(),
            shuffle: true,
            seed: 0,
            truncation: Truncation::Cut,
            strict: false,
            ties: Ties::Drop,
            reward_at: RewardAt::Eos,
            max_row_bytes: defaults::max_row_bytes(),
            cache_dir: defaults::cache_dir(),
        },
        loss: LossConfig::default(),
        train: TrainConfig { epochs: Some(1), steps: Some(1), ..TrainConfig::default() },
        lora: Some(LoraConfig {
            rank: defaults::lora_rank(),
            alpha: defaults::lora_alpha(),
            targets: vec![String::from("q_proj")],
            seed: 0,
            use_rslora: false,
            base: Some("folder".into()),
        }),
        parallel: ParallelConfig::default(),
        eval: EvalConfig::default(),
        checkpoint: CheckpointConfig::default(),
        output: OutputConfig { dir: "folder".into() },
    };
    // Only a map key that is not a string could fail here; the structs have none, and a test checks that every key exists.
    Value::try_from(complete).unwrap_or_else(|_| Value::Table(toml::Table::new()))
}

/// Stands for the value of any key in a table with free keys, such as `columns`.
static ANY: Value = Value::String(String::new());

/// The node at `path`; a number stands for any element of an array. In a table without known keys, every key exists and
/// holds a text.
pub(super) fn find<'t>(tree: &'t Value, path: &[String]) -> Option<&'t Value> {
    path.iter().try_fold(tree, |node, key| match node {
        Value::Table(table) if table.is_empty() => Some(&ANY),
        Value::Table(table) => table.get(key),
        Value::Array(rows) => key.parse::<usize>().ok().and_then(|_| rows.first()),
        _ => None,
    })
}

/// The first key of `value` that the tree does not have, as a path. Types are not compared.
pub(super) fn first_unknown(value: &Value, tree: &Value) -> Option<Vec<String>> {
    let below = |key: String, value, tree| {
        first_unknown(value, tree).map(|mut path| {
            path.insert(0, key);
            path
        })
    };
    match (value, tree) {
        (Value::Table(values), Value::Table(known)) if !known.is_empty() => {
            values.iter().find_map(|(key, value)| match known.get(key) {
                Some(tree) => below(key.clone(), value, tree),
                None => Some(vec![key.clone()]),
            })
        }
        (Value::Array(values), Value::Array(known)) => {
            let known = known.first()?;
            values.iter().enumerate().find_map(|(index, value)| below(index.to_string(), value, known))
        }
        _ => None,
    }
}

/// The message about an unknown key, with the keys that its table knows.
pub(super) fn unknown_key(path: &[String], tree: &Value) -> String {
    let above = &path[..path.len().saturating_sub(1)];
    let key = path.join(".");
    match find(tree, above) {
        Some(Value::Table(known)) if above.is_empty() => {
            format!("unknown table or key `{key}`; expected one of the tables {}", list(known.keys()))
        }
        Some(Value::Table(known)) => {
            format!("unknown key `{key}`; expected one of {}", list(known.keys()))
        }
        Some(Value::Array(_)) => format!("unknown key `{key}`; expected a number from 0 after `{}`", above.join(".")),
        _ => format!("unknown key `{key}`"),
    }
}

fn list<'k>(keys: impl Iterator<Item = &'k String>) -> String {
    keys.map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// The hint for an unknown key.
pub(super) fn unknown_key_hint(path: &[String], tree: &Value) -> String {
    let near = || nearest_key(path, tree).map(|nearest| format!("did you mean `{nearest}`?"));
    let word = path.last().map_or("", String::as_str);
    let hint = words::answer(word).or_else(near).or_else(|| others::answer_by_beginning(word));
    hint.unwrap_or_else(|| SEE_REFERENCE.to_string())
}

/// The known key or table that `path` was probably meant to be. A key of the same name in another table wins over one
/// that is merely spelled alike.
fn nearest_key(path: &[String], tree: &Value) -> Option<String> {
    let name = path.last()?;
    let typed = path.join(".");
    let number = path.iter().find(|key| key.parse::<usize>().is_ok());
    let mut keys = Vec::new();
    leaves(tree, "", &mut keys);
    if let Some(number) = number {
        // The tree has sources under 0; the answer keeps the number that was typed.
        keys.iter_mut().for_each(|key| *key = key.replace(".0.", &format!(".{number}.")));
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let same_name = keys.iter().filter(|key| last(key) == *name);
    if let Some(key) = same_name.max_by(|a, b| likeness(&typed, a).total_cmp(&likeness(&typed, b))) {
        return Some(key.clone());
    }
    if let [bare] = path {
        let tables =
            tree.as_table().into_iter().flat_map(|tables| tables.keys().map(|table| (table.clone(), table.clone())));
        let names: Vec<(String, String)> = tables.chain(keys.into_iter().map(|key| (last(&key), key))).collect();
        let name = nearest(bare, names.iter().map(|(name, _)| name.as_str()))?;
        return names.into_iter().find(|(known, _)| *known == name).map(|(_, key)| key);
    }
    let keys = || keys.iter().map(String::as_str);
    // Two wrong letters are much of a short key: then table and first letter must be right.
    let same_start = || {
        let first = name.char_indices().nth(1).filter(|_| name.len() >= 4)?.0;
        let start = &typed[..typed.len() - name.len() + first];
        within(&typed, keys().filter(|key| key.starts_with(start)), 2)
    };
    within(&typed, keys(), name.chars().count() / 3).or_else(same_start)
}

/// The word nearest to `typed`, if at most a third of its letters differ.
pub(super) fn nearest<'w>(typed: &str, words: impl Iterator<Item = &'w str>) -> Option<String> {
    within(typed, words, typed.chars().count() / 3)
}

/// The word nearest to `typed`, if at most `most` letters differ.
fn within<'w>(typed: &str, words: impl Iterator<Item = &'w str>, most: usize) -> Option<String> {
    let typed = typed.to_lowercase();
    let distances = words.map(|word| (strsim::damerau_levenshtein(&typed, word), word));
    distances
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word.into())
}

/// Similarity, from 0 (nothing in common) to 1 (equal).
fn likeness(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(&a.to_lowercase(), b)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}
