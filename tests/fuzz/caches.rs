//! Caches of pairs and of reference log-probs, with a checksum that fits the change: the other checks must notice it.

use crate::bounds::{Verdict, fuzz};
use crate::mutate::{Form, Seed};
use crate::tiny::{VOCABULARY, Workspace};
use haf_dist::config::{Config, Source};
use haf_dist::data::prepared::PreparedData;
use haf_dist::data::reference_cache::ReferenceCache;
use haf_dist::data::tokenize::{Encoder, Rules};
use haf_dist::files::fingerprint_parts;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// The file with a checksum of what it holds; as it is where it holds nothing that can be read.
fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    summed(bytes).unwrap_or_else(|| bytes.to_vec())
}

fn summed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (length, header) = SafeTensors::read_metadata(bytes).ok()?;
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let tensors: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.data())).collect();
    let mut texts: BTreeMap<_, _> = header.metadata().clone()?.into_iter().collect();
    texts.remove("checksum");
    let texts = texts.iter().map(|(name, text)| (name, text.as_bytes()));
    let all = tensors.iter().map(|(name, bytes)| (name, *bytes)).chain(texts);
    let checksum = fingerprint_parts(all.flat_map(|(name, bytes)| [name.as_bytes(), bytes]));
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).ok()?;
    header["__metadata__"]["checksum"] = json!(format!("{checksum:032x}"));
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Some([&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + length..]].concat())
}

#[test]
fn caches_of_pairs() {
    let prepared = Workspace::trained(1);
    let config = Config::parse("run.toml", &String::from_utf8(prepared.read("run.toml")).unwrap(), &[]).unwrap();
    let encoder = Encoder::open(&prepared.path("model"), Rules::from(&config.data), VOCABULARY).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sources = ["plain.jsonl", "other.jsonl"].map(|name| Source::new(prepared.path(name)));
    let open = || PreparedData::open_or_make(&sources, &encoder, folder.path(), "train");
    let content = open().unwrap().content();
    let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let seed = Seed::new(Form::Safetensors, fs::read(&path).unwrap());
    fuzz("caches-of-pairs", 100, &[seed], |_, input| {
        let changed = with_checksum(input);
        fs::write(&path, &changed).unwrap();
        let data = match open() {
            Ok(data) => data,
            Err(error) => return Verdict::Wrong(error.to_string()),
        };
        let tokens: usize = (0..data.len()).map(|index| data.pair(index).prefix.len() + data.tokens(index)).sum();
        let ranges: usize = data.source_ranges().iter().map(|range| range.len()).sum();
        if fs::read(&path).unwrap() == changed {
            assert!(ranges == data.len() && (tokens > 0 || data.is_empty()));
            return Verdict::Taken;
        }
        match data.content() == content {
            true => Verdict::Refused,
            false => Verdict::Wrong("made again, it holds something else".to_owned()),
        }
    });
}

#[test]
fn caches_of_log_probs() {
    const PAIRS: usize = 9;
    let folder = tempfile::tempdir().unwrap();
    let cache = ReferenceCache::new(folder.path(), 1, 2, "f32");
    let values: Vec<[f32; 2]> = (0..PAIRS).map(|pair| [-(pair as f32), -0.5]).collect();
    cache.store(&values).unwrap();
    let seed = Seed::new(Form::Safetensors, fs::read(cache.path()).unwrap());
    fuzz("caches-of-log-probs", 1000, &[seed], |_, input| {
        fs::write(cache.path(), with_checksum(input)).unwrap();
        match cache.load(PAIRS) {
            Some(read) if read.len() == PAIRS => Verdict::Taken,
            Some(read) => Verdict::Wrong(format!("{} pairs", read.len())),
            None => Verdict::Refused,
        }
    });
}
