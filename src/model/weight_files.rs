//! The safetensors files of a model or an adapter: finds them, the tensors in them, and their faults.
//!
//! Not here: the names of tensors in them (`names.rs`), the model made of them (`weights.rs`, `adapter.rs`).

use super::architecture::{Architecture, MOST_BYTES};
use super::declared::Declared;
use super::fused;
use super::layout::{Part, REWARD_HEAD};
use super::names::{self, HeadNames};
use super::quantized;
use super::weight_index::{abbreviated, shards_of};
use crate::error::{Error, Result};
use crate::files;
use crate::safetensors_io::Mapped;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const INDEX: &str = "model.safetensors.index.json";

/// The file of the reward head that TRL and LLaMA-Factory write with a model or an adapter.
const VALUE_HEAD: &str = "value_head.safetensors";

/// Key of config.json that names the module of the reward head: OpenRLHF's.
pub(crate) const HEAD_NAME: &str = "value_head_prefix";

/// Key of config.json for a number that is added to every reward: the bias of a merged model's head, unknown to servers.
pub(crate) const REWARD_BIAS: &str = "reward_bias";

/// The files of a folder, and the tensors in them.
pub(crate) struct WeightFiles {
    files: Vec<Mapped>,
    /// By its usual name.
    place: BTreeMap<String, Place>,
    head: Option<HeadNames>,
    /// The module that config.json names as the reward head.
    named_head: Option<String>,
    /// The bias of rewards in config.json.
    reward_bias: f64,
}

/// Where a tensor is.
#[derive(Clone)]
struct Place {
    /// The number of its file.
    file: usize,
    /// Its name there.
    raw: String,
    /// Its rows in that tensor, if it is not the whole tensor.
    rows: Option<Range<usize>>,
}

impl WeightFiles {
    /// Those of a whole model.
    ///
    /// # Errors
    /// A missing, cut or damaged file, quantized weights, two tensors of one name, or a reward head that cannot be read.
    pub(crate) fn of_model(folder: &Path, architecture: &Architecture) -> Result<Self> {
        let config = config(folder)?;
        let parts = Part::all(architecture).into_iter();
        let needed: BTreeSet<String> =
            parts.flat_map(|part| part.parameters(architecture)).map(|declared| declared.name).collect();
        let files = mapped(&weight_paths(folder)?)?;
        quantized::refuse(folder, &config, &files, |name| {
            let usual = names::usual(architecture, name);
            needed.contains(&usual) || fused::is_fused(architecture, &usual)
        })?;
        let mut opened = Self::of(folder, files, architecture, named_head(&config))?;
        opened.reward_bias = config.get(REWARD_BIAS).and_then(Value::as_f64).unwrap_or(0.0);
        match opened.place.keys().find(|name| name.contains(".lora_") || name.contains(".base_layer.")) {
            Some(name) => Err(Error::input(format!("{}: {name} belongs to an unmerged adapter", folder.display()))
                .hint("merge it in PEFT (merge_and_unload) and save that; or save the adapter in a folder of its own")),
            None => Ok(opened),
        }
    }

    /// Those of the adapter in `folder`; `base` is the folder of its base.
    ///
    /// # Errors
    /// As [`Self::of_model`].
    pub(crate) fn of_adapter(folder: &Path, weights: &str, base: &Path, architecture: &Architecture) -> Result<Self> {
        let paths: Vec<PathBuf> = [Some(folder.join(weights)), value_head(folder)?].into_iter().flatten().collect();
        let files = mapped(&paths)?;
        quantized::refuse(folder, &Value::Null, &files, |name| name.contains(".lora_"))?;
        Self::of(folder, files, architecture, named_head(&config(base)?))
    }

