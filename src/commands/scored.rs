//! Opens the model of `eval` and `score`: a checkpoint of haf-dist, or any folder with a reward model of a known family.
//!
//! Only one model is in memory at a time: the starting model first, for reference log-probs, then the checkpoint.

use super::{alike, setup};
use crate::checkpoint::{self, AsTrained, Changed, FileCheck, Fitted, FittedOn, TrainState};
use crate::cli::Scoring;
use crate::comm::{CommThread, launch};
use crate::config::{Config, Kernels, Objective, RewardAt, Truncation};
use crate::data::prepared::PreparedData;
use crate::data::tokenize::{Encoder, Rules};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::evaluate::Reported;
use crate::evaluate::reference;
use crate::evaluate::tokens::{TokenLogProbs, token_log_probs};
use crate::files;
use crate::machine::{Machine, kernels};
use crate::model::adapter::{self, Origin};
use crate::model::architecture::Architecture;
use crate::model::layout::Part;
use crate::model::segment::Use;
use crate::model::weight_files;
use crate::model::weights::LoadOptions;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

/// The keys that a config requires; their values are not used.
const MINIMAL: &str = "model.path = 'unused'\ndata.train = [{ path = 'unused' }]\noutput.dir = 'unused'\n";

/// A folder to score with, before its weights are loaded.
pub(crate) struct Opened {
    /// The run's config if the folder is a checkpoint of haf-dist, else the folder's own settings and defaults; `model.path`
    /// is the starting model.
    pub(crate) config: Config,
    /// Makes tokens as the model expects them.
    pub(crate) encoder: Encoder,
    /// The state of the run that wrote the checkpoint; at step 0 for other folders.
    pub(crate) state: TrainState,
    /// Values fitted on the run's dev pairs, if the folder has them.
    pub(crate) fitted: Option<Fitted>,
    /// Whether texts are rendered with another template than the run's, so that dev prompts have other hashes.
    other_template: bool,
    origin: Origin,
    /// Rows of the model's embedding.
    pub(crate) vocabulary: usize,
    /// Whether the folder is a checkpoint of haf-dist.
    trained_here: bool,
    /// The check of the model's files, until the weights have been read.
    check: Cell<Option<FileCheck>>,
}

/// The starting model, which is the reference of implicit rewards.
enum Start {
    /// It does not exist, or there are no implicit rewards.
    Unknown,
    /// The policy loss needs no reference.
    NotNeeded,
    /// Its place, and the hash of its files.
    At(Origin, u128),
}

/// A loaded model, and the heads to report.
pub(crate) struct Scored<'a> {
    /// The model.
    pub(crate) engine: Engine,
    /// The heads to report.
    pub(crate) reported: Reported<'a>,
}

/// Reads everything except the weights, the same on every rank. All ranks must call it.
///
/// # Errors
/// A folder without a model of a known family, or lengths that exclude each other; ranks that differ.
pub(crate) fn open(scoring: &Scoring, comm: &CommThread) -> Result<Opened> {
    let opened = comm.agree(read(scoring))?;
    alike::config(&opened.config, comm)?;
    alike::model(&opened.origin, comm)?;
    alike::read("the checkpoint's state", opened.state.fingerprint(), comm)?;
    comm.set_limit(Duration::from_secs(opened.config.parallel.timeout_seconds as u64));
    Ok(opened)
}

