//! `haf-dist --config FILE`: sets a run up, trains, evaluates on the test pairs and prints the table.

use super::alike;
use super::closing;
use super::setup::{self, CompleteSplits, Splits};
use crate::checkpoint::{self, AsTrained, Changed, ChatTemplates, Planned, TrainState};
use crate::comm::CommThread;
use crate::config::{Backend, Config, listed};
use crate::data::prepared::PreparedData;
use crate::data::report;
use crate::data::tokenize::Encoder;
use crate::engine::{Buckets, Engine};
use crate::error::{Error, Result};
use crate::machine::{Machine, backend, kernels};
use crate::metrics::{self, EvaluationMetrics, Jsonl, RunFacts, Sink, Terminal};
use crate::model::adapter::{self, Origin};
use crate::model::architecture::Architecture;
use crate::model::segment::{Segment, Use};
use crate::model::weights::LoadOptions;
use crate::train::signals::Listening;
use crate::train::{self, Saving, Split, Trainer, check_replicas, check_resumable, checkpoints_at_once, total_steps};
use crate::update::reducer;
use crate::update::sharding;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::Kind;
use tracing::{info, warn};

/// Runs the command on every rank.
///
/// # Errors
/// Anything wrong with the config, the files or the machine, before anything is written; lost ranks and failed writes
/// later.
pub(crate) fn run(config: &Config, resume: bool, changed: Changed, json: bool, comm: &CommThread) -> Result<()> {
    let started = Instant::now();
    let machine = machine(config, comm)?;
    let origin = comm.agree(setup::origin(config))?;
    alike::model(&origin, comm)?;
    let check = comm.agree(setup::check_files(&origin, changed))?;
    let architecture = comm.agree(Architecture::open(&origin.base))?;
    kernels::settle(config.parallel.kernels, &architecture, &machine, comm)?;
    comm.agree(setup::balanced(config, &architecture))?;
    let encoder = comm.agree(setup::encoder(config, origin.tokenizer(), &architecture))?;
    let run = &config.output.dir;
    comm.agree(if comm.rank() == 0 { checkpoint::check_run(run, resume) } else { Ok(()) })?;
    let splits = setup::splits(config, &encoder, comm)?;
    let mut sampler = comm.agree(setup::sampler(config, &splits.train))?;
    let total = total_steps(config, &sampler);
    let keys = setup::model_keys(&origin, comm)?;
    let run_keys = RunKeys { data: train::data_key(config, &splits.train), model: format!("{:032x}", keys.start) };
    let first = comm.rank() == 0;
    // A resumed run claims its folder before it reads it.
    let start = || {
        let _work = comm.at_work(format!("clearing {} of interrupted saves", run.display()));
        checkpoint::start_run(run, resume)
    };
    let claim = comm.agree((first && resume).then(start).transpose())?;
    let checkpoint = if resume { newest(config, &run_keys, total, comm)? } else { None };
    if let Some((_, state)) = checkpoint.as_ref().filter(|(_, state)| state.step == total) {
        // Rank 0 decides for all.
        if comm.all_true(!first || is_over(config, &splits, total))? {
            return if first { closing::finished_before(config, state, json) } else { Ok(()) };
        }
        info!("{} has done its {total} steps; its test pairs are not evaluated yet", run.display());
    }
    let pad_token = comm.agree(pad_token(&origin, &splits, &encoder, &architecture))?;
    let templates = comm.agree(ChatTemplates::of(origin.tokenizer(), &encoder))?;
    let self_test = Planned::of(&encoder);
    let mut engine = load(config, &origin, &machine, comm)?;
    setup::finish_check(check, comm)?;
    let buckets = make_alike(&mut engine, comm)?;
    if first {
        train::doubts(config, splits.train.len()).iter().for_each(|doubt| warn!("{doubt}"));
    }
    // The last checks, and a new run's folder, before the long reference passes.
    comm.agree(if first { check_disk(config, &origin, &engine, total) } else { Ok(()) })?;
    let _claim = claim.or(comm.agree((first && !resume).then(start).transpose())?);
    let keep = || checkpoint::keep_model_files(run, origin.tokenizer());
    let model_files = comm.agree(first.then(keep).transpose())?;
    let cache = |data: &PreparedData| setup::reference_cache(keys.base, data, config, &machine);
    let CompleteSplits { train, dev, test } =
        setup::all_references(splits, &mut sampler, config, &mut engine, cache, comm)?;
    let mut trainer = Trainer::new(config, comm, (engine, buckets), sampler, train, dev, machine.threads)?;
    trainer.state.model_key = run_keys.model;
    trainer.saving = Some(Saving { run: run.clone(), origin, model_files, pad_token, templates, self_test });
    if resume {
        continue_from(&mut trainer, checkpoint.map(|(folder, _)| folder), run)?;
    }
    check_replicas(&trainer.engine, trainer.state.step, comm)?;
    trainer.sinks = comm.agree(if first { sinks(run, resume, &trainer.state, total) } else { Ok(Vec::new()) })?;
    info!("set up in {:.1} s; {total} steps of {} pairs", started.elapsed().as_secs_f64(), config.train.pairs_per_step);
    // Not earlier: without a step to save, a signal should end a long reference pass at once.
    let listening = Listening::start(trainer.stop.clone())?;
    trainer.run()?;
    drop(listening);
    finish(trainer, test, total, json)
}

