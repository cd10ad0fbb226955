//! Reads the rows of a JSON Lines file or a JSON array (plain, gzip or zstd), or of a Parquet file, one after the other, each
//! within a bound of bytes.
//!
//! Not here: the JSON of one row (`json.rs`), files of other kinds (`other.rs`), and what a row means (`formats/`).

mod json;
pub(in crate::data) mod odd;
mod other;
mod parquet;
mod place;

pub(in crate::data) use json::insert;
use other::Other;
pub(in crate::data) use other::{command, of_python};
pub(in crate::data) use place::{Place, Take};

use crate::error::{Error, Result, file_error};
use crate::files;
use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const HINT: &str =
    "expected one JSON object per line or one JSON array of objects (plain, gzip or zstd), or a Parquet file";

/// Hint for a row over the bound.
pub(super) const LONG_HINT: &str = "leave the row out, or raise data.max_row_bytes";

/// Bytes at a file's start from which its type is detected.
const HEAD: u64 = 4096;

/// Bytes read at a time.
const CHUNK: usize = 1 << 16;

/// Passes every row of `path` to `take`, in order, up to the first error. A row has at most `max_row_bytes` bytes, as JSON or
/// in a Parquet file's columns.
///
/// The file type is detected from the content: gzip, zstd and Parquet by their magic numbers, an array by its first byte that
/// is not white space. A byte order mark, blank lines and CRLF are tolerated. A value that JSON cannot hold, such as NaN, is
/// in the row as an object of [`odd`].
///
/// # Errors
/// A file of another type, without rows, or damaged; a row over the bound; broken JSON; an error of `take`.
pub(super) fn for_each(
    path: &Path,
    max_row_bytes: usize,
    mut take: impl FnMut(&Place, Value) -> Result<()>,
) -> Result<()> {
    let rows = match open(path, max_row_bytes)? {
        Content::Text(mut text) => match text.skip_blank()? {
            Some(b'[') => text.array(&mut take)?,
            _ => text.lines(&mut take)?,
        },
        Content::Parquet(file) => parquet::for_each(path, file, max_row_bytes, &mut take)?,
    };
    match rows {
        0 => Err(Error::input(format!("{} holds no rows", path.display())).hint(HINT)),
        _ => Ok(()),
    }
}

/// Passes every row of `path` to `take` as an object, in order, up to the first error, which gets the row's place. For files
/// without preferences. A value that JSON cannot hold, such as NaN, is an object in the row, never a text or a number.
///
/// # Errors
/// A file of another type, without rows, or damaged; a row over the bound or that is not an object; an error of `take`.
pub(crate) fn objects(
    path: &Path,
    max_row_bytes: usize,
    mut take: impl FnMut(Map<String, Value>) -> Result<()>,
) -> Result<()> {
    for_each(path, max_row_bytes, |place, row| {
        let taken = match row {
            Value::Object(object) if odd::kind(&object).is_none() => take(object),
            _ => Err(Error::input("this row is not an object").hint(HINT)),
        };
        taken.map_err(|error| error.at(place))
    })
}

/// The value of a row's text that is JSON.
///
/// # Errors
/// The syntax error.
pub(in crate::data) fn of_text(text: &str) -> std::result::Result<Value, String> {
    json::parse(text.as_bytes()).map_err(|broken| broken.what)
}

/// An open file, by its type.
enum Content<'p> {
    Text(Text<'p>),
    Parquet(File),
}

