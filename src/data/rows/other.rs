//! Files of other types: detects the type from the first bytes, and suggests a command that converts the file.
//!
//! No JSON Lines, JSON array or Parquet file may be taken for one of these. Not here: files that are read (`mod.rs`).

use crate::error::Error;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A file of another type.
pub(in crate::data) struct Other {
    /// What it is, as in "is CSV", "is a PDF document".
    what: Cow<'static, str>,
    way: Way,
}

/// What to do about it.
#[derive(Clone)]
enum Way {
    /// A shell command that reads IN and writes OUT, and the ending of OUT; empty: IN without its last ending.
    Shell(&'static str, &'static str),
    /// Python code that reads `sys.argv[1]` and prints, or writes `sys.argv[2]`; and the ending of the output.
    Python(Cow<'static, str>, &'static str),
    Say(&'static str),
}

const WEIGHTS: Way = Way::Say("it holds a model's weights, not pairs: is the path right?");
const ELSEWHERE: Way = Way::Say("write its rows with the program that made it, as JSON Lines or Parquet");
const UTF16: Way = Way::Shell("iconv -f UTF-16 -t UTF-8 IN > OUT", "utf8.jsonl");

/// A way that runs Python.
const fn python(code: &'static str, ending: &'static str) -> Way {
    Way::Python(Cow::Borrowed(code), ending)
}

/// First bytes, what they are the start of, and what to do.
#[rustfmt::skip]
const MAGIC: [(&[u8], &str, Way); 24] = [
    (b"\xfd7zXZ\0", "compressed with xz", Way::Shell("xz -dc IN > OUT", "")),
    (b"BZh", "compressed with bzip2", Way::Shell("bzip2 -dc IN > OUT", "")),
    (b"\x04\x22\x4d\x18", "compressed with lz4", Way::Shell("lz4 -dc IN > OUT", "")),
    (b"\x1f\x8b", "compressed twice", Way::Shell("gzip -dc IN > OUT", "")),
    (b"\x28\xb5\x2f\xfd", "compressed twice", Way::Shell("zstd -dc IN > OUT", "")),
    (b"PK\x03\x04", "a zip archive", Way::Shell("unzip IN", "")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", Way::Shell("7z x IN", "")),
    (b"ARROW1\0\0", "an Arrow file (Feather)", python("import sys, pyarrow as pa, pyarrow.parquet as pq; \
        pq.write_table(pa.ipc.open_file(sys.argv[1]).read_all(), sys.argv[2])", "parquet")),
    (b"\xff\xff\xff\xff", "an Arrow stream", python("import sys, pyarrow as pa, pyarrow.parquet as pq; \
        pq.write_table(pa.ipc.open_stream(sys.argv[1]).read_all(), sys.argv[2])", "parquet")),
    (b"FEA1", "a Feather file", python("import sys, pandas; pandas.read_feather(sys.argv[1]).to_parquet(sys.argv[2])",
        "parquet")),
    (b"PAR1", "a Parquet file in an archive", Way::Say("unpack it: Parquet compresses its own columns")),
    (b"PARE", "an encrypted Parquet file", ELSEWHERE),
    (b"\xff\xfe\0\0", "UTF-32", Way::Shell("iconv -f UTF-32 -t UTF-8 IN > OUT", "utf8.jsonl")),
    (b"\xff\xfe", "UTF-16", UTF16),
    (b"\xfe\xff", "UTF-16", UTF16),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself",
        Way::Shell("git -C FOLDER lfs pull --include NAME", "")),
    (b"%PDF-", "a PDF document", Way::Say("pairs cannot be read from it: write them as JSON Lines")),
    (b"GGUF", "a GGUF file", WEIGHTS),
    (b"SQLite format 3\0", "an SQLite database", ELSEWHERE),
    (b"\x89HDF", "an HDF5 file", ELSEWHERE),
    (b"\x93NUMPY", "a NumPy array", ELSEWHERE),
    (b"Obj\x01", "an Avro file", ELSEWHERE),
    (b"\x89PNG", "an image", ELSEWHERE),
    (b"\xff\xd8\xff", "an image", ELSEWHERE),
];

const CSV: &str = "import csv, json, sys; csv.field_size_limit(2**31 - 1); [print(json.dumps(row)) for row in \
                   csv.DictReader(open(sys.argv[1], encoding='utf-8-sig', newline=''), delimiter='DELIMITER')]";
const REPR: &str = "import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in open(sys.argv[1], \
                    encoding='utf-8') if line.strip()]";
const WRAPPED: &str = "import json, sys; [print(json.dumps(row)) for row in json.load(open(sys.argv[1], \
                       encoding='utf-8-sig'))['KEY']]";
const PICKLE: &str =
    "import sys, pandas; pandas.read_pickle(sys.argv[1]).to_json(sys.argv[2], orient='records', lines=True)";

/// Keys of a file's list of rows.
const LISTS: [&str; 12] = [
    "data",
    "rows",
    "examples",
    "instances",
    "items",
    "records",
    "results",
    "samples",
    "train",
    "test",
    "validation",
    "dev",
];

/// Parts of the keys of rows.
const OF_ROWS: [&str; 10] = [
    "prompt",
    "chosen",
    "reject",
    "question",
    "instruction",
    "messages",
    "conversation",
    "response",
    "answer",
    "completion",
];

impl Other {
    fn new(what: impl Into<Cow<'static, str>>, way: Way) -> Self {
        Self { what: what.into(), way }
    }