/// Hashes of what a run depends on.
struct RunKeys {
    /// Of the training pairs and their order.
    data: String,
    /// Of the starting model's files.
    model: String,
}

/// Picks each rank's device, and connects the ranks.
fn machine(config: &Config, comm: &CommThread) -> Result<Machine> {
    check_ranks(config, comm)?;
    let machine = Machine::pick(config.model.dtype, config.parallel.threads, comm)?;
    backend::connect(&config.parallel, machine.device, comm)?;
    Ok(machine)
}

/// Gives all ranks the same weights, and makes the buckets for gradients.
fn make_alike(engine: &mut Engine, comm: &CommThread) -> Result<Buckets> {
    setup::share_weights(&mut engine.model, comm)?;
    sharding::report(&engine.model, comm.world_size());
    reducer::buckets(&engine.model, comm)
}

/// After the last step: evaluates the test pairs and prints the closing table.
fn finish(mut trainer: Trainer, test: Option<Split>, total: usize, json: bool) -> Result<()> {
    if total > 0 && trainer.state.updates_skipped >= total {
        return Err(Error::runtime("no update was made: gradients were never finite")
            .hint("try a lower train.learning_rate, model.dtype = \"f32\", or --debug to see which gradient"));
    }
    let rows = match &test {
        Some(test) => test_and_record(&mut trainer, test)?,
        None => Vec::new(),
    };
    // Clears the progress bar before the table is printed.
    trainer.sinks.clear();
    if trainer.comm.rank() == 0 {
        closing::print(trainer.config, &trainer, &rows, json)?;
    }
    Ok(())
}

/// Refuses settings that cannot work with this many ranks.
fn check_ranks(config: &Config, comm: &CommThread) -> Result<()> {
    if comm.world_size() > config.train.pairs_per_step {
        return Err(Error::input(format!(
            "{} ranks share train.pairs_per_step = {}: some ranks would never get a pair",
            comm.world_size(),
            config.train.pairs_per_step
        ))
        .hint("start fewer ranks, or raise train.pairs_per_step (the global batch)"));
    }
    if config.parallel.backend == Backend::Mpi && !crate::comm::launch::under_mpirun() {
        return Err(Error::input("parallel.backend = \"mpi\", but no MPI launcher started this process")
            .hint("start it with mpirun -n N haf-dist ..., or set parallel.backend = \"auto\""));
    }
    Ok(())
}

