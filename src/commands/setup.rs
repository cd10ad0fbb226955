//! Preparations that several commands share: tokenized data, rank 0's weights on every rank, reference log-probs.

use super::alike;
use crate::checkpoint::{Changed, FileCheck};
use crate::comm::{CommThread, launch};
use crate::config::{Config, Source};
use crate::data::doubts::doubts;
use crate::data::prepared::PreparedData;
use crate::data::reference_cache::ReferenceCache;
use crate::data::report::{self, DataReport};
use crate::data::sampler::Sampler;
use crate::data::tokenize::Encoder;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::evaluate::reference;
use crate::files;
use crate::logging;
use crate::machine::Machine;
use crate::model::adapter::{self, Origin};
use crate::model::architecture::Architecture;
use crate::model::peft;
use crate::model::segment::Segment;
use crate::model::weight_files::{value_head, weight_paths};
use crate::model::weights::Model;
use crate::terminal;
use crate::train::{Split, total_steps};
use std::path::{Path, PathBuf};
use tracing::warn;

/// The tokenized splits of a run.
pub(crate) struct Splits {
    /// Training pairs.
    pub(crate) train: PreparedData,
    /// Pairs that pick the best checkpoint.
    pub(crate) dev: Option<PreparedData>,
    /// Pairs for the closing evaluation.
    pub(crate) test: Option<PreparedData>,
}

impl Splits {
    /// The splits that exist.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PreparedData> {
        [Some(&self.train), self.dev.as_ref(), self.test.as_ref()].into_iter().flatten()
    }
}

/// The folders of the config's model.
///
/// # Errors
/// An adapter whose base does not exist.
pub(crate) fn origin(config: &Config) -> Result<Origin> {
    Origin::of(&config.model.path, config.lora.as_ref().and_then(|lora| lora.base.as_deref()))
}

/// Starts to check the model's files if they are a checkpoint's, on rank 0, whose files all ranks use.
///
/// # Errors
/// Files that have changed since they were written.
pub(crate) fn check_files(origin: &Origin, changed: Changed) -> Result<Option<FileCheck>> {
    (launch::rank() == 0).then(|| FileCheck::begin(origin.folders(), changed)).transpose()
}

/// Finishes that check. All ranks must call it.
///
/// # Errors
/// As [`check_files`], or a lost rank.
pub(crate) fn finish_check(check: Option<FileCheck>, comm: &CommThread) -> Result<()> {
    let _work = comm.at_work("checking the model's files");
    comm.agree(check.map_or(Ok(()), FileCheck::finish))
}

/// Checks that a model whose experts are to be balanced has experts.
///
/// # Errors
/// [`Error::input`] if it has none.
pub(crate) fn balanced(config: &Config, architecture: &Architecture) -> Result<()> {
    let routed = architecture.blocks.iter().any(|block| block.mlp.experts.is_some());
    if config.loss.router_balance > 0.0 && !routed {
        return Err(Error::input("loss.router_balance is above 0, but this model has no experts").hint("set it to 0"));
    }
    Ok(())
}

/// The encoder for a config, with the tokenizer in `model`.
pub(crate) fn encoder(config: &Config, model: &Path, architecture: &Architecture) -> Result<Encoder> {
    let data = &config.data;
    if data.max_length > architecture.max_positions {
        warn!(
            "data.max_length = {} is more than the {} positions the model was made for",
            data.max_length, architecture.max_positions
        );
    }
    Encoder::open(model, data.into(), architecture.vocabulary)
}

