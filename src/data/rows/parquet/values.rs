//! Assembles the rows of a Parquet file from their columns (Dremel's assembly), as JSON values.
//!
//! The library's tree of columns is walked here rather than by the library, so that a row's size is bounded, and values that
//! JSON cannot hold are odd (`rows/odd.rs`) instead of misleading numbers or texts. Not here: files and pages.

use crate::data::rows::parquet::Found;
use crate::data::rows::parquet::pages::VALUE_BYTES;
use crate::data::rows::{insert, odd};
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::record::Field;
use parquet::record::reader::Reader;
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

/// Why a row cannot be read.
pub(super) enum Fault {
    /// It is over the bound.
    TooLarge,
    /// The data are damaged, or not supported.
    Broken(String),
}

fn ends_early() -> Fault {
    Fault::Broken("a column ends before its rows".to_owned())
}

/// Moves every column to its first value.
pub(super) fn start(root: &mut Reader) -> Found<()> {
    advance(root)
}

/// The next row, of at most `bytes` bytes.
pub(super) fn row(root: &mut Reader, mut bytes: usize) -> Found<Value> {
    match root {
        Reader::GroupReader(_, _, columns) => group(columns, &mut bytes),
        _ => Err(Fault::Broken("a schema without columns".to_owned())),
    }
}

fn take(left: &mut usize, bytes: usize) -> Found<()> {
    *left = left.checked_sub(bytes).ok_or(Fault::TooLarge)?;
    Ok(())
}

fn group(columns: &mut [Reader], left: &mut usize) -> Found<Value> {
    let mut object = Map::new();
    for column in columns {
        let name = name(column)?.to_owned();
        take(left, name.len())?;
        let value = value(column, left)?;
        insert(&mut object, name, value);
    }
    Ok(Value::Object(object))
}

fn value(reader: &mut Reader, left: &mut usize) -> Found<Value> {
    take(left, VALUE_BYTES)?;
    // A group's columns are checked one by one.
    if !matches!(reader, Reader::GroupReader(..)) && !has_next(reader) {
        return Err(ends_early());
    }
    match reader {
        Reader::PrimitiveReader(column, values) => {
            let value = match (values.is_null(), held(column)) {
                (true, _) => Value::Null,
                (false, Held::Odd(kind)) => odd::value(kind),
                (false, Held::Text) => values.current_value().map_or_else(|_| odd::value(odd::NOT_UTF8), json),
                (false, Held::Other) => json(values.current_value()?),
            };
            take(left, value.as_str().map_or(0, str::len))?;
            values.read_next()?;
            Ok(value)
        }
        Reader::OptionReader(level, inner) if definition(inner) > *level => value(inner, left),
        Reader::OptionReader(_, inner) => {
            advance(inner)?;
            Ok(Value::Null)
        }
        Reader::GroupReader(_, _, columns) => group(columns, left),
        Reader::RepeatedReader(_, level, repeated, elements) => {
            let mut list = Vec::new();
            while definition(elements) > *level {
                list.push(value(elements, left)?);
                if !has_next(elements) || repetition(elements) <= *repeated {
                    return Ok(list.into());
                }
            }
            advance(elements)?;
            Ok(list.into())
        }
        Reader::KeyValueReader(_, level, repeated, keys, values) => {
            let mut object = Map::new();
            while definition(keys) > *level {
                let key = match value(keys, left)? {
                    Value::String(key) => key,
                    key => key.to_string(),
                };
                insert(&mut object, key, value(values, left)?);
                if !has_next(keys) || repetition(keys) <= *repeated {
                    return Ok(object.into());
                }
            }
            advance(keys)?;
            advance(values)?;
            Ok(object.into())
        }
    }
}

