//! `haf-dist --config FILE --debug`: the run in miniature, in one process, with every check on.
//!
//! Takes a few pairs of each training source and shows the first; compares packed scores and gradients with those of one pair
//! at a time; checks every gradient for finite values; makes a few updates. Writes no file.

use super::setup;
use crate::checkpoint::Changed;
use crate::comm::CommThread;
use crate::config::{Config, Source};
use crate::data::AnswerSpan;
use crate::data::batch::Packing;
use crate::data::formats;
use crate::data::prepared::{LabeledPair, PreparedData};
use crate::data::report::counted;
use crate::data::sampler::{self, Sampler};
use crate::data::tokenize::{Encoded, Encoder};
use crate::engine::{Buckets, Engine};
use crate::error::{Error, Result};
use crate::evaluate::heads::Head;
use crate::evaluate::reference;
use crate::evaluate::swap::{self, Swap};
use crate::machine::{Machine, kernels};
use crate::model::adapter;
use crate::model::architecture::Architecture;
use crate::model::decoder::Part;
use crate::model::segment::Use;
use crate::model::weights::LoadOptions;
use crate::terminal::{self, Table};
use crate::train::{self, Split, Trainer};
use tch::{Kind, Tensor};

/// Pairs taken from each source, pairs shown, and updates made.
const PAIRS: usize = 8;
const SHOWN: usize = 3;
const STEPS: usize = 3;

/// One check and its outcome.
struct Check {
    name: &'static str,
    outcome: std::result::Result<String, String>,
}

/// Runs the command in this one process.
///
/// # Errors
/// Bad input as in a real run; a failed check.
pub(crate) fn run(config: &Config, changed: Changed, comm: &CommThread) -> Result<()> {
    let machine = Machine::pick(config.model.dtype, config.parallel.threads, comm)?;
    let origin = setup::origin(config)?;
    let check = setup::check_files(&origin, changed)?;
    let architecture = Architecture::open(&origin.base)?;
    kernels::settle(config.parallel.kernels, &architecture, &machine, comm)?;
    let encoder = setup::encoder(config, origin.tokenizer(), &architecture)?;
    let data = few_pairs(&config.data.train, &encoder)?;
    terminal::out(data.report().render())?;
    show(&data, &encoder)?;
    let options = LoadOptions {
        kind: machine.kind,
        device: machine.device,
        purpose: Use::Train,
        log_probs: config.loss.needs_policy(),
    };
    let model = adapter::load(&origin, options, config.lora.as_ref())?;
    setup::finish_check(check, comm)?;
    let mut engine = Engine::new(model, config.train.activation_checkpointing)?;
    let threads = counted(machine.threads, "thread");
    terminal::out(format_args!("{} on {}, {threads}\n", machine.dtype_name(), machine.place()))?;
    let budget = config.train.tokens_per_micro_batch;
    let references = match config.loss.needs_reference() {
        true => {
            let all: Vec<usize> = (0..data.len()).collect();
            reference::log_probs(&mut engine, (&data, &all), comm, None, budget, "debug")?
        }
        false => Vec::new(),
    };
    let split = Split { name: "debug", data, references };
    let before = without_zeros(&mut engine)?;
    let mut checks = vec![packed_scores(&mut engine, &split, config)?, exchanged_sides(&mut engine, &split, config)?];
    let mut buckets = Buckets::of(&engine.model)?;
    checks.push(packed_gradients(&mut engine, &mut buckets, &split, config)?);
    checks.push(finite_gradients(&engine, &buckets));
    buckets.clear();
    for (index, values) in before {
        engine.model.segments[index].weights.flat.copy_(&values);
    }
    checks.push(updates(config, (engine, buckets), split, &machine, comm)?);
    report(&checks)
}