/// Tokenizes every split, or maps it from the cache, and prints the data report on rank 0.
pub(crate) fn splits(config: &Config, encoder: &Encoder, comm: &CommThread) -> Result<Splits> {
    let data = &config.data;
    let splits = Splits {
        train: prepared(&data.train, "train", config, encoder, comm)?,
        dev: optional(&data.dev, "dev", config, encoder, comm)?,
        test: optional(&data.test, "test", config, encoder, comm)?,
    };
    if comm.rank() == 0 {
        let _work = comm.at_work("looking for doubts about the data");
        show_report(&splits.all().map(PreparedData::report).collect::<Vec<_>>());
        let others = [("dev", &splits.dev), ("test", &splits.test)];
        let others: Vec<_> = others.into_iter().filter_map(|(name, data)| Some((name, data.as_ref()?))).collect();
        doubts(&splits.train, &others).iter().for_each(|doubt| warn!("{doubt}"));
    }
    Ok(splits)
}

/// Prints the data report on stderr, unless only warnings are to be shown.
pub(crate) fn show_report(reports: &[&DataReport]) {
    if tracing::enabled!(tracing::Level::INFO) {
        const CAPTION: &str =
            "The data: pairs and tokens that were read, kept and truncated; a common prefix is counted once";
        logging::above_progress(|| terminal::note(format_args!("{CAPTION}\n{}", report::render(reports))));
    }
}

fn optional(
    sources: &[Source],
    split: &str,
    config: &Config,
    encoder: &Encoder,
    comm: &CommThread,
) -> Result<Option<PreparedData>> {
    if sources.is_empty() { Ok(None) } else { prepared(sources, split, config, encoder, comm).map(Some) }
}

/// Tokenizes a split, or maps it from the cache: rank 0 first; the others find its file, or make their own if they do not share
/// its disk.
pub(crate) fn prepared(
    sources: &[Source],
    split: &str,
    config: &Config,
    encoder: &Encoder,
    comm: &CommThread,
) -> Result<PreparedData> {
    let _work = comm.at_work(format!("tokenizing the {split} pairs"));
    let open = || PreparedData::open_or_make(sources, encoder, &config.data.cache_dir, split);
    let of_rank_0 = comm.agree(if comm.rank() == 0 { open().map(Some) } else { Ok(None) })?;
    let data = comm.agree(of_rank_0.map_or_else(open, Ok))?;
    alike::data(split, &data, comm)?;
    Ok(data)
}

/// Gives every rank the weights of rank 0, whatever its own node's files contain. For state of which each rank reads its own
/// share, checks that all have read the same files. All ranks must call it.
///
/// # Errors
/// Models of different sizes or, if state is sharded, with different values; or a lost rank.
pub(crate) fn share_weights(model: &mut Model, comm: &CommThread) -> Result<()> {
    let _work = comm.at_work("distributing the weights");
    if let Some(hash) = model.shares_read {
        alike::read("the model's weights", hash, comm)?;
    }
    let values = |segment: &Segment| {
        let master = segment.state.as_ref().filter(|state| !state.is_share()).map(|state| &state.master);
        master.unwrap_or(&segment.weights.flat).shallow_clone()
    };
    let read_alike = |segment: &&Segment| !segment.holds_share_of_masters();
    let weights: Vec<_> = model.segments.iter().filter(read_alike).map(values).collect();
    comm.broadcast_together("the weights of rank 0".into(), &weights, 0)?;
    model.segments.iter_mut().for_each(Segment::refresh_weights);
    Ok(())
}

/// Completes a split with the reference log-probs of the `needed` pairs, if the loss needs them. They are computed by the model
/// in `engine`, which must hold the weights of `config.model.path`.
fn with_references(
    name: &'static str,
    (data, needed): (PreparedData, &[usize]),
    config: &Config,
    engine: &mut Engine,
    cache: impl Fn(&PreparedData) -> ReferenceCache,
    comm: &CommThread,
) -> Result<Split> {
    if !config.loss.needs_reference() {
        return Ok(Split { name, data, references: Vec::new() });
    }
    let cache = (comm.rank() == 0).then(|| cache(&data));
    let budget = config.train.tokens_per_micro_batch;
    let references = reference::log_probs(engine, (&data, needed), comm, cache.as_ref(), budget, name)?;
    Ok(Split { name, data, references })
}

