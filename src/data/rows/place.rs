//! The place of a row, for messages.
//!
//! Not here: reading rows.

use crate::error::Result;
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// The place of a row.
pub(in crate::data) struct Place<'a> {
    path: &'a Path,
    /// Line, element of the array, or row of a Parquet file, from 1.
    pub(in crate::data) number: usize,
    unit: Unit,
}

/// The unit in which a file's rows are counted.
enum Unit {
    Line,
    Element,
    Row,
}

/// A callback for each row.
pub(in crate::data) type Take<'t> = dyn FnMut(&Place, Value) -> Result<()> + 't;

impl<'a> Place<'a> {
    /// A line of a text.
    pub(in crate::data) fn line(path: &'a Path, number: usize) -> Self {
        Self { path, number, unit: Unit::Line }
    }

    /// An element of a JSON array.
    pub(in crate::data) fn element(path: &'a Path, number: usize) -> Self {
        Self { path, number, unit: Unit::Element }
    }

    /// A row of a Parquet file.
    pub(in crate::data) fn row(path: &'a Path, number: usize) -> Self {
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
