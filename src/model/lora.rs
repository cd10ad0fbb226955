//! Low-rank adapters for a block's frozen projections (LoRA, arXiv 2106.09685): y = W x + scale * B (A x).
//!
//! Which projections have one, what an adapter adds to a projection's output, and its backward pass, in which only
//! adapters have parameter gradients. Adapters are f32 whatever the base computes in: the input is widened for their
//! products, and the sum with the base's output narrowed once. Not here: files (`model/adapter.rs`).
//!
//! Legend: T tokens, r rank, n adapters that are one product.

use super::architecture::Architecture;
use super::declared::Declared;
use super::layout::{Part, Places, Projection};
use super::segment::{Bucket, Weights};
use crate::config::LoraConfig;
use crate::error::{Error, Result};
use crate::ops::Columns;
use std::ops::Range;
use tch::Tensor;

/// PEFT's word for all projections of the blocks.
const ALL_LINEAR: &str = "all-linear";

/// Which projections of every block have an adapter, and of what rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Rows of A, columns of B.
    pub(crate) rank: usize,
    /// The scale, times the rank or its root.
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732), not alpha / rank.
    pub(crate) use_rslora: bool,
    /// Places of the adapted weights among a block's parameters, ascending.
    places: Vec<usize>,
}

/// A module of block 0 by its name within the block: `mlp.up_proj` of `model.layers.0.mlp.up_proj`.
pub fn within_block(module: &str) -> &str {
    module.split_once(".0.").map_or(module, |(_, within)| within)
}

impl Lora {
    /// Adapters for the projections that the config names.
    ///
    /// # Errors
    /// A target that this model does not have; its projections are listed.
    pub fn new(config: &LoraConfig, architecture: &Architecture) -> Result<Self> {
        if let Some(whole) = architecture.part_of {
            // PEFT would look for the projections under the whole model's names.
            return Err(Error::input(format!(
                "[lora]: model.path is a {whole} model, of which only the text part is trained"
            ))
            .hint("leave [lora] out, or adapt a checkpoint of a run without it: that is the text model alone"));
        }
        let projections = projections(architecture, 0);
        // A target names a projection within every block, by its whole name there or by the end of it.
        let is_meant = |module: &str, target: &str| {
            let module = within_block(module);
            target == ALL_LINEAR || module == target || module.ends_with(&format!(".{target}"))
        };
        if let Some(unknown) =
            config.targets.iter().find(|target| !projections.iter().any(|(_, module, _)| is_meant(module, target)))
        {
            let known: Vec<&str> = projections.iter().map(|(_, module, _)| last_name(module)).collect();
            let of_experts = routed(architecture).flat_map(|block| {
                let prefix = format!("{}{block}.", architecture.names.block);
                let within =
                    move |one: Declared| Some(one.name.strip_prefix(&prefix)?.strip_suffix(".weight")?.to_string());
                Part::Block(block).parameters(architecture).into_iter().filter_map(within)
            });
            if of_experts.into_iter().any(|module| module == *unknown || module.ends_with(&format!(".{unknown}"))) {
                return Err(Error::input(format!(
                    "lora.targets: \"{unknown}\" belongs to experts, which have no adapters"
                ))
                .hint(format!(
                    "PEFT cannot adapt them, since experts are no modules in Transformers; name {}",
                    known.join(", ")
                )));
            }
            return Err(Error::input(format!("lora.targets: this model has no projection \"{unknown}\""))
                .hint(format!("its projections are {}", known.join(", "))));
        }
        let adapted = projections.iter().filter(|(_, module, _)| config.targets.iter().any(|t| is_meant(module, t)));
        let places = adapted.map(|(place, ..)| *place).collect();
        Ok(Self { rank: config.rank, alpha: config.alpha, use_rslora: config.use_rslora, places })
    }

    /// The factor of B (A x).
    pub(crate) fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The adapted projections by their last name, each once, as PEFT's `target_modules`.
    pub fn targets(&self, architecture: &Architecture) -> Vec<String> {
        self.modules(architecture, 0).iter().map(|module| last_name(module).to_string()).collect()
    }

