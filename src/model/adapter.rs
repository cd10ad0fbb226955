//! A base and its adapters -> a [`Model`]: where they come from, and what they start with.
//!
//! The base is frozen in compute precision, without masters, gradients or moments; the adapters and the reward head are
//! f32 and may be trained. Not here: what an adapter computes (`lora.rs`), its config file (`peft.rs`).

use super::config::Architecture;
use super::layout::{Part, REWARD_HEAD};
use super::lora::{self, Lora};
use super::peft::{PREFIX, PeftConfig};
use super::segment::{Parameter, Segment, Use};
use super::weights::{LoadOptions, Model};
use crate::config::LoraConfig;
use crate::error::{Error, Result};
use crate::safetensors_io::Mapped;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The adapter's weights, in its folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// A model's folder, or an adapter's with that of its base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// config.json and the weights that are frozen where there is an adapter.
    pub base: PathBuf,
    /// adapter_config.json and the adapter's weights.
    pub adapter: Option<PathBuf>,
}

impl Origin {
    /// What `folder` is; `base` says where an adapter's base is, in place of its own adapter_config.json.
    ///
    /// # Errors
    /// A broken adapter_config.json, or a base that is not there.
    pub fn of(folder: &Path, base: Option<&Path>) -> Result<Self> {
        if !PeftConfig::is_in(folder) {
            if let Some(base) = base {
                let (base, folder) = (base.display(), folder.display());
                return Err(Error::input(format!("a base, {base}, is named, but {folder} is no adapter"))
                    .hint("leave --base or lora.base out: the folder is a whole model"));
            }
            return Ok(Self { base: folder.to_path_buf(), adapter: None });
        }
        let adapter = Some(folder.to_path_buf());
        if let Some(base) = base {
            return Ok(Self { base: base.to_path_buf(), adapter });
        }
        match local_base(folder, &PeftConfig::open(folder)?) {
            Some(base) => Ok(Self { base, adapter }),
            None => {
                let named = PeftConfig::open(folder)?.base_model_name_or_path.unwrap_or_default();
                Err(Error::input(format!("{}: its base \"{named}\" is not there", folder.display())).hint(
                    "say where it is: --set lora.base=FOLDER in training, --base FOLDER with eval, score and export",
                ))
            }
        }
    }

    /// Where the tokenizer's files are: beside the adapter, or else beside the base.
    pub fn tokenizer(&self) -> &Path {
        let own = self.adapter.as_deref().filter(|folder| folder.join("tokenizer.json").is_file());
        own.unwrap_or(&self.base)
    }
}

/// The folder that an adapter's config names: seen from the adapter, or from where the program was started.
pub fn local_base(folder: &Path, config: &PeftConfig) -> Option<PathBuf> {
    let named = Path::new(config.base_model_name_or_path.as_deref()?);
    let candidates = [folder.join(named), named.to_path_buf()];
    candidates.into_iter().find(|path| path.join("config.json").is_file())
}

/// Loads a model, with the adapters that the folder or the config asks for. Without either all of it is trained, if
/// the purpose is training.
///
/// # Errors
/// As [`Model::load`]; an adapter that does not fit its base or the config; training from an adapter without `[lora]`.
pub fn load(origin: &Origin, options: LoadOptions, config: Option<&LoraConfig>) -> Result<Model> {
    let Some(folder) = &origin.adapter else {
        let Some(config) = config else { return Model::load(&origin.base, options) };
        let lora = Lora::new(config, &Architecture::open(&origin.base)?)?;
        let mut model = frozen(&origin.base, &lora, options)?;
        start(&mut model, config.seed);
        model.lora = Some(lora);
        return Ok(model);
    };
    let file = open_weights(folder)?;
    let found = found(folder, &file, &Architecture::open(&origin.base)?)?;
    if options.purpose == Use::Train {
        check_config(folder, &found, config, &Architecture::open(&origin.base)?)?;
    }
    let mut model = frozen(&origin.base, &found, options)?;
    read(&mut model, &file)?;
    model.lora = Some(found);
    Ok(model)
}