fn open(path: &Path, max_row_bytes: usize) -> Result<Content<'_>> {
    let file = files::open(path).map_err(|error| file_error(path, "read", &error))?;
    let mut file = BufReader::with_capacity(CHUNK, file);
    let start = file.fill_buf().map_err(|error| broken_read(path, None, &error))?;
    if start.starts_with(&parquet::MAGIC) {
        return Ok(Content::Parquet(file.into_inner()));
    }
    let unpacked = |decoder| Box::new(BufReader::with_capacity(CHUNK, decoder));
    let (packed, mut reader): (_, Box<dyn BufRead>) = if start.starts_with(&GZIP_MAGIC) {
        (Some("gzip"), unpacked(Box::new(MultiGzDecoder::new(file)) as Box<dyn Read>))
    } else if start.starts_with(&ZSTD_MAGIC) {
        let decoder = zstd::Decoder::with_buffer(file).map_err(|error| broken_read(path, Some("zstd"), &error))?;
        (Some("zstd"), unpacked(Box::new(decoder)))
    } else {
        (None, Box::new(file))
    };
    let mut head = Vec::new();
    (&mut reader).take(HEAD).read_to_end(&mut head).map_err(|error| broken_read(path, packed, &error))?;
    if let Some(other) = Other::detect(&head) {
        return Err(other.refuse(path, packed));
    }
    let mark = if head.starts_with(&BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    head.drain(..mark);
    let reader = Box::new(Cursor::new(head).chain(reader));
    Ok(Content::Text(Text { path, packed, reader, bound: max_row_bytes, at: Position { line: 1, column: 1 } }))
}

/// The error for a file that opened but cannot be read: an input error for a damaged archive, else the system's.
fn broken_read(path: &Path, packed: Option<&str>, error: &io::Error) -> Error {
    match packed {
        // Errors of the system have a number, errors of the decoder have none.
        Some(packed) if error.raw_os_error().is_none() => {
            Error::input(format!("{}: damaged or cut short {packed} data: {error}", path.display()))
                .hint("fetch it again")
        }
        _ => file_error(path, "read", error),
    }
}

/// The position of the next byte, both from 1.
#[derive(Clone, Copy)]
struct Position {
    line: usize,
    column: usize,
}

impl Position {
    fn advance(&mut self, bytes: &[u8]) {
        match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => {
                self.line += json::newlines(bytes);
                self.column = bytes.len() - newline;
            }
            None => self.column += bytes.len(),
        }
    }
}

/// A text while it is read.
struct Text<'p> {
    path: &'p Path,
    packed: Option<&'static str>,
    reader: Box<dyn BufRead>,
    /// Most bytes of a row.
    bound: usize,
    at: Position,
}

/// How a row's text ended.
enum End {
    /// Before this byte.
    Before(u8),
    File,
    /// At the bound.
    Bound,
}