/// The kind of a column's values.
enum Held {
    Text,
    /// Values that JSON cannot hold, of this kind.
    Odd(&'static str),
    /// Numbers, booleans, and bytes that may be a text.
    Other,
}

fn held(column: &Type) -> Held {
    use ConvertedType as Old;
    let info = column.get_basic_info();
    let (new, old) = (info.logical_type_ref(), info.converted_type());
    match column.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => Held::Other,
        Physical::INT32 | Physical::INT64 => match (new, old) {
            (Some(LogicalType::Date | LogicalType::Time { .. } | LogicalType::Timestamp { .. }), _) => {
                Held::Odd(odd::DATE)
            }
            (_, Old::DATE | Old::TIME_MILLIS | Old::TIME_MICROS | Old::TIMESTAMP_MILLIS | Old::TIMESTAMP_MICROS) => {
                Held::Odd(odd::DATE)
            }
            _ => Held::Other,
        },
        Physical::INT96 => Held::Odd(odd::DATE),
        Physical::BYTE_ARRAY => match (new, old) {
            (_, Old::UTF8 | Old::ENUM | Old::JSON) => Held::Text,
            (None, Old::NONE) | (_, Old::DECIMAL) => Held::Other,
            _ => Held::Odd(odd::BINARY),
        },
        Physical::FIXED_LEN_BYTE_ARRAY => match (new, old) {
            (Some(LogicalType::Float16), _) | (_, Old::DECIMAL) => Held::Other,
            (_, Old::INTERVAL) => Held::Odd(odd::DATE),
            _ => Held::Odd(odd::BINARY),
        },
    }
}

fn json(field: Field) -> Value {
    match field {
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => odd::number(value.into()),
        Field::Float(value) => odd::number(value.into()),
        Field::Double(value) => odd::number(value),
        // Its text is that of a JSON number.
        Field::Decimal(_) => {
            field.to_string().parse::<Number>().map_or_else(|_| odd::value(odd::BINARY), Value::Number)
        }
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => odd::value(odd::BINARY),
        },
        Field::Null => Value::Null,
        Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => odd::value(odd::DATE),
        // A single column has no values of these types.
        Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) => odd::value(odd::BINARY),
    }
}

/// The first of the columns below: its definition and repetition levels stand for the group's.
fn first(reader: &Reader) -> &Reader {
    match reader {
        Reader::OptionReader(_, inner)
        | Reader::RepeatedReader(_, _, _, inner)
        | Reader::KeyValueReader(_, _, _, inner, _) => first(inner),
        Reader::GroupReader(_, _, columns) => columns.first().map_or(reader, first),
        Reader::PrimitiveReader(..) => reader,
    }
}

fn has_next(reader: &Reader) -> bool {
    matches!(first(reader), Reader::PrimitiveReader(_, values) if values.has_next())
}

fn definition(reader: &Reader) -> i16 {
    match first(reader) {
        Reader::PrimitiveReader(_, values) => values.current_def_level(),
        _ => 0,
    }
}

fn repetition(reader: &Reader) -> i16 {
    match first(reader) {
        Reader::PrimitiveReader(_, values) => values.current_rep_level(),
        _ => 0,
    }
}

fn advance(reader: &mut Reader) -> Found<()> {
    match reader {
        Reader::PrimitiveReader(_, values) => {
            values.read_next()?;
            Ok(())
        }
        Reader::OptionReader(_, inner) | Reader::RepeatedReader(_, _, _, inner) => advance(inner),
        Reader::GroupReader(_, _, columns) => columns.iter_mut().try_for_each(advance),
        Reader::KeyValueReader(_, _, _, keys, values) => {
            advance(keys)?;
            advance(values)
        }
    }
}

fn name(reader: &Reader) -> Found<&str> {
    match reader {
        Reader::PrimitiveReader(field, _)
        | Reader::GroupReader(Some(field), _, _)
        | Reader::RepeatedReader(field, ..)
        | Reader::KeyValueReader(field, ..) => Ok(field.name()),
        Reader::OptionReader(_, inner) => name(inner),
        Reader::GroupReader(None, ..) => Err(Fault::Broken("a column without a name".to_owned())),
    }
}
