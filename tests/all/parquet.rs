//! Promise: Parquet files give the same pairs as the same rows in JSON Lines, and a damaged one is an error, not a panic.
//!
//! The files are pyarrow's: see parquet_files/make_parquet.py.

use crate::property;
use haf_dist::config::{Format, Source};
use haf_dist::data::formats::{DropReason, SourceRows, read, read_for_scoring};
use haf_dist::data::{Message, Pair, Prompt, TemplateInputs};
use haf_dist::error::{Kind, Result};
use property::cases;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use std::path::{Path, PathBuf};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parquet_files").join(format!("{name}.parquet"))
}

fn to_score(path: &Path) -> Vec<Pair> {
    read_for_scoring(&Source::new(path)).unwrap().pairs
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
    for codec in ["snappy", "zstd", "gzip", "lz4", "none"] {
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
        tied: false,
        domain: Some("arena".into()),
        line,
    };
    assert_eq!(taken.pairs, [pair("a", "b", 1), pair("b", "a", 2)]);
    assert_eq!((taken.read, taken.dropped[&DropReason::Tie]), (3, 1));
    assert_eq!(taken.unused.into_keys().collect::<Vec<_>>(), ["anony", "icon", "toxicity", "tstamp", "turn"]);

    let answers: Vec<String> =
        rows("ranked", Format::Auto).unwrap().pairs.into_iter().map(|pair| pair.chosen.text().to_owned()).collect();
    assert_eq!(answers, ["answer 1", "answer 2", "answer 1"]);
}

#[test]
fn texts_and_numbers_in_types_of_their_own_are_texts_and_numbers() {
    let pair = |number: usize, prompt: &str, [chosen, rejected, domain]: [&str; 3], margin| Pair {
        prompt: Prompt::Text(prompt.into()),
        inputs: TemplateInputs::default(),
        chosen: Message::answer(chosen),
        rejected: Some(Message::answer(rejected)),
        margin: Some(margin),
        tied: false,
        domain: Some(domain.into()),
        line: number,
    };
    let expected = [pair(1, "q1", ["a", "c", "x"], -0.05), pair(2, "q2 é", ["b", "d", "y"], 12.5)];
    assert_eq!(rows("types", Format::Auto).unwrap().pairs, expected);
    assert_eq!(rows("half", Format::Auto).unwrap().pairs[0].margin, Some(1.5));
}

#[test]
fn lists_in_structs_and_maps_are_lists_and_objects() {
    let columns = |places: [(&str, &str); 2]| places.map(|(key, path)| (key.to_owned(), path.to_owned())).into();
    for (places, expected) in [
        ([("chosen", "both.text.1"), ("rejected", "named.worse")], [["b", "e"], ["d", "g"]]),
        ([("chosen", "named.worse"), ("rejected", "both.text.0")], [["e", "a"], ["g", "c"]]),
    ] {
        let taken = read(&Source { columns: columns(places), ..Source::new(file("nested")) }).unwrap();
        let answers =
            |pair: &Pair| [&pair.chosen, pair.rejected.as_ref().unwrap()].map(|answer| answer.text().to_owned());
        assert_eq!(taken.pairs.iter().map(answers).collect::<Vec<_>>(), expected);
        assert_eq!(taken.pairs.iter().map(|pair| pair.margin).collect::<Vec<_>>(), [Some(-1.25), Some(3.0)]);
    }
}

#[test]
fn values_that_json_lacks_may_accompany_a_pair() {
    let taken = rows("odd", Format::Auto).unwrap();
    assert_eq!((taken.pairs.len(), taken.pairs[1].margin), (2, None));
    assert_eq!(taken.unused.into_keys().collect::<Vec<_>>(), ["day", "key", "nested", "score", "when"]);
}

#[test]
fn a_row_over_the_bound_is_refused() {
    let read = |name: &str, max_row_bytes| read(&Source { max_row_bytes, ..Source::new(file(name)) });
    // Before a page is unpacked that is too large for its rows; where it is not, at the row.
    for (name, bound, row) in [("long", 50_000, 1), ("long", 2_000_000, 2), ("many", 50_000, 1), ("many", 2_000_000, 2)]
    {
        let error = read(name, bound).unwrap_err();
        let expected = format!("{name}.parquet: row {row}: a row has more than {bound} bytes");
        assert!(error.message.contains(&expected) && error.hint.is_some(), "{error}");
    }
    assert_eq!(read("long", 3_001_000).unwrap().pairs.len(), 2);
    assert_eq!(read("many", 3_300_000).unwrap().pairs.len(), 2);
}

#[test]
fn a_schema_without_end_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep.parquet");
    // Version 1, then a list of 100,000 structs: groups of one group each.
    let mut footer = vec![0x15, 0x02, 0x19, 0xfc, 0xa0, 0x8d, 0x06];
    footer.extend([0x48, 0x01, b'r', 0x15, 0x02, 0x00]);
    footer.extend([0x35, 0x02, 0x18, 0x01, b'g', 0x15, 0x02, 0x00].repeat(99_999));
    let length = (footer.len() as u32).to_le_bytes();
    std::fs::write(&path, [b"PAR1", footer.as_slice(), &length, b"PAR1"].concat()).unwrap();
    let error = read(&Source::new(&path)).unwrap_err();
    assert!(error.message.contains("deep.parquet: more than 1000 columns") && error.hint.is_some(), "{error}");
}

#[test]
fn errors_name_file_and_row() {
    for (name, format, expected) in [
        ("pairs-zstd", Format::Scored, "pairs-zstd.parquet: row 5: `score_chosen` or"),
        ("pairs-zstd", Format::Arena, "pairs-zstd.parquet: row 1: `conversation_a` is missing"),
        ("pairs-brotli", Format::Auto, "pairs-brotli.parquet: column `prompt` is compressed with brotli"),
        ("images", Format::Auto, "images.parquet: row 1: a row of no known layout: its keys are [\"image\"]"),
        ("arena-image", Format::Auto, "arena-image.parquet: row 1: `image` is not empty, but only text is read"),
        ("odd-margin", Format::Auto, "odd-margin.parquet: row 2: `margin` is NaN, expected a finite number"),
        ("odd-half", Format::Auto, "odd-half.parquet: row 1: `margin` is Infinity, expected a finite number"),
        ("odd-chosen", Format::Auto, "odd-chosen.parquet: row 2: `chosen` is binary data, expected a string"),
        ("odd-prompt", Format::Auto, "odd-prompt.parquet: row 1: `prompt` is a date or a time, expected a string"),
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