fn load(config: &Config, origin: &Origin, machine: &Machine, comm: &CommThread) -> Result<Engine> {
    let options = LoadOptions {
        kind: machine.kind,
        device: machine.device,
        purpose: Use::training(config.parallel.shard_optimizer, comm.rank(), comm.world_size()),
        log_probs: config.loss.needs_policy(),
    };
    let work = comm.at_work("loading the model");
    let model = comm.agree(adapter::load(origin, options, config.lora.as_ref()))?;
    drop(work);
    info!(
        "{}: {} parameters, {}, {} with {} on {}",
        config.model.path.display(),
        many(model.parameter_count()),
        machine.dtype_name(),
        report::counted(comm.world_size(), "rank"),
        report::counted(machine.threads, "thread"),
        machine.place()
    );
    if let Some(lora) = &model.lora {
        let trained: usize = model.segments.iter().filter(|segment| segment.trains()).map(Segment::length).sum();
        let (targets, trained) = (lora.targets(&model.architecture).join(", "), many(trained));
        info!("LoRA of rank {} on {targets}: {trained} parameters are trained, the rest is frozen", lora.rank);
    }
    match model.had_reward_head {
        true => info!("the model has a reward head: training continues from it"),
        false => info!("the model has no reward head: it starts at zero"),
    }
    Engine::new(model, config.train.activation_checkpointing)
}

/// A count of parameters: whole, or in millions.
fn many(parameters: usize) -> String {
    match parameters {
        0..1_000_000 => report::grouped(parameters),
        _ => format!("{:.1} M", parameters as f64 / 1e6),
    }
}

/// Checks that the disk has room for the run's checkpoints.
fn check_disk(config: &Config, origin: &Origin, engine: &Engine, total: usize) -> Result<()> {
    let model = &engine.model;
    let trained = model.segments.iter().filter(|segment| segment.trains()).map(|segment| segment.length()).sum();
    // With adapters exactly the trained parameters are exported, in f32.
    let exported = if model.lora.is_some() { (trained, Kind::Float) } else { (model.parameter_count(), model.kind) };
    let bytes = checkpoint::expected_bytes(origin.tokenizer(), exported, trained);
    let found = checkpoint::check_disk(&config.output.dir, bytes, checkpoints_at_once(config, total))?;
    info!("{found}");
    Ok(())
}

/// Whether a run with its last checkpoint is finished: its test pairs, if it has any, are evaluated.
fn is_over(config: &Config, splits: &Splits, total: usize) -> bool {
    let Some(test) = &splits.test else { return true };
    // Other test pairs than before are still to be evaluated.
    metrics::read_pairs(&config.output.dir, Changed::Refused).is_ok_and(|(facts, outcomes)| {
        facts.step == total && facts.config.data.test == config.data.test && outcomes.len() == test.len()
    })
}

/// The newest whole checkpoint and its state, if there is one. Checks that a run with these keys can continue from it to `total`
/// updates.
fn newest(config: &Config, keys: &RunKeys, total: usize, comm: &CommThread) -> Result<Option<(PathBuf, TrainState)>> {
    let run = &config.output.dir;
    let work = comm.at_work(format!("checking the checkpoints of {}", run.display()));
    let newest = comm.agree(if comm.rank() == 0 { checkpoint::newest(run) } else { Ok(None) })?;
    drop(work);
    let name = newest.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let name = comm.broadcast_bytes(Some(name.into_bytes()))?;
    if name.is_empty() {
        info!("{} holds no whole checkpoint: starting from the first step", run.display());
        return Ok(None);
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&name).into_owned());
    let (state, differences) = comm.agree(check_resumable(&folder, config, &keys.data, &keys.model))?;
    if !differences.is_empty() && comm.rank() == 0 {
        warn!("settings differ from those of the checkpoint: {}", listed(&differences));
    }
    match state.step {
        step if step > total => {
            Err(Error::input(format!("--resume: {} is beyond the run's {total} steps", folder.display()))
                .hint("raise train.steps or train.epochs, or start another run"))
        }
        _ => Ok(Some((folder, state))),
    }
}

