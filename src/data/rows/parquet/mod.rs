//! The rows of a Parquet file as JSON objects, nested lists of structs (messages) included.
//!
//! The library's row reader is used rather than its Arrow reader: rows become JSON objects in any case, and it needs half the
//! crates. Not here: a row's values (`values.rs`), the bound on a page's size (`pages.rs`), and what a row means
//! (`data/formats/`).

mod pages;
mod values;

use crate::data::rows::{LONG_HINT, Place, Take, command, of_python};
use crate::error::{Error, Result};
use crate::panics::contain;
use pages::{Columns, ELEMENTS, TooLarge, has_sane_schema};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::{Reader, TreeBuilder};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use values::Fault;

/// The bytes with which a Parquet file starts and ends.
pub(super) const MAGIC: [u8; 4] = *b"PAR1";

/// Rewrites a file in a form that can be read here.
const REWRITE: &str = "import sys, pyarrow.parquet as pq; pq.write_table(pq.read_table(sys.argv[1]), sys.argv[2], \
                       compression='zstd')";

type Found<T> = std::result::Result<T, Fault>;

/// Passes every row to `take`, in order, up to the first error. Returns the number of rows.
///
/// Numbers (decimals and halves included), booleans and texts (also in columns of bytes without a text type) become JSON.
/// Values that JSON cannot hold (NaN, dates, other bytes) become odd: see `rows/odd.rs`.
///
/// # Errors
/// A damaged file, an unsupported compression, a row over the bound, or an error of `take`.
pub(super) fn for_each(path: &Path, file: File, max_row_bytes: usize, take: &mut Take) -> Result<usize> {
    let fail = |row: Option<usize>, fault: Fault| {
        let place = row.map(|row| format!(" row {row}:")).unwrap_or_default();
        let at = format!("{}:{place}", path.display());
        match fault {
            Fault::TooLarge => Error::input(format!("{at} a row has more than {max_row_bytes} bytes")).hint(LONG_HINT),
            Fault::Broken(what) => Error::input(format!("{at} damaged or unsupported Parquet data: {what}"))
                .hint(format!("fetch it again, or rewrite it: {}", command(&of_python(REWRITE), path, "parquet"))),
        }
    };
    if !has_sane_schema(&file).map_err(|error| fail(None, error.into()))? {
        return Err(Error::input(format!("{}: more than {ELEMENTS} columns", path.display()))
            .hint("write the columns that make pairs to a file of their own"));
    }
    let file = Arc::new(file);
    let reader = guarded(|| Ok(SerializedFileReader::new(file.try_clone()?)?)).map_err(|fault| fail(None, fault))?;
    let metadata = reader.metadata();
    refuse_codecs(path, metadata)?;
    let schema = metadata.file_metadata().schema_descr_ptr();
    let mut number = 0;
    for group in metadata.row_groups() {
        let columns = Columns::new(file.clone(), group, max_row_bytes);
        let start = || {
            let mut root = TreeBuilder::new().build(schema.clone(), &columns)?;
            values::start(&mut root)?;
            Ok(root)
        };
        let mut root: Reader = guarded(start).map_err(|fault| fail(Some(number + 1), fault))?;
        for _ in 0..group.num_rows() {
            number += 1;
            let row = guarded(|| values::row(&mut root, max_row_bytes)).map_err(|fault| fail(Some(number), fault))?;
            take(&Place::row(path, number), row)?;
        }
    }
    // A file's groups must hold all of its rows.
    match metadata.file_metadata().num_rows() {
        expected if usize::try_from(expected) == Ok(number) => Ok(number),
        expected => Err(fail(None, Fault::Broken(format!("{number} rows, expected {expected}")))),
    }
}

/// The library checks much of what it reads, but panics over some damaged files.
fn guarded<T>(read: impl FnOnce() -> Found<T>) -> Found<T> {
    contain(read).unwrap_or_else(|panic| Err(Fault::Broken(panic)))
}

/// Refuses a file with an unsupported compression before any row is read.
fn refuse_codecs(path: &Path, metadata: &ParquetMetaData) -> Result<()> {
    let read = |codec: Compression| {
        use Compression::{GZIP, LZ4, LZ4_RAW, SNAPPY, UNCOMPRESSED, ZSTD};
        matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | ZSTD(_) | LZ4 | LZ4_RAW)
    };
    let mut chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    match chunks.find(|chunk| !read(chunk.compression())) {
        None => Ok(()),
        Some(chunk) => {
            let codec = format!("{:?}", chunk.compression()).to_lowercase();
            let codec = codec.split('(').next().unwrap_or_default();
            let column = chunk.column_path().string();
            Err(Error::input(format!(
                "{}: column `{column}` is compressed with {codec}; expected snappy, gzip, zstd or lz4",
                path.display()
            ))
            .hint(format!("convert it: {}", command(&of_python(REWRITE), path, "parquet"))))
        }
    }
}

impl From<ParquetError> for Fault {
    fn from(error: ParquetError) -> Self {
        match &error {
            ParquetError::External(cause) if cause.is::<TooLarge>() => Self::TooLarge,
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}
