//! Promise: the number of kernels that a block starts on a GPU is that of the code: a block's calls are counted while it runs,
//! and libtorch's calls within each of them in a trace of it.
//!
//! A call that cannot run on a CPU is one call in the trace; the table has its number of kernels.

use super::conformance::waves;
use crate::steps;
use flate2::read::DeflateDecoder;
use haf_dist::comm::CommThread;
use haf_dist::comm::solo::Solo;
use haf_dist::error::Result;
use haf_dist::ops::cuda::launches::{BLOCK, FLASH, KERNELS, PRODUCT};
use haf_dist::ops::cuda::{Cuda, Library, Plain, VarlenCall};
use haf_dist::ops::{
    Activation, Affine, AffineSums, Angles, AttentionPlan, Direction, LayerStatistics, MlpKind, NormGradients,
    NormWeight, Ops, Scratch,
};
use haf_dist::packing::{AttentionRules, Group, HeadCounts};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Mutex;
use tch::{CModule, Device, Kind, Tensor};

/// libtorch's calls that start a kernel each.
const KERNEL: [&str; 16] = [
    "add",
    "add_",
    "cat",
    "copy_",
    "index_add_",
    "index_select",
    "mean",
    "mul",
    "pow",
    "rsqrt",
    "silu",
    "silu_backward",
    "square",
    "sub",
    "sum",
    "to",
];

/// Those that start none, and those that stand for a library's call.
const NONE: [&str; 13] = [
    "chunk",
    "device",
    "empty",
    "empty_like",
    "narrow",
    "squeeze",
    "transpose",
    "unsqueeze",
    "view",
    "fill_",
    "max",
    "neg",
    "neg_",
];

/// One call of libtorch's for each of the library's.
struct StandIn;

impl Library for StandIn {
    fn attends(&self, kind: Kind) -> bool {
        kind == Kind::BFloat16
    }

    /// Writes something of the keys to the output: what is made for nothing is not traced.
    fn attention(&self, _: &VarlenCall, [_, key, _]: [&Tensor; 3], output: &Tensor) -> Result<Tensor> {
        Ok(output.shallow_clone().f_fill_tensor_(&key.f_max()?)?)
    }

    fn attention_backward(
        &self,
        _: &VarlenCall,
        _: &Tensor,
        rows: [&Tensor; 3],
        _: &Tensor,
        _: &Tensor,
    ) -> Result<[Tensor; 3]> {
        Ok(rows.map(Tensor::neg))
    }

    fn add_product(&self, _: &Tensor, _: &Tensor, sum: &Tensor) -> Result<()> {
        let _ = sum.shallow_clone().f_neg_()?;
        Ok(())
    }
}