/// Continues from a checkpoint, or from the start if a run died before its first checkpoint.
fn continue_from(trainer: &mut Trainer, checkpoint: Option<PathBuf>, run: &Path) -> Result<()> {
    let comm = trainer.comm;
    if let Some(folder) = checkpoint {
        let work = comm.at_work("reading the checkpoint");
        let read = comm.agree(trainer.resume(&folder))?;
        alike::read("the checkpoint's data", read, comm)?;
        drop(work);
        info!("resuming after step {} from {}", trainer.state.step, folder.display());
    }
    // A kill after the last save may have left an older link.
    let best = trainer.state.best.as_ref().map(|best| best.step);
    let tidy = || checkpoint::set_aside(run, trainer.state.step).and_then(|_| checkpoint::link_best(run, best));
    comm.agree(if comm.rank() == 0 { tidy() } else { Ok(()) })
}

/// The sinks for a run of `total` updates that is at `state`. A finished run's metrics stay as they are.
fn sinks(run: &Path, resume: bool, state: &TrainState, total: usize) -> Result<Vec<Box<dyn Sink>>> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    let (done, mark) = (state.step, state.metrics.as_ref());
    let finished = resume
        && done == total
        && metrics::read_pairs(run, Changed::Refused).is_ok_and(|(facts, _)| facts.step == total);
    match (finished, resume) {
        (true, _) => Jsonl::check(run, done, mark)?,
        (false, true) => sinks.push(Box::new(Jsonl::resume(run, done, mark)?)),
        (false, false) => sinks.push(Box::new(Jsonl::create(run)?)),
    }
    sinks.push(Box::new(Terminal::new(done, total)));
    Ok(sinks)
}

/// A token to pad with that occurs in no sequence of the run and is not an end of sequence.
fn pad_token(origin: &Origin, splits: &Splits, encoder: &Encoder, architecture: &Architecture) -> Result<u32> {
    let mut occurs = vec![false; architecture.vocabulary];
    for data in splits.all() {
        for index in 0..data.len() {
            let pair = data.pair(index);
            for &token in pair.prefix.iter().chain(pair.chosen).chain(pair.rejected) {
                occurs[token as usize] = true;
            }
        }
    }
    let mut ends = checkpoint::end_tokens(&origin.base)?;
    ends.push(encoder.eos());
    checkpoint::choose_pad_token(&occurs, &ends, |token| encoder.is_special(token)).ok_or_else(|| {
        Error::input("every token of the vocabulary occurs in the data, so there is no pad token")
            .hint("Transformers reads the reward at the last token that is not padding, so one token must be unused")
    })
}

/// Runs the closing evaluation, and writes each pair's result into the run's folder.
fn test_and_record(trainer: &mut Trainer, test: &Split) -> Result<Vec<EvaluationMetrics>> {
    let (rows, outcomes) = trainer.evaluate_pairs(test)?;
    let comm = trainer.comm;
    // The pairs' file marks the run as complete, so metrics.jsonl must be on the disk first.
    let settled = trainer.sinks.settle().map(drop);
    let write = || {
        settled?;
        let facts = run_facts(trainer)?;
        metrics::write_pairs(&trainer.config.output.dir, &facts, &outcomes)
    };
    comm.agree(if comm.rank() == 0 { write() } else { Ok(()) })?;
    Ok(rows)
}

/// The facts about the run. The heads' weights are read from the last step's checkpoint, where a resumed run finds them too.
fn run_facts(trainer: &Trainer) -> Result<RunFacts> {
    let state = &trainer.state;
    let checkpoint = checkpoint::step_path(&trainer.config.output.dir, state.step);
    let fitted = AsTrained::read(&checkpoint)?.and_then(|trained| trained.fitted);
    Ok(RunFacts {
        step: state.step,
        data_key: state.data_key.clone(),
        model_key: state.model_key.clone(),
        combined: fitted.and_then(|fitted| fitted.combined),
        config: trainer.config.clone(),
    })
}