/// The splits of a run with their reference log-probs.
pub(crate) struct CompleteSplits {
    /// Training pairs.
    pub(crate) train: Split,
    /// Pairs that pick the best checkpoint.
    pub(crate) dev: Option<Split>,
    /// Pairs for the closing evaluation.
    pub(crate) test: Option<Split>,
}

/// [`with_references`] for every split of a run: all dev and test pairs, and the training pairs that the run will use.
pub(crate) fn all_references(
    splits: Splits,
    sampler: &mut Sampler,
    config: &Config,
    engine: &mut Engine,
    cache: impl Fn(&PreparedData) -> ReferenceCache,
    comm: &CommThread,
) -> Result<CompleteSplits> {
    let of_run = sampler.pairs_of_run(total_steps(config, sampler));
    let mut complete = |name, data: PreparedData, needed: Option<&[usize]>| {
        let all: Vec<usize> = (0..data.len()).collect();
        with_references(name, (data, needed.unwrap_or(&all)), config, engine, &cache, comm)
    };
    let train = complete("train", splits.train, Some(&of_run))?;
    let dev = splits.dev.map(|data| complete("dev", data, None)).transpose()?;
    let test = splits.test.map(|data| complete("test", data, None)).transpose()?;
    Ok(CompleteSplits { train, dev, test })
}

/// The sampler of global batches from the training pairs.
pub(crate) fn sampler(config: &Config, train: &PreparedData) -> Result<Sampler> {
    let weights: Vec<f64> = config.data.train.iter().map(|source| source.weight).collect();
    let data = &config.data;
    Sampler::new(train.source_ranges(), &weights, config.train.pairs_per_step, data.shuffle, data.seed)
}

/// Hashes of the files that a run starts from.
pub(crate) struct ModelKeys {
    /// The base's weights and config.json, on which the reference log-probs depend.
    pub(crate) base: u128,
    /// The same with the adapter's files, if there is one, from which training starts.
    pub(crate) start: u128,
}

/// The hashes of a model, read by rank 0; the same on every rank.
pub(crate) fn model_keys(origin: &Origin, comm: &CommThread) -> Result<ModelKeys> {
    let _work = comm.at_work("hashing the model's files");
    let mut paths = comm.agree(if comm.rank() == 0 { weight_paths(&origin.base) } else { Ok(Vec::new()) })?;
    paths.push(origin.base.join("config.json"));
    let base = key(&paths, comm)?;
    let Some(folder) = &origin.adapter else { return Ok(ModelKeys { base, start: base }) };
    paths.extend([adapter::WEIGHTS, peft::CONFIG].map(|name| folder.join(name)));
    paths.extend(comm.agree(if comm.rank() == 0 { value_head(folder) } else { Ok(None) })?);
    Ok(ModelKeys { base, start: key(&paths, comm)? })
}

/// Hash of some files, in their order.
fn key(paths: &[PathBuf], comm: &CommThread) -> Result<u128> {
    let read = || {
        let parts = paths.iter().map(|path| files::fingerprint_file(path).map(u128::to_le_bytes));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(files::fingerprint_parts(parts.iter().map(|part| part.as_slice())))
    };
    let mine = comm.agree(if comm.rank() == 0 { read() } else { Ok(0) })?;
    let bytes = comm.broadcast_bytes(Some(mine.to_le_bytes().to_vec()))?;
    let bytes = bytes.try_into().map_err(|_| Error::runtime("rank 0's model key arrived damaged"))?;
    Ok(u128::from_le_bytes(bytes))
}

/// The cache file of a data set under a starting model: keyed by both, and by the precision.
pub(crate) fn reference_cache(
    model_key: u128,
    data: &PreparedData,
    config: &Config,
    machine: &Machine,
) -> ReferenceCache {
    ReferenceCache::new(&config.data.cache_dir, data.key(), model_key, machine.dtype_name())
}