/// libtorch's calls, by name, while `work` runs with these tensors. What it does to others is not seen.
fn traced(inputs: &[Tensor], work: impl Fn(&[Tensor])) -> BTreeMap<String, usize> {
    let module = CModule::create_by_tracing("traced", "forward", inputs, &mut |inputs: &[Tensor]| {
        work(inputs);
        vec![inputs[0].shallow_clone()]
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("traced.pt");
    module.unwrap().save(&path).unwrap();
    let archive = std::fs::read(&path).unwrap();
    // A file in a zip archive: a header of 30 bytes, name and extra field with their lengths at its end, then the data.
    let header = (0..archive.len()).find(|&at| {
        let name = archive.get(at + 30..at + 30 + length(&archive, at + 26)).unwrap_or_default();
        archive[at..].starts_with(b"PK\x03\x04") && name.ends_with(b"code/__torch__.py")
    });
    let header = header.expect("the module's code");
    let data = header + 30 + length(&archive, header + 26) + length(&archive, header + 28);
    let mut code = String::new();
    DeflateDecoder::new(&archive[data..]).read_to_string(&mut code).unwrap();
    let mut calls = BTreeMap::new();
    for (at, start) in ["torch.", "ops.aten."].iter().flat_map(|start| code.match_indices(start)) {
        let rest = &code[at + start.len()..];
        let name = rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap();
        if rest[name.len()..].starts_with('(') {
            *calls.entry(name.to_string()).or_default() += 1;
        }
    }
    assert!(!calls.is_empty(), "{code}");
    calls
}

/// A number of two bytes; 0 past the end.
fn length(archive: &[u8], at: usize) -> usize {
    archive.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
}

/// Kernels of libtorch's calls; every name must be known.
fn kernels(calls: &BTreeMap<String, usize>) -> usize {
    for name in calls.keys() {
        assert!(KERNEL.contains(&name.as_str()) || NONE.contains(&name.as_str()), "is {name} a kernel? {calls:?}");
    }
    calls.iter().filter(|(name, _)| KERNEL.contains(&name.as_str())).map(|(_, count)| count).sum()
}

const HEADS: HeadCounts = HeadCounts { query: 4, key: 2, width: 8 };
const MLP: MlpKind = MlpKind { activation: Activation::Silu, gated: true };

/// Kernels of a method, with the library's as the table has them.
fn of_method(name: &str) -> usize {
    let ops = Cuda(StandIn);
    let bf16 = |shape: &[i64]| waves(shape, 1.0, Device::Cpu).to_kind(Kind::BFloat16);
    let f32 = |shape: &[i64]| waves(shape, 1.0, Device::Cpu);
    let [x, change, output] = [0; 3].map(|_| bf16(&[9, 16]));
    let (weight, scale, sum) = (bf16(&[16]), f32(&[9]), f32(&[16]));
    let group = Group { start: 0, prefix: 4, suffixes: vec![3, 2] };
    let place = (Kind::BFloat16, Device::Cpu);
    let plan = ops.plan_attention(&[group], HEADS, AttentionRules::plain(8), place);
    let (heads, attended) = (bf16(&[9, 8, 8]), bf16(&[9, 4, 8]));
    fn norm(values: &Tensor) -> NormWeight<'_> {
        NormWeight { values, plus_one: false }
    }
    let count = |inputs: &[Tensor], work: &dyn Fn(&[Tensor]) -> Result<()>| {
        kernels(&traced(inputs, |inputs| work(inputs).unwrap()))
    };
    match name {
        "rotate" => {
            let angles = Angles { cosine: f32(&[9, 4]), sine: f32(&[9, 4]) };
            count(&[heads], &|t| ops.rotate(&t[0], 6, &angles, Direction::Forward))
        }
        "rms_norm" => count(&[x, weight, output, scale], &|t| ops.rms_norm(&t[0], norm(&t[1]), 1e-5, &t[2], &t[3])),
        "add_rms_norm" => {
            let sum = x.copy();
            count(&[x, change, weight, sum, output, scale], &|t| {
                ops.add_rms_norm((&t[0], &t[1]), norm(&t[2]), 1e-5, &t[3], &t[4], &t[5])
            })
        }
        "apply_rms_norm" => {
            count(&[x, weight, scale, output], &|t| ops.apply_rms_norm(&t[0], norm(&t[1]), &t[2], &t[3]))
        }
        "rms_norm_backward" => {
            let input = x.copy();
            count(&[output, change, input, x, weight, scale, sum], &|t| {
                let gradients = NormGradients { output: &t[0], residual: Some(&t[1]), input: &t[2] };
                ops.rms_norm_backward(gradients, &t[3], norm(&t[4]), &t[5], Some(&t[6]))
            })
        }
        "add" => count(&[x, change, output], &|t| ops.add(&t[0], &t[1], &t[2])),
        "activate" => count(&[x, bf16(&[9, 8])], &|t| ops.activate(MLP, &t[0], &t[1])),
        "activate_backward" => count(&[x, bf16(&[9, 8]), bf16(&[9, 8]), output], &|t| {
            ops.activate_backward(MLP, &t[0], &t[1], &t[2], &t[3])
        }),
        "attention" => FLASH[0] + count(&[heads, attended], &|t| ops.attention(&plan, &t[0], &t[1]).map(drop)),
        "attention_backward" => {
            let (output, gradient, sums) = (attended.copy(), heads.copy(), f32(&[4, 9]));
            FLASH[1]
                + count(&[attended, heads, output, sums, gradient], &|t| {
                    ops.attention_backward(&plan, &t[0], &t[1], &t[2], &[t[3].shallow_clone()], &t[4])
                })
        }
        "add_product" => {
            PRODUCT
                + count(&[x, output, f32(&[16, 16])], &|t| {
                    ops.add_product(&t[0], &t[1], &t[2], &mut Scratch::default())
                })
        }
        other => panic!("{other} is not traced"),
    }
}

#[test]
fn the_table_has_libtorchs_calls_of_every_method() {
    let traced = KERNELS.map(|(name, _)| (name, of_method(name)));
    assert_eq!(traced, KERNELS);
}

#[test]
fn a_trace_sees_every_call() {
    let x = waves(&[4, 6], 1.0, Device::Cpu);
    let calls = traced(&[x.copy(), x], |inputs| {
        let _ = inputs[1].narrow(0, 0, 2).g_add_(&inputs[0].narrow(0, 2, 2).square());
    });
    let names: Vec<(&str, usize)> = calls.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(names, [("add_", 1), ("narrow", 2), ("square", 1)]);
    assert_eq!(kernels(&calls), 2);
}

#[test]
fn experts_are_one_product_however_many_they_are() {
    let ops = Cuda(StandIn);
    let counts = [3, 0, 5, 1];
    let bf16 = |shape: &[i64]| waves(shape, 1.0, Device::Cpu).to_kind(Kind::BFloat16);
    let of = |width: i64| {
        let inputs = [bf16(&[9, 16]), bf16(&[4, width, 16]), bf16(&[9, width])];
        let forward = traced(&inputs, |t| ops.grouped_product(&t[0], &t[1], &counts, &t[2]).unwrap());
        let backward = traced(&inputs, |t| ops.grouped_input_gradient(&t[2], &t[1], &counts, &t[0]).unwrap());
        [forward, backward].map(|calls| ["_grouped_mm", "mm"].map(|name| calls.get(name).copied().unwrap_or_default()))
    };
    assert_eq!(of(24), [[1, 0], [1, 0]]);
    // The control: rows that are not aligned go expert by expert.
    assert_eq!(of(21), [[0, 3], [0, 3]]);
}

/// A GPU's operations, with the names of those that are called.
struct Named(Mutex<Vec<&'static str>>);

impl Named {
    fn note(&self, name: &'static str) -> Cuda<Plain> {
        self.0.lock().unwrap().push(name);
        Cuda(Plain)
    }
}

/// All that a block may call.
impl Ops for Named {
    fn rotate(&self, rows: &Tensor, heads: usize, angles: &Angles, direction: Direction) -> Result<()> {
        self.note("rotate").rotate(rows, heads, angles, direction)
    }

    fn rms_norm(&self, x: &Tensor, weight: NormWeight, epsilon: f64, output: &Tensor, scale: &Tensor) -> Result<()> {
        self.note("rms_norm").rms_norm(x, weight, epsilon, output, scale)
    }

    fn add_rms_norm(
        &self,
        rows: (&Tensor, &Tensor),
        weight: NormWeight,
        epsilon: f64,
        sum: &Tensor,
        output: &Tensor,
        scale: &Tensor,
    ) -> Result<()> {
        self.note("add_rms_norm").add_rms_norm(rows, weight, epsilon, sum, output, scale)
    }

    fn apply_rms_norm(&self, x: &Tensor, weight: NormWeight, scale: &Tensor, output: &Tensor) -> Result<()> {
        self.note("apply_rms_norm").apply_rms_norm(x, weight, scale, output)
    }

    fn rms_norm_backward(
        &self,
        gradients: NormGradients,
        x: &Tensor,
        weight: NormWeight,
        scale: &Tensor,
        weight_sum: Option<&Tensor>,
    ) -> Result<()> {
        assert!(gradients.residual.is_some() && weight_sum.is_some(), "as it is traced");
        self.note("rms_norm_backward").rms_norm_backward(gradients, x, weight, scale, weight_sum)
    }

    fn layer_norm(&self, _: &Tensor, _: Affine, _: f64, _: &Tensor, _: LayerStatistics) -> Result<()> {
        panic!("no call of such a block")
    }

    fn apply_layer_norm(&self, _: &Tensor, _: Affine, _: LayerStatistics, _: &Tensor) -> Result<()> {
        panic!("no call of such a block")
    }

    fn layer_norm_backward(
        &self,
        _: NormGradients,
        _: &Tensor,
        _: &Tensor,
        _: LayerStatistics,
        _: AffineSums,
    ) -> Result<()> {
        panic!("no call of such a block")
    }

    fn add(&self, x: &Tensor, change: &Tensor, sum: &Tensor) -> Result<()> {
        self.note("add").add(x, change, sum)
    }

    fn activate(&self, kind: MlpKind, inner: &Tensor, output: &Tensor) -> Result<()> {
        assert_eq!(kind, MLP, "as it is traced");
        self.note("activate").activate(kind, inner, output)
    }

    fn activate_backward(
        &self,
        kind: MlpKind,
        inner: &Tensor,
        gradient: &Tensor,
        output: &Tensor,
        inner_gradient: &Tensor,
    ) -> Result<()> {
        self.note("activate_backward").activate_backward(kind, inner, gradient, output, inner_gradient)
    }

    fn route(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<()> {
        panic!("no call of such a block")
    }

    fn attention(&self, plan: &AttentionPlan, rows: &Tensor, output: &Tensor) -> Result<Vec<Tensor>> {
        self.note("attention").attention(plan, rows, output)
    }

    fn attention_backward(
        &self,
        plan: &AttentionPlan,
        gradient: &Tensor,
        rows: &Tensor,
        output: &Tensor,
        log_sums: &[Tensor],
        rows_gradient: &Tensor,
    ) -> Result<()> {
        let ops = self.note("attention_backward");
        ops.attention_backward(plan, gradient, rows, output, log_sums, rows_gradient)
    }

    fn add_column_sums(&self, _: &Tensor, _: &Tensor) -> Result<()> {
        panic!("no call of such a block")
    }

    /// A weight's gradient; the products with that weight, of the forward pass and for the gradient of its input, are not
    /// calls of this trait.
    fn add_product(&self, left: &Tensor, right: &Tensor, sum: &Tensor, scratch: &mut Scratch) -> Result<()> {
        assert_eq!(left.kind(), Kind::BFloat16, "as it is counted");
        self.note("add_product").add_product(left, right, sum, scratch)
    }
}

#[test]
fn a_block_of_llamas_starts_as_many_kernels_as_the_plan_says() {
    let config = steps::config("llama-tied", &[]);
    let comm = CommThread::start(|| Ok(Box::new(Solo))).unwrap();
    let engine = steps::engine_of_rank(&config, (Kind::BFloat16, Device::Cpu), &comm);
    let mut trainer = steps::trainer(&config, &comm, engine);
    let rest: &'static dyn Ops = Box::leak(Box::new(Cuda(Plain)));
    let named: &'static Named = Box::leak(Box::new(Named(Mutex::default())));
    let block = trainer.engine.order.blocks[1].base;
    let segments = trainer.engine.model.segments.iter_mut().enumerate();
    segments.for_each(|(number, segment)| segment.weights.ops = if number == block { named } else { rest });
    trainer.step(5).unwrap();
    let calls = named.0.lock().unwrap();
    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
    let passes = count("attention");
    assert!(passes > 0 && count("attention_backward") == passes, "{calls:?}");
    // From its first norm on a pass is forward, from its activations' gradient on backward.
    let (mut phase, mut found) = (0, [0; 2]);
    for call in calls.iter() {
        phase = match *call {
            "rms_norm" => 0,
            "activate_backward" => 1,
            _ => phase,
        };
        found[phase] += KERNELS.iter().find(|(name, _)| name == call).unwrap().1;
    }
    found.iter_mut().for_each(|kernels| *kernels += PRODUCT * count("add_product"));
    assert_eq!(found.map(|kernels| kernels as f64 / passes as f64), BLOCK.map(|kernels| kernels as f64));
}
