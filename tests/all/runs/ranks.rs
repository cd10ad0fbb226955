//! Ranks with different settings, or different files on their disks: one error that names the difference, within seconds, and
//! nothing written; and if a rank has other weights, rank 0's are used.

use crate::tiny::{Outcome, Workspace, with_config};
use std::fs;
use std::time::Duration;

/// A refusal is no computation; this leaves room for a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// One error, exit code 2, all of `says`, in time, and no run.
#[track_caller]
fn refused(name: &str, workspace: &Workspace, outcome: &Outcome, says: &[&str]) {
    let place = format!("{name}: {}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.code, 2, "{place}");
    assert_eq!(outcome.stderr.lines().filter(|line| line.contains("error: ")).count(), 1, "{place}");
    for text in says {
        assert!(outcome.stderr.contains(text), "no {text:?} in {place}");
    }
    assert!(outcome.took < LIMIT, "{:?} for {place}", outcome.took);
    assert!(!workspace.path("run").exists(), "{place}");
}

/// Rank 1 has these overrides besides.
fn with_override(workspace: &Workspace, set: &[&str]) -> Outcome {
    workspace.finish(workspace.unlike(&with_config(&[], &[]), workspace, &with_config(&[], set)))
}

#[test]
fn a_key_that_differs_on_one_rank_is_named_with_both_values() {
    let workspace = Workspace::new();
    for (set, says) in [
        ("loss.objective='reward'", "loss.objective is \"hybrid\" on rank 0 and \"reward\" on rank 1"),
        ("loss.alpha=0.5", "loss.alpha is 0.2 on rank 0 and 0.5 on rank 1"),
        ("loss.beta=0.5", "loss.beta is 0.1 on rank 0 and 0.5 on rank 1"),
        ("loss.label_smoothing=0.1", "loss.label_smoothing is 0.0 on rank 0 and 0.1 on rank 1"),
        ("loss.centering=0.1", "loss.centering is 0.0 on rank 0 and 0.1 on rank 1"),
        ("loss.alternate_every=2", "loss.alternate_every is 0 on rank 0 and 2 on rank 1"),
        ("data.seed=1", "data.seed is 0 on rank 0 and 1 on rank 1"),
        ("data.dev=[]", "data.dev"),
        ("data.test=[]", "data.test"),
        ("data.train.0.path='other.jsonl'", "data.train.0.path is \"plain.jsonl\" on rank 0 and"),
        ("model.dtype='bf16'", "model.dtype is \"f32\" on rank 0 and \"bf16\" on rank 1"),
        ("eval.every=3", "eval.every is 2 on rank 0 and 3 on rank 1"),
        ("checkpoint.every=2", "checkpoint.every is 3 on rank 0 and 2 on rank 1"),
        ("parallel.shard_optimizer=true", "parallel.shard_optimizer is false on rank 0 and true on rank 1"),
        ("train.check_every=7", "train.check_every is 100 on rank 0 and 7 on rank 1"),
        ("train.steps=3", "train.steps is not set on rank 0 and 3 on rank 1"),
    ] {
        refused(set, &workspace, &with_override(&workspace, &[set]), &["error: ranks differ: ", says, "hint: "]);
    }
    // Each rank's own affair.
    with_override(&workspace, &["parallel.threads=2", "data.cache_dir='cache-of-1'"]).succeeded();
}

#[test]
fn another_command_or_flag_on_one_rank_is_named() {
    let workspace = Workspace::new();
    let train = with_config(&[], &[]);
    let eval = ["eval", "--checkpoint", "model", "--data", "dev.jsonl"];
    let longer = [&eval[..], &["--max-length", "20"]].concat();
    for (name, first, second, says) in [
        ("eval", &train[..], &eval[..], "the command is train on rank 0 and eval on rank 1"),
        ("resume", &train, &[&train[..], &["--resume"]].concat(), "--resume is false on rank 0 and true on rank 1"),
        ("trace", &train, &[&train[..], &["--trace", "t.json"]].concat(), "--trace is false on rank 0 and true on"),
        ("length", &eval, &longer, "--max-length is not set on rank 0 and 20 on rank 1"),
        ("debug", &train, &[&train[..], &["--debug"]].concat(), "rank 1: --debug is for one process"),
        ("a typo", &train, &[&train[..], &["--resum"]].concat(), "rank 1: error: unexpected argument"),
    ] {
        refused(name, &workspace, &workspace.finish(workspace.unlike(first, &workspace, second)), &[says]);
    }
}

#[test]
fn a_file_that_differs_on_one_rank_is_named() {
    let workspace = Workspace::new();
    let train = with_config(&[], &[]);
    for (file, from, to, says) in [
        ("model/config.json", "\"rms_norm_eps\": 1e-0", "\"rms_norm_eps\": 2e-0", "config.json: rms_norm_eps is"),
        ("model/config.json", "\"rope_theta\": 1", "\"rope_theta\": 2", "rope_theta is"),
        ("model/tokenizer.json", "\"a\":9,", "\"a\":10,", "tokenizer.json is"),
        ("model/tokenizer_config.json", "{% for m in", "{%- for m in", "tokenizer_config.json is"),
        ("plain.jsonl", "What", "Which", "hash of the train pairs"),
        ("dev.jsonl", "What", "Which", "hash of the dev pairs"),
        ("test.jsonl", "What", "Which", "hash of the test pairs"),
        ("run.toml", "max_length = 28", "max_length = 27", "data.max_length is 28 on rank 0 and 27 on rank 1"),
    ] {
        let other = Workspace::new();
        let before = String::from_utf8(other.read(file)).unwrap();
        let after = before.replace(from, to);
        assert_ne!(before, after, "{file} has no {from}");
        other.write(file, &after);
        let outcome = workspace.finish(workspace.unlike(&train, &other, &train));
        refused(&format!("{file}, {to}"), &workspace, &outcome, &["ranks differ: ", says, "on rank 1"]);
    }
    let shorter = Workspace::new();
    shorter.write("test.jsonl", &crate::tiny::rows(60, 6));
    let outcome = workspace.finish(workspace.unlike(&train, &shorter, &train));
    refused("fewer rows", &workspace, &outcome, &["the number of test pairs is 7 on rank 0 and 6 on rank 1"]);
}

/// A workspace whose model is another one of the same shape.
fn other_weights() -> Workspace {
    let workspace = Workspace::new();
    let mut model = workspace.read("model/model.safetensors");
    let end = model.len();
    // Mantissas, so that the numbers stay finite.
    model[end - 8192..].iter_mut().step_by(4).for_each(|byte| *byte ^= 0xff);
    model[end - 8191..].iter_mut().step_by(4).for_each(|byte| *byte ^= 0xff);
    fs::write(workspace.path("model/model.safetensors"), model).unwrap();
    workspace
}

/// The bytes of a safetensors file behind its header, whose texts have no order.
fn tensors(file: &[u8]) -> Vec<u8> {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    file[8 + header as usize..].to_vec()
}

#[test]
fn prepare_eval_and_score_use_the_weights_of_rank_0() {
    let caches = |workspace: &Workspace| {
        let files = fs::read_dir(workspace.path("cache")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.to_string_lossy().contains("reference-")).collect();
        files.sort();
        files.iter().map(|path| tensors(&fs::read(path).unwrap())).collect::<Vec<_>>()
    };
    let (expected, found, other) = (Workspace::new(), Workspace::new(), other_weights());
    expected.prepare(2, &[]).succeeded();
    let prepare = with_config(&["prepare"], &[]);
    found.finish(found.unlike(&prepare, &other, &prepare)).succeeded();
    assert_eq!(caches(&found).len(), 3);
    assert!(caches(&found) == caches(&expected), "the reference log-probs are not those of rank 0's model");
    // The control: the other model has others.
    other.prepare(2, &[]).succeeded();
    assert!(caches(&other) != caches(&expected));

    // As a reward model that is not zero.
    for workspace in [&expected, &found] {
        workspace.train(2, &["train.steps=2"]).succeeded();
    }
    let drifted = Workspace::new();
    drifted.train(2, &["train.steps=2", "train.learning_rate=2e-3"]).succeeded();
    // The same config and state beside other weights.
    for file in ["config.json", "haf_dist.json", "trainer/config.toml", "trainer/state.json"] {
        fs::copy(found.path(format!("run/step-2/{file}")), drifted.path(format!("run/step-2/{file}"))).unwrap();
    }
    for command in ["eval", "score"] {
        let arguments = [command, "--checkpoint", "run/step-2", "--data", "test.jsonl"];
        let told = |outcome: Outcome| outcome.succeeded().stdout;
        let expected = told(expected.run(2, &arguments));
        assert!(told(found.finish(found.unlike(&arguments, &drifted, &arguments))) == expected, "{command}");
        let control = drifted.run(2, &[&arguments[..], &["--allow-changed"]].concat());
        assert!(told(control) != expected, "{command}: the control has other weights");
    }
}

/// Promise: where no rank has the whole masters to hand out, other weights on one rank are an error; else they are replaced.
#[test]
fn training_with_shares_of_other_weights_is_refused_and_with_whole_ones_uses_rank_0s() {
    let shard = "parallel.shard_optimizer=true";
    let run = |workspace: &Workspace, settings: &[&str]| {
        let train = with_config(&[], &[&["train.steps=2"], settings].concat());
        workspace.finish(workspace.unlike(&train, &other_weights(), &train))
    };
    let workspace = Workspace::new();
    let outcome = run(&workspace, &[shard, "model.dtype=bf16"]);
    refused("other weights", &workspace, &outcome, &["ranks differ: the hash of the model's weights is", "on rank 1"]);
    // In f32 the masters are the weights, which rank 0 has whole.
    let (found, expected) = (Workspace::new(), Workspace::new());
    run(&found, &[shard, "model.dtype=f32"]).succeeded();
    expected.train(2, &["train.steps=2", shard, "model.dtype=f32"]).succeeded();
    assert!(found.losses("run") == expected.losses("run"));
}

#[test]
fn ranks_that_resume_from_different_checkpoints_are_refused() {
    let (workspace, other) = (Workspace::new(), Workspace::new());
    for workspace in [&workspace, &other] {
        workspace.train(2, &["train.steps=3"]).succeeded();
    }
    let arguments = with_config(&[], &["train.steps=6", "--resume"]);
    let moments = "run/step-3/trainer/moments.safetensors";
    let mut bytes = other.read(moments);
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(other.path(moments), bytes).unwrap();
    // So that the files' own hashes fit.
    fs::remove_file(other.path("run/step-3/trainer/files.json")).unwrap();
    let outcome = workspace.finish(workspace.unlike(&arguments, &other, &arguments));
    assert_eq!((outcome.code, outcome.errors().len()), (2, 1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("rank 1"), "{}", outcome.stderr);
}

#[test]
fn comparing_replicas_changes_no_bit() {
    let masters = |every: &str| {
        let workspace = Workspace::new();
        workspace.train(2, &[every]).succeeded();
        (workspace.read("run/step-6/trainer/masters.safetensors"), workspace.losses("run"))
    };
    assert!(masters("train.check_every=0") == masters("train.check_every=1"));
}
