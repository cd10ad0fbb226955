//! A base and its adapters -> a [`Model`]: where they are found, and their initial values.
//!
//! The base is frozen in compute precision, without masters, gradients or moments; the adapters and the reward head are
//! f32 and may be trained. Not here: what an adapter computes (`lora.rs`), its config file (`peft.rs`).

use super::architecture::Architecture;
use super::layout::Part;
use super::lora::{self, Lora};
use super::peft::PeftConfig;
use super::segment::{Parameter, Segment, Use};
use super::weight_files::WeightFiles;
use super::weights::{LoadOptions, Model};
use crate::config::LoraConfig;
use crate::error::{Error, Result, libtorch};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The adapter's weights, in its folder.
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

/// A model's folder, or an adapter's with that of its base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// config.json and the weights, which are frozen if there is an adapter.
    pub base: PathBuf,
    /// adapter_config.json and the adapter's weights.
    pub adapter: Option<PathBuf>,
}

impl Origin {
    /// The origin in `folder`; `base` replaces the base that an adapter's adapter_config.json names.
    ///
    /// # Errors
    /// A broken adapter_config.json, or a missing base.
    pub fn of(folder: &Path, base: Option<&Path>) -> Result<Self> {
        if !PeftConfig::is_in(folder) {
            if let Some(base) = base {
                let (base, folder) = (base.display(), folder.display());
                return Err(Error::input(format!("a base, {base}, is given, but {folder} is not an adapter"))
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
                Err(Error::input(format!("{}: its base \"{named}\" is missing", folder.display())).hint(
                    "say where it is: --set lora.base=FOLDER in training, --base FOLDER with eval, score and export",
                ))
            }
        }
    }

    /// The folders that the model is read from.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        [Some(self.base.as_path()), self.adapter.as_deref()].into_iter().flatten()
    }

    /// The folder of the tokenizer's files: the adapter's if they are there, else the base's.
    pub(crate) fn tokenizer(&self) -> &Path {
        let own = self.adapter.as_deref().filter(|folder| folder.join("tokenizer.json").is_file());
        own.unwrap_or(&self.base)
    }
}

/// The folder that an adapter's config names, relative to the adapter or to the working directory.
pub(crate) fn local_base(folder: &Path, config: &PeftConfig) -> Option<PathBuf> {
    let named = Path::new(config.base_model_name_or_path.as_deref()?);
    let candidates = [folder.join(named), named.to_path_buf()];
    candidates.into_iter().find(|path| path.join("config.json").is_file())
}

/// Loads a model, with the adapters that the folder or the config asks for. Without adapters the whole model is trained, if
/// the purpose is training.
///
/// # Errors
/// As [`Model::load`]; an adapter that does not fit its base or the config; training from an adapter without `[lora]`.
pub fn load(origin: &Origin, options: LoadOptions, config: Option<&LoraConfig>) -> Result<Model> {
    libtorch(|| load_with(origin, options, config))
}

fn load_with(origin: &Origin, options: LoadOptions, config: Option<&LoraConfig>) -> Result<Model> {
    let Some(folder) = &origin.adapter else {
        let Some(config) = config else { return Model::load(&origin.base, options) };
        let lora = Lora::new(config, &Architecture::open(&origin.base)?)?;
        let mut model = frozen(&origin.base, &lora, options)?;
        start(&mut model, config.seed);
        model.lora = Some(lora);
        return Ok(model);
    };
    let architecture = Architecture::open(&origin.base)?;
    let files = open_weights(folder, &origin.base, &architecture)?;
    let found = found(folder, &files, &architecture)?;
    if options.purpose.trains() {
        check_config(folder, &found, config, &architecture)?;
    }
    let mut model = frozen(&origin.base, &found, options)?;
    for segment in adapters(&mut model) {
        for index in 0..segment.parameters().len() {
            let Parameter { name, rows, .. } = &segment.parameters()[index];
            let value = rows.to_memory(&files.read(name)?);
            segment.set(index, &value);
        }
    }
    model.bring_head(head_in(folder, &files, model.had_reward_head)?, options.purpose);
    model.lora = Some(found);
    Ok(model)
}

