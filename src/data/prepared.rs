//! Tokenized pairs: made once from the sources, kept in a cache file, and memory-mapped from then on.
//!
//! The file is safetensors: `tokens` (N tokens of all pairs, `prefix ++ chosen ++ rejected` each), `offsets` (B + 1
//! starts), and per pair `prefix`, `chosen`, `rejected`, eight `spans`, `margin`, `tied`, `domain`, `prompt_hash`, `source`.
//! Not here: weights and shuffling (`sampler.rs`), reference log-probs (`reference_cache.rs`).

use crate::config::Source;
use crate::data::builder::Builder;
use crate::data::container::{Column, Container, hex, warn_unusable};
use crate::data::formats::{self, DropReason};
use crate::data::reference_cache::CACHE_DIR_HINT;
use crate::data::report::{Counts, DataReport, SourceReport};
use crate::data::tokenize::{Encoded, Encoder, Unread};
use crate::data::{AnswerSpan, Pair, TokenPair, parallel::encode_all, sequence::OwnedPair};
use crate::error::{Error, Result};
use crate::files::{self, fingerprint_file, fingerprint_parts};
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use crate::data::builder::LabeledPair;

/// Changes whenever the content or the layout of the file changes.
const VERSION: &str = "haf-dist pairs 6";

/// Numbers per pair in the column `spans`: four per answer.
const SPAN_NUMBERS: usize = 8;

/// Pairs that are checked at a time.
const PAIRS_AT_A_TIME: usize = 1 << 14;

/// B tokenized pairs, in the order of their sources.
#[derive(Debug)]
pub struct PreparedData {
    container: Container,
    columns: Columns,
    domains: Vec<String>,
    source_ranges: Vec<Range<usize>>,
    report: DataReport,
    key: u128,
}

/// The places of the tensors in the container.
#[derive(Debug)]
struct Columns {
    tokens: Column<u32>,
    offsets: Column<u64>,
    prefix: Column<u32>,
    chosen: Column<u32>,
    rejected: Column<u32>,
    spans: Column<u32>,
    margin: Column<f32>,
    tied: Column<u32>,
    domain: Column<u32>,
    prompt_hash: Column<u64>,
    source: Column<u32>,
}

impl PreparedData {
    /// Maps the cache file of these sources, or tokenizes them on all threads and writes it.
    ///
    /// A stale, cut or damaged file is named in a warning and made again. Several processes may do this at once.
    /// `split_name` (`train`, `dev`, `test`) is for messages and the report.
    ///
    /// # Errors
    /// A source that cannot be read or leaves no pair; no sources; a `cache_dir` that cannot be written.
    pub fn open_or_make(sources: &[Source], encoder: &Encoder, cache_dir: &Path, split_name: &str) -> Result<Self> {
        if sources.is_empty() {
            return Err(Error::input(format!("data.{split_name}: at least one source was expected")));
        }
        let key = key(sources, encoder.fingerprint())?;
        let path = cache_path(cache_dir, key);
        let opened = Self::open(&path, key).unwrap_or_else(|why| {
            warn_unusable(&path, &why);
            None
        });
        let mut data = match opened {
            Some(data) => data,
            None => {
                // Fail before the work, not after it.
                files::make_writable_folder(cache_dir)
                    .map_err(|error| error.at("data.cache_dir").hint(CACHE_DIR_HINT))?;
                make(sources, encoder, cache_dir, split_name)?.contents()?.save(&path, VERSION, key)?;
                let lost = |why| Error::runtime(format!("{} was just written, but {why}", path.display()));
                Self::open(&path, key).map_err(lost)?.ok_or_else(|| lost("is gone".to_owned()))?
            }
        };
        // The file may have been made for another split, or under another name.
        data.report.split = split_name.to_owned();
        for (report, source) in data.report.sources.iter_mut().zip(sources) {
            report.name = file_name(source);
        }
        // A file from the cache may have been made without `strict`.
        match data.report.first_odd().filter(|_| sources.iter().any(|source| source.strict)) {
            Some(error) => Err(error),
            None => Ok(data),
        }
    }

