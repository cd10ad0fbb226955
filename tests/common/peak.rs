//! Promise: a rank with sharded state never holds whole masters, not while it loads a model and not while it saves: its
//! memory grows by its weights, its share and one tensor.

#![allow(unsafe_code)]

use haf_dist::comm::CommThread;
use haf_dist::machine::peak_memory;
use haf_dist::model::architecture::Architecture;
use haf_dist::model::layout::Part;
use haf_dist::model::segment::Use;
use haf_dist::model::weights::{LoadOptions, Model};
use haf_dist::safetensors_io::write_model;
use haf_dist::update::sharding::{Shares, State};
use nix::libc;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const CONFIG: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 512,
"intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 2000,
"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
"tie_word_embeddings": true}"#;

/// A model of about 100 MB in f32, the same on every rank.
fn write(folder: &Path) {
    std::fs::write(folder.join("config.json"), CONFIG).expect("a config is written");
    let architecture = Architecture::open(folder).expect("a config");
    tch::manual_seed(7);
    let declared = Part::all(&architecture).into_iter().flat_map(|part| part.parameters(&architecture));
    let tensors: Vec<(String, Tensor)> =
        declared.map(|one| (one.name, Tensor::rand(one.shape.as_slice(), (Kind::Float, Device::Cpu)))).collect();
    write_model(&folder.join("model.safetensors"), &tensors).expect("weights are written");
}

/// By how much the most memory that the process has held grows while `work` runs, in bytes; what it returns lives meanwhile.
fn growth<T>(work: impl FnOnce() -> T) -> (u64, T) {
    // Forgets older peaks (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux forgets peaks");
    let before = peak_memory().expect("Linux counts memory");
    let made = work();
    (peak_memory().expect("Linux counts memory") - before, made)
}

/// Loads and saves with a share and, as a control, with whole masters; prints what each took.
pub fn measure(comm: &CommThread) {
    // Every large block is the system's own and goes back to it, so that each measurement begins with nothing.
    // SAFETY: a setting of malloc.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 16) };
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path());
    let load = |purpose: Use| {
        let options = LoadOptions { kind: Kind::BFloat16, device: Device::Cpu, purpose, log_probs: true };
        Model::load(folder.path(), options).expect("a model")
    };
    let purpose = Use::training(true, comm.rank(), comm.world_size());
    // Once before, so that pages of libraries are there.
    drop(load(purpose));
    let (share, mut model) = growth(|| load(purpose));
    let parameters = model.parameter_count() as u64;
    assert!(parameters > 24_000_000, "{parameters} parameters");
    // bf16 weights, f32 masters of a half, and one tensor.
    let largest = 4 * 2048 * 512;
    let slack = 8_000_000;
    let ranks = comm.world_size() as u64;
    assert!(share < parameters * (2 + 4 / ranks) + largest + slack, "loading a share took {share} bytes");

    let (saving, sum) = growth(|| collect(&mut model, comm));
    assert!(saving < 3 * largest + slack, "saving took {saving} bytes");
    drop(model);
    // The control: whole masters are seen.
    let (whole, model) = growth(|| load(Use::Train));
    assert!(whole > parameters * 6, "loading all took {whole} bytes");
    if comm.rank() == 0 {
        let masters = model.segments.iter().filter_map(|segment| segment.state.as_ref().map(|state| &state.master));
        let expected: f64 = masters.map(|master| master.sum(Kind::Double).double_value(&[])).sum();
        assert!((sum - expected).abs() < 1e-6 * expected, "{sum} of {expected} was collected");
    }
    let [share, whole, saving] = [share, whole, saving].map(|bytes| bytes / 1_000_000);
    println!(
        "rank {} of {ranks}: loading {share} MB with a share, {whole} MB with whole masters, saving {saving} MB",
        comm.rank()
    );
}

/// All masters, one tensor at a time on rank 0; their sum there.
fn collect(model: &mut Model, comm: &CommThread) -> f64 {
    let shares = Shares::new(comm, &model.segments);
    let mut sum = 0.0;
    if comm.rank() > 0 {
        shares.serve().expect("no rank is lost");
        return sum;
    }
    for (number, segment) in model.segments.iter().enumerate() {
        for index in 0..segment.parameters().len() {
            let whole = shares.whole(number, index, State::Master).expect("no rank is lost");
            sum += whole.sum(Kind::Double).double_value(&[]);
        }
    }
    shares.done().expect("no rank is lost");
    sum
}