fn read(scoring: &Scoring) -> Result<Opened> {
    let folder = scoring.checkpoint.clone();
    let origin = Origin::of(&folder, scoring.base.as_deref())?;
    let check = Cell::new(setup::check_files(&origin, Changed::allowed_if(scoring.allow_changed))?);
    let architecture = Architecture::open(&origin.base)?;
    let trained_here = folder.join(checkpoint::CONFIG).exists();
    let as_trained = AsTrained::read(&folder)?;
    let fitted = as_trained.as_ref().and_then(|as_trained| as_trained.fitted.clone());
    let foreign = !trained_here && as_trained.is_none();
    let (mut config, state) = if trained_here {
        (Config::load(&folder.join(checkpoint::CONFIG), &[])?, checkpoint::load_state(&folder)?)
    } else {
        (config_of_a_folder(&folder, as_trained)?, TrainState::default())
    };
    // The run's own cache if it exists and the folder is still the run's, else the user's: a folder from elsewhere names no
    // place to write to, and a run's relative path would create one in the current folder.
    let own = trained_here && checkpoint::is_of_run(&folder, &config.output.dir);
    if !own || !config.data.cache_dir.is_dir() {
        config.data.cache_dir = files::user_cache();
        if launch::rank() == 0 {
            files::bound(&config.data.cache_dir, files::MOST_BYTES);
        }
    }
    config.model.dtype = scoring.dtype.unwrap_or(config.model.dtype);
    Config::check_threads("--threads", scoring.threads)?;
    config.parallel.threads = scoring.threads;
    let data = &mut config.data;
    let other_template = scoring.template.is_some_and(|template| template != data.template);
    data.template = scoring.template.unwrap_or(data.template);
    data.reward_at = scoring.reward_at.unwrap_or(data.reward_at);
    // Cuts only at the model's own limit, unless an option sets another one.
    data.max_length = scoring.max_length.unwrap_or(architecture.max_positions);
    data.max_prompt_length = match (scoring.max_prompt_length, scoring.max_length) {
        (Some(length), _) => length,
        // The config's value, if it is below --max-length.
        (None, Some(length)) if data.max_prompt_length < length => data.max_prompt_length,
        (None, _) => data.max_length * 3 / 4,
    };
    let lengths = [("--max-length", data.max_length), ("--max-prompt-length", data.max_prompt_length)];
    Config::check_lengths(lengths)?;
    config.train.tokens_per_micro_batch = scoring.tokens_per_micro_batch;
    let mut rules = Rules::from(&config.data);
    if foreign && scoring.reward_at.is_none() {
        rules.skipped_at_end = padding(&origin.base)?;
    }
    let encoder = Encoder::open(origin.tokenizer(), rules, architecture.vocabulary)?;
    let vocabulary = architecture.vocabulary;
    Ok(Opened { config, encoder, state, fitted, other_template, origin, vocabulary, trained_here, check })
}

impl Opened {
    /// Log-probs of the data's answers under the starting model; `None` if there is no such model, an empty list if the policy
    /// loss needs none.
    ///
    /// # Errors
    /// A starting model that cannot be read, or a lost rank.
    pub(crate) fn references(
        &self,
        data: &PreparedData,
        machine: &Machine,
        comm: &CommThread,
    ) -> Result<Option<Vec<[f32; 2]>>> {
        let (base, key) = match self.start(comm)? {
            Start::Unknown => return Ok(None),
            Start::NotNeeded => return Ok(Some(Vec::new())),
            Start::At(base, key) => (base, key),
        };
        let cache = (comm.rank() == 0).then(|| setup::reference_cache(key, data, &self.config, machine));
        let mut engine = load(&base, true, (machine, self.config.parallel.kernels), comm)?;
        let budget = self.config.train.tokens_per_micro_batch;
        let all: Vec<usize> = (0..data.len()).collect();
        reference::log_probs(&mut engine, (data, &all), comm, cache.as_ref(), budget, "the data").map(Some)
    }

    /// [`references`](Self::references) token by token, without a cache.
    ///
    /// # Errors
    /// As [`references`](Self::references).
    pub(crate) fn token_references(
        &self,
        data: &PreparedData,
        machine: &Machine,
        comm: &CommThread,
    ) -> Result<Option<Vec<TokenLogProbs>>> {
        let base = match self.start(comm)? {
            Start::Unknown => return Ok(None),
            Start::NotNeeded => return Ok(Some(Vec::new())),
            Start::At(base, _) => base,
        };
        let mut engine = load(&base, true, (machine, self.config.parallel.kernels), comm)?;
        token_log_probs(&mut engine, data, comm, self.config.train.tokens_per_micro_batch, "reference").map(Some)
    }

