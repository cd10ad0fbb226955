//! Promise: what `haf-dist plan` predicts of memory is what the program holds, byte for byte where it can be counted,
//! and its timeline keeps the rules of arithmetic.

use haf_dist::config::LoraConfig;
use haf_dist::model::adapter::{self, Origin};
use haf_dist::model::architecture::Architecture;
use haf_dist::model::lora;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::model::workspace::{Keep, Workspace};
use haf_dist::plan::Job;
use haf_dist::plan::hardware::{Hardware, cpu, gpu};
use haf_dist::plan::memory::{Memory, workspace as planned};
use haf_dist::plan::scaling::Inputs;
use haf_dist::plan::shapes::{self, architecture};
use haf_dist::plan::time::{Counted, StepTime, useful_flops};
use haf_dist::plan::workload::{PairTokens, largest, sum};
use std::path::PathBuf;
use tch::{Device, Kind};

const CASES: [&str; 23] = [
    "llama-tied",
    "llama-untied",
    "mistral-some-windows",
    "qwen3",
    "qwen3-moe",
    "qwen3-moe-mixed",
    "mixtral",
    "olmoe",
    "phi",
    "phi-normed",
    "phi3-longrope",
    "gemma2",
    "gemma3",
    "olmo2",
    "olmo3",
    "ministral3",
    "smollm3",
    "exaone4",
    "glm",
    "glm4",
    "cohere2",
    "granite",
    "gpt-neox-sequential",
];
const PAIRS: [PairTokens; 3] = [
    PairTokens { prefix: 5, chosen: 3, rejected: 2, apart: false },
    PairTokens { prefix: 0, chosen: 4, rejected: 6, apart: false },
    PairTokens { prefix: 9, chosen: 1, rejected: 7, apart: false },
];

fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn job(case: &str, kind: Kind, policy: bool) -> Job {
    let architecture = Architecture::open(&folder(case)).unwrap();
    Job {
        architecture,
        kind,
        policy,
        checkpointing: false,
        tokens_per_micro_batch: 20,
        sharded: false,
        deterministic: true,
        lora: None,
    }
}

fn model(case: &str, kind: Kind, log_probs: bool) -> Model {
    Model::load(&folder(case), LoadOptions { kind, device: Device::Cpu, purpose: Use::Train, log_probs }).unwrap()
}

#[test]
fn parameters_and_their_bytes_are_those_of_a_loaded_model() {
    for case in CASES {
        for (kind, policy, adapters) in [
            (Kind::Float, true, false),
            (Kind::BFloat16, true, false),
            (Kind::BFloat16, false, false),
            (Kind::BFloat16, true, true),
            (Kind::Float, false, true),
        ] {
            let (mut job, mut model) = (job(case, kind, policy), model(case, kind, policy));
            if adapters {
                // The first projection of each half, whatever the family calls it.
                let projections = lora::projections(&job.architecture, 0);
                let target = |index: usize| lora::within_block(&projections[index].1).to_string();
                let targets = [0, projections.len() - 2].map(target).to_vec();
                let lora = LoraConfig { rank: 4, alpha: 8.0, targets, seed: 0, use_rslora: false, base: None };
                let origin = Origin { base: folder(case), adapter: None };
                let options = LoadOptions { kind, device: Device::Cpu, purpose: Use::Train, log_probs: policy };
                model = adapter::load(&origin, options, Some(&lora)).unwrap();
                job.lora = model.lora.clone();
            }
            let planned: Vec<_> = job.buckets().iter().map(|bucket| (bucket.part, bucket.elements)).collect();
            let held: Vec<_> =
                model.parts.iter().copied().zip(model.segments.iter().map(|segment| segment.length())).collect();
            assert_eq!(planned, held, "{case}");

            let bytes = |tensor: &tch::Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
            let of_all = |some: &dyn Fn(&haf_dist::model::segment::Segment) -> usize| -> usize {
                model.segments.iter().map(some).sum()
            };
            let memory = Memory::of(&job, &sum(PAIRS), None, 1);
            assert_eq!(memory.weights, of_all(&|segment| bytes(&segment.weights.flat)), "{case} {kind:?}");
            assert_eq!(memory.gradients, of_all(&|segment| segment.bucket().map_or(0, |bucket| bytes(bucket.flat()))));
            // A master that shares the compute buffer's memory is no memory of its own.
            let own = |segment: &haf_dist::model::segment::Segment| {
                let master = segment.state.as_ref().map(|state| &state.master);
                master.filter(|master| master.data_ptr() != segment.weights.flat.data_ptr()).map_or(0, bytes)
            };
            assert_eq!(memory.masters, of_all(&own), "{case} {kind:?}");
            assert_eq!(memory.moments, 2 * memory.gradients);
        }
    }
}

