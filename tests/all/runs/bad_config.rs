//! Configs that cannot be run, each refused as `refused.rs` requires.

use crate::runs::refused::{Case, check};
use crate::tiny::{Workspace, with_config};

/// A case that runs `run.toml` with overrides.
fn case<'a>(name: &'a str, set: &[&'a str], says: &'a [&'a str]) -> Case<'a> {
    Case { name, arguments: with_config(&[], set), says }
}

#[test]
fn keys_that_are_unknown_or_of_the_wrong_type_are_named_with_file_and_line() {
    let workspace = Workspace::new();
    let config = String::from_utf8(workspace.read("run.toml")).unwrap();
    let line = 1 + config.lines().position(|line| line.starts_with("learning_rate")).unwrap();
    let place = format!("bad.toml:{line}");
    for (typed, says) in [
        ("learning_rat = 1e-3", "`train.learning_rate`?"),
        ("learning_rate = 'fast'", "train.learning_rate"),
        ("learning_rate = ", "not TOML"),
    ] {
        workspace.write("bad.toml", &config.replace("learning_rate = 1e-3", typed));
        let arguments = vec!["--config", "bad.toml"];
        check(&workspace, &[1, 2], &Case { name: typed, arguments, says: &[&place, says] });
    }
    let missing = Case {
        name: "missing config",
        arguments: vec!["--config", "none.toml"],
        says: &["none.toml", "looked for /", "haf-dist init"],
    };
    check(&workspace, &[1, 2], &missing);
    check(&workspace, &[1, 2], &case("unknown override", &["loss.alpa=1"], &["--set loss.alpa=1", "`loss.alpha`?"]));
}

#[test]
fn settings_that_exclude_each_other_are_refused() {
    let workspace = Workspace::new();
    let smoothed_ipo = ["loss.policy='ipo'", "loss.label_smoothing=0.1"];
    check(&workspace, &[1, 2], &case("smoothed ipo", &smoothed_ipo, &["`loss.label_smoothing`", "dpo"]));
    let too_many = ["train.pairs_per_step=1"];
    check(&workspace, &[2], &case("more ranks than pairs", &too_many, &["2 ranks", "train.pairs_per_step = 1"]));
    let mpi = ["parallel.backend='mpi'"];
    check(&workspace, &[1], &case("mpi without mpirun", &mpi, &["parallel.backend", "mpirun -n"]));
    workspace.train(2, &["parallel.backend='mpi'", "train.steps=1"]).succeeded();
    let halves = ["parallel.backend='mpi'", "parallel.reduce_dtype='bf16'"];
    check(&workspace, &[1, 2], &case("bf16 sums over MPI", &halves, &["`parallel.reduce_dtype`", "nccl"]));
    if !tch::Cuda::is_available() {
        let nccl = ["parallel.backend='nccl'"];
        check(&workspace, &[1, 2], &case("nccl without a GPU", &nccl, &["sees no GPU", "setup.sh --cuda"]));
    }
}

#[test]
fn a_run_is_neither_overwritten_nor_continued_by_accident() {
    let workspace = Workspace::new();
    check(&workspace, &[1, 2], &case("no run", &["--resume"], &["run holds no run to continue"]));
    workspace.train(1, &["train.steps=1"]).succeeded();
    let held = ["run already holds a run", "--resume"];
    check(&workspace, &[1, 2], &case("a run is there", &[], &held));
    // Metrics alone are a run too: it was stopped before its first checkpoint.
    std::fs::remove_dir_all(workspace.path("run/step-1")).unwrap();
    check(&workspace, &[1], &case("metrics are there", &[], &held));
}

#[test]
fn folders_that_cannot_be_written_are_refused() {
    let workspace = Workspace::new();
    for (name, set, says) in [
        ("a file as the run's folder", "output.dir=dev.jsonl", ["[output] dir", "dev.jsonl is not a folder"]),
        ("a run below a file", "output.dir=dev.jsonl/run", ["[output] dir", "dev.jsonl is not a folder"]),
        ("a file as the cache", "data.cache_dir=dev.jsonl", ["data.cache_dir", "dev.jsonl"]),
        ("a cache below a file", "data.cache_dir=dev.jsonl/cache", ["data.cache_dir", "dev.jsonl/cache"]),
    ] {
        check(&workspace, &[1, 2], &case(name, &[set], &says));
    }
}
