//! A Hugging Face folder's weights -> a [`Model`]: memory-mapped safetensors, one file or sharded, strictly checked.
//!
//! Every tensor that the architecture needs must be there in its exact shape. The reward head may be missing: it starts
//! at zero (HaF-RM's choice, so that both losses start at ln 2).

use super::config::Architecture;
use super::layout::{Declared, Part, REWARD_HEAD};
use super::lora::{Adapter, Lora};
use super::segment::{Parameter, Segment, Use};
use crate::error::{Error, Result, file_error};
use crate::ops::{self, Ops};
use crate::safetensors_io::Mapped;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

const INDEX_HINT: &str = "expected {\"weight_map\": {\"TENSOR\": \"FILE\", ...}}: get or write the file again";

/// A model in memory: its description and its segments, in the order of the forward pass.
pub struct Model {
    /// What it is.
    pub architecture: Architecture,
    /// What each segment is.
    pub parts: Vec<Part>,
    /// The parameters, a segment a part.
    pub segments: Vec<Segment>,
    /// Kind of the computation.
    pub kind: Kind,
    /// Where it lives.
    pub device: Device,
    /// Whether the folder brought a reward head; if not, it is zero.
    pub had_reward_head: bool,
    /// The adapters that it has: their weights are the last segments, one a block.
    pub lora: Option<Lora>,
}

/// How a model is loaded.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Kind of the computation; the reward head is always f32.
    pub kind: Kind,
    /// Where the model goes.
    pub device: Device,
    /// Trained or only evaluated.
    pub purpose: Use,
    /// Whether log-probs are wanted: then an untied language-model head must be there, and is trained with the rest.
    pub log_probs: bool,
}

impl Model {
    /// Loads config.json and the safetensors of `folder`.
    ///
    /// # Errors
    /// A missing, cut or damaged file, missing tensors, or one of another shape; each names the file and the tensor.
    pub fn load(folder: &Path, options: LoadOptions) -> Result<Self> {
        let architecture = Architecture::open(folder)?;
        let files = WeightFiles::open(folder, &architecture)?;
        let head = format!("{}.weight", architecture.names.head[0]);
        let mut parts = Part::all(&architecture);
        if !options.log_probs && !files.has(&head) {
            parts.retain(|part| *part != Part::LanguageModelHead);
        }
        files.check(folder, &architecture, &parts)?;
        let segments =
            parts.iter().map(|&part| load_segment(&architecture, part, &files, options)).collect::<Result<Vec<_>>>()?;
        let had_reward_head = files.has(REWARD_HEAD);
        let LoadOptions { kind, device, .. } = options;
        Ok(Self { architecture, parts, segments, kind, device, had_reward_head, lora: None })
    }

    /// The operations of the device that it is on: chosen once, when its segments are made.
    pub fn ops(&self) -> &'static dyn Ops {
        self.segments.first().map_or_else(|| ops::of(self.device), |first| first.ops)
    }

    /// The segment of a part that every model has, or that this one has.
    pub fn segment(&self, part: Part) -> Option<(usize, &Segment)> {
        let index = self.parts.iter().position(|other| *other == part)?;
        Some((index, &self.segments[index]))
    }

    /// The segment whose first parameter is the vocabulary matrix [V, D] of the language-model head: its own, or the
    /// embedding's where they are tied; none in an untied model whose folder has no such head.
    pub fn vocabulary(&self) -> Option<(usize, &Segment)> {
        let part = if self.architecture.tied { Part::Embedding } else { Part::LanguageModelHead };
        self.segment(part)
    }

    /// The adapters of a block, where there are any.
    pub fn adapter(&self, block: usize) -> Option<Adapter<'_>> {
        let lora = self.lora.as_ref()?;
        let (_, base) = self.segment(Part::Block(block))?;
        let (_, segment) = self.segment(Part::Adapter(block))?;
        Some(Adapter::new(lora, base, segment))
    }

    /// Number of parameters, heads included.
    pub fn parameter_count(&self) -> usize {
        self.segments.iter().map(Segment::length).sum()
    }

    /// Every parameter by its checkpoint name, in f32 where there is a master.
    pub fn named_values(&self) -> Vec<(String, Tensor)> {
        let named = |segment: &Segment| -> Vec<(String, Tensor)> {
            let parameters = segment.parameters.iter().enumerate();
            parameters.map(|(index, parameter)| (parameter.name.clone(), segment.value(index))).collect()
        };
        self.segments.iter().flat_map(named).collect()
    }
}

fn load_segment(architecture: &Architecture, part: Part, files: &WeightFiles, options: LoadOptions) -> Result<Segment> {
    let kind = if part == Part::RewardHead { Kind::Float } else { options.kind };
    let frozen = part == Part::LanguageModelHead && !options.log_probs;
    let purpose = if frozen { Use::Evaluate } else { options.purpose };
    let mut segment = Segment::new(part.parameters(architecture), kind, options.device, purpose);
    for index in 0..segment.parameters.len() {
        let Parameter { name, rows, .. } = &segment.parameters[index];
        if files.has(name) {
            let value = rows.to_memory(&files.read(name)?);
            segment.set(index, &value);
        }
    }
    Ok(segment)
}

/// The safetensors files of a folder, and which tensor is in which.
struct WeightFiles {
    files: Vec<(PathBuf, Mapped)>,
    /// By the name that the architecture gives it: the number of its file, and its name there.
    place: BTreeMap<String, (usize, String)>,
}

