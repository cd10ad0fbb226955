//! Products with the thin factors of adapters, in the factors' kind whatever the kind of the rows.

use super::super::Columns;
use crate::error::Result;
use tch::Tensor;

/// Columns times the rows of `factor`.
pub(crate) fn product(columns: Columns, factor: &Tensor) -> Result<Tensor> {
    Ok(columns.view().f_to_kind(factor.kind())?.f_mm(&factor.tr())?)
}

/// Columns += inner factor.
pub(crate) fn add(inner: &Tensor, factor: &Tensor, columns: Columns) -> Result<()> {
    let mut sum = columns.view();
    let _ = match sum.kind() == inner.kind() {
        true => sum.f_addmm_(inner, factor)?,
        // Rounded once.
        false => sum.f_add_(&inner.f_mm(factor)?)?,
    };
    Ok(())
}

/// `sum` += inner^T columns.
pub(crate) fn add_gradient(inner: &Tensor, columns: Columns, sum: &Tensor) -> Result<()> {
    let columns = columns.view().f_to_kind(inner.kind())?;
    let _ = sum.shallow_clone().f_addmm_(&inner.tr(), &columns)?;
    Ok(())
}