    /// Detects a file's type from its first bytes, after unpacking; `None` if they may be rows of JSON.
    pub(super) fn detect(head: &[u8]) -> Option<Self> {
        if let Some((_, what, way)) = MAGIC.iter().find(|(start, ..)| head.starts_with(start)) {
            return Some(Self::new(*what, way.clone()));
        }
        let text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
        let iconv = |run| Some(Self::new("UTF-16", Way::Shell(run, "utf8.jsonl")));
        match head {
            [first, 0, second, 0, ..] if text(first) && text(second) => iconv("iconv -f UTF-16LE -t UTF-8 IN > OUT"),
            [0, first, 0, second, ..] if text(first) && text(second) => iconv("iconv -f UTF-16BE -t UTF-8 IN > OUT"),
            [0x80, 2..=5, ..] => {
                let what = "a Python pickle (loading it runs its author's code: only if you trust the author)";
                Some(Self::new(what, python(PICKLE, "jsonl")))
            }
            [_, _, _, _, _, 0, 0, 0, b'{', ..] => Some(Self::new("a safetensors file", WEIGHTS)),
            _ if head.get(257..262) == Some(b"ustar") => Some(Self::new("a tar archive", Way::Shell("tar -xf IN", ""))),
            _ if head.contains(&0) => Some(Self::new("binary data", ELSEWHERE)),
            _ => Self::markup(head),
        }
    }

    /// No JSON starts with an angle bracket.
    fn markup(head: &[u8]) -> Option<Self> {
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        let starts =
            |word: &str| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
        match text.first() {
            Some(b'<') if starts("<!doctype html") || starts("<html") => {
                let advice = "a server sent it instead of the file: fetch the file itself; on the hub its address has \
                              /resolve/, not /blob/";
                Some(Self::new("an HTML page", Way::Say(advice)))
            }
            Some(b'<') => Some(Self::new("XML or other markup", ELSEWHERE)),
            _ => None,
        }
    }

    /// Detects the type of a text whose first line, of `first` bytes, is broken JSON.
    pub(super) fn of_text(text: &[u8], first: usize) -> Option<Self> {
        let line = std::str::from_utf8(&text[..first]).ok()?.trim();
        if line.starts_with("{'") {
            return Some(Self::new("in Python's notation, not JSON", python(REPR, "jsonl")));
        }
        if line.starts_with('{') {
            let continues = line.ends_with(['{', '[', ',']) && !text[first..].trim_ascii().is_empty();
            let spread = || Self::new("JSON with objects over several lines", Way::Shell("jq -c . IN > OUT", "jsonl"));
            return continues.then(|| Self::wrapped(text).unwrap_or_else(spread));
        }
        let name = |field: &str| {
            let field = field.trim().trim_matches('"');
            field.len() <= 64 && field.chars().all(|c| c.is_alphanumeric() || " _-./()".contains(c))
        };
        let delimited = |delimiter: &(char, &str, &str)| {
            let mut fields = line.split(delimiter.0);
            // pandas leaves the name of its index empty.
            let index = fields.next().is_some_and(name);
            index && fields.clone().next().is_some() && fields.all(|field| name(field) && !field.trim().is_empty())
        };
        let known = [(',', ",", "CSV"), ('\t', "\\t", "TSV (CSV with tabs)"), (';', ";", "CSV with semicolons")];
        let (_, delimiter, what) = known.iter().find(|delimiter| delimited(delimiter))?;
        Some(Self::new(*what, Way::Python(CSV.replace("DELIMITER", delimiter).into(), "jsonl")))
    }