impl WeightFiles {
    fn open(folder: &Path, architecture: &Architecture) -> Result<Self> {
        let mut opened = Self { files: Vec::new(), place: BTreeMap::new() };
        for path in weight_paths(folder)? {
            let file = Mapped::open(&path)?;
            for name in file.names() {
                opened.place.insert(usual_name(architecture, &name), (opened.files.len(), name));
            }
            opened.files.push((path, file));
        }
        Ok(opened)
    }

    fn has(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let (file, name) = &self.place[name];
        self.files[*file].1.read(name)
    }

    /// Every needed tensor there, in its shape; everything else reported.
    fn check(&self, folder: &Path, architecture: &Architecture, parts: &[Part]) -> Result<()> {
        let needed: Vec<Declared> = parts.iter().flat_map(|part| part.parameters(architecture)).collect();
        let missing: Vec<_> = needed
            .iter()
            .map(|declared| declared.name.as_str())
            .filter(|name| *name != REWARD_HEAD && !self.has(name))
            .collect();
        if !missing.is_empty() {
            return Err(Error::input(format!(
                "{}: {} of {} tensors are missing: {}",
                folder.display(),
                missing.len(),
                needed.len(),
                abbreviated(&missing)
            ))
            .hint(
                "the safetensors must hold the model that config.json describes (names as Transformers writes them)",
            ));
        }
        for Declared { name, shape, .. } in &needed {
            let Some((file, name)) = self.place.get(name) else { continue };
            let (path, file) = &self.files[*file];
            let found = file.shape(name)?;
            if found != *shape {
                let hint = match name.as_str() {
                    REWARD_HEAD => "a reward model has one output: num_labels = 1",
                    _ => "config.json and the safetensors must be of the same model: get or write both again",
                };
                return Err(Error::input(format!(
                    "{}: {name} has shape {found:?}, but config.json makes it {shape:?}",
                    path.display()
                ))
                .hint(hint));
            }
        }
        let known: BTreeSet<_> = needed.iter().map(|declared| declared.name.as_str()).collect();
        // Some carry a tied head's copy of the embedding.
        let head = architecture.names.head[0];
        let harmless = |name: &str| is_constant(name) || name.starts_with(head);
        let unexpected: Vec<_> =
            self.place.keys().map(String::as_str).filter(|name| !known.contains(name) && !harmless(name)).collect();
        if !unexpected.is_empty() {
            tracing::warn!(
                "{}: {} tensors are not used: {}",
                folder.display(),
                unexpected.len(),
                abbreviated(&unexpected)
            );
        }
        Ok(())
    }
}

/// A tensor's name as the architecture has it: files call some language-model heads otherwise.
fn usual_name(architecture: &Architecture, name: &str) -> String {
    let [usual, others @ ..] = architecture.names.head else { return name.into() };
    let rest = others.iter().find_map(|other| name.strip_prefix(other)?.strip_prefix('.'));
    rest.map_or_else(|| name.into(), |rest| format!("{usual}.{rest}"))
}

/// The weight files of a folder, in a fixed order: those of the index, or model.safetensors.
pub fn weight_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() {
        return Ok(vec![single]);
    }
    if !index.exists() {
        let pickled = folder.join("pytorch_model.bin").exists();
        let hint = if pickled {
            "pytorch_model.bin is a pickle, which can run code when opened: save the model with safetensors"
        } else {
            "the folder must hold model.safetensors, or model.safetensors.index.json with its shards"
        };
        return Err(Error::input(format!("{} holds no weights", folder.display())).hint(hint));
    }
    let text = std::fs::read_to_string(&index).map_err(|error| file_error(&index, "read", &error))?;
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |what: String| Error::input(format!("{}: {what}", index.display())).hint(INDEX_HINT);
    let parsed: Index =
        serde_json::from_str(&text).map_err(|error| wrong(format!("not a safetensors index: {error}")))?;
    let names: BTreeSet<_> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(wrong("weight_map is empty".into()));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether a tensor is a constant that old exports carry: rotary frequencies, GPT-NeoX's causal masks.
pub fn is_constant(name: &str) -> bool {
    ["rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"].iter().any(|end| name.ends_with(end))
}

fn abbreviated(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let rest = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if rest > 0 { format!("{shown} and {rest} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What loading a folder is told, having made sure that the user is told what to do.
    fn refusal(folder: &Path) -> String {
        let purpose = Use::Evaluate;
        let options = LoadOptions { kind: Kind::Float, device: Device::Cpu, purpose, log_probs: false };
        let error = Model::load(folder, options).err().unwrap();
        assert!(error.exit_code() == 2 && error.hint.is_some(), "{error}");
        error.message
    }

    #[test]
    fn weights_that_do_not_fit_are_named_with_a_hint() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-tied");
        let config = fs::read_to_string(golden.join("config.json")).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        assert!(refusal(folder).contains("config.json"));
        fs::write(folder.join("config.json"), config.replace("\"vocab_size\": ", "\"vocab_size\": 1")).unwrap();
        assert!(refusal(folder).contains("holds no weights"));

        let index = folder.join("model.safetensors.index.json");
        for (text, message) in [("[]", "not a safetensors index"), ("{\"weight_map\": {}}", "weight_map is empty")] {
            fs::write(&index, text).unwrap();
            assert!(refusal(folder).contains(message));
        }
        fs::write(&index, r#"{"weight_map": {"model.norm.weight": "gone.safetensors"}}"#).unwrap();
        assert!(refusal(folder).contains("gone.safetensors"));

        fs::copy(golden.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
        assert!(refusal(folder).contains("model.embed_tokens.weight has shape"));
        fs::write(folder.join("config.json"), config.replace("\"num_hidden_layers\": ", "\"num_hidden_layers\": 1"))
            .unwrap();
        assert!(refusal(folder).contains("tensors are missing"));
    }
}