    /// The adapted modules of a block under their whole names, `model.layers.0.mlp.up_proj`.
    pub(crate) fn modules(&self, architecture: &Architecture, block: usize) -> Vec<String> {
        self.adapted(architecture, block).into_iter().map(|(_, module, _)| module).collect()
    }

    /// A block's adapters: every A [r, in], then every B [out, r], so that the As of projections that take the same
    /// input are one matrix. The rows of a B are in the order of its projection's.
    pub fn parameters(&self, architecture: &Architecture, block: usize) -> Vec<Declared> {
        let adapted = self.adapted(architecture, block);
        let rank = self.rank as i64;
        let down = adapted.iter().map(|(_, module, base)| Declared::new(name_of_a(module), &[rank, base.shape[1]]));
        let up = adapted.iter().map(|(_, module, base)| Declared {
            rows: base.rows,
            ..Declared::new(name_of_b(module), &[base.shape[0], rank])
        });
        down.chain(up).collect()
    }

    fn adapted(&self, architecture: &Architecture, block: usize) -> Vec<(usize, String, Declared)> {
        let mut found = projections(architecture, block);
        found.retain(|(place, ..)| self.places.contains(place));
        found
    }
}

/// The name of the A of a module.
pub(crate) fn name_of_a(module: &str) -> String {
    format!("{module}.lora_A.weight")
}

/// The name of the B of a module.
pub(crate) fn name_of_b(module: &str) -> String {
    format!("{module}.lora_B.weight")
}

fn last_name(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The numbers of blocks with experts.
fn routed(architecture: &Architecture) -> impl Iterator<Item = usize> {
    let numbered = architecture.blocks.iter().enumerate();
    numbered.filter_map(|(number, block)| block.mlp.experts.map(|_| number))
}

/// Every projection of a block that may have an adapter: its place among the block's parameters, its module's name, and its
/// weight [out, in]. Experts have none; nor have the MLPs of dense blocks in a model with experts, since all blocks have the
/// same adapters.
pub fn projections(architecture: &Architecture, block: usize) -> Vec<(usize, String, Declared)> {
    let matrix = |(place, parameter): (usize, Declared)| match parameter.shape[..] {
        [_, _] => Some((place, parameter.name.strip_suffix(".weight")?.to_string(), parameter)),
        _ => None,
    };
    let Places { router, up, down, .. } = Places::of(architecture, block);
    let some = routed(architecture).next().is_some();
    let of_experts =
        |place: usize| some && (router == Some(place) || up.weights.contains(&place) || down.weights.contains(&place));
    let all = Part::Block(block).parameters(architecture).into_iter().enumerate();
    all.filter(|(place, _)| !of_experts(*place)).filter_map(matrix).collect()
}

/// The last names of all projections that may have an adapter, each once: PEFT's "all-linear".
pub(crate) fn all_targets(architecture: &Architecture) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (_, module, _) in projections(architecture, 0) {
        let name = last_name(&module).to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The adapters of one block, for one pass over it.
pub(crate) struct Adapter<'a> {
    lora: &'a Lora,
    /// The block's own parameters.
    base: &'a Weights,
    /// As and Bs, in the order of [`Lora::parameters`].
    weights: &'a Weights,
}

/// The adapters of projections that are one product.
struct AdapterGroup {
    /// Their numbers among the block's adapters.
    adapters: Range<usize>,
    /// The columns of each in the product's output.
    columns: Vec<Range<i64>>,
}

impl AdapterGroup {
    /// Each adapter with its columns of rows as long as the product's output.
    fn each<'a>(&'a self, rows: &'a Tensor) -> impl Iterator<Item = (usize, Columns<'a>)> {
        let columns = |range: &Range<i64>| Columns { rows, first: range.start, count: range.end - range.start };
        self.adapters.clone().zip(self.columns.iter().map(columns))
    }
}

impl<'a> Adapter<'a> {
    /// The adapters in `weights` of the block in `base`.
    pub(crate) fn new(lora: &'a Lora, base: &'a Weights, weights: &'a Weights) -> Self {
        Self { lora, base, weights }
    }