    /// Detects a file whose only row is an object with the rows in a list.
    pub(super) fn of_only_row(row: &Value, text: &[u8]) -> Option<Self> {
        let is_row =
            |object: &Map<String, Value>| object.keys().any(|key| OF_ROWS.iter().any(|part| key.contains(part)));
        Self::wrapped(text).filter(|_| row.as_object().is_some_and(|object| !is_row(object)))
    }

    /// Detects the start of an object with the rows in a list, under one of the keys in [`LISTS`].
    pub(super) fn wrapped(start: &[u8]) -> Option<Self> {
        let key = first_list(start)?;
        let key = LISTS.into_iter().find(|list| list.as_bytes() == key)?;
        let what = format!("one JSON object with the rows in the list {key:?}");
        Some(Self::new(what, Way::Python(WRAPPED.replace("KEY", key).into(), "jsonl")))
    }

    /// The error for a file of this type; `packed` names the compression around it.
    pub(super) fn refuse(self, path: &Path, packed: Option<&str>) -> Error {
        let within = packed.map(|packed| format!(", compressed with {packed}")).unwrap_or_default();
        let message =
            format!("{} is {}{within}; expected JSON Lines, a JSON array or Parquet", path.display(), self.what);
        let (run, ending) = match self.way {
            Way::Say(advice) => return Error::input(message).hint(advice),
            Way::Shell(run, ending) => (run.to_owned(), ending),
            Way::Python(code, ending) => (of_python(&code), ending),
        };
        Error::input(message).hint(match packed {
            None => format!("convert it: {}", command(&run, path, ending)),
            Some(packed) => {
                let unpack = command(&format!("{packed} -dc IN > OUT"), path, "");
                format!("convert it: {unpack} && {}", command(&run, &written(path, ""), ending))
            }
        })
    }
}

/// A command that runs Python code, which must not contain double quotes.
pub(in crate::data) fn of_python(code: &str) -> String {
    format!("python3 -c \"{code}\" {}", if code.contains("argv[2]") { "IN OUT" } else { "IN > OUT" })
}

/// The command with the files' names, quoted for a shell. [`written`] names its output.
pub(in crate::data) fn command(run: &str, path: &Path, ending: &str) -> String {
    let name = path.file_name().map(Path::new).unwrap_or(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Whole words only: code may contain these letters.
    let word = |word: &str| match word {
        "IN" => quoted(path),
        "OUT" => quoted(&written(path, ending)),
        "NAME" => quoted(name),
        "FOLDER" => quoted(folder),
        _ => word.to_owned(),
    };
    run.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The output's path: `a.jsonl` for `a.jsonl.xz` without an ending, `a.parquet` for `a.arrow` with one; never `path` itself.
fn written(path: &Path, ending: &str) -> PathBuf {
    let written = path.with_extension(ending);
    match written == path {
        true => path.with_extension(format!("new.{ending}").trim_end_matches('.')),
        false => written,
    }
}

fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    match path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte)) {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// The first key of an object whose value is a list of objects.
fn first_list(object: &[u8]) -> Option<&[u8]> {
    let (mut depth, mut at) = (0_usize, 0);
    let mut key: Option<&[u8]> = None;
    while let Some(byte) = object.get(at) {
        match byte {
            b'"' => {
                let length = super::json::text_length(&object[at..]);
                let after = object[at + length..].trim_ascii_start();
                if depth == 1 && after.first() == Some(&b':') {
                    key = object.get(at + 1..(at + length).checked_sub(1)?);
                }
                at += length;
                continue;
            }
            b'[' if depth == 1 && object[at + 1..].trim_ascii_start().first() == Some(&b'{') => return key,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}