    /// Finds the starting model. All ranks must call it.
    fn start(&self, comm: &CommThread) -> Result<Start> {
        if !self.trained_here || !self.config.loss.needs_policy() {
            return Ok(Start::Unknown);
        }
        if !self.config.loss.needs_reference() {
            return Ok(Start::NotNeeded);
        }
        let start = &self.config.model.path;
        let exists = |origin: &Origin| origin.base.join("config.json").exists();
        let origin = setup::origin(&self.config).ok().filter(exists);
        let moved = origin.is_none();
        // If the base has moved, --base names its folder.
        let named = self.origin.adapter.is_some().then(|| Origin { base: self.origin.base.clone(), adapter: None });
        let origin = origin.or(named.filter(exists));
        let Some(origin) = comm.all_true(origin.is_some())?.then_some(origin).flatten() else {
            if comm.rank() == 0 {
                warn!("the starting model {} does not exist: implicit rewards are not computed", start.display());
            }
            return Ok(Start::Unknown);
        };
        let keys = setup::model_keys(&origin, comm)?;
        if format!("{:032x}", keys.start) != self.state.model_key {
            if moved {
                if comm.rank() == 0 {
                    warn!("{} is not the model this run started from: no implicit rewards", origin.base.display());
                }
                return Ok(Start::Unknown);
            }
            return Err(Error::input(format!("{} is not the model this run started from", start.display()))
                .hint("restore the starting model, or move this folder away to get only rewards"));
        }
        Ok(Start::At(Origin { adapter: None, ..origin }, keys.base))
    }

    /// Loads the model; warns if its reward head is zero. `with_policy`: implicit rewards are reported, if the model has a
    /// language-model head.
    ///
    /// # Errors
    /// A folder without a reward head, or damaged weights.
    pub(crate) fn model(&self, with_policy: bool, machine: &Machine, comm: &CommThread) -> Result<Scored<'_>> {
        let engine = load(&self.origin, false, (machine, self.config.parallel.kernels), comm)?;
        setup::finish_check(self.check.take(), comm)?;
        if !comm.all_true(engine.model.had_reward_head)? {
            let folder = self.origin.adapter.as_ref().unwrap_or(&self.origin.base);
            return Err(Error::input(format!("{} has no reward head: it is not a reward model", folder.display())).hint(
                "--checkpoint takes a step-N folder of a run, a *ForSequenceClassification folder with one label, or a folder \
                 with a head of another name, given by \"value_head_prefix\" in its config.json",
            ));
        }
        let reward = !self.trained_here || self.config.loss.objective != Objective::Policy;
        let policy = with_policy && engine.order.vocabulary().is_some();
        if comm.rank() == 0 && head_is_zero(&engine) {
            let folder = self.origin.adapter.as_ref().unwrap_or(&self.origin.base).display();
            let instead = if policy { "; use the policy's results: `implicit`, policy accuracy" } else { "" };
            warn!(
                "{folder}: the reward head is zero, and so is every reward: it was not trained, perhaps because of \
                 loss.objective = \"policy\"{instead}"
            );
        }
        let weights = self.fitted.as_ref().and_then(|fitted| fitted.combined);
        Ok(Scored { engine, reported: Reported { loss: &self.config.loss, reward, policy, weights } })
    }

    /// The same encoder with this length. It cuts longer sequences, even if the run drops them. Prompts keep at least
    /// `max_prompt_length` tokens, by default three quarters of the length.
    ///
    /// # Errors
    /// Lengths that exclude each other.
    pub(crate) fn cutting_to(&self, max_length: usize, max_prompt_length: Option<usize>) -> Result<Encoder> {
        let prompt = max_prompt_length.unwrap_or(max_length * 3 / 4);
        Config::check_lengths([("--max-length", max_length), ("--max-prompt-length", prompt)])?;
        let (max_prompt_length, truncation) = (prompt, Truncation::Cut);
        let rules = Rules { max_length, max_prompt_length, truncation, ..*self.encoder.rules() };
        Encoder::open(self.origin.tokenizer(), rules, self.vocabulary)
    }

    /// The dev prompts that temperatures and weights were fitted on; `None` if they cannot be recognized.
    pub(crate) fn fitted_on(&self) -> Option<FittedOn> {
        (!self.other_template).then(|| self.fitted.as_ref().map(Fitted::prompts).unwrap_or_default())
    }

    /// Warns how many of `prompts` (hashes, one for each of the `rows`) are prompts that something was fitted on, or that this is
    /// not known.
    pub(crate) fn warn_of_dev_prompts(&self, rows: &str, prompts: &[u64]) {
        if self.fitted.is_none() {
            return;
        }
        let fitted = "on which `combined` and the dev temperatures were fitted";
        let Some(fitted_on) = self.fitted_on() else {
            warn!("{rows}: with another --template than the run's, its dev prompts, {fitted}, are not recognized");
            return;
        };
        let known = prompts.iter().filter(|&&prompt| fitted_on.has(prompt)).count();
        if known > 0 {
            warn!("{known} of {} {rows} have a dev prompt of the run, {fitted}", prompts.len());
        }
    }

    /// Files that the run was trained on; empty for a folder without a run.
    pub(crate) fn train_files(&self) -> Vec<PathBuf> {
        let sources = self.config.data.train.iter().filter(|_| self.trained_here);
        sources.map(|source| source.path.clone()).collect()
    }

    /// The folder of the tokenizer's files.
    pub(crate) fn tokenizer(&self) -> &Path {
        self.origin.tokenizer()
    }

    /// The pad token, which Transformers skips to find the token of the reward: from config.json, or for an adapter, which has
    /// none, from the tokenizer.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn pad_token(&self) -> Result<Option<u32>> {
        match &self.origin.adapter {
            Some(_) => checkpoint::pad_token(self.origin.tokenizer()),
            None => padding(&self.origin.base),
        }
    }

    /// Whether other programs put a sigmoid over the reward: Transformers' pipeline does unless config.json declares the label
    /// a regression. False for an adapter, which has no config.json.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn is_activated(&self) -> Result<bool> {
        match &self.origin.adapter {
            Some(_) => Ok(false),
            None => weight_files::config(&self.origin.base).map(|config| config["problem_type"] != "regression"),
        }
    }

    /// Device, precision and threads. All ranks must call it.
    ///
    /// # Errors
    /// Too many threads, or a lost rank.
    pub(crate) fn machine(&self, comm: &CommThread) -> Result<Machine> {
        Machine::pick(self.config.model.dtype, self.config.parallel.threads, comm)
    }
}

