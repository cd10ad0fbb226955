//! Attention of a packed micro-batch: one library call forward, one backward.
//!
//! Where a prefix has several suffixes, its keys and values are gathered once for each. Their gradients come back once for each
//! suffix too, and are added in the order of the suffixes.
//!
//! Legend: T rows, K gathered rows, H query heads, G key/value heads, E head width.

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
    let [mut queries, keys, values] = split(heads, rows_gradient);
    queries.f_copy_(&gradients[0])?;
    add_up(plan, &gradients[1], keys)?;
    add_up(plan, &gradients[2], values)
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

/// Gradients of gathered rows [K, G, E] -> those of the rows, `sum` [T, G, E].
fn add_up(plan: &VarlenPlan, gradient: &Tensor, mut sum: Tensor) -> Result<()> {
    let Some(gathered) = &plan.gathered else {
        sum.f_copy_(gradient)?;
        return Ok(());
    };
    let _ = gradient.f_index_select_out(&sum, 0, &gathered.first)?;
    for [rows, places] in &gathered.again {
        let _ = sum.f_index_add_(0, rows, &gradient.f_index_select(0, places)?)?;
    }
    Ok(())
}