/// The base with room for adapters.
fn frozen(base: &Path, lora: &Lora, options: LoadOptions) -> Result<Model> {
    let mut model = Model::load(base, LoadOptions { purpose: Use::Evaluate, ..options })?;
    for block in 0..model.architecture.layers {
        let parameters = lora.parameters(&model.architecture, block);
        model.parts.push(Part::Adapter(block));
        model.segments.push(Segment::new(parameters, Kind::Float, options.device, options.purpose));
    }
    if let Some((index, head)) = model.segment(Part::RewardHead) {
        let value = head.weight(0).copy();
        let mut trained = Segment::new(
            Part::RewardHead.parameters(&model.architecture),
            Kind::Float,
            options.device,
            options.purpose,
        );
        trained.set(0, &value);
        model.segments[index] = trained;
    }
    Ok(model)
}

/// A from a uniform distribution of bound 1 / sqrt(in), as PEFT (Kaiming's with a = sqrt(5)); B stays zero. A matrix
/// depends on the seed and its name alone.
fn start(model: &mut Model, seed: u64) {
    for segment in adapters(model) {
        for index in 0..segment.parameters.len() / 2 {
            let parameter = segment.parameters[index].clone();
            let mut random = ChaCha8Rng::seed_from_u64(xxh3_64_with_seed(parameter.name.as_bytes(), seed));
            let bound = 1.0 / (parameter.shape[1] as f32).sqrt();
            let values: Vec<f32> = (0..parameter.length).map(|_| random.random_range(-bound..bound)).collect();
            segment.set(index, &Tensor::from_slice(&values).view(parameter.shape.as_slice()));
        }
    }
}

fn adapters(model: &mut Model) -> impl Iterator<Item = &mut Segment> {
    let parts = model.parts.iter();
    model
        .segments
        .iter_mut()
        .zip(parts)
        .filter(|(_, part)| matches!(part, Part::Adapter(_)))
        .map(|(segment, _)| segment)
}

fn open_weights(folder: &Path) -> Result<Mapped> {
    let path = folder.join(WEIGHTS);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::input(format!("{} holds adapter_model.bin only", folder.display()))
            .hint("it is a pickle, which can run code when opened: save the adapter with safetensors"));
    }
    Mapped::open(&path)
}

/// Which adapters the file of `folder` holds; they must be the same in every block, and nothing else but a head.
fn found(folder: &Path, file: &Mapped, architecture: &Architecture) -> Result<Lora> {
    let config = PeftConfig::open(folder)?;
    let names: BTreeSet<String> = file.names().into_iter().collect();
    let place = folder.join(WEIGHTS);
    let wrong = |what: String| {
        Error::input(format!("{}: {what}", place.display()))
            .hint("an adapter of this program or of PEFT is expected, made for the base that its config names")
    };
    let has = |module: &str| names.contains(&format!("{PREFIX}{}", lora::name_of_a(module)));
    let present = lora::projections(architecture, 0).into_iter().filter(|(_, module, _)| has(module));
    let settings = LoraConfig {
        rank: config.r,
        alpha: config.lora_alpha,
        targets: present.map(|(_, module, _)| lora::within_block(&module).to_string()).collect(),
        seed: 0,
        use_rslora: config.use_rslora,
        base: None,
    };
    if settings.targets.is_empty() {
        return Err(wrong("it has no adapter of any projection of the base's first block".into()));
    }
    let found = Lora::new(&settings, architecture)?;
    let mut expected = BTreeSet::from([format!("{PREFIX}{REWARD_HEAD}")]);
    for parameter in (0..architecture.layers).flat_map(|block| found.parameters(architecture, block)) {
        let (name, shape) = (format!("{PREFIX}{}", parameter.name), parameter.shape);
        if !names.contains(&name) {
            return Err(wrong(format!("{name} is missing; every block must have the same adapters")));
        }
        let is = file.shape(&name)?;
        if is != shape {
            return Err(wrong(format!("{name} has shape {is:?}, but its rank and the base make it {shape:?}")));
        }
        expected.insert(name);
    }
    match names.iter().find(|name| !expected.contains(*name)) {
        Some(unknown) => Err(wrong(format!("{unknown} belongs to no adapter that is known here"))),
        None => Ok(found),
    }
}

