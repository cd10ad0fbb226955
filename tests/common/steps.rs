//! A tiny model, a config for it and pairs of many lengths, for tests of whole training steps.

use haf_dist::comm::CommThread;
use haf_dist::config::Config;
use haf_dist::data::AnswerSpan;
use haf_dist::data::prepared::{LabeledPair, PreparedData};
use haf_dist::data::sampler::Sampler;
use haf_dist::data::sequence::OwnedPair;
use haf_dist::engine::{Buckets, Engine};
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::segment::Use;
use haf_dist::model::weights::LoadOptions;
use haf_dist::train::{Split, Trainer};
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

/// Pairs of the data set.
pub const PAIRS: usize = 23;

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// Five steps with a short last batch (23 pairs, 8 a step) and everything on; `lines` may change them.
pub fn config(case: &str, lines: &[&str]) -> Config {
    let text = format!(
        "model.path = '{}'\ndata.train = [{{ path = 'unused' }}]\noutput.dir = 'unused'\n\
         train.steps = 5\ntrain.pairs_per_step = 8\ntrain.learning_rate = 0.01\ntrain.weight_decay = 0.1\n",
        folder(case).display()
    );
    let lines: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
    Config::parse("test", &text, &lines).unwrap()
}

/// Pairs of many lengths, some with answers that share a start; the same in every call.
pub fn pairs(vocabulary: u32) -> PreparedData {
    let mut state = 7u32;
    let mut next = |bound: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % bound
    };
    let make = |index: usize| {
        let prompt_length = 1 + next(9) as usize;
        let (prefix, chosen, rejected) = (prompt_length + next(3) as usize, 1 + next(7) as usize, 1 + next(7) as usize);
        let tokens = (0..prefix + chosen + rejected).map(|_| 3 + next(vocabulary - 3)).collect();
        let pair = OwnedPair {
            tokens,
            prefix,
            chosen,
            rejected,
            spans: AnswerSpan::of_pair(prompt_length, prefix, chosen, rejected),
            prompt_hash: index as u64,
            prompt_cut: false,
            answer_cut: false,
            special_in_text: 0,
        };
        LabeledPair { pair, margin: 0.1 * next(4) as f32, tied: false, domain: "test".into() }
    };
    PreparedData::from_pairs((0..PAIRS).map(make).collect()).unwrap()
}

/// The model of the config with its adapters, if it has any, ready to train.
pub fn engine(config: &Config) -> Engine {
    engine_for(config, (Kind::Float, Device::Cpu), Use::Train)
}

/// The same for a rank that trains all of it, or a share where the config says so.
pub fn engine_of_rank(config: &Config, place: (Kind, Device), comm: &CommThread) -> Engine {
    engine_for(config, place, Use::training(config.parallel.shard_optimizer, comm.rank(), comm.world_size()))
}

fn engine_for(config: &Config, (kind, device): (Kind, Device), purpose: Use) -> Engine {
    let log_probs = config.loss.needs_policy();
    let options = LoadOptions { kind, device, purpose, log_probs };
    let origin = Origin::of(&config.model.path, None).unwrap();
    Engine::new(adapter::load(&origin, options, config.lora.as_ref()).unwrap(), config.train.activation_checkpointing)
        .unwrap()
}

/// A run of the config over [`pairs`].
pub fn trainer<'a>(config: &'a Config, comm: &'a CommThread, engine: Engine) -> Trainer<'a> {
    let buckets = Buckets::of(&engine.model).unwrap();
    trainer_with(config, comm, (engine, buckets))
}

/// The same with these buckets; optimizer state stays as it is.
pub fn trainer_with<'a>(config: &'a Config, comm: &'a CommThread, (engine, buckets): (Engine, Buckets)) -> Trainer<'a> {
    let data = pairs(engine.model.architecture.vocabulary as u32);
    trainer_over(config, comm, (engine, buckets), data)
}

/// The same over other pairs.
pub fn trainer_over<'a>(
    config: &'a Config,
    comm: &'a CommThread,
    (engine, buckets): (Engine, Buckets),
    data: PreparedData,
) -> Trainer<'a> {
    // A reference that differs from the policy, or half of the gradients would be trivial.
    let references = (0..data.len()).map(|pair| [-20.0 - pair as f32, -25.0 + pair as f32]).collect();
    let batch = config.train.pairs_per_step;
    let sampler = Sampler::new(data.source_ranges(), &[1.0], batch, true, config.data.seed).unwrap();
    Trainer::new(config, comm, (engine, buckets), sampler, Split { name: "train", data, references }, None, 1).unwrap()
}
