//! Promise: Parquet files give the same pairs as the same rows in JSON Lines, and a damaged one is an error, not a panic.
//!
//! The files are pyarrow's: see parquet_files/make_parquet.py.

#[path = "common/property.rs"]
mod property;

use haf_dist::config::{Format, Source};
use haf_dist::data::formats::{DropReason, SourceRows, read, read_for_scoring};
use haf_dist::data::{Message, Pair, Prompt, TemplateInputs};
use haf_dist::error::{Kind, Result};
use property::cases;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parquet_files").join(format!("{name}.parquet"))
}

fn to_score(path: &Path) -> Vec<Pair> {
    read_for_scoring(path, &BTreeMap::new()).unwrap().pairs
}

fn rows(name: &str, format: Format) -> Result<SourceRows> {
    read(&Source { format, ..Source::new(file(name)) })
}

/// What pairs-*.parquet holds, written as JSON Lines.
fn pairs_as_json() -> String {
    let talk = |question: &str, answer: String| json!([{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]);
    let row = |number: usize| {
        let question = format!("q{number} é漢🦀");
        json!({"prompt": question, "chosen": talk(&question, format!("a{number}")),
               "rejected": talk(&question, format!("b{number}")),
               "score_chosen": (number != 4).then_some(5.5), "score_rejected": number as f64 / 2.0,
               "margin": number.is_multiple_of(2).then_some(number)})
    };
    (0..9).map(|number| format!("{}\n", row(number))).collect()
}

#[test]
fn every_codec_gives_the_pairs_that_json_lines_give() {
    let folder = tempfile::tempdir().unwrap();
    let as_json = folder.path().join("pairs.jsonl");
    std::fs::write(&as_json, pairs_as_json()).unwrap();
    let expected = read(&Source { domain: Some("d".into()), ..Source::new(&as_json) }).unwrap();
    assert_eq!((expected.pairs.len(), expected.pairs[8].line, expected.pairs[8].margin), (9, 9, Some(8.0)));
    for codec in ["snappy", "zstd", "gzip", "none"] {
        let path = file(&format!("pairs-{codec}"));
        let taken = read(&Source { domain: Some("d".into()), ..Source::new(&path) }).unwrap();
        assert_eq!(taken, expected, "{codec}");
        assert_eq!(to_score(&path), to_score(&as_json));
    }
    // Told by its content; the domain is the name without its ending.
    let renamed = folder.path().join("pairs.jsonl.gz");
    std::fs::copy(file("pairs-gzip"), &renamed).unwrap();
    assert_eq!(read(&Source::new(renamed)).unwrap().pairs.len(), 9);
    assert_eq!(rows("pairs-zstd", Format::Auto).unwrap().pairs[0].domain.as_deref(), Some("pairs-zstd"));
}

#[test]
fn message_lists_beside_dates_images_and_maps_are_read() {
    let taken = rows("arena", Format::Auto).unwrap();
    let user = vec![Message::new("user", "q")];
    let pair = |chosen: &str, rejected: &str, line| Pair {
        prompt: Prompt::Messages(user.clone()),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(chosen),
        rejected: Some(Message::answer(rejected)),
        margin: None,
        domain: Some("arena".into()),
        line,
    };
    assert_eq!(taken.pairs, [pair("a", "b", 1), pair("b", "a", 2)]);
    assert_eq!((taken.read, taken.dropped[&DropReason::Tie]), (3, 1));

    let answers: Vec<String> =
        rows("ranked", Format::Auto).unwrap().pairs.into_iter().map(|pair| pair.chosen.text().to_owned()).collect();
    assert_eq!(answers, ["answer 1", "answer 2", "answer 1"]);
}

#[test]
fn what_is_wrong_is_named_with_file_and_row() {
    for (name, format, expected) in [
        ("pairs-zstd", Format::Scored, "pairs-zstd.parquet: row 5: `score_chosen` or"),
        ("pairs-zstd", Format::Arena, "pairs-zstd.parquet: row 1: `conversation_a` is missing"),
        ("pairs-brotli", Format::Auto, "pairs-brotli.parquet: row 1: damaged or unsupported Parquet data: "),
        ("images", Format::Auto, "no column holds text, numbers or truth values"),
        ("empty", Format::Auto, "empty.parquet holds no rows"),
    ] {
        let error = rows(name, format).map_or_else(|error| error, |taken| taken.first_odd.unwrap());
        assert!(error.message.contains(expected) && error.kind == Kind::Input && error.hint.is_some(), "{error}");
    }
}

proptest! {
    #![proptest_config(cases(300))]

    /// Bytes changed, cut off, or pages swapped: an error with the file's name, never a panic. Where a checksum guards
    /// a page, what is read is right.
    #[test]
    fn damaged_files_are_refused(
        which in 0..3_usize, changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        tail in proptest::collection::vec((0..700_usize, any::<u8>()), 0..3),
        swap in proptest::option::of((any::<Index>(), any::<Index>(), 1..200_usize)),
        cut in proptest::option::weighted(0.2, any::<Index>()),
    ) {
        let mut bytes = std::fs::read(file(["pairs-snappy", "pairs-none", "arena"][which])).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // The metadata stands at the end.
        for (before_end, byte) in tail {
            let at = bytes.len() - 1 - before_end;
            bytes[at] = byte;
        }
        if let Some((one, other, length)) = swap {
            let end = bytes.len() - length;
            let (one, other) = (one.index(end), other.index(end));
            if one + length <= other {
                let (left, right) = bytes.split_at_mut(other);
                left[one..one + length].swap_with_slice(&mut right[..length]);
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.parquet");
        std::fs::write(&path, bytes).unwrap();
        match read(&Source::new(&path)) {
            Ok(taken) => prop_assert_eq!(taken.read, taken.pairs.len() + taken.dropped.values().sum::<usize>()),
            Err(error) => {
                prop_assert_eq!(error.kind, Kind::Input);
                prop_assert!(error.message.contains("rows.parquet") && error.hint.is_some(), "{}", error);
            }
        }
    }
}
