//! What a run saves, and restores on `--resume`: weights, masters, moments, position.

use super::Trainer;
use super::replicas::Hashes;
use crate::checkpoint::{self, AdapterOf, Best, ChatTemplates, Fitted, Planned, SelfTest, Snapshot, TrainState};
use crate::comm::CommThread;
use crate::config::{Config, Difference, listed};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::evaluate::scoring::{Progress, ToScore, any_scores, is_finite};
use crate::files::UnfinishedFolder;
use crate::hub;
use crate::metrics::{EvaluationMetrics, Sink};
use crate::model::adapter::Origin;
use crate::model::segment::Parameter;
use crate::safetensors_io::{Entry, Mapped};
use crate::statistics::Spread;
use crate::tensor;
use crate::update::sharding::{Shares, State};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Kind, Tensor};
use tracing::{info, trace_span, warn};
use xxhash_rust::xxh3::Xxh3;

/// What rank 0 needs to write checkpoints.
pub(crate) struct Saving {
    /// The run's folder.
    pub(crate) run: PathBuf,
    /// The model that the run starts from.
    pub(crate) origin: Origin,
    /// Its config.json and tokenizer files as they were at the start; on rank 0.
    pub(crate) model_files: Option<UnfinishedFolder>,
    /// A token that occurs in no sequence.
    pub(crate) pad_token: u32,
    /// The chat templates to save.
    pub(crate) templates: ChatTemplates,
    /// Conversations by which a saved model can be checked.
    pub(crate) self_test: Planned,
}