    fn of(folder: &Path, files: Vec<Mapped>, architecture: &Architecture, named: Option<String>) -> Result<Self> {
        let mut place: BTreeMap<String, Place> = BTreeMap::new();
        let mut renamed = None;
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                let usual = names::usual(architecture, &name);
                if usual != name {
                    renamed.get_or_insert_with(|| format!("{name} is read as {usual}"));
                }
                let fused = fused::parts(architecture, &usual, &file.shape(&name)?);
                let fused = fused.map_err(|error| error.at(file.path().display()))?;
                let parts: Vec<(String, Option<Range<usize>>)> = match fused {
                    Some(parts) => parts.into_iter().map(|part| (part.name, Some(part.rows))).collect(),
                    None => vec![(usual, None)],
                };
                for (usual, rows) in parts {
                    let here = Place { file: number, raw: name.clone(), rows };
                    if let Some(Place { file: other, raw: twin, .. }) = place.insert(usual.clone(), here) {
                        let [one, two] = [other, number].map(|number| files[number].path().display());
                        return Err(Error::input(format!("{usual} is there twice: {twin} in {one}, {name} in {two}"))
                            .hint("remove one of them: they may differ"));
                    }
                }
            }
        }
        if let Some(renamed) = renamed {
            tracing::info!("{}: names of another program: {renamed}", folder.display());
        }
        let shape = |(name, place): (&String, &Place)| Ok((name.clone(), place.shape(&files)?));
        let shapes = place.iter().map(shape).collect::<Result<BTreeMap<_, _>>>()?;
        let head = HeadNames::find(&shapes, named.as_deref(), architecture.width as i64)
            .map_err(|error| error.at(folder.display()))?;
        if let (Some(named), Some(head)) = (&named, &head)
            && !head.weight.starts_with(&format!("{named}."))
        {
            tracing::warn!(
                "{}: config.json says that the reward head is {named}, which is missing: {} is read",
                folder.display(),
                head.weight
            );
        }
        let opened = Self { files, place, head, named_head: named, reward_bias: 0.0 };
        if let Some(head) = opened.head.as_ref().filter(|head| !head.is_usual()) {
            let Place { file, raw, .. } = &opened.place[&head.weight];
            tracing::info!("{}: the reward head is {raw}", opened.files[*file].path().display());
        }
        Ok(opened)
    }

    /// Whether there is a tensor of this usual name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// Whether there is a language-model head: its matrix, or for a tied one its bias, if it has one.
    pub(crate) fn has_language_model_head(&self, architecture: &Architecture) -> bool {
        let Architecture { tied, head_bias, names, .. } = architecture;
        let needed = if *tied { "bias" } else { "weight" };
        (*tied && !head_bias) || self.has(&format!("{}.{needed}", names.head[0]))
    }

    /// All usual names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Whether a tensor is the reward head or its bias.
    pub(crate) fn is_head(&self, name: &str) -> bool {
        let head = self.head.as_ref();
        head.is_some_and(|head| head.weight == name || head.bias.as_deref() == Some(name))
    }

    /// A tensor's shape.
    ///
    /// # Errors
    /// No such tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<Vec<i64>> {
        self.find(name)?.shape(&self.files)
    }

    /// A copy of a tensor, on the CPU, of the file's kind.
    ///
    /// # Errors
    /// No such tensor, or one of a kind that cannot be read.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor> {
        self.find(name)?.read(&self.files)
    }

    fn find(&self, name: &str) -> Result<&Place> {
        self.place
            .get(name)
            .ok_or_else(|| Error::input(format!("there is no tensor {name}")).hint("get or write the files again"))
    }

    /// The reward head: [1, D] in f32, and its bias.
    ///
    /// # Errors
    /// A head of a kind that cannot be read, or one that is not finite.
    pub(crate) fn reward_head(&self) -> Result<Option<(Tensor, f64)>> {
        let Some(HeadNames { weight, bias }) = &self.head else { return Ok(None) };
        let place = self.find(weight)?;
        let (value, raw) = (place.read(&self.files)?, &place.raw);
        let bias = match bias {
            Some(name) => self.read(name)?.to_kind(Kind::Double).view([1]).double_value(&[0]),
            None => 0.0,
        } + self.reward_bias;
        if !value.is_floating_point() || !bias.is_finite() {
            return Err(Error::input(format!("the reward head {raw} is {:?} with bias {bias}", value.kind()))
                .hint("a head must be of finite f32, bf16 or f16 numbers: get or write it again"));
        }
        Ok(Some((value.to_kind(Kind::Float), bias)))
    }

    /// Each file's path, and the usual names of its tensors that go into a merged model: all but reward heads and constants.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (&Path, Vec<&str>)> {
        self.files.iter().enumerate().map(|(number, file)| {
            let mine = self.place.iter().filter(move |(_, place)| place.file == number);
            let names = mine.map(|(name, _)| name.as_str());
            let kept =
                names.filter(|name| !names::is_of_a_head(name, self.named_head.as_deref()) && !is_constant(name));
            (file.path(), kept.collect())
        })
    }

    /// Checks that every needed tensor is there, in its shape; warns about all others.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape, or one that looks like a reward head but has an unknown name.
    pub(crate) fn check(&self, folder: &Path, architecture: &Architecture, parts: &[Part]) -> Result<()> {
        let problems = self.problems(folder, architecture, parts)?;
        if let Some(first) = problems.into_iter().next() {
            return Err(first);
        }
        let unused = self.unused(architecture, parts);
        if !unused.is_empty() {
            let (count, some) = (unused.len(), abbreviated(&unused));
            match architecture.part_of {
                Some(whole) => tracing::warn!(
                    "{}: of this {whole} model only the text part is read and trained: images are not, nor {count} tensors: \
                     {some}",
                    folder.display()
                ),
                None => tracing::warn!("{}: {count} tensors are not used: {some}", folder.display()),
            }
        }
        Ok(())
    }

    /// Every problem that keeps the parts of a model from being read.
    ///
    /// # Errors
    /// A header that cannot be read.
    pub(crate) fn problems(&self, folder: &Path, architecture: &Architecture, parts: &[Part]) -> Result<Vec<Error>> {
        let needed = needed(architecture, parts);
        let (there, missing): (Vec<&Declared>, Vec<_>) = needed.iter().partition(|declared| self.has(&declared.name));
        let mut problems = Vec::new();
        if !missing.is_empty() {
            let missing: Vec<&str> = missing.iter().map(|declared| declared.name.as_str()).collect();
            let held: Vec<_> = self.names().collect();
            problems.push(
                Error::input(format!(
                    "{}: {} of {} tensors are missing: {}",
                    folder.display(),
                    missing.len(),
                    needed.len(),
                    abbreviated(&missing)
                ))
                .hint(format!(
                    "the safetensors must hold the model that config.json describes (names as Transformers writes \
                     them); they hold {}",
                    if held.is_empty() { "nothing".into() } else { abbreviated(&held) }
                )),
            );
        }
        let mut misshapen = Vec::new();
        for Declared { name, shape, .. } in there {
            let found = self.shape(name)?;
            if found != *shape {
                let Place { file, raw, .. } = &self.place[name];
                let file = self.files[*file].path().display();
                misshapen.push(format!("{file}: {raw} has shape {found:?}, but by config.json it must be {shape:?}"));
            }
        }
        if let [first, others @ ..] = misshapen.as_slice() {
            let others = if others.is_empty() { String::new() } else { format!("; {} more do not fit", others.len()) };
            problems.push(
                Error::input(format!("{first}{others}"))
                    .hint("config.json and the safetensors must be of the same model: get or write both again"),
            );
        }
        let row = [1, architecture.width as i64];
        for name in self.unused(architecture, parts).into_iter().filter(|_| self.head.is_none()) {
            if let (Some(module), true) = (name.strip_suffix(".weight"), self.shape(name)? == row) {
                problems.push(
                    Error::input(format!(
                        "{}: {name} {row:?} may be the reward head, under an unknown name",
                        folder.display()
                    ))
                    .hint(format!(
                        "if it is, put \"value_head_prefix\": \"{module}\" into config.json; else remove it"
                    )),
                );
            }
        }
        Ok(problems)
    }

    /// The usual names of tensors that no part is read from.
    pub(crate) fn unused(&self, architecture: &Architecture, parts: &[Part]) -> Vec<&str> {
        let needed = needed(architecture, parts);
        let known: BTreeSet<_> = needed.iter().map(|declared| declared.name.as_str()).collect();
        // Some files hold a copy of the embedding for a tied head.
        let harmless = |name: &str| is_constant(name) || name.starts_with(architecture.names.head[0]);
        self.names().filter(|name| !known.contains(name) && !harmless(name) && !self.is_head(name)).collect()
    }
}