    /// The pairs of these sources, if they have been tokenized already.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub(crate) fn open_if_made(sources: &[Source], encoder: &Encoder, cache_dir: &Path) -> Result<Option<Self>> {
        let key = key(sources, encoder.fingerprint())?;
        Ok(Self::open(&cache_path(cache_dir, key), key).unwrap_or(None))
    }

    /// Pairs that are already tokenized, as one source, in memory only. Their key is a hash of the content.
    ///
    /// # Errors
    /// A pair whose lengths do not add up; out of memory.
    pub fn from_pairs(pairs: Vec<LabeledPair>) -> Result<Self> {
        let mut builder = Builder::new(None)?;
        let mut counts = Counts { read: pairs.len(), ..Counts::default() };
        for pair in pairs {
            builder.push(0, &pair, &mut counts)?;
        }
        builder.reports.push(SourceReport { name: "memory".to_owned(), counts });
        let contents = builder.contents()?;
        let key = contents.fingerprint().map_err(|error| Error::runtime(format!("pairs in memory: {error}")))?;
        let container = Container::in_memory(&contents.pack(VERSION, key)?, VERSION, key)?;
        Self::from_container(container, key).map_err(Error::runtime)
    }

    /// The same pairs with chosen and rejected exchanged, in memory only.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn exchanged(&self) -> Result<Self> {
        let exchange = |index: usize| {
            let pair = self.pair(index);
            let owned = OwnedPair {
                tokens: [pair.prefix, pair.rejected, pair.chosen].concat(),
                prefix: pair.prefix.len(),
                chosen: pair.rejected.len(),
                rejected: pair.chosen.len(),
                spans: [pair.spans[1], pair.spans[0]],
                prompt_hash: pair.prompt_hash,
                prompt_cut: false,
                answer_cut: false,
                special_in_text: 0,
            };
            let domain = self.domains[pair.domain].clone();
            LabeledPair { pair: owned, margin: -pair.margin, tied: pair.tied, domain }
        };
        Self::from_pairs((0..self.len()).map(exchange).collect())
    }

    fn open(path: &Path, key: u128) -> std::result::Result<Option<Self>, String> {
        Container::open(path, VERSION, key)?.map(|container| Self::from_container(container, key)).transpose()
    }

    /// Checks all that [`pair`](Self::pair) relies on.
    fn from_container(container: Container, key: u128) -> std::result::Result<Self, String> {
        let columns = Columns {
            tokens: container.column("tokens")?,
            offsets: container.column("offsets")?,
            prefix: container.column("prefix")?,
            chosen: container.column("chosen")?,
            rejected: container.column("rejected")?,
            spans: container.column("spans")?,
            margin: container.column("margin")?,
            tied: container.column("tied")?,
            domain: container.column("domain")?,
            prompt_hash: container.column("prompt_hash")?,
            source: container.column("source")?,
        };
        let unreadable = |error: serde_json::Error| format!("its metadata is not readable: {error}");
        let domains: Vec<String> = serde_json::from_str(container.text("domains")?).map_err(unreadable)?;
        let reports: Vec<SourceReport> = serde_json::from_str(container.text("report")?).map_err(unreadable)?;

        if !columns.agree(&container, &Limits { domains: domains.len(), sources: reports.len() }) {
            return Err("its tensors disagree with one another".to_owned());
        }
        let source = container.values(&columns.source);
        let first_of = |number: usize| source.partition_point(|&source| (source as usize) < number);
        let source_ranges = (0..reports.len()).map(|number| first_of(number)..first_of(number + 1)).collect();
        let report = DataReport { split: "data".to_owned(), sources: reports };
        Ok(Self { container, columns, domains, source_ranges, report, key })
    }

    /// Number of pairs, B.
    pub fn len(&self) -> usize {
        self.container.values(&self.columns.source).len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pair at `index`, borrowed from the map.
    ///
    /// # Panics
    /// If `index >= len()`; never below.
    pub fn pair(&self, index: usize) -> TokenPair<'_> {
        let number = |column| self.container.values::<u32>(column)[index] as usize;
        let start = self.container.values(&self.columns.offsets)[index] as usize;
        let rest = &self.container.values(&self.columns.tokens)[start..];
        let (prefix, rest) = rest.split_at(number(&self.columns.prefix));
        let (chosen, rest) = rest.split_at(number(&self.columns.chosen));
        TokenPair {
            prefix,
            chosen,
            rejected: &rest[..number(&self.columns.rejected)],
            spans: self.spans(index),
            margin: self.container.values(&self.columns.margin)[index],
            tied: number(&self.columns.tied) != 0,
            domain: number(&self.columns.domain),
            prompt_hash: self.container.values(&self.columns.prompt_hash)[index],
        }
    }

    fn spans(&self, index: usize) -> [AnswerSpan; 2] {
        let numbers = &self.container.values(&self.columns.spans)[SPAN_NUMBERS * index..];
        [0, SPAN_NUMBERS / 2].map(|first| {
            let [start, end, reward, second] = [0, 1, 2, 3].map(|place| numbers[first + place] as usize);
            AnswerSpan { start, end, reward, second_reward: (second != reward).then_some(second) }
        })
    }

    /// Tokens of the pair at `index`: P + A + B.
    ///
    /// # Panics
    /// If `index >= len()`.
    pub fn tokens(&self, index: usize) -> usize {
        let offsets = self.container.values(&self.columns.offsets);
        (offsets[index + 1] - offsets[index]) as usize
    }

    /// Hash of each pair's prompt.
    pub(crate) fn prompt_hashes(&self) -> &[u64] {
        self.container.values(&self.columns.prompt_hash)
    }

    /// Names of the domains, in the order of their first pairs.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// Each source's pairs.
    pub fn source_ranges(&self) -> &[Range<usize>] {
        &self.source_ranges
    }

    /// What was read, kept, dropped and cut.
    pub fn report(&self) -> &DataReport {
        &self.report
    }

    /// Hash of all that the content depends on.
    pub fn key(&self) -> u128 {
        self.key
    }

    /// Hash of the content itself: of every column, and the domains' names. Reads all of it.
    pub fn content(&self) -> u128 {
        let columns = self.container.content().to_le_bytes();
        fingerprint_parts([&columns[..]].into_iter().chain(self.domains.iter().map(String::as_bytes)))
    }
}