impl Trainer<'_> {
    /// Rank 0 writes `step-N`, then removes what retention no longer keeps; the others wait for the outcome.
    pub(super) fn save(&mut self, dev: Option<EvaluationMetrics>) -> Result<()> {
        let Some(saving) = self.saving.take() else { return Ok(()) };
        let _span = trace_span!("save").entered();
        check_replicas(&self.engine, self.state.step, self.comm)?;
        let fitted = dev.as_ref().and_then(|evaluation| evaluation.fitted.clone());
        let self_test = self.self_test(&saving.self_test, dev.as_ref().and_then(|evaluation| evaluation.rewards))?;
        if let Some(evaluation) = dev {
            let weight = |weight: f64, loss: Option<f64>| weight * loss.unwrap_or(0.0);
            let loss = &self.config.loss;
            let here = Best {
                step: self.state.step,
                accuracy: evaluation.accuracy.or(evaluation.policy_accuracy).unwrap_or(f64::NAN),
                loss: weight(loss.effective_reward_weight(), evaluation.reward_loss)
                    + weight(loss.effective_alpha(), evaluation.policy_loss),
            };
            if self.state.best.as_ref().is_none_or(|best| here.beats(best)) {
                self.state.best = Some(here);
            }
        }
        // Metrics must be on disk before the checkpoint that relies on them.
        let settled = self.sinks.settle();
        self.state.metrics = self.comm.agree(settled)?;
        let shares = Shares::new(self.comm, &self.engine.model.segments);
        let written = if self.comm.rank() == 0 {
            let _work = self.comm.at_work(format!("saving step {}", self.state.step));
            let written = self.write_checkpoint(&saving, &shares, (self_test, fitted));
            shares.done().and(written)
        } else {
            shares.serve()
        };
        self.saving = Some(saving);
        self.comm.agree(written)
    }

    /// Rewards of the fixed conversations with the current weights; none if one is not finite, which is no reason to lose a
    /// checkpoint. Every rank computes a part; training's state does not change.
    ///
    /// # Errors
    /// A lost rank, or a failed computation, for lack of memory perhaps: do not train on with the engine after it.
    fn self_test(&mut self, planned: &Planned, dev_rewards: Option<Spread>) -> Result<Option<SelfTest>> {
        let precision = match self.engine.model.kind {
            Kind::BFloat16 => "bf16",
            Kind::Half => "f16",
            _ => "f32",
        };
        let Some(data) = self.comm.agree(planned.data())? else {
            return Ok(Some(planned.rewarded(&[], precision, dev_rewards)));
        };
        let budget = self.config.train.tokens_per_micro_batch;
        let all: Vec<usize> = (0..data.len()).collect();
        let mut progress = Progress::new("self-test", data.len());
        let to_score = ToScore { data: &data, pairs: &all, tokens_per_micro_batch: budget, log_probs: false };
        let scores = any_scores(&mut self.engine, to_score, self.comm, &mut progress)?;
        if !scores.iter().all(is_finite) {
            if self.comm.rank() == 0 {
                warn!(
                    "the checkpoint has no {}: the model gives one of its conversations a reward that is not a finite number; \
                     has training diverged?",
                    checkpoint::SELF_TEST
                );
            }
            return Ok(None);
        }
        let rewards: Vec<f64> = scores.iter().map(|scores| scores.rewards[0]).collect();
        Ok(Some(planned.rewarded(&rewards, precision, dev_rewards)))
    }

    fn write_checkpoint(
        &self,
        saving: &Saving,
        shares: &Shares,
        (self_test, fitted): (Option<SelfTest>, Option<Fitted>),
    ) -> Result<()> {
        let started = Instant::now();
        let model = &self.engine.model;
        let architecture = &model.architecture;
        let base = hub::name_of(&saving.origin.base)?;
        let base = (base.0.as_str(), base.1.as_deref());
        let mut snapshot = Snapshot {
            step: self.state.step,
            model_dir: saving.model_files.as_ref().map_or(saving.origin.tokenizer(), UnfinishedFolder::path),
            adapter: model.lora.as_ref().map(|lora| AdapterOf { lora, architecture, base }),
            weights: Vec::new(),
            masters: Vec::new(),
            moments: Vec::new(),
            architecture: architecture.names.reward_model,
            pad_token_id: saving.pad_token,
            templates: &saving.templates,
            self_test,
            fitted,
            state: &self.state,
            config: self.config,
        };
        for (number, segment) in model.segments.iter().enumerate() {
            if model.lora.is_some() && !segment.trains() {
                // The base does not change and is not copied.
                continue;
            }
            for (index, parameter) in segment.parameters().iter().enumerate() {
                let (name, rows) = (&parameter.name, parameter.rows);
                // Computed when written: one tensor at a time is gathered, or rearranged into the order of files.
                snapshot.weights.push(Entry {
                    name: name.clone(),
                    kind: segment.weights.flat.kind(),
                    shape: parameter.shape.clone(),
                    values: Box::new(move || Ok(rows.to_file(segment.weights.view(index)))),
                });
                if !segment.trains() {
                    continue;
                }
                let entry = |name: String, state: State| Entry {
                    name,
                    kind: Kind::Float,
                    shape: parameter.shape.clone(),
                    values: Box::new(move || Ok(rows.to_file(&shares.whole(number, index, state)?))),
                };
                snapshot.masters.push(entry(name.clone(), State::Master));
                snapshot.moments.push(entry(format!("exp_avg.{name}"), State::First));
                snapshot.moments.push(entry(format!("exp_avg_sq.{name}"), State::Second));
            }
        }
        let folder = checkpoint::save(&saving.run, &snapshot)?;
        info!("saved {} in {:.1} s", folder.display(), started.elapsed().as_secs_f64());
        let best = self.state.best.as_ref().map(|best| best.step);
        checkpoint::link_best(&saving.run, best)?;
        checkpoint::retain(&saving.run, self.config.checkpoint.keep, best).map(drop)
    }

    /// Restores masters, moments and position from a checkpoint that this program wrote. Returns a hash of everything read,
    /// with names and shapes: ranks may read from different disks, and must have read the same.
    ///
    /// # Errors
    /// Damaged files, or a checkpoint of another model, loss or data.
    pub(crate) fn resume(&mut self, folder: &Path) -> Result<u128> {
        let mut hash = Xxh3::new();
        let mut hashed = |name: &str, value: Tensor| -> Result<Tensor> {
            hash.update(format!("{name} {:?}", value.size()).as_bytes());
            hash.update(&tensor::bytes(&value)?);
            Ok(value)
        };
        let (state, _) = check_resumable(folder, self.config, &self.state.data_key, &self.state.model_key)?;
        let masters = Mapped::open(&folder.join(checkpoint::MASTERS))?;
        let moments = Mapped::open(&folder.join(checkpoint::MOMENTS))?;
        for segment in self.engine.model.segments.iter_mut().filter(|segment| segment.trains()) {
            for (index, parameter) in segment.parameters().clone().iter().enumerate() {
                let Parameter { name, shape, rows, .. } = parameter;
                let value = hashed(name, read(&masters, name, shape)?)?;
                segment.set(index, &rows.to_memory(&value));
                let Some(state) = &segment.state else { continue };
                for (flat, prefix) in state.moments.iter().flatten().zip(["exp_avg", "exp_avg_sq"]) {
                    let name = format!("{prefix}.{name}");
                    let value = hashed(&name, read(&moments, &name, shape)?)?;
                    state.write_owned(flat, segment.parameters(), index, &rows.to_memory(&value));
                }
            }
        }
        let now = (self.state.world_size, self.state.threads);
        if (state.world_size, state.threads) != now {
            info!(
                "the checkpoint was made by {} ranks of {} threads, this run has {} of {}: results are equal up to rounding",
                state.world_size, state.threads, now.0, now.1
            );
        }
        hash.update(format!("{state:?}").as_bytes());
        self.state = TrainState { world_size: now.0, threads: now.1, ..state };
        self.prefetch = None;
        Ok(hash.digest128())
    }
}