/// Whether the reward head gives every answer the reward 0.
fn head_is_zero(engine: &Engine) -> bool {
    let head = engine.model.segment(Part::RewardHead);
    head.is_some_and(|(_, head)| head.weights.view(0).abs().max().double_value(&[]) == 0.0)
}

/// The model with rank 0's weights.
fn load(
    origin: &Origin,
    log_probs: bool,
    (machine, kernels): (&Machine, Kernels),
    comm: &CommThread,
) -> Result<Engine> {
    let Machine { kind, device, .. } = *machine;
    kernels::settle(kernels, &comm.agree(Architecture::open(&origin.base))?, machine, comm)?;
    let options = LoadOptions { kind, device, purpose: Use::Evaluate, log_probs };
    let work = comm.at_work("loading the model");
    let mut model = comm.agree(adapter::load(origin, options, None))?;
    drop(work);
    setup::share_weights(&mut model, comm)?;
    Engine::new(model, false)
}

/// A config for a folder without a run's: with the folder's own settings. Without these, another program trained the model: its
/// reward is read where Transformers reads it, at the end of its own template's rendering.
fn config_of_a_folder(folder: &Path, as_trained: Option<AsTrained>) -> Result<Config> {
    let mut config = Config::parse("defaults", MINIMAL, &[])?;
    config.model.path = folder.to_path_buf();
    config.loss.objective = Objective::Reward;
    match as_trained {
        Some(as_trained) => as_trained.apply(&mut config),
        None => config.data.reward_at = RewardAt::End,
    }
    Ok(config)
}

/// The `pad_token_id` in a folder's config.json: Transformers reads the reward at the rightmost other token.
fn padding(folder: &Path) -> Result<Option<u32>> {
    weight_files::config(folder).map(|config| config["pad_token_id"].as_u64().and_then(|id| u32::try_from(id).ok()))
}