/// The first pairs of each source, tokenized in memory.
fn few_pairs(sources: &[Source], encoder: &Encoder) -> Result<PreparedData> {
    let mut kept = Vec::new();
    for source in sources {
        let mut of_source = 0;
        for pair in formats::read(source)?.pairs {
            if of_source == PAIRS {
                break;
            }
            if let Encoded::Kept(tokens) = encoder.encode(&pair).map_err(|error| error.at(source.path.display()))? {
                let domain =
                    pair.domain.clone().or_else(|| source.domain.clone()).unwrap_or_else(|| "debug".to_string());
                kept.push(LabeledPair { pair: tokens, margin: pair.margin.unwrap_or(0.0), tied: pair.tied, domain });
                of_source += 1;
            }
        }
    }
    if kept.is_empty() {
        return Err(Error::input("no training pair is left after dropping").hint("see the data report of a full run"));
    }
    PreparedData::from_pairs(kept)
}

/// Prints the first pairs as the model sees them.
fn show(data: &PreparedData, encoder: &Encoder) -> Result<()> {
    for index in 0..data.len().min(SHOWN) {
        let pair = data.pair(index);
        let tokens = [pair.prefix, pair.chosen, pair.rejected].map(|part| part.len().to_string()).join(" + ");
        terminal::out(format_args!("pair {} ({tokens} tokens)", index + 1))?;
        terminal::out(format_args!("  prefix   {:?}", encoder.decode(pair.prefix)?))?;
        for (answer, (name, suffix)) in [("chosen", pair.chosen), ("rejected", pair.rejected)].into_iter().enumerate() {
            let shown = marked(suffix, pair.prefix.len(), pair.spans[answer], encoder)?;
            terminal::out(format_args!("  {name:<8} {shown}"))?;
        }
    }
    terminal::out("")
}

/// The text of a sequence after its prefix of `prefix` tokens, with >> and << around tokens at which the reward is read.
fn marked(suffix: &[u32], prefix: usize, span: AnswerSpan, encoder: &Encoder) -> Result<String> {
    let mut places: Vec<usize> = [Some(span.reward), span.second_reward].into_iter().flatten().collect();
    places.sort_unstable();
    let (mut shown, mut from) = (String::new(), 0);
    for place in places.into_iter().filter_map(|place| place.checked_sub(prefix)) {
        let (before, token) = (encoder.decode(&suffix[from..place])?, encoder.decode(&suffix[place..=place])?);
        shown += &format!("{before:?} >>{}<< ", token.escape_debug());
        from = place + 1;
    }
    if from < suffix.len() {
        shown += &format!("{:?}", encoder.decode(&suffix[from..])?);
    }
    Ok(shown.trim_end().to_owned())
}

/// Replaces zero heads and adapters by other values: with zeros, rewards would hide errors and most gradients would be zero.
/// Returns the segments' previous values.
fn without_zeros(engine: &mut Engine) -> Result<Vec<(usize, Tensor)>> {
    let (mut before, device) = (Vec::new(), engine.model.device);
    let waves = |shape: &[i64]| {
        let places = Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, device));
        (places.sin() * 0.1).view(shape)
    };
    for (index, (part, segment)) in engine.model.parts.iter().zip(&mut engine.model.segments).enumerate() {
        let parameters = segment.parameters().len();
        let zero = match part {
            Part::RewardHead => 0..1,
            // The second half of the parameters are the Bs.
            Part::Adapter(_) => parameters / 2..parameters,
            _ => continue,
        };
        before.push((index, segment.weights.flat.copy()));
        for parameter in zero {
            let shape = segment.parameters()[parameter].shape.clone();
            segment.set(parameter, &waves(&shape));
        }
    }
    if let Some(lora) = &engine.model.lora {
        let targets = lora.targets(&engine.model.architecture).join(", ");
        let rank = lora.rank;
        terminal::out(format_args!("adapters of rank {rank} on {targets}; the checks run with their B not zero\n"))?;
    }
    Ok(before)
}

