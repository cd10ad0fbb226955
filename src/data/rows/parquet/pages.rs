//! Reads the columns of a row group page by page. No page may be larger than the group's rows together, and no schema deeper
//! than the stack.
//!
//! The library unpacks a page at once, to the size in its header: a few bytes may announce two gigabytes. So the header is
//! checked before the library unpacks the page, and the footer before the library reads the schema. Not here: rows and values.

use bytes::Bytes;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::PageReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

/// Bytes that are charged for any value, so that lists of empty values are bounded, too.
pub(super) const VALUE_BYTES: usize = 16;

/// The bound on a page's bytes is at least this ...
const SMALL: usize = 1 << 20;
/// ... and at most this.
const LARGE: usize = 1 << 30;

/// The bound on a page's values is at least this ...
const FEW: usize = 1 << 16;
/// ... and at most this.
const MANY: usize = 1 << 26;

/// Largest number of elements in a schema.
pub(super) const ELEMENTS: usize = 1000;

/// A page that unpacks to more than the rows may have.
#[derive(Debug)]
pub(super) struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a page that unpacks to more than the rows may have")
    }
}

impl std::error::Error for TooLarge {}

/// The columns of a row group.
pub(super) struct Columns<'m> {
    file: Arc<File>,
    group: &'m RowGroupMetaData,
    /// Most bytes that the group's rows may have together.
    bytes: usize,
}

impl<'m> Columns<'m> {
    pub(super) fn new(file: Arc<File>, group: &'m RowGroupMetaData, max_row_bytes: usize) -> Self {
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        Self { file, group, bytes: rows.saturating_mul(max_row_bytes) }
    }
}

impl RowGroupReader for Columns<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, index: usize) -> Result<Box<dyn PageReader>> {
        let column = self.group.column(index);
        // A row's values are read at once; in a column without lists that is one value.
        let lists = column.column_descr().max_rep_level() > 0;
        let values = if lists { (self.bytes / VALUE_BYTES).clamp(FEW, MANY) } else { usize::MAX };
        let pages = Pages { file: self.file.clone(), bytes: self.bytes.clamp(SMALL, LARGE), values };
        let rows = usize::try_from(self.group.num_rows())?;
        Ok(Box::new(SerializedPageReader::new(Arc::new(pages), column, rows, None)?))
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, _: Option<Type>) -> Result<RowIter<'_>> {
        Err(ParquetError::NYI("rows are read by values.rs".to_owned()))
    }
}

/// A file whose page headers are checked.
struct Pages {
    file: Arc<File>,
    bytes: usize,
    values: usize,
}

impl Length for Pages {
    fn len(&self) -> u64 {
        Length::len(&*self.file)
    }
}

impl ChunkReader for Pages {
    type T = BufReader<File>;

    /// The library reads only page headers this way.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut reader = self.file.get_read(start)?;
        let header = reader.fill_buf()?;
        if !header.is_empty() {
            let size =
                PageSize::of(header).ok_or_else(|| ParquetError::General("a page header without sizes".to_owned()))?;
            if size.bytes > self.bytes || size.values > self.values {
                return Err(ParquetError::External(Box::new(TooLarge)));
            }
        }
        Ok(reader)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.file.get_bytes(start, length)
    }
}

/// The size of an unpacked page.
struct PageSize {
    bytes: usize,
    values: usize,
}

impl PageSize {
    /// From the start of the page's header (struct PageHeader of parquet.thrift, fields in their order, as all writers have
    /// them).
    fn of(header: &[u8]) -> Option<Self> {
        let mut header = Compact(header);
        // 1: type, 2: uncompressed_page_size, 3: compressed_page_size.
        let mut numbers = [0; 3];
        for number in &mut numbers {
            header.field(I32)?;
            *number = header.number()?;
        }
        // 4: crc, which may be absent and negative; then a struct by the type of the page, num_values first.
        if header.0.first() == Some(&(1 << 4 | I32)) {
            let length = header.0[1..].iter().position(|byte| byte & 128 == 0)?;
            header.0 = header.0.get(length + 2..)?;
        }
        let [kind, bytes, _] = numbers;
        // Index pages have no values.
        if kind == 1 {
            return Some(Self { bytes, values: 0 });
        }
        (header.byte()? & 15 == STRUCT).then_some(())?;
        header.field(I32)?;
        Some(Self { bytes, values: header.number()? })
    }
}

/// Elements of a file's schema, columns and groups, from the start of its footer (struct FileMetaData).
fn schema_elements(footer: &[u8]) -> Option<usize> {
    let mut footer = Compact(footer);
    // 1: version, 2: schema.
    footer.field(I32)?;
    footer.number()?;
    footer.field(LIST)?;
    match footer.byte()? >> 4 {
        15 => footer.varint().and_then(|count| count.try_into().ok()),
        count => Some(count.into()),
    }
}

/// Whether a file's schema has no more than [`ELEMENTS`]: the library reads a nested schema by recursion.
///
/// # Errors
/// A file that ends early, or cannot be read.
pub(super) fn has_sane_schema(mut file: &File) -> Result<bool> {
    let mut tail = [0; 8];
    file.seek(SeekFrom::End(-8))?;
    file.read_exact(&mut tail)?;
    let [one, two, three, four, ..] = tail;
    let length = i64::from(u32::from_le_bytes([one, two, three, four]));
    file.seek(SeekFrom::End(-8 - length))?;
    let mut start = Vec::new();
    file.take(32).read_to_end(&mut start)?;
    let elements =
        schema_elements(&start).ok_or_else(|| ParquetError::General("a footer without a schema".to_owned()))?;
    Ok(elements <= ELEMENTS)
}

const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// The start of a struct in Thrift's compact protocol.
struct Compact<'b>(&'b [u8]);

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Reads the head of the next field, which must be the one after the last and of this type.
    fn field(&mut self, kind: u8) -> Option<()> {
        (self.byte()? == 1 << 4 | kind).then_some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte & 128 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A number that is not negative.
    fn number(&mut self) -> Option<usize> {
        let zigzag = self.varint()?;
        if zigzag & 1 == 0 { usize::try_from(zigzag >> 1).ok() } else { None }
    }
}