impl Text<'_> {
    /// Reads one row a line. Returns how many there were.
    fn lines(&mut self, take: &mut Take) -> Result<usize> {
        let mut row = Vec::new();
        let mut rows = 0;
        while self.skip_blank()?.is_some() {
            let start = self.at;
            let end = self.until(&mut row, |byte| byte == b'\n')?;
            if let End::Bound = end {
                let wrapped = if rows == 0 { Other::wrapped(&row) } else { None };
                return Err(wrapped.map_or_else(|| self.too_long(start.line, ""), |other| self.refuse(other)));
            }
            let value = match json::parse(row.trim_ascii_end()) {
                Ok(value) => value,
                Err(broken) => {
                    let other = if rows == 0 { self.detect_from_first(&row) } else { None };
                    return Err(other.map_or_else(|| self.broken(start, "", &broken), |other| self.refuse(other)));
                }
            };
            if rows == 0
                && self.skip_blank()?.is_none()
                && let Some(other) = Other::of_only_row(&value, &row)
            {
                return Err(self.refuse(other));
            }
            take(&Place::line(self.path, start.line), value)?;
            rows += 1;
        }
        Ok(rows)
    }

    /// Reads an array's elements one by one. Returns how many there were.
    fn array(&mut self, take: &mut Take) -> Result<usize> {
        self.skip(1);
        let (mut row, mut rows) = (Vec::new(), 0);
        loop {
            let next = self.skip_blank()?;
            if next == Some(b']') && rows == 0 {
                break;
            }
            let (start, element) = (self.at, format!(" element {}:", rows + 1));
            let mut nesting = Nesting::default();
            let end = self.until(&mut row, |byte| nesting.ends_before(byte))?;
            if let End::Bound = end {
                return Err(self.too_long(start.line, &element));
            }
            let value = json::parse(row.trim_ascii_end()).map_err(|broken| self.broken(start, &element, &broken))?;
            rows += 1;
            take(&Place::element(self.path, rows), value)?;
            match end {
                End::Before(b',') => self.skip(1),
                End::Before(b']') => break,
                _ => return Err(self.wrong(self.at, &format!(" element {}:", rows + 1), "expected `,` or `]`")),
            }
        }
        self.skip(1);
        match self.skip_blank()? {
            Some(_) => Err(self.wrong(self.at, " after the array:", "trailing characters")),
            None => Ok(rows),
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.at.column += bytes;
    }

    /// Skips white space and returns the next byte without taking it; `None` at the end of the file.
    fn skip_blank(&mut self) -> Result<Option<u8>> {
        loop {
            let chunk = self.reader.fill_buf().map_err(|error| broken_read(self.path, self.packed, &error))?;
            let blank = chunk.len() - chunk.trim_ascii_start().len();
            let (next, blank) = (chunk.get(blank).copied(), &chunk[..blank]);
            let length = blank.len();
            self.at.advance(blank);
            self.reader.consume(length);
            if next.is_some() || length == 0 {
                return Ok(next);
            }
        }
    }

    /// Reads into `row` up to the byte that `ends` it, no further than the bound.
    fn until(&mut self, row: &mut Vec<u8>, mut ends: impl FnMut(u8) -> bool) -> Result<End> {
        row.clear();
        loop {
            let chunk = self.reader.fill_buf().map_err(|error| broken_read(self.path, self.packed, &error))?;
            if chunk.is_empty() {
                return Ok(End::File);
            }
            let end = chunk.iter().position(|byte| ends(*byte));
            let part = &chunk[..end.unwrap_or(chunk.len()).min(self.bound - row.len() + 1)];
            let (length, last) = (part.len(), end.map(|end| chunk[end]));
            row.extend(part);
            self.at.advance(part);
            self.reader.consume(length);
            match last {
                _ if row.len() > self.bound => return Ok(End::Bound),
                Some(byte) => return Ok(End::Before(byte)),
                None => {}
            }
        }
    }

    fn too_long(&self, line: usize, element: &str) -> Error {
        let (path, bound) = (self.path.display(), self.bound);
        Error::input(format!("{path}:{line}:{element} a row has more than {bound} bytes")).hint(LONG_HINT)
    }

    fn broken(&self, start: Position, element: &str, broken: &json::Broken) -> Error {
        let column = if broken.line == 1 { start.column - 1 + broken.column } else { broken.column };
        self.wrong(Position { line: start.line + broken.line - 1, column: column.max(1) }, element, &broken.what)
    }

    fn wrong(&self, at: Position, element: &str, what: &str) -> Error {
        let (path, Position { line, column }) = (self.path.display(), at);
        Error::input(format!("{path}:{line}:{element} broken JSON in column {column}: {what}")).hint(HINT)
    }

    /// Detects another file type if the first line is broken JSON.
    fn detect_from_first(&mut self, first: &[u8]) -> Option<Other> {
        let mut text = first.to_vec();
        // Damaged data after the first line are not the problem here.
        let _ = (&mut self.reader).take(HEAD).read_to_end(&mut text);
        Other::of_text(&text, first.len())
    }

    fn refuse(&self, other: Other) -> Error {
        other.refuse(self.path, self.packed)
    }
}

/// Finds the end of an array's element: a comma or bracket that is neither in a text nor in the element's own brackets.
#[derive(Default)]
struct Nesting {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Nesting {
    fn ends_before(&mut self, byte: u8) -> bool {
        if self.in_text {
            (self.in_text, self.escaped) = (self.escaped || byte != b'"', !self.escaped && byte == b'\\');
            return false;
        }
        match byte {
            b',' => return self.depth == 0,
            b']' | b'}' if self.depth == 0 => return true,
            b']' | b'}' => self.depth -= 1,
            b'[' | b'{' => self.depth += 1,
            b'"' => self.in_text = true,
            _ => {}
        }
        false
    }
}