impl Place {
    fn shape(&self, files: &[Mapped]) -> Result<Vec<i64>> {
        let mut shape = files[self.file].shape(&self.raw)?;
        if let Some(rows) = &self.rows {
            shape = vec![rows.len() as i64, shape.pop().unwrap_or(1)];
        }
        Ok(shape)
    }

    fn read(&self, files: &[Mapped]) -> Result<Tensor> {
        match &self.rows {
            Some(rows) => files[self.file].read_rows(&self.raw, rows.clone()),
            None => files[self.file].read(&self.raw),
        }
    }
}

/// What the files of a model with these parts must hold.
fn needed(architecture: &Architecture, parts: &[Part]) -> Vec<Declared> {
    let declared = parts.iter().flat_map(|part| part.parameters(architecture));
    declared.filter(|declared| declared.name != REWARD_HEAD).collect()
}

fn mapped(paths: &[PathBuf]) -> Result<Vec<Mapped>> {
    let open = |path: &PathBuf| {
        let file = Mapped::open(path);
        if path.ends_with(VALUE_HEAD) { file.map_err(|error| error.at("the reward head")) } else { file }
    };
    paths.iter().map(open).collect()
}

/// The weight files of a folder, in a fixed order: those of the index or model.safetensors, then the reward head's own.
///
/// # Errors
/// No weights, a broken index, or one that names files that are missing or outside the folder.
pub fn weight_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    let index = folder.join(INDEX);
    let mut paths = if single.exists() {
        vec![single]
    } else if index.exists() {
        shards_of(folder, &index)?
    } else {
        let pickled = folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists();
        let hint = if pickled {
            "pytorch_model.bin is a pickle, which can run code when opened: save the model with safetensors"
        } else {
            "the folder must hold model.safetensors, or model.safetensors.index.json with its shards"
        };
        return Err(Error::input(format!("{} holds no weights", folder.display())).hint(hint));
    };
    paths.extend(value_head(folder)?);
    Ok(paths)
}