/// Compares the scores of every pair packed with others, under the micro-batch budget, with those of the pair alone, its prefix
/// computed twice.
fn packed_scores(engine: &mut Engine, split: &Split, config: &Config) -> Result<Check> {
    let log_probs = config.loss.needs_policy();
    let (device, shared) = (engine.model.device, Packing::shared(engine.model.architecture.alike()));
    let (mut reward, mut log_prob) = (0f64, 0f64);
    let relative = |packed: f64, alone: f64| (packed - alone).abs() / alone.abs().max(1.0);
    for batch in batches(split, config) {
        for packed in engine.score(&split.pack(&batch, shared, device), log_probs)? {
            let alone = engine.score(&split.pack(&[packed.index], Packing::Separate, device), log_probs)?[0];
            for answer in 0..2 {
                reward = reward.max(relative(packed.rewards[answer], alone.rewards[answer]));
                log_prob = log_prob.max(relative(packed.log_probs[answer], alone.log_probs[answer]));
            }
        }
    }
    let bound = Tolerances::of(engine).scores;
    let found = format!("largest relative difference: reward {reward:.1e}, log-prob {log_prob:.1e}; bound {bound:.0e}");
    Ok(Check { name: "packed scores = one pair at a time", outcome: verdict(reward.max(log_prob) <= bound, found) })
}

/// Exchanges the sides of every pair: each answer must keep its reward, and accuracy become 1 - accuracy.
fn exchanged_sides(engine: &mut Engine, split: &Split, config: &Config) -> Result<Check> {
    let (device, shared) = (engine.model.device, Packing::shared(engine.model.architecture.alike()));
    let turned = Split { name: "debug", data: split.data.exchanged()?, references: Vec::new() };
    let mut rewards = |split: &Split, batches: Vec<Vec<usize>>| -> Result<Head> {
        let mut rewards = vec![[0.0; 2]; split.data.len()];
        for batch in batches {
            for scores in engine.score(&split.pack(&batch, shared, device), false)? {
                rewards[scores.index] = scores.rewards;
            }
        }
        Ok(Head { name: "reward", rewards })
    };
    let (one, other) = (rewards(split, batches(split, config))?, rewards(&turned, batches(split, config))?);
    let bound = swap::bounds(engine.model.kind, std::slice::from_ref(&one), None)[0];
    let Swap { accuracy, exchanged, rounding, passed, .. } = Swap::of("debug", &one, &other, bound);
    let found = format!(
        "margins differ by {rounding:.1e} at most, bound {bound:.0e}; accuracies {accuracy:.3} + {exchanged:.3}"
    );
    Ok(Check { name: "rewards with sides exchanged", outcome: verdict(passed, found) })
}

/// Compares the gradient of packed micro-batches with the sum over single pairs, their prefix computed twice.
fn packed_gradients(engine: &mut Engine, buckets: &mut Buckets, split: &Split, config: &Config) -> Result<Check> {
    let objective = train::objective_of_step(config, 0);
    let (device, shared) = (engine.model.device, Packing::shared(engine.model.architecture.alike()));
    for index in 0..split.data.len() {
        engine.forward_backward(&split.pack(&[index], Packing::Separate, device), &objective, buckets)?;
    }
    let alone: Vec<Tensor> = buckets.iter().map(|(_, bucket)| bucket.flat().copy()).collect();
    buckets.clear();
    for batch in batches(split, config) {
        engine.forward_backward(&split.pack(&batch, shared, device), &objective, buckets)?;
    }
    let (mut worst, mut place) = (0f64, String::from("-"));
    for ((segment, packed), alone) in buckets.iter().zip(&alone) {
        let (part, packed) = (engine.model.parts[segment], packed.flat());
        let norm = alone.norm().double_value(&[]);
        let distance = (packed - alone).norm().double_value(&[]);
        let relative = if norm == 0.0 { distance } else { distance / norm };
        if relative.is_nan() || relative > worst {
            (worst, place) = (relative, format!("{part:?}"));
        }
    }
    let bound = Tolerances::of(engine).gradients;
    let found = format!("largest relative distance {worst:.1e} in {place}; bound {bound:.0e}");
    Ok(Check { name: "packed gradients = one pair at a time", outcome: verdict(worst <= bound, found) })
}

