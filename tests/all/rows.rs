//! Promise: a file's rows are read within a bound, values that JSON lacks are never taken for a text or a number, and a file of
//! another kind is named with the command that makes rows of it.

use crate::property;
use flate2::{Compression, write::GzEncoder};
use haf_dist::config::Source;
use haf_dist::data::formats::{DropReason, SourceRows, read};
use haf_dist::error::{Error, Kind, Result};
use property::cases;
use proptest::prelude::*;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAIR: &str = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zst(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 3).unwrap()
}

/// A folder whose name a shell must be given in quotes.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("it's a").tempdir().unwrap()
}

fn written(folder: &tempfile::TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn rows(content: impl AsRef<[u8]>, max_row_bytes: usize) -> Result<SourceRows> {
    let folder = folder();
    read(&Source { max_row_bytes, strict: true, ..Source::new(written(&folder, "rows.jsonl", content)) })
}

/// The row with another key.
fn beside(key: &str, value: &str) -> String {
    format!("{PAIR}\n{}, \"{key}\": {value}}}\n", PAIR.trim_end_matches('}'))
}

fn refused(content: impl AsRef<[u8]>) -> Error {
    let error = rows(content, 1 << 20).unwrap_err();
    assert!(error.kind == Kind::Input && error.hint.is_some(), "{error}");
    error
}

#[test]
fn a_value_that_json_lacks_stops_only_its_readers() {
    for value in ["NaN", "-Infinity", "[1, {\"x\": Infinity}]", r#""half \ud83d.""#, r#"{"a": "\udd80"}"#] {
        let taken = rows(beside("score", value), 1000).unwrap();
        assert_eq!(taken.pairs.len(), 2, "{value}");
        // Said to be unused, as any other key.
        assert_eq!(taken.unused.into_iter().collect::<Vec<_>>(), [("score".to_owned(), 1)], "{value}");
    }
    for (key, value, expected) in [
        ("margin", "NaN", "`margin` is NaN, expected a finite number"),
        ("margin", "Infinity", "`margin` is Infinity"),
        ("domain", r#""\ud83d\ud83e\udd80""#, "`domain` is a text with a lone surrogate"),
        ("chosen", r#""c""#, "`chosen` is given twice, with different values"),
    ] {
        let error = refused(beside(key, value));
        assert!(error.message.contains("rows.jsonl:2: ") && error.message.contains(expected), "{error}");
    }
    // Without `strict` the row is left out and counted by what is wrong.
    let folder = folder();
    let taken = read(&Source::new(written(&folder, "rows.jsonl", beside("margin", "NaN")))).unwrap();
    let reason = DropReason::Odd("`margin` is NaN, expected a finite number".to_owned());
    assert_eq!((taken.pairs.len(), taken.dropped.into_iter().collect::<Vec<_>>()), (1, vec![(reason, 1)]));
    assert!(refused("NaN\n").message.contains("expected an object, found NaN"));
    // The same value twice takes nothing away, and a whole pair of surrogates is a character.
    assert_eq!(rows(beside("chosen", r#""a""#), 1000).unwrap().pairs.len(), 2);
    let crab = rows(beside("domain", r#""\ud83e\udd80""#), 1000).unwrap();
    assert_eq!(crab.pairs[1].domain.as_deref(), Some("🦀"));
}

#[test]
fn no_template_gets_a_value_that_json_lacks() {
    let messages =
        |more: &str| format!(r#"[{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "c"{more}}}]"#);
    let calls = |value: &str| {
        format!(r#"{{"prompt": "q", "chosen": "a", "rejected": {}}}"#, messages(&format!(r#", "tool_calls": {value}"#)))
    };
    for (content, expected) in [
        (beside("tools", r#"[{"name": "f", "limit": Infinity}]"#), "in `tools` a value is Infinity"),
        (beside("tools", r#""[{\"name\": \"f\", \"name\": \"g\"}]""#), "in `tools` a value is given twice"),
        (beside("documents", r#"[{"text": "\udd80"}]"#), "in `documents` a value is a text with a lone surrogate"),
        (beside("chat_template_kwargs", r#"{"a": [NaN]}"#), "in `chat_template_kwargs` a value is NaN"),
        (calls(r#"[{"function": {"name": "f", "arguments": {"x": -Infinity}}}]"#), "`tool_calls` a value is -Infinity"),
        (calls(r#""[{\"name\": \"f\", \"arguments\": {\"x\": NaN}}]""#), "`tool_calls` a value is NaN"),
    ] {
        let error = refused(&content);
        assert!(error.message.contains(expected), "{content}: {error}");
    }
    assert_eq!(rows(beside("tools", r#"[{"name": "f", "limit": 1e300}]"#), 1000).unwrap().pairs.len(), 2);
    // Messages in a text are messages, whatever stands beside them.
    for more in ["", r#", "score": NaN"#] {
        let row = json!({"prompt": "q", "chosen": messages(more), "rejected": "b"}).to_string();
        assert_eq!(rows(&row, 1000).unwrap().pairs[0].chosen.text(), "c", "{row}");
    }
}

#[test]
fn a_byte_that_is_not_utf_8_is_named_with_its_place() {
    let latin = b"{\"prompt\": \"q\", \"chosen\": \"caf\xe9\", \"rejected\": \"b\"}";
    let bad = [PAIR.as_bytes(), b"\n", latin].concat();
    let expected = "broken JSON in column 31: byte 0xe9 is not UTF-8";
    assert!(refused(bad).message.contains(&format!("rows.jsonl:2: {expected}")));
    let array = [b"[", PAIR.as_bytes(), b",\n", latin, b"]"].concat();
    assert!(refused(array).message.contains(&format!("rows.jsonl:2: element 2: {expected}")));
}

#[test]
fn broken_arrays_are_named_with_line_and_element() {
    for (content, expected) in [
        (format!("[{PAIR},\n]"), "rows.jsonl:2: element 2: broken JSON in column 1: EOF"),
        (format!("[{PAIR} {PAIR}]"), "rows.jsonl:1: element 1: broken JSON in column 50: trailing"),
        (format!("[{PAIR}}}"), "rows.jsonl:1: element 2: broken JSON in column 49: expected `,` or `]`"),
        (format!("[{PAIR}"), "rows.jsonl:1: element 2: broken JSON in column 49: expected `,` or `]`"),
        (format!("[{PAIR},\n {{\"prompt\": \"]}}, "), "rows.jsonl:2: element 2: broken JSON"),
    ] {
        let error = refused(&content);
        assert!(error.message.contains(expected), "{content}: {error}");
    }
    let nested = json!([{"prompt": "[\\\"]},{", "chosen": "\\", "rejected": "b", "more": [[1, {}], {"a": [","]}]}]);
    for text in [nested.to_string(), serde_json::to_string_pretty(&nested).unwrap()] {
        let taken = rows(&text, 1000).unwrap();
        assert_eq!((taken.read, taken.pairs[0].chosen.text()), (1, "\\"));
    }
}

#[test]
fn a_row_over_the_bound_is_refused_before_it_is_read() {
    let long = format!("{}, \"more\": \"{}\"}}", PAIR.trim_end_matches('}'), "x".repeat(100_000));
    let lines = format!("{PAIR}\n{long}\n");
    let array = format!("[{PAIR},\n{long}]");
    for (content, place) in
        [(&lines, "rows.jsonl:2: a row has more"), (&array, "rows.jsonl:2: element 2: a row has more")]
    {
        for packed in [content.clone().into_bytes(), gzip(content.as_bytes()), zst(content.as_bytes())] {
            let error = rows(&packed, 50_000).unwrap_err();
            assert!(error.message.contains(place) && error.message.contains("50000 bytes"), "{error}");
            assert!(error.hint.is_some_and(|hint| hint.contains("data.max_row_bytes")));
            assert_eq!(rows(&packed, 100_100).unwrap().pairs.len(), 2);
        }
    }
    // The bound is to the byte.
    let exact = PAIR.len();
    assert_eq!(rows(PAIR, exact).unwrap().pairs.len(), 1);
    assert!(rows(PAIR, exact - 1).is_err());
    // What is behind the bound is not read: there the archive is damaged.
    let noise: String =
        (0..400_000_u32).map(|at| char::from(b'a' + (at.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let mut packed = gzip(format!("{PAIR}\n\"{noise}\"").as_bytes());
    packed.truncate(packed.len() - 20_000);
    assert!(rows(&packed, 50_000).unwrap_err().message.contains("rows.jsonl:2: a row has more than"));
    assert!(rows(&packed, 500_000).unwrap_err().message.contains("damaged or cut short gzip data"));
    let mut packed = zst(format!("{PAIR}\n").as_bytes());
    packed.pop();
    assert!(refused(packed).message.contains("damaged or cut short zstd data"));
}

/// The error of a file, and its hint.
fn named(path: &Path) -> (String, String) {
    let error = read(&Source::new(path)).unwrap_err();
    assert_eq!(error.kind, Kind::Input);
    (error.message, error.hint.unwrap_or_default())
}

#[test]
fn a_file_of_another_kind_is_named_with_what_to_do() {
    let utf16 = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let tar = [b"rows.jsonl".to_vec(), vec![0; 247], b"ustar\0".to_vec(), vec![0; 249]].concat();
    let safetensors = [100_u64.to_le_bytes().to_vec(), b"{\"a\":{}}".to_vec()].concat();
    for (content, what, hint) in [
        (b"\xfd7zXZ\0\0\x04".to_vec(), "compressed with xz", "xz -dc "),
        (b"BZh91AY&SY".to_vec(), "compressed with bzip2", "bzip2 -dc "),
        (b"\x04\x22\x4d\x18d".to_vec(), "compressed with lz4", "lz4 -dc "),
        (b"PK\x03\x04\x14\0".to_vec(), "a zip archive", "unzip "),
        (tar.clone(), "a tar archive", "tar -xf "),
        (gzip(&tar), "a tar archive, compressed with gzip", "gzip -dc "),
        (gzip(&gzip(b"{}")), "compressed twice", "gzip -dc "),
        (gzip(b"PAR1\x15\0"), "a Parquet file in an archive", "unpack it"),
        (utf16(PAIR), "UTF-16", "iconv -f UTF-16LE"),
        (b"<!DOCTYPE html>\n<html>".to_vec(), "an HTML page", "/resolve/"),
        (b"\n <?xml version=\"1.0\"?>".to_vec(), "XML", "JSON Lines"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid".to_vec(),
            "a Git LFS pointer",
            "lfs pull --include rows.jsonl",
        ),
        (b"ARROW1\0\0".to_vec(), "an Arrow file", "open_file"),
        (b"\xff\xff\xff\xff\x10\0\0\0".to_vec(), "an Arrow stream", "open_stream"),
        (b"\x80\x04\x95\x10".to_vec(), "a Python pickle", "read_pickle"),
        (safetensors, "a safetensors file", "weights"),
        (b"%PDF-1.7\n".to_vec(), "a PDF document", "JSON Lines"),
        (b"prompt\tchosen\trejected\nq\ta\tb\n".to_vec(), "TSV", "delimiter='\\t'"),
        (b",\"prompt\",chosen\n0,q,a\n".to_vec(), "CSV", "csv.DictReader"),
        (b"{'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}\n".to_vec(), "in Python's notation", "literal_eval"),
        (b"{\n  \"prompt\": \"q\"\n}\n{\n".to_vec(), "JSON with objects over several lines", "jq -c . "),
        (format!("{{\"version\": 1, \"data\": [{PAIR}]}}\n").into_bytes(), "rows in the list \"data\"", "['data']"),
        (b"\0\x01\x02".to_vec(), "binary data", "JSON Lines"),
    ] {
        let folder = folder();
        let (message, said) = named(&written(&folder, "rows.jsonl", &content));
        assert!(message.contains(&format!("rows.jsonl is {what}")) || message.contains(what), "{message}");
        assert!(said.contains(hint), "{message}: {said}");
    }
}

#[test]
fn the_commands_that_are_named_make_rows() {
    let utf16 = |text: &str| -> Vec<u8> {
        [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    };
    let csv = "prompt,chosen,rejected\n\"q, \"\"é\"\"\n\",a,b\n";
    let pair = json!({"prompt": "q, \"é\"\n", "chosen": "a", "rejected": "b"});
    let wrapped = json!({"rows": [pair]});
    for (name, content, made) in [
        ("rows.csv", csv.as_bytes().to_vec(), "rows.jsonl"),
        ("tabs.tsv", csv.replace(',', "\t").replace("q\t", "q,").into_bytes(), "tabs.jsonl"),
        ("rows.csv.gz", gzip(csv.as_bytes()), "rows.jsonl"),
        ("rows.jsonl", utf16(&format!("{pair}\n")), "rows.utf8.jsonl"),
        (
            "repr.txt",
            b"{'prompt': 'q, \"\xc3\xa9\"\\n', 'chosen': \"a\", 'rejected': 'b', 'none': None}\n".to_vec(),
            "repr.jsonl",
        ),
        ("one.jsonl", wrapped.to_string().into_bytes(), "one.new.jsonl"),
        ("long.json", serde_json::to_string_pretty(&wrapped).unwrap().into_bytes(), "long.jsonl"),
    ] {
        let folder = folder();
        let (message, hint) = named(&written(&folder, name, content));
        let command = hint.strip_prefix("convert it: ").unwrap_or_else(|| panic!("{message}: {hint}"));
        let done = Command::new("sh").args(["-c", command]).output().unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        let taken = read(&Source::new(folder.path().join(made))).unwrap();
        let expected = rows(format!("{pair}\n"), 1000).unwrap();
        assert_eq!(
            (&taken.pairs[0].prompt, &taken.pairs[0].chosen),
            (&expected.pairs[0].prompt, &expected.pairs[0].chosen)
        );
        assert_eq!(taken.pairs.len(), 1, "{name}");
    }
}

proptest! {
    #![proptest_config(cases(300))]

    /// Rows are read whatever else they hold: none is taken for a file of another kind.
    #[test]
    fn no_rows_are_taken_for_something_else(
        texts in proptest::collection::vec(any::<String>(), 3), keys in proptest::collection::vec("data|rows|train|[a-z,;\t ]{1,8}|\\PC{1,6}", 0..4),
        start in 0..4_usize, form in 0..3_usize, packed in 0..3_usize, count in 1..3_usize,
    ) {
        let mut row = json!({});
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| at % 2 == 0) {
            row[key] = json!([{"prompt": "q"}, at]);
        }
        for (key, text) in ["prompt", "chosen", "rejected"].iter().zip(&texts) {
            row[*key] = json!(text);
        }
        for key in keys.iter().skip(1).step_by(2) {
            row[key] = json!([{"a": key}]);
        }
        prop_assume!(["prompt", "chosen", "rejected"].iter().all(|key| row[*key].is_string()) && row.get("domain").is_none());
        let start = ["", "\u{feff}", "\n \r\n", "\u{feff}\t"][start];
        let all = vec![row.clone(); count];
        let text = match form {
            0 => all.iter().map(|row| format!("{row}\n")).collect(),
            1 => serde_json::to_string(&all).unwrap(),
            _ => serde_json::to_string_pretty(&all).unwrap(),
        };
        let text = format!("{start}{text}");
        let content = match packed { 0 => text.into_bytes(), 1 => gzip(text.as_bytes()), _ => zst(text.as_bytes()) };
        match rows(&content, 1 << 20) {
            Ok(taken) => prop_assert_eq!(taken.read, count),
            Err(error) => prop_assert!(!error.message.contains("; expected JSON Lines"), "{}", error),
        }
    }
}