/// The reward head's own file, if a folder has one.
///
/// # Errors
/// A head in a pickle.
pub(crate) fn value_head(folder: &Path) -> Result<Option<PathBuf>> {
    let path = folder.join(VALUE_HEAD);
    if path.exists() {
        return Ok(Some(path));
    }
    let pickle = folder.join("value_head.bin");
    match pickle.exists() {
        true => Err(Error::input(format!("{} holds the reward head, in a pickle", pickle.display()))
            .hint("a pickle can run code when opened: save the head as value_head.safetensors, or remove the file")),
        false => Ok(None),
    }
}

/// The keys of config.json; [`Architecture`] says which of them describe the model.
///
/// # Errors
/// A file that cannot be read, or is no JSON.
pub(crate) fn config(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    serde_json::from_slice(&files::read_within(&path, MOST_BYTES)?)
        .map_err(|error| Error::input(format!("{}: {error}", path.display())).hint("get it again"))
}

/// The module of the reward head that OpenRLHF's key names.
fn named_head(config: &Value) -> Option<String> {
    config.get(HEAD_NAME).and_then(Value::as_str).filter(|name| !name.is_empty()).map(String::from)
}

/// Whether a tensor is a constant that old exports carry: rotary frequencies, GPT-NeoX's causal masks.
fn is_constant(name: &str) -> bool {
    ["rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"].iter().any(|end| name.ends_with(end))
}
