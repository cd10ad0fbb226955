//! The rows of a JSON Lines file or of a JSON array, gzipped or not, one after the other.
//!
//! Not here: what a row means; that is `formats.rs`.

use crate::error::{Error, Result, file_error};
use flate2::bufread::MultiGzDecoder;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const HINT: &str = "expected one JSON object a line, or one JSON array of objects; either may be gzipped";

/// What to do about a source that cannot be opened.
pub(super) const PATH_HINT: &str = "is the path right, seen from where the run starts?";

/// Where a row stands.
pub(super) struct Place<'a> {
    path: &'a Path,
    /// Line, or element of the array, from 1.
    pub(super) number: usize,
    in_array: bool,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.in_array {
            true => write!(f, "{}: element {}", self.path.display(), self.number),
            false => write!(f, "{}:{}", self.path.display(), self.number),
        }
    }
}

/// Hands every row of `path` to `take`, in order; the first error ends it.
///
/// What the file is, is told by its content: gzip by its magic number, an array by its first non-space byte.
/// A byte order mark, blank lines and CRLF are tolerated. A file without rows is an error.
pub(super) fn for_each(path: &Path, mut take: impl FnMut(&Place, Value) -> Result<()>) -> Result<()> {
    let mut reader = open(path)?;
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
            rows = array(path, Cursor::new(start).chain(reader), &mut take)?;
            break;
        }
        let row = serde_json::from_slice(text).map_err(|error| {
            Error::input(format!("{}:{number}: {}", path.display(), broken_json(&error))).hint(HINT)
        })?;
        take(&Place { path, number, in_array: false }, row)?;
        rows += 1;
    }
    match rows {
        0 => Err(Error::input(format!("{} holds no rows", path.display())).hint(HINT)),
        _ => Ok(()),
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(|error| file_error(path, "read", &error))?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    let start = file.fill_buf().map_err(|error| broken_read(path, &error))?;
    match start.starts_with(&GZIP_MAGIC) {
        true => Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(file)))),
        false => Ok(Box::new(file)),
    }
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
fn array(path: &Path, reader: impl Read, take: &mut dyn FnMut(&Place, Value) -> Result<()>) -> Result<usize> {
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

struct Elements<'a> {
    path: &'a Path,
    take: &'a mut dyn FnMut(&Place, Value) -> Result<()>,
    number: usize,
    refused: Option<Error>,
}

impl<'de> DeserializeSeed<'de> for &mut Elements<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for &mut Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> std::result::Result<(), A::Error> {
        while let Some(row) = elements.next_element::<Value>()? {
            self.number += 1;
            let place = Place { path: self.path, number: self.number, in_array: true };
            if let Err(error) = (self.take)(&place, row) {
                self.refused = Some(error);
                return Err(A::Error::custom("a row was refused"));
            }
        }
        Ok(())
    }
}