    /// Adds the adapters' results for the input x [T, in] to the `output` [T, out] of a projection.
    ///
    /// # Errors
    /// A buffer that is not what this crate allocates, or a device out of memory.
    pub(crate) fn add(&self, x: &Tensor, projection: &Projection, output: &Tensor) -> Result<()> {
        let Some(group) = self.group(&projection.weights) else { return Ok(()) };
        let inner = self.inner(x, &group)?;
        for (index, (adapter, columns)) in group.each(output).enumerate() {
            self.weights.ops.add_low_rank(&self.of_one(&inner, index), &self.up(adapter).tr(), columns)?;
        }
        Ok(())
    }

    /// Adds to the `input_gradient` [T, in] the adapters' part, from the gradient [T, out] of [`Adapter::add`]'s output.
    /// Returns the gradient of A x, which [`Adapter::backward`] takes; none if the projection has no adapter.
    ///
    /// # Errors
    /// As [`Adapter::add`].
    pub(crate) fn add_input_gradient(
        &self,
        gradient: &Tensor,
        projection: &Projection,
        input_gradient: &Tensor,
    ) -> Result<Option<Tensor>> {
        let Some(group) = self.group(&projection.weights) else { return Ok(None) };
        let inner_gradient = self.inner_gradient(gradient, &group)?;
        let down = self.weights.stacked(group.adapters);
        self.weights.ops.add_low_rank(&inner_gradient, &down, Columns::all(input_gradient))?;
        Ok(Some(inner_gradient))
    }

    /// Adds the gradients of the As and Bs to their bucket: gradients [T, out] of [`Adapter::add`]'s output and of A x, input
    /// x.
    ///
    /// # Errors
    /// As [`Adapter::add`].
    pub(crate) fn backward(
        &self,
        projection: &Projection,
        [gradient, inner_gradient, x]: [&Tensor; 3],
        bucket: &mut Bucket,
    ) -> Result<()> {
        let Some(group) = self.group(&projection.weights) else { return Ok(()) };
        let ops = self.weights.ops;
        let inner = self.inner(x, &group)?;
        for (index, (adapter, columns)) in group.each(gradient).enumerate() {
            let place = self.lora.places.len() + adapter;
            let sum = bucket.stacked(place..place + 1);
            ops.add_low_rank_gradient(&self.of_one(&inner, index), columns, &sum.tr())?;
        }
        ops.add_low_rank_gradient(inner_gradient, Columns::all(x), &bucket.stacked(group.adapters))
    }

    /// scale * A x of a group, [T, n r].
    fn inner(&self, x: &Tensor, group: &AdapterGroup) -> Result<Tensor> {
        let down = self.weights.stacked(group.adapters.clone());
        Ok(self.weights.ops.low_rank(Columns::all(x), &down)?.g_mul_scalar_(self.lora.scale()))
    }

    /// The gradient of A x of a group, [T, n r].
    fn inner_gradient(&self, gradient: &Tensor, group: &AdapterGroup) -> Result<Tensor> {
        let of_one = |(adapter, columns)| self.weights.ops.low_rank(columns, &self.up(adapter).tr());
        let parts = group.each(gradient).map(of_one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&parts, 1)?.g_mul_scalar_(self.lora.scale()))
    }

    /// The part [T, r] of [T, n r] of the adapter at `index` in its group.
    fn of_one(&self, inner: &Tensor, index: usize) -> Tensor {
        let rank = self.lora.rank as i64;
        inner.narrow(1, index as i64 * rank, rank)
    }

    /// B [out, r] of an adapter.
    fn up(&self, adapter: usize) -> &Tensor {
        self.weights.view(self.lora.places.len() + adapter)
    }

    /// The adapters of the projections at `places`, if there are any.
    fn group(&self, places: &Range<usize>) -> Option<AdapterGroup> {
        let number = |place: usize| self.lora.places.partition_point(|&adapted| adapted < place);
        let adapters = number(places.start)..number(places.end);
        let rows = |place: usize| self.base.parameters[place].shape[0];
        let columns = self.lora.places[adapters.clone()].iter().map(|&place| {
            let first = (places.start..place).map(rows).sum::<i64>();
            first..first + rows(place)
        });
        (!adapters.is_empty()).then(|| AdapterGroup { adapters: adapters.clone(), columns: columns.collect() })
    }
}
