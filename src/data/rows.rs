//! The rows of a JSON Lines file, of a JSON array (gzipped or not) or of a Parquet file, one after the other.
//!
//! Not here: what a row means; that is `formats/`.

use crate::data::parquet;
use crate::error::{Error, Result, file_error};
use crate::files;
use flate2::bufread::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const HINT: &str = "expected one JSON object a line or one JSON array of objects, gzipped or not, or a Parquet file";

/// What to do about a source that cannot be opened.
pub(super) const PATH_HINT: &str = "is the path right, seen from where the run starts?";

/// Where a row stands.
pub(super) struct Place<'a> {
    path: &'a Path,
    /// Line, element of the array, or row of a Parquet file, from 1.
    pub(super) number: usize,
    unit: Unit,
}

/// What a file's rows are counted in.
enum Unit {
    Line,
    Element,
    Row,
}

/// What is done with each row.
pub(super) type Take<'t> = dyn FnMut(&Place, Value) -> Result<()> + 't;

impl<'a> Place<'a> {
    /// A row of a Parquet file.
    pub(super) fn row(path: &'a Path, number: usize) -> Self {
        Self { path, number, unit: Unit::Row }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, number) = (self.path.display(), self.number);
        match self.unit {
            Unit::Line => write!(f, "{path}:{number}"),
            Unit::Element => write!(f, "{path}: element {number}"),
            Unit::Row => write!(f, "{path}: row {number}"),
        }
    }
}

/// Hands every row of `path` to `take`, in order; the first error ends it.
///
/// What the file is, is told by its content: gzip and Parquet by their magic numbers, an array by its first non-space
/// byte.
/// A byte order mark, blank lines and CRLF are tolerated. A file without rows is an error.
pub(super) fn for_each(path: &Path, mut take: impl FnMut(&Place, Value) -> Result<()>) -> Result<()> {
    match rows_of(path, &mut take)? {
        0 => Err(Error::input(format!("{} holds no rows", path.display())).hint(HINT)),
        _ => Ok(()),
    }
}

fn rows_of(path: &Path, take: &mut Take) -> Result<usize> {
    let mut reader = match open(path)? {
        Content::Json(reader) => reader,
        Content::Parquet(file) => return parquet::for_each(path, file, take),
    };
    let mut line = Vec::new();
    let mut number = 0;
    let mut rows = 0;
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(|error| broken_read(path, &error))?;
        if length == 0 {
            break;
        }
        number += 1;
        if number == 1 && line.starts_with(&BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        if rows == 0 && text[0] == b'[' {
            // The lines before it were blank; they are put back so that the parser counts lines as an editor does.
            let start = [vec![b'\n'; number - 1], line].concat();
            rows = array(path, Cursor::new(start).chain(reader), take)?;
            break;
        }
        let row = serde_json::from_slice(text).map_err(|error| {
            Error::input(format!("{}:{number}: {}", path.display(), broken_json(&error))).hint(HINT)
        })?;
        take(&Place { path, number, unit: Unit::Line }, row)?;
        rows += 1;
    }
    Ok(rows)
}

/// A file opened for what it holds.
enum Content {
    Json(Box<dyn BufRead>),
    Parquet(File),
}

fn open(path: &Path) -> Result<Content> {
    let file = files::open(path).map_err(|error| file_error(path, "read", &error))?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = file.fill_buf().map_err(|error| broken_read(path, &error))?;
    if start.starts_with(&parquet::MAGIC) {
        return Ok(Content::Parquet(file.into_inner()));
    }
    Ok(Content::Json(match start.starts_with(&GZIP_MAGIC) {
        true => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file))),
        false => Box::new(file),
    }))
}

/// A file that opened but does not read: damaged gzip and folders are the user's to mend, the rest is the machine's.
fn broken_read(path: &Path, error: &io::Error) -> Error {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, UnexpectedEof};
    match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof => {
            Error::input(format!("{}: damaged or cut short gzip data: {error}", path.display())).hint("fetch it again")
        }
        IsADirectory => Error::input(format!("{} is a folder, expected a file of pairs", path.display()))
            .hint("name the file in it"),
        _ => file_error(path, "read", error),
    }
}

/// The parser's complaint without its own "at line 1": each line is parsed alone.
fn broken_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("broken JSON in column {}: {what}", error.column())
}

/// Reads an array element by element, so that only one row's JSON is held. Returns how many there were.
fn array(path: &Path, reader: impl Read, take: &mut Take) -> Result<usize> {
    let mut elements = Elements { path, take, number: 0, refused: None };
    let mut parser = serde_json::Deserializer::from_reader(reader);
    let parsed = DeserializeSeed::deserialize(&mut elements, &mut parser);
    if let Some(error) = elements.refused {
        return Err(error);
    }
    let whole = parsed.is_ok();
    match parsed.and_then(|()| parser.end()) {
        Ok(()) => Ok(elements.number),
        Err(error) if error.is_io() => Err(broken_read(path, &io::Error::from(error))),
        Err(error) => {
            let place = format!("{}:{}", path.display(), error.line());
            let what = broken_json(&error);
            let element = if whole { "after the array".into() } else { format!("element {}", elements.number + 1) };
            Err(Error::input(format!("{place}: {element}: {what}")).hint(HINT))
        }
    }
}

struct Elements<'a, 't> {
    path: &'a Path,
    take: &'a mut Take<'t>,
    number: usize,
    refused: Option<Error>,
}

impl<'de> DeserializeSeed<'de> for &mut Elements<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Elements<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<(), A::Error> {
        while let Some(row) = elements.next_element::<Value>()? {
            self.number += 1;
            let place = Place { path: self.path, number: self.number, unit: Unit::Element };
            if let Err(error) = (self.take)(&place, row) {
                self.refused = Some(error);
                return Err(A::Error::custom("a row was refused"));
            }
        }
        Ok(())
    }
}