/// Training goes on with the settings that the adapter was made with.
fn check_config(folder: &Path, found: &Lora, config: Option<&LoraConfig>, architecture: &Architecture) -> Result<()> {
    let targets = found.targets(architecture);
    let settings = format!("rank = {}, alpha = {}, targets = {targets:?}", found.rank, found.alpha);
    let settings = if found.use_rslora { format!("{settings}, use_rslora = true") } else { settings };
    let hint = format!("to train it on, give [lora] {settings}; to train all weights, merge it first: haf-dist export");
    let Some(config) = config else {
        return Err(
            Error::input(format!("model.path = {} is an adapter, but there is no [lora]", folder.display())).hint(hint)
        );
    };
    if Lora::new(config, architecture)? != *found {
        return Err(
            Error::input(format!("[lora] is not what the adapter in {} was made with", folder.display())).hint(hint)
        );
    }
    let dropout = PeftConfig::open(folder)?.lora_dropout;
    if dropout > 0.0 {
        tracing::warn!("{} was made with lora_dropout = {dropout}: here nothing is dropped out", folder.display());
    }
    Ok(())
}

/// What an adapter adds to a weight when it is merged: scale * B A.
pub struct Change {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Change {
    /// [out, in], f32.
    pub fn make(&self) -> Tensor {
        self.up.mm(&self.down) * self.scale
    }
}

/// What the adapter in `folder` adds to its base's weights, by their names.
///
/// # Errors
/// An adapter that is broken or does not fit the base.
pub fn changes(folder: &Path, architecture: &Architecture) -> Result<BTreeMap<String, Change>> {
    let file = open_weights(folder)?;
    let found = found(folder, &file, architecture)?;
    let read = |name: String| file.read(&format!("{PREFIX}{name}")).map(|value| value.to_kind(Kind::Float));
    let of_module = |module: String| {
        let (down, up) = (read(lora::name_of_a(&module))?, read(lora::name_of_b(&module))?);
        Ok((format!("{module}.weight"), Change { down, up, scale: found.scale() }))
    };
    (0..architecture.layers).flat_map(|block| found.modules(architecture, block)).map(of_module).collect()
}

/// The reward head [1, D] of the adapter in `folder`, if it has one.
///
/// # Errors
/// A head of another shape.
pub fn head(folder: &Path, architecture: &Architecture) -> Result<Option<Tensor>> {
    head_in(&open_weights(folder)?, architecture)
}

fn head_in(file: &Mapped, architecture: &Architecture) -> Result<Option<Tensor>> {
    let name = format!("{PREFIX}{REWARD_HEAD}");
    if !file.names().contains(&name) {
        return Ok(None);
    }
    let (is, shape) = (file.shape(&name)?, [1, architecture.width as i64]);
    if is != shape {
        return Err(Error::input(format!("{name} has shape {is:?}, expected {shape:?}"))
            .hint("a reward model has one output: num_labels = 1"));
    }
    file.read(&name).map(Some)
}

/// Fills adapters and head from an adapter's file.
fn read(model: &mut Model, file: &Mapped) -> Result<()> {
    for segment in adapters(model) {
        for index in 0..segment.parameters.len() {
            let Parameter { name, rows, .. } = &segment.parameters[index];
            let value = rows.to_memory(&file.read(&format!("{PREFIX}{name}"))?);
            segment.set(index, &value);
        }
    }
    if let (Some((index, _)), Some(value)) = (model.segment(Part::RewardHead), head_in(file, &model.architecture)?) {
        model.segments[index].set(0, &value);
        model.had_reward_head = true;
    }
    Ok(())
}