/// The pairs, cut under the run's micro-batch budget.
fn batches(split: &Split, config: &Config) -> Vec<Vec<usize>> {
    let tokens: Vec<usize> = (0..split.data.len()).map(|pair| split.data.tokens(pair)).collect();
    sampler::micro_batches(&tokens, config.train.tokens_per_micro_batch)
}

fn finite_gradients(engine: &Engine, buckets: &Buckets) -> Check {
    let (mut bad, mut count) = (Vec::new(), 0);
    for (segment, bucket) in buckets.iter() {
        for (sum, parameter) in bucket.views().iter().zip(engine.model.segments[segment].parameters().iter()) {
            count += 1;
            if sum.isfinite().all().int64_value(&[]) != 1 {
                bad.push(parameter.name.clone());
            }
        }
    }
    let found = if bad.is_empty() { format!("all {count}") } else { format!("not finite: {}", bad.join(", ")) };
    Check { name: "every gradient is finite", outcome: verdict(bad.is_empty(), found) }
}

/// A few updates as the run would make them; the loss must stay finite.
fn updates(
    config: &Config,
    engine: (Engine, Buckets),
    split: Split,
    machine: &Machine,
    comm: &CommThread,
) -> Result<Check> {
    let mut config = config.clone();
    config.train.pairs_per_step = config.train.pairs_per_step.min(split.data.len());
    (config.train.steps, config.train.epochs) = (Some(STEPS), None);
    let data = &config.data;
    let sampler =
        Sampler::new(split.data.source_ranges(), &[1.0], config.train.pairs_per_step, data.shuffle, data.seed)?;
    let mut trainer = Trainer::new(&config, comm, engine, sampler, split, None, machine.threads)?;
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let (metrics, updated) = trainer.step(STEPS)?;
        let (number, loss, norm) = (metrics.step, metrics.loss, metrics.grad_norm);
        terminal::out(format_args!("step {number}: loss {loss:.6}, gradient norm {norm:.4}"))?;
        losses.push(if updated { metrics.loss } else { f64::NAN });
    }
    terminal::out("")?;
    let found = losses.iter().map(|loss| format!("{loss:.4}")).collect::<Vec<_>>().join(" -> ");
    Ok(Check { name: "updates", outcome: verdict(losses.iter().all(|loss| loss.is_finite()), found) })
}

/// Largest relative differences that rounding explains. The gradients of chosen and rejected answers partly cancel, so bf16
/// gradients keep fewer digits than scores. The f32 bounds are the sharper ones.
struct Tolerances {
    scores: f64,
    gradients: f64,
}

impl Tolerances {
    fn of(engine: &Engine) -> Self {
        match engine.model.kind {
            Kind::Float => Self { scores: 1e-3, gradients: 1e-3 },
            _ => Self { scores: 1e-1, gradients: 3e-1 },
        }
    }
}

fn verdict(good: bool, found: String) -> std::result::Result<String, String> {
    if good { Ok(found) } else { Err(found) }
}

fn report(checks: &[Check]) -> Result<()> {
    let mut table = Table::new(["check", "", "result"]);
    for check in checks {
        let (mark, found) = match &check.outcome {
            Ok(found) => ("PASS", found),
            Err(found) => ("FAIL", found),
        };
        table.row([check.name, mark, found]);
    }
    terminal::out(table)?;
    let failed = checks.iter().filter(|check| check.outcome.is_err()).count();
    match failed {
        0 => Ok(()),
        failed => Err(Error::runtime(format!("{failed} of {} checks failed", checks.len()))),
    }
}