#[test]
fn a_micro_batch_keeps_as_many_bytes_as_predicted() {
    for case in CASES {
        for (kind, checkpointing) in [(Kind::Float, false), (Kind::BFloat16, false), (Kind::BFloat16, true)] {
            let job = Job { checkpointing, ..job(case, kind, true) };
            // 150 tokens take two blocks of 128 rows.
            for tokens in [20, 150] {
                let keep = if checkpointing { Keep::Inputs } else { Keep::Everything };
                let mut workspace = Workspace::default();
                let _ = workspace.views(&job.architecture, tokens as i64, keep, (kind, Device::Cpu));
                assert_eq!(workspace.bytes(), planned(&job, tokens), "{case} {kind:?}");
                // Control: a block of rows more is noticed.
                assert_ne!(workspace.bytes().kept, planned(&job, tokens + 128).kept);
            }
        }
    }
}

#[test]
fn useful_flops_follow_the_formula_of_the_benchmarks() {
    let job = job("llama-tied", Kind::BFloat16, true);
    let a = &job.architecture;
    let pair = PairTokens { prefix: 5, chosen: 3, rejected: 2, apart: false };
    // [P | A] is causal: 8 rows see 1 to 8 keys; the 2 rows of B see the 5 of P and themselves.
    let visible = (8 * 9 / 2 + 2 * 5 + 3) as f64;
    let attention = 12.0 * (a.blocks.len() * a.blocks[0].heads.query * a.blocks[0].heads.width) as f64 * visible;
    let expected = 6.0 * (job.backbone() * 10 + a.vocabulary * a.width * 5) as f64 + attention;
    assert!((useful_flops(&job, &sum([pair])) / expected - 1.0).abs() < 1e-12);
    let reward = Job { policy: false, ..job.clone() };
    let without_head = expected - 6.0 * (a.vocabulary * a.width * 5) as f64;
    assert!((useful_flops(&reward, &sum([pair])) / without_head - 1.0).abs() < 1e-12);
}

#[test]
fn a_prefix_that_two_sequences_rotate_differently_counts_twice() {
    use haf_dist::data::batch::Packing;
    use haf_dist::data::{AnswerSpan, TokenPair};
    use haf_dist::plan::workload::lengths;
    let job = job("phi3-longrope", Kind::Float, true);
    let packing = Packing::shared(job.architecture.alike());
    // The limit is 8: 5 + 2 and 5 + 3 tokens are on one side of it, 5 + 3 and 5 + 4 are not.
    let tokens = [1u32; 5];
    for (chosen, rejected, total) in [(2, 3, 10), (3, 4, 17)] {
        let (prefix, chosen, rejected) = (&tokens[..], &tokens[..chosen], &tokens[..rejected]);
        let spans = AnswerSpan::of_pair(5, 5, chosen.len(), rejected.len());
        let pair = TokenPair { prefix, chosen, rejected, spans, margin: 0.0, domain: 0, prompt_hash: 0, tied: false };
        let pair_tokens = lengths(&pair, packing);
        assert_eq!((pair_tokens.total(), sum([pair_tokens]).tokens, packing.rows(&pair)), (total, total, total));
        // As two sequences alone.
        let causal = |rows: usize| rows * (rows + 1) / 2;
        let alone = causal(5 + chosen.len()) + causal(5 + rejected.len());
        assert_eq!(sum([pair_tokens]).visible == alone, total == 17);
        assert_eq!(lengths(&pair, Packing::Shared).total(), 5 + chosen.len() + rejected.len());
    }
}