/// Refuses a checkpoint that a run with this config, data and model cannot continue from. Returns its position, and the
/// harmless differences of the settings. Reads no tensor.
///
/// # Errors
/// A folder that is no checkpoint of this program, or one of other training pairs, another order of them, another model
/// or another loss.
pub(crate) fn check_resumable(
    folder: &Path,
    config: &Config,
    data_key: &str,
    model_key: &str,
) -> Result<(TrainState, Vec<Difference>)> {
    const ANEW: &str = "resume with the config the run was started with, or start another run";
    let place = folder.display();
    let state = checkpoint::load_state(folder)?;
    let differences = Config::load(&folder.join(checkpoint::CONFIG), &[])?.differences(config)?;
    let of = |keys: &[&str]| -> Vec<Difference> {
        let named = |difference: &&Difference| keys.iter().any(|key| difference.key.starts_with(key));
        differences.iter().filter(named).cloned().collect()
    };
    if state.data_key != data_key {
        let text =
            ["data.template", "data.max", "data.truncation", "data.shuffle", "data.seed", "train.pairs_per_step"];
        let differences = of(&[&text[..], &["data.train", "model.path"]].concat());
        let what = match differences.is_empty() {
            true => "the training files or the tokenizer have changed since".to_owned(),
            false => listed(&differences),
        };
        return Err(Error::input(format!("{place} was trained on other data, or in another order: {what}")).hint(ANEW));
    }
    if state.model_key != model_key {
        return Err(Error::input(format!("{place} was trained from another model"))
            .hint("model.path must hold the model the run was started from"));
    }
    let loss = of(&["loss."]);
    if !loss.is_empty() {
        return Err(Error::input(format!("{place} was trained with another loss: {}", listed(&loss))).hint(ANEW));
    }
    // The base may lie elsewhere now; the model's key verifies its content.
    let lora: Vec<_> = of(&["lora."]).into_iter().filter(|difference| difference.key != "lora.base").collect();
    if !lora.is_empty() {
        return Err(Error::input(format!("{place} was trained with other adapters: {}", listed(&lora))).hint(ANEW));
    }
    Ok((state, differences))
}

/// Refuses to continue if the ranks' replicas differ: their masters must be the same to the last bit, or their compute
/// values if each holds a share of the masters. All ranks must call it.
///
/// # Errors
/// Replicas that differ, or a lost rank.
pub fn check_replicas(engine: &Engine, step: usize, comm: &CommThread) -> Result<()> {
    if comm.world_size() == 1 { Ok(()) } else { Hashes::of_weights(engine, step)?.compare(comm) }
}

fn read(file: &Mapped, name: &str, shape: &[i64]) -> Result<Tensor> {
    let found = file.shape(name)?;
    if found != shape {
        return Err(Error::input(format!("{name} has shape {found:?} in the checkpoint, but {shape:?} in the model"))
            .hint("resume with the config the run was started with"));
    }
    file.read(name)
}
