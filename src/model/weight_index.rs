//! model.safetensors.index.json: the files of a model whose weights are in several files.
//!
//! Not here: the tensors in them (`weight_files.rs`).

use crate::error::{Error, Result};
use crate::files;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The largest index.
const MOST_BYTES: u64 = 64 << 20;

const HINT: &str = "expected {\"weight_map\": {\"TENSOR\": \"FILE\", ...}}: get or write the file again";

/// The shards that an index names, each once.
pub(crate) fn shards_of(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |what: String| Error::input(format!("{}: {what}", index.display())).hint(HINT);
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Entries,
    }
    let text = files::read_within(index, MOST_BYTES)?;
    let Index { weight_map: Entries(entries) } =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("not a safetensors index: {error}")))?;
    let mut tensors = BTreeSet::new();
    if let Some((twice, _)) = entries.iter().find(|(tensor, _)| !tensors.insert(tensor)) {
        return Err(wrong(format!("weight_map has {twice} twice")));
    }
    let names: BTreeSet<&String> = entries.iter().map(|(_, file)| file).collect();
    if names.is_empty() {
        return Err(wrong("weight_map is empty".into()));
    }
    if let Some(outside) = names.iter().find(|name| !is_inside(name)) {
        return Err(wrong(format!("{outside:?} is not a file of this folder")));
    }
    let missing: Vec<&str> =
        names.iter().map(|name| name.as_str()).filter(|name| !folder.join(name).exists()).collect();
    if !missing.is_empty() {
        let (count, all) = (missing.len(), names.len());
        let missing = abbreviated(&missing);
        return Err(Error::input(format!("{}: {count} of its {all} files are missing: {missing}", index.display()))
            .hint("get the whole folder again"));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether a name in a folder's file names something in that folder.
pub(crate) fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The first names, and how many more there are.
pub(super) fn abbreviated(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let rest = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if rest > 0 { format!("{shown} and {rest} more") } else { shown }
}

/// A JSON object's entries in order, repeated names included.
struct Entries(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