#[test]
fn the_largest_micro_batch_is_that_of_the_sampler() {
    // 10 + 10 fill the budget of 20; the third pair has 17 and goes alone.
    let shape = largest(&[PAIRS.to_vec()], 1, 20);
    assert_eq!((shape.tokens, shape.pairs, shape.answers), (20, 2, 15));
    assert_eq!(largest(&[PAIRS.to_vec()], 3, 20).tokens, 17);
}

#[test]
fn a_rank_that_holds_a_share_has_its_buffers_from_the_table_of_the_plan() {
    const RANKS: usize = 3;
    for (case, kind, policy) in [
        ("llama-untied", Kind::BFloat16, true),
        ("llama-untied", Kind::BFloat16, false),
        ("gpt-neox-sequential", Kind::BFloat16, true),
        ("qwen3-moe", Kind::Float, true),
    ] {
        let job = Job { sharded: true, ..job(case, kind, policy) };
        let memory = Memory::of(&job, &sum(PAIRS), None, RANKS);
        for rank in 0..RANKS {
            let purpose = Use::training(true, rank, RANKS);
            let options = LoadOptions { kind, device: Device::Cpu, purpose, log_probs: policy };
            let mut model = Model::load(&folder(case), options).unwrap();
            let (mut weights, mut gradients, mut masters, mut moments) = (0, 0, 0, 0);
            let bytes = |tensor: &tch::Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
            for segment in &mut model.segments {
                weights += bytes(&segment.weights.flat);
                gradients += segment.bucket().map_or(0, |bucket| bytes(bucket.flat()));
                masters +=
                    if segment.holds_share_of_masters() { bytes(&segment.state.as_ref().unwrap().master) } else { 0 };
                let Some(state) = &mut segment.state else { continue };
                state.start_moments();
                moments += state.moments.iter().flatten().map(bytes).sum::<usize>();
            }
            let planned = (memory.weights, memory.gradients, memory.masters, memory.moments);
            assert_eq!(planned, (weights, gradients, masters, moments), "{case} {kind:?}, rank {rank}");
        }
    }
}

#[test]
fn sharding_divides_masters_and_moments_alone() {
    let whole = job("llama-tied", Kind::BFloat16, true);
    let sharded = Job { sharded: true, ..whole.clone() };
    let of = |job: &Job, ranks| Memory::of(job, &sum(PAIRS), None, ranks);
    assert_eq!(of(&whole, 1), of(&whole, 4));
    assert_eq!(of(&whole, 1), of(&sharded, 1), "one rank has nothing to share");
    let (whole, sharded) = (of(&whole, 4), of(&sharded, 4));
    let quarter = (whole.masters + whole.moments) as f64 / 4.0;
    let found = (sharded.masters + sharded.moments) as f64;
    // Shares are whole cache lines.
    assert!(found >= quarter && found < 1.1 * quarter, "{found} of {quarter}");
    let buffers = |memory: &Memory| (memory.activations, memory.block_workspace, memory.head_workspace);
    assert_eq!(buffers(&whole), buffers(&sharded));
}

/// What `plan` says of it: full training of an 8 B model on 8 GPUs of 80 GB, with state sharded and blocks recomputed.
#[test]
fn eight_billion_parameters_fit_on_eight_gpus_of_80_gb() {
    let hardware = gpu("h100", true).unwrap();
    let pairs = [PairTokens { prefix: 200, chosen: 60, rejected: 60, apart: false }; 12];
    let memory = |sharded, checkpointing| {
        let architecture = shapes::architecture("8b").unwrap();
        let tokens_per_micro_batch = 4096;
        let kind = Kind::BFloat16;
        let job = Job {
            architecture,
            kind,
            policy: true,
            checkpointing,
            tokens_per_micro_batch,
            sharded,
            deterministic: true,
            lora: None,
        };
        Memory::of(&job, &sum(pairs), Some(132), 8)
    };
    let lean = memory(true, true);
    assert!((lean.total() as f64) < hardware.usable_memory(), "{} bytes", lean.total());
    assert!(lean.at_start() < lean.in_a_step(), "nothing is whole while the model is loaded");
    // The control: whole masters and moments do not fit.
    assert!(memory(false, true).total() as f64 > hardware.usable_memory());
}