/// Numbers of domains and sources, which the indices of pairs must be below.
struct Limits {
    domains: usize,
    sources: usize,
}

impl Columns {
    /// Whether they agree, as [`PreparedData::pair`] requires. Releases what was read, so that the memory of this process does
    /// not grow with the number of pairs.
    fn agree(&self, container: &Container, limits: &Limits) -> bool {
        let length = |column| container.values::<u32>(column).len();
        let pairs = length(&self.source);
        let offsets = container.values(&self.offsets);
        let numbers = [&self.prefix, &self.chosen, &self.rejected, &self.tied, &self.domain];
        let same_length = numbers.into_iter().all(|column| length(column) == pairs)
            && length(&self.spans) == SPAN_NUMBERS * pairs
            && container.values(&self.margin).len() == pairs
            && container.values(&self.prompt_hash).len() == pairs
            && offsets.len() == pairs + 1;
        let tokens = length(&self.tokens) as u64;
        same_length
            && offsets.first() == Some(&0)
            && offsets.last() == Some(&tokens)
            && (0..pairs).step_by(PAIRS_AT_A_TIME).all(|first| {
                let piece = first..pairs.min(first + PAIRS_AT_A_TIME);
                let agree = piece.clone().all(|pair| self.agree_on(container, pair, limits));
                for column in [&self.prefix, &self.chosen, &self.rejected, &self.domain, &self.source] {
                    container.release(column, piece.clone());
                }
                container.release(&self.spans, SPAN_NUMBERS * piece.start..SPAN_NUMBERS * piece.end);
                container.release(&self.offsets, piece);
                agree
            })
    }