/// The base with room for adapters.
fn frozen(base: &Path, lora: &Lora, options: LoadOptions) -> Result<Model> {
    let mut model = Model::load(base, LoadOptions { purpose: Use::Evaluate, ..options })?;
    for block in 0..model.architecture.blocks.len() {
        let parameters = lora.parameters(&model.architecture, block);
        model.parts.push(Part::Adapter(block));
        model.segments.push(Segment::new(parameters, Kind::Float, options.device, options.purpose));
    }
    if let Some((index, head)) = model.segment(Part::RewardHead) {
        let value = head.weights.view(0).copy();
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

/// Draws A from a uniform distribution with bound 1 / sqrt(in), as PEFT does (Kaiming's with a = sqrt(5)); B stays zero. A
/// matrix depends only on the seed and its name.
fn start(model: &mut Model, seed: u64) {
    for segment in adapters(model) {
        for index in 0..segment.parameters().len() / 2 {
            let parameter = segment.parameters()[index].clone();
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

fn open_weights(folder: &Path, base: &Path, architecture: &Architecture) -> Result<WeightFiles> {
    if !folder.join(WEIGHTS).exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::input(format!("{} holds only adapter_model.bin", folder.display()))
            .hint("it is a pickle, which can run code when opened: save the adapter with safetensors"));
    }
    WeightFiles::of_adapter(folder, WEIGHTS, base, architecture)
}

/// The adapters in the files of `folder`. They must be the same in every block; otherwise the files may hold only a head.
fn found(folder: &Path, files: &WeightFiles, architecture: &Architecture) -> Result<Lora> {
    let config = PeftConfig::open(folder)?;
    let place = folder.join(WEIGHTS);
    let wrong = |what: String| {
        Error::input(format!("{}: {what}", place.display()))
            .hint("an adapter of this program or of PEFT is expected, made for the base that its config names")
    };
    let has = |module: &str| files.has(&lora::name_of_a(module));
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
        return Err(wrong("it has no adapter for any projection of the base's first block".into()));
    }
    let found = Lora::new(&settings, architecture)?;
    let mut others: BTreeSet<&str> = files.names().filter(|name| !files.is_head(name)).collect();
    for parameter in (0..architecture.blocks.len()).flat_map(|block| found.parameters(architecture, block)) {
        let (name, shape) = (parameter.name, parameter.shape);
        if !files.has(&name) {
            return Err(wrong(format!("{name} is missing; every block must have the same adapters")));
        }
        let is = files.shape(&name)?;
        if is != shape {
            return Err(wrong(format!("{name} has shape {is:?}, but by its rank and the base it must be {shape:?}")));
        }
        others.remove(name.as_str());
    }
    match others.first() {
        Some(unknown) => Err(wrong(format!("{unknown} belongs to no known kind of adapter"))),
        None => Ok(found),
    }
}

/// An error unless `[lora]` has the settings that the adapter was made with.
fn check_config(folder: &Path, found: &Lora, config: Option<&LoraConfig>, architecture: &Architecture) -> Result<()> {
    let targets = found.targets(architecture);
    let settings = format!("rank = {}, alpha = {}, targets = {targets:?}", found.rank, found.alpha);
    let settings = if found.use_rslora { format!("{settings}, use_rslora = true") } else { settings };
    let hint = format!(
        "to continue its training, set [lora] {settings}; to train all weights, merge it first: haf-dist export"
    );
    let Some(config) = config else {
        return Err(
            Error::input(format!("model.path = {} is an adapter, but there is no [lora]", folder.display())).hint(hint)
        );
    };
    if Lora::new(config, architecture)? != *found {
        return Err(
            Error::input(format!("[lora] differs from the settings of the adapter in {}", folder.display())).hint(hint)
        );
    }
    let dropout = PeftConfig::open(folder)?.lora_dropout;
    if dropout > 0.0 {
        tracing::warn!("{} was made with lora_dropout = {dropout}: haf-dist trains without dropout", folder.display());
    }
    Ok(())
}

/// The change of a weight when an adapter is merged into it: scale * B A.
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

/// The changes of a base by an adapter.
pub struct Changes {
    /// Changes of weights, by the names of these.
    pub weights: BTreeMap<String, Change>,
    /// The reward head [1, D] and its bias, if it has one.
    pub head: Option<(Tensor, f64)>,
}

/// The changes of the model in `base` by the adapter in `folder`.
///
/// # Errors
/// An adapter that is broken, does not fit the base, or lacks the head that it promises.
pub fn changes(folder: &Path, base: &Path, architecture: &Architecture) -> Result<Changes> {
    let files = open_weights(folder, base, architecture)?;
    let found = found(folder, &files, architecture)?;
    let read = |name: String| files.read(&name).map(|value| value.to_kind(Kind::Float));
    let of_module = |module: String| {
        let (down, up) = (read(lora::name_of_a(&module))?, read(lora::name_of_b(&module))?);
        Ok((format!("{module}.weight"), Change { down, up, scale: found.scale() }))
    };
    let modules = (0..architecture.blocks.len()).flat_map(|block| found.modules(architecture, block));
    Ok(Changes { weights: modules.map(of_module).collect::<Result<_>>()?, head: head_in(folder, &files, true)? })
}

/// The reward head [1, D] of an adapter and its bias. A head that was trained with the adapter must be there; if the base has
/// none (`base_has_one`), a classifier's adapter must have one.
fn head_in(folder: &Path, files: &WeightFiles, base_has_one: bool) -> Result<Option<(Tensor, f64)>> {
    let head = files.reward_head()?;
    let config = PeftConfig::open(folder)?;
    if head.is_none() && (config.saves_a_head() || (config.is_of_a_classifier() && !base_has_one)) {
        return Err(Error::input(format!("{}: the reward head is missing", folder.join(WEIGHTS).display())).hint(
            "adapter_config.json (modules_to_save, task_type) says that one was trained with the adapter: save it again with \
             its head, or put the head into its folder as value_head.safetensors",
        ));
    }
    Ok(head)
}