#[test]
fn sharding_shares_the_update_and_moves_as_many_bytes() {
    let whole = job("llama-tied", Kind::Float, true);
    let sharded = Job { sharded: true, ..whole.clone() };
    // Numbers of f32 either way, so that reduce-scatter and all-gather move what an all-reduce does.
    // Small gradients go together, and values do not: without latency that makes no difference.
    let hardware = Hardware { link_latency: 0.0, ..gpu("h100", false).unwrap() };
    let time = |job: &Job, ranks| StepTime::of(&Counted::new(job), &hardware, ranks, &[sum(PAIRS)]);
    assert!((time(&sharded, 4).update / (time(&whole, 4).update / 4.0) - 1.0).abs() < 1e-9);
    assert!((time(&sharded, 4).communication / time(&whole, 4).communication - 1.0).abs() < 1e-9);
    assert_eq!(time(&sharded, 1).seconds(), time(&whole, 1).seconds(), "one rank has nothing to share");
}

#[test]
fn communication_is_hidden_and_exposed_as_the_order_of_buckets_says() {
    // A real model: the tiny ones' buckets are small, and all go together.
    let job = Job { architecture: architecture("1b").unwrap(), ..job("llama-tied", Kind::BFloat16, true) };
    let mut hardware = gpu("h100", true).unwrap();
    let shapes = [sum(PAIRS)];
    let alone = StepTime::of(&Counted::new(&job), &hardware, 1, &shapes);
    assert_eq!((alone.communication, alone.exposed), (0.0, 0.0));

    // However fast the links are, nothing is left to hide the embedding behind, nor the first block before it.
    (hardware.link, hardware.link_latency) = (1e15, 0.0);
    let fast = StepTime::of(&Counted::new(&job), &hardware, 8, &shapes);
    let last: usize = job.buckets()[..2].iter().map(|bucket| bucket.elements).sum();
    let expected = hardware.all_reduce(8, 4.0 * last as f64);
    assert!((fast.exposed / expected - 1.0).abs() < 1e-6, "{} {expected}", fast.exposed);
    assert!(fast.hidden > 0.0);

    // So slow that all but the first block's backward pass is waiting.
    hardware.link = 1.0;
    let slow = StepTime::of(&Counted::new(&job), &hardware, 8, &shapes);
    assert!(slow.exposed > 0.5 * slow.communication && slow.exposed <= slow.communication);
    assert!((slow.hidden + slow.exposed - slow.communication).abs() < 1e-9 * slow.communication);
    assert!(slow.hidden >= 0.0);

    // On a CPU nothing hides.
    let shared = StepTime::of(&Counted::new(&job), &cpu(2, 1, 1e9, true), 2, &shapes);
    assert_eq!(shared.hidden, 0.0);
    assert!(shared.exposed > 0.0);
}

#[test]
fn scaling_goes_to_1024_ranks_and_never_gains_from_more() {
    let (job, hardware) = (job("llama-tied", Kind::BFloat16, true), gpu("h100", true).unwrap());
    let order = [PairTokens { prefix: 5, chosen: 3, rejected: 2, apart: false }];
    let inputs = Inputs { job: &job, hardware: &hardware, order: &order };
    let weak = inputs.weak(2);
    assert_eq!((weak.len(), weak[10].ranks, weak[10].pairs_per_step), (11, 1024, 2048));
    assert_eq!(weak[0].efficiency, 1.0);
    assert!(weak.windows(2).all(|rows| rows[1].efficiency <= rows[0].efficiency + 1e-12));
    let strong = inputs.strong(16);
    assert_eq!(strong.last().map(|row| (row.ranks, row.pairs_per_step)), Some((16, 16)));
    assert!(strong.last().unwrap().efficiency < 1.0);
}
