//! The rows of a Parquet file as JSON objects, nested lists of structs (messages) included.
//!
//! The library's row reader is used rather than its Arrow reader: rows become JSON objects in any case, and it needs half
//! the crates. Not here: what a row means; that is `formats/`.

use crate::data::rows::{Place, Take};
use crate::error::{Error, Result};
use crate::panics::contain;
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{Type, TypePtr};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// What a Parquet file starts and ends with.
pub(super) const MAGIC: [u8; 4] = *b"PAR1";

/// Hands every row to `take`, in order; the first error ends it. Returns how many there were.
///
/// Columns that hold neither text, numbers nor truth values (images, dates) are left out, as if the file had none of
/// them. The file must be compressed with snappy, zstd or gzip, or not at all.
///
/// # Errors
/// A damaged file, another compression, or what `take` returns.
pub(super) fn for_each(path: &Path, file: File, take: &mut Take) -> Result<usize> {
    let broken = |row: Option<usize>, error: &dyn std::fmt::Display| {
        let place = row.map(|row| format!(" row {row}:")).unwrap_or_default();
        Error::input(format!("{}:{place} damaged or unsupported Parquet data: {error}", path.display()))
            .hint("fetch it again; text, numbers and lists of them are read, compressed with snappy, zstd, gzip or not")
    };
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(|error| broken(None, &error))?;
    let opened = guarded(|| {
        let columns = readable(reader.metadata().file_metadata().schema())?;
        Ok((columns.is_some(), reader.get_row_iter(columns)?))
    });
    let (any, mut rows) = opened.map_err(|error| broken(None, &error))?;
    if !any {
        return Err(broken(None, &"no column holds text, numbers or truth values"));
    }
    let mut number = 0;
    while let Some(row) = guarded(|| rows.next().map(|row| Ok(row?.to_json_value())).transpose())
        .map_err(|error| broken(Some(number + 1), &error))?
    {
        number += 1;
        take(&Place::row(path, number), row)?;
    }
    // Cut pages may look like the end of the rows.
    match reader.metadata().file_metadata().num_rows() {
        expected if usize::try_from(expected) == Ok(number) => Ok(number),
        expected => Err(broken(None, &format!("{number} rows, expected {expected}"))),
    }
}

/// The library checks much of what it reads, but panics over some damaged files.
fn guarded<T>(read: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    contain(read).unwrap_or_else(|panic| Err(ParquetError::General(panic)))
}

/// The part of a schema that can be read; `None` where nothing can.
fn readable(schema: &Type) -> ParquetResult<Option<Type>> {
    let fields = readable_fields(schema)?;
    if fields.is_empty() {
        return Ok(None);
    }
    Type::group_type_builder(schema.name()).with_fields(fields).build().map(Some)
}

fn readable_fields(group: &Type) -> ParquetResult<Vec<TypePtr>> {
    let mut fields = Vec::new();
    for field in group.get_fields() {
        if field.is_primitive() {
            if is_readable(field) {
                fields.push(field.clone());
            }
            continue;
        }
        let inner = readable_fields(field)?;
        if !inner.is_empty() {
            let info = field.get_basic_info();
            let group = Type::group_type_builder(field.name())
                .with_repetition(info.repetition())
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_fields(inner);
            fields.push(Arc::new(group.build()?));
        }
    }
    Ok(fields)
}

/// Text, numbers and truth values. Dates are numbers too, in the file, but not what any key expects.
fn is_readable(leaf: &Type) -> bool {
    use ConvertedType as Old;
    let info = leaf.get_basic_info();
    match leaf.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::INT32 | Physical::INT64 => {
            let whole =
                matches!(info.logical_type_ref(), None | Some(LogicalType::Integer { .. } | LogicalType::Unknown));
            let dated = [Old::DATE, Old::TIME_MILLIS, Old::TIME_MICROS, Old::TIMESTAMP_MILLIS, Old::TIMESTAMP_MICROS];
            whole && !dated.contains(&info.converted_type()) && info.converted_type() != Old::DECIMAL
        }
        Physical::BYTE_ARRAY => matches!(info.converted_type(), Old::UTF8 | Old::ENUM | Old::JSON),
        Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
    }
}
