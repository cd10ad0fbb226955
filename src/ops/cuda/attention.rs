//! Attention of a packed micro-batch: one library call forward, one backward.
//!
//! Where a prefix has several suffixes, its keys and values are gathered once for each. Their gradients come back once for each
//! suffix too, and are added in the order of the suffixes: by gathers alone, since a deterministic scatter sorts its places.
//!
//! Legend: T rows, K gathered rows, S rows that are gathered more than once, H query heads, G key/value heads, E head width.

use super::library::Library;
use super::plan::VarlenPlan;
use crate::error::{Error, Result};
use crate::packing::HeadCounts;
use tch::Tensor;

/// See [`Ops::attention`](crate::ops::Ops::attention).
pub(crate) fn forward(
    library: &impl Library,
    (heads, plan): (HeadCounts, &VarlenPlan),
    rows: &Tensor,
    output: &Tensor,
) -> Result<Vec<Tensor>> {
    let [query, key, value] = gathered(heads, plan, rows)?;
    Ok(vec![library.attention(&plan.call, [&query, &key, &value], output)?])
}

/// See [`Ops::attention_backward`](crate::ops::Ops::attention_backward).
pub(crate) fn backward(
    library: &impl Library,
    (heads, plan): (HeadCounts, &VarlenPlan),
    gradient: &Tensor,
    rows: &Tensor,
    (output, log_sums): (&Tensor, &[Tensor]),
    rows_gradient: &Tensor,
) -> Result<()> {
    let [query, key, value] = gathered(heads, plan, rows)?;
    let [log_sums] = log_sums else {
        return Err(Error::runtime("attention's backward pass needs the log-sum-exps of its forward pass"));
    };
    let gradients = library.attention_backward(&plan.call, gradient, [&query, &key, &value], output, log_sums)?;
    let [queries, keys, values] = &gradients;
    let (own, groups) = (heads.query as i64, heads.key as i64);
    rows_gradient.narrow(1, 0, own).f_copy_(queries)?;
    add_up(plan, [keys, values], &rows_gradient.narrow(1, own, 2 * groups))
}

/// Views of rows [T, H + 2 G, E]: queries [T, H, E], keys and values [T, G, E].
fn split(HeadCounts { query, key, .. }: HeadCounts, rows: &Tensor) -> [Tensor; 3] {
    let (query, key) = (query as i64, key as i64);
    [rows.narrow(1, 0, query), rows.narrow(1, query, key), rows.narrow(1, query + key, key)]
}

/// Queries [T, H, E], keys and values [K, G, E] of rows [T, H + 2 G, E].
fn gathered(heads: HeadCounts, plan: &VarlenPlan, rows: &Tensor) -> Result<[Tensor; 3]> {
    let found = rows.size()[0];
    if found != plan.rows {
        return Err(Error::runtime(format!("attention was planned for {} rows, not for {found}", plan.rows)));
    }
    let [query, key, value] = split(heads, rows);
    let Some(gathered) = &plan.gathered else { return Ok([query, key, value]) };
    let groups = heads.key as i64;
    let both = rows.narrow(1, heads.query as i64, 2 * groups).f_index_select(0, &gathered.keys)?;
    Ok([query, both.narrow(1, 0, groups), both.narrow(1, groups, groups)])
}

/// Gradients of gathered keys and values [K, G, E] -> those of the rows, `sums` [T, 2 G, E].
fn add_up(plan: &VarlenPlan, gradients: [&Tensor; 2], sums: &Tensor) -> Result<()> {
    let Some(gathered) = &plan.gathered else {
        let _ = Tensor::f_cat_out(sums, &gradients, 1)?;
        return Ok(());
    };
    let [first, further @ ..] = gathered.copies.as_slice() else {
        return Err(Error::runtime("attention gathered its keys, but none of them is there twice"));
    };
    // [K + S, 2 G, E]: what came back, then the sum of each shared row.
    let (gathered_rows, shared_rows) = (gathered.keys.size()[0], first.size()[0]);
    let shape = [gathered_rows + shared_rows, sums.size()[1], sums.size()[2]];
    let all = Tensor::f_empty(shape, (sums.kind(), sums.device()))?;
    let (back, shared) = (all.narrow(0, 0, gathered_rows), all.narrow(0, gathered_rows, shared_rows));
    let _ = Tensor::f_cat_out(&back, &gradients, 1)?;
    let _ = back.f_index_select_out(&shared, 0, first)?;
    for places in further {
        let _ = shared.narrow(0, 0, places.size()[0]).f_add_(&back.f_index_select(0, places)?)?;
    }
    let _ = all.f_index_select_out(sums, 0, &gathered.of_row)?;
    Ok(())
}