    fn agree_on(&self, container: &Container, pair: usize, limits: &Limits) -> bool {
        let lengths = [&self.prefix, &self.chosen, &self.rejected].map(|column| container.values(column)[pair]);
        let offsets = &container.values(&self.offsets)[pair..=pair + 1];
        let length: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        // Positions lie within their sequences; a single row has no second one.
        let numbers = &container.values(&self.spans)[SPAN_NUMBERS * pair..][..SPAN_NUMBERS];
        let fits = |(answer, suffix): (&[u32], usize)| {
            let length = lengths[0].saturating_add(lengths[suffix]);
            let single = suffix == 2 && lengths[suffix] == 0;
            single || (answer[..2].iter().all(|end| *end <= length) && answer[2..].iter().all(|at| *at < length))
        };
        let source = &container.values(&self.source)[pair.saturating_sub(1)..=pair];
        offsets[0].checked_add(length) == Some(offsets[1])
            && [(&numbers[..4], 1), (&numbers[4..], 2)].into_iter().all(fits)
            && (container.values(&self.domain)[pair] as usize) < limits.domains
            && source.is_sorted()
            && source.last().is_some_and(|source| (*source as usize) < limits.sources)
    }
}

/// The cache file for a key.
fn cache_path(cache_dir: &Path, key: u128) -> PathBuf {
    cache_dir.join(format!("pairs-{}.safetensors", hex(key)))
}

/// Hash of all that the content depends on: not weights, seeds or order, which are the sampler's.
fn key(sources: &[Source], encoder: u128) -> Result<u128> {
    let mut parts = vec![VERSION.as_bytes().to_vec(), encoder.to_le_bytes().to_vec()];
    for source in sources {
        // All keys, so that the compiler asks of a new one whether the content depends on it.
        let Source {
            path,
            format,
            rows,
            single_turn,
            margin_scale,
            pairs_per_prompt,
            domain,
            columns,
            ties,
            // The sampler's, and which rows are an error.
            weight: _,
            max_row_bytes: _,
            strict: _,
        } = source;
        parts.push(fingerprint_file(path)?.to_le_bytes().to_vec());
        let keys = format!("{format:?} {rows} {single_turn} {margin_scale} {pairs_per_prompt} {columns:?} {ties:?}");
        parts.push(keys.into_bytes());
        // Without a domain, the file's name is used.
        parts.push(domain.clone().unwrap_or_else(|| file_name(source)).into_bytes());
    }
    Ok(fingerprint_parts(parts.iter().map(Vec::as_slice)))
}

fn file_name(source: &Source) -> String {
    source.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads and tokenizes all sources, a few pairs at a time; the columns grow in files of `cache_dir`.
fn make(sources: &[Source], encoder: &Encoder, cache_dir: &Path, split_name: &str) -> Result<Builder> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = Builder::new(Some(cache_dir))?;
    for (number, source) in sources.iter().enumerate() {
        let mut counts = Counts::default();
        let mut unread = Unread::default();
        let label = format!("tokenizing {split_name}");
        let read = |take: &mut dyn FnMut(Pair) -> Result<()>| formats::stream(source, take);
        let encode = |pair: &Pair| encoder.encode(pair).map_err(|error| error.at(source.path.display()));
        let rows = encode_all(threads, &label, read, encode, |row, encoded| {
            encoder.count_unread(&row, &mut unread);
            match encoded {
                Encoded::Dropped(reason) => counts.drop(reason, 1),
                Encoded::Kept(pair) => {
                    let (margin, domain) = (row.margin.unwrap_or(0.0), row.domain.unwrap_or_default());
                    builder.push(number, &LabeledPair { pair, margin, tied: row.tied, domain }, &mut counts)?;
                }
            }
            Ok(())
        })?;
        counts.read = rows.read;
        counts.rows = rows.rows;
        counts.unused = rows.unused;
        counts.unused.extend(unread.rows());
        counts.first_odd = rows.first_odd.map(|error| error.message);
        for (reason, pairs) in rows.dropped {
            counts.odd += if matches!(reason, DropReason::Odd(_)) { pairs } else { 0 };
            counts.drop(reason, pairs);
        }
        if counts.kept == 0 {
            return Err(no_pair_left(source, split_name, &counts));
        }
        builder.reports.push(SourceReport { name: file_name(source), counts });
    }
    Ok(builder)
}

fn no_pair_left(source: &Source, split_name: &str, counts: &Counts) -> Error {
    let reasons: Vec<String> = counts.dropped.iter().map(|(reason, pairs)| format!("{reason}: {pairs}")).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    let path = source.path.display();
    Error::input(format!("{path}: of {} pairs read for data.{split_name} none is left{why}", counts.read))
        .hint("check the source's path and format, and data.max_length and data.truncation")
}
