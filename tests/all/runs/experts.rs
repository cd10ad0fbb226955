//! Whole runs of models with experts: ranks, sharded state, resume, export, the self-test, the checks of `--debug`.
//!
//! Not here: losses and gradients (`golden.rs`), and the choice of experts (`experts.rs`).

use crate::tiny::{VOCABULARY, Workspace, parse_lines, with_config};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};

const BALANCED: &str = "loss.router_balance=0.01";

/// The files of a golden case with as many tokens as the tokenizer has; their rows are noise.
pub fn workspace(case: &str) -> Workspace {
    let workspace = Workspace::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
    let mut config: Value = serde_json::from_slice(&fs::read(golden.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(VOCABULARY);
    config["max_position_embeddings"] = json!(512);
    workspace.write("model/config.json", &config.to_string());
    let mut tensors = Tensor::read_safetensors(golden.join("model.safetensors")).unwrap();
    for (name, tensor) in &mut tensors {
        if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            let (rows, width) = (VOCABULARY as i64, tensor.size()[1]);
            let noise = Tensor::arange(rows * width, (Kind::Float, tch::Device::Cpu)) * 0.7 + name.len() as f64;
            *tensor = noise.sin().view([rows, width]) * 0.5;
        }
    }
    Tensor::write_safetensors(&tensors, workspace.path("model/model.safetensors")).unwrap();
    workspace
}

#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found / expected - 1.0).abs() < 1e-4, "{what}: {found} is not {expected}");
    }
}

#[test]
fn ranks_and_sharded_state_train_experts_alike() {
    for case in ["qwen3-moe", "qwen3-moe-mixed", "mixtral", "olmoe"] {
        let workspace = workspace(case);
        workspace.train(1, &[BALANCED]).succeeded();
        let alone = workspace.losses("run");
        assert!((alone[5] / alone[0] - 1.0).abs() > 1e-3, "{case}: nothing is learned: {alone:?}");
        let router = &workspace.steps("run")[0]["router"];
        assert!(router.is_object(), "{case}: {router}");
        workspace.train(2, &[BALANCED, "output.dir=two"]).succeeded();
        assert_close(case, &workspace.losses("two"), &alone);
        if case == "mixtral" {
            workspace.train(2, &[BALANCED, "output.dir=sharded", "parallel.shard_optimizer=true"]).succeeded();
            assert_close("sharded", &workspace.losses("sharded"), &alone);
            // Control: the weight of the balance loss is told from rounding.
            workspace.train(1, &["loss.router_balance=1.0", "output.dir=other"]).succeeded();
            assert!((workspace.losses("other")[5] / alone[5] - 1.0).abs() > 1e-3);
        }
    }
}

#[test]
fn a_run_with_experts_resumes_to_the_same_bytes_and_its_checkpoint_is_read_back() {
    let workspace = workspace("qwen3-moe");
    workspace.train(1, &[BALANCED]).succeeded();
    let whole = workspace.read("run/step-6/model.safetensors");
    fs::remove_dir_all(workspace.path("run/step-6")).unwrap();
    workspace.train(1, &[BALANCED, "--resume"]).succeeded();
    assert!(workspace.read("run/step-6/model.safetensors") == whole, "another model");

    workspace.run(1, &["export", "run/step-6", "out"]).succeeded();
    workspace.run(1, &["verify", "out"]).succeeded();
    let score = |checkpoint: &str| {
        let arguments = ["score", "--checkpoint", checkpoint, "--data", "test.jsonl", "--dtype", "f32"];
        parse_lines(&workspace.run(1, &arguments).succeeded().stdout)
    };
    let (here, there) = (score("run/step-6"), score("out"));
    assert!(!here.is_empty());
    for (here, there) in here.iter().zip(&there) {
        assert_eq!(here["reward_chosen"], there["reward_chosen"]);
    }
}

#[test]
fn a_run_warns_of_experts_that_no_token_reaches() {
    let workspace = workspace("mixtral");
    // A router that gives all experts the same share, and that nothing changes, since adapters are trained beside it.
    let path = workspace.path("model/model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path).unwrap();
    for (name, tensor) in &mut tensors {
        if name.ends_with("block_sparse_moe.gate.weight") {
            *tensor = tensor.zeros_like();
        }
    }
    Tensor::write_safetensors(&tensors, path).unwrap();
    let long = ["train.epochs=20", "eval.every=100", "checkpoint.every=100"];
    let adapters = ["lora.rank=2", "lora.alpha=4", "lora.targets=['q_proj', 'v_proj']"];
    let told = workspace.train(1, &[&long[..], &adapters].concat()).succeeded().stderr;
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("took no token")).collect();
    assert!(lines.len() == 1, "{told}");
    // Two of four a token in each of two blocks: the first two.
    for part in ["step 50: 4 experts took no token for 50 steps", "for example expert 2 of block 0"] {
        assert!(lines[0].contains(part), "{}", lines[0]);
    }
    let steps = workspace.steps("run");
    assert!(steps.len() == 60 && steps.iter().all(|step| step["router"]["idle"] == 4), "{}", steps.len());
}

#[test]
fn debug_checks_a_model_with_experts() {
    let outcome = workspace("olmoe").run(1, &with_config(&["--debug"], &[BALANCED])).succeeded();
    assert_eq!(outcome.stdout.matches("| FAIL").count(), 0, "{}", outcome.stdout);
}
