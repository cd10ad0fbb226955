//! Promise: `haf-dist` itself needs neither libtorch nor MPI, answers at once where neither is needed, and starts the engine for
//! the rest: once, or as several ranks that a signal reaches in time for a checkpoint.

use crate::runs::resuming::newest_step;
use crate::runs::stopping::{ENDLESS, stop, until_trained};
use crate::tiny::{Outcome, Workspace, with_config};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What the dynamic linker loads for a program.
fn libraries(program: &str) -> String {
    let output = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_launcher_is_linked_without_libtorch_and_mpi_and_the_engine_without_cuda() {
    let launcher = libraries(env!("CARGO_BIN_EXE_haf-dist"));
    assert!(launcher.contains("libc.so"), "{launcher}");
    for name in ["torch", "c10", "mpi", "cuda"] {
        assert!(!launcher.contains(name), "{name}: {launcher}");
    }
    // Control: the list shows what the engine has.
    let engine = libraries(env!("CARGO_BIN_EXE_haf-dist-engine"));
    assert!(engine.contains("libtorch_cpu.so") && engine.contains("libmpi"), "{engine}");
    assert!(!engine.contains("libtorch_cuda"), "{engine}");
}

#[test]
fn a_launcher_without_its_engine_says_so_and_answers_what_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("haf-dist");
    fs::copy(env!("CARGO_BIN_EXE_haf-dist"), &alone).unwrap();
    let run = |arguments: &[&str]| Command::new(&alone).args(arguments).current_dir(folder.path()).output().unwrap();
    for arguments in [&["formats"][..], &["models"], &["--help"], &["help", "train"], &["completions", "bash"]] {
        let output = run(arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}");
    }
    let output = run(&["train", "run.toml"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: haf-dist-engine is not beside haf-dist") && said.contains("hint: "), "{said}");
    let output = run(&["doctor"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().any(|line| line.starts_with("missing engine")), "{lines}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn ranks_that_the_launcher_starts_train_as_those_of_mpirun() {
    let (by_mpirun, by_launcher) = (Workspace::trained(2), Workspace::new());
    by_launcher.run(1, &["train", "run.toml", "--ranks", "2"]).succeeded();
    assert_eq!(by_launcher.losses("run"), by_mpirun.losses("run"));
    assert_eq!(by_launcher.steps("run")[0]["ranks"], by_mpirun.steps("run")[0]["ranks"]);
    let refused = by_launcher.finish({
        let mut command = by_launcher.command(1, &["train", "run.toml", "--ranks", "2"]);
        command.env("OMPI_COMM_WORLD_RANK", "0");
        command
    });
    assert_eq!(refused.code, 2);
    assert!(refused.errors()[0].contains("--ranks 2 inside an MPI launcher"), "{}", refused.stderr);
}

#[test]
fn a_signal_to_the_launcher_saves_the_step_under_way_on_every_rank() {
    for signal in ["-TERM", "-INT"] {
        let workspace = Workspace::new();
        let arguments = [&with_config(&[], &ENDLESS)[..], &["--ranks", "2"]].concat();
        let job = workspace.start(1, "ranks", &arguments);
        until_trained(&workspace);
        let said = stop(&workspace, job, signal, "ranks");
        assert!(
            said.contains(&format!("stopped by a signal after step {}", newest_step(&workspace))),
            "{signal}: {said}"
        );
    }
}

#[test]
fn a_config_and_keys_may_stand_after_the_verb() {
    let workspace = Workspace::new();
    workspace.run(1, &["train", "run.toml", "train.steps=2", "--set", "train.warmup_steps=0"]).succeeded();
    assert_eq!(workspace.steps("run").len(), 2);
    let outcome = workspace.run(1, &["train", "run.toml", "other.toml"]);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(outcome.errors()[0].contains("other.toml: expected KEY=VALUE"), "{}", outcome.stderr);
}

#[test]
fn every_shell_gets_its_completions() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = workspace.run(1, &["completions", shell]).succeeded().stdout;
        assert!(script.contains("haf-dist") && script.contains("verify"), "{shell}");
    }
}

#[test]
fn the_doctor_finds_what_these_tests_run_on() {
    let outcome = Workspace::new().run(1, &["doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_str(&outcome.stdout).unwrap();
    let state = |what: &str| findings.iter().find(|finding| finding["what"] == what).map(|finding| &finding["state"]);
    for what in ["haf-dist", "engine", "libtorch", "MPI library", "mpirun", "processor", "memory"] {
        assert_eq!(state(what), Some(&Value::from("OK")), "{what}: {}", outcome.stdout);
    }
    let faults = findings.iter().filter(|finding| finding["state"] != "OK").count();
    assert_eq!(outcome.code, i32::from(faults > 0));
    // Control: a library that cannot be found is named.
    let mut hidden = Command::new(env!("CARGO_BIN_EXE_haf-dist"));
    let broken = tempfile::tempdir().unwrap();
    fs::write(broken.path().join("mpirun"), "#!/bin/sh\necho HYDRA build details:\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(broken.path().join("mpirun"), mode).unwrap();
    let output = hidden.arg("doctor").env("PATH", broken.path()).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().any(|line| line.starts_with("wrong   mpirun")), "{lines}");
}

/// What `check` says of a run whose file or key was changed.
fn checked(workspace: &Workspace, set: &[&str]) -> Outcome {
    workspace.run(1, &[&["check", "run.toml"], set].concat())
}

#[test]
fn check_names_what_would_stop_a_run_and_writes_nothing() {
    let workspace = Workspace::new();
    let before = workspace.content();
    let fine = checked(&workspace, &[]).succeeded();
    assert!(fine.stdout.lines().filter(|line| line.starts_with("OK")).count() >= 8, "{}", fine.stdout);
    for (set, what) in [
        (&["data.dev.0.path=none.jsonl"][..], "dev"),
        (&["--ranks", "7"], "ranks"),
        (&["model.path=none"], "model"),
        (&["output.dir=plain.jsonl"], "output"),
        (&["lora.targets=[\"w\"]", "lora.rank=2"], "lora"),
        (&["parallel.backend=nccl"], "backend"),
        (&["data.cache_dir=/proc/x"], "cache"),
        (&["output.dir=/proc/x"], "output"),
        (&["data.train=hf://owner/none/train"], "train"),
        (&["--resume"], "output"),
    ] {
        let outcome = checked(&workspace, set);
        assert_eq!(outcome.code, 2, "{set:?}: {}", outcome.stdout);
        let wrong: Vec<&str> = outcome.stdout.lines().filter(|line| line.starts_with("wrong")).collect();
        assert!(wrong.iter().any(|line| line[8..].starts_with(what)), "{set:?}: {}", outcome.stdout);
    }
    assert_eq!(workspace.content(), before);
    // A GPU that is hidden, or of no use to this libtorch, is not what a run computes on.
    fs::create_dir(workspace.path("bin")).unwrap();
    workspace.write("bin/nvidia-smi", "#!/bin/sh\necho 'NVIDIA Tiny, 1 MiB, 580.65'\n");
    let path = workspace.path("bin/nvidia-smi");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let libtorch = Path::new(env!("HAF_DIST_LIBTORCH"));
    for shown in [Some(""), (!libtorch.join("libtorch_cuda.so").exists()).then_some("0")].into_iter().flatten() {
        let mut command = workspace.command(1, &["check", "run.toml", "--ranks", "2", "parallel.backend=mpi"]);
        let folders = format!("{}:{}", workspace.path("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", folders).env("CUDA_VISIBLE_DEVICES", shown);
        let outcome = workspace.finish(command).succeeded();
        assert!(outcome.stdout.contains("of this computer"), "{}", outcome.stdout);
    }
    // More threads than cores are slow, and start.
    let many = checked(&workspace, &["--ranks", "2", "parallel.threads=1000"]).succeeded();
    assert!(many.stdout.contains("slow: 2000 threads share"), "{}", many.stdout);
    let trained = Workspace::trained(1);
    assert_eq!(checked(&trained, &[]).code, 2);
    checked(&trained, &["--resume"]).succeeded();
}

#[test]
fn a_plan_of_many_ranks_or_pairs_is_quick_or_refused() {
    let workspace = Workspace::new();
    let plan = |more: &[&'static str]| workspace.run(1, &[&["plan", "--shape", "8b"], more].concat());
    for (more, says) in
        [(&["--gpus", "16384"][..], "16384"), (&["--gpus", "8", "--set", "train.pairs_per_step=65536"], "pairs")]
    {
        let outcome = plan(more);
        assert!(outcome.code < 2 && outcome.stdout.contains(says), "{more:?}: {}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.took < Duration::from_secs(20), "{more:?}: {:?}", outcome.took);
    }
    for (more, says) in [
        (&["--gpus", "9999999999999"][..], "expected at most 16384"),
        (&["--set", "train.pairs_per_step=1048577"], "expected at most 1048576"),
        (&["--set", "train.pairs_per_step=65537"], "a plan looks at up to 65536 pairs a step"),
    ] {
        let outcome = plan(more);
        assert!(outcome.code == 2 && outcome.stderr.contains(says), "{more:?}: {}", outcome.stderr);
    }
    // What does not fit says when, and where it would.
    let few = plan(&["--gpus", "2"]);
    assert!(
        few.stderr.contains("GB when the model is loaded") || few.stderr.contains("GB in a step"),
        "{}",
        few.stderr
    );
    assert!(few.stderr.contains("it fits on 4 GPUs of this kind"), "{}", few.stderr);
}

#[test]
fn a_plan_needs_no_file_of_the_model_and_says_which_setting_fits() {
    let workspace = Workspace::new();
    let outcome = workspace.run(1, &["plan", "--shape", "8b", "--gpus", "8", "--json"]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    let plan: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(plan["fits"], false);
    let fitting: Vec<&Value> =
        plan["stages"].as_array().unwrap().iter().filter(|stage| stage["fits"] == true).collect();
    match fitting.first() {
        Some(stage) => assert!(stage["largest_micro_batch"].as_u64().unwrap() >= 256),
        None => assert!(plan["nearest"].is_null()),
    }
    let small = workspace.run(1, &["plan", "--shape", "smollm2-135m", "--gpus", "8"]).succeeded();
    assert!(small.stdout.contains("largest micro-batch"), "{}", small.stdout);
    let model = Path::new("model").to_str().unwrap();
    workspace.run(1, &["plan", "--model", model, "--gpus", "2", "--tokens", "512"]).succeeded();
    // Of data that is not tokenized yet the first pairs are looked at, and nothing is written.
    let before = workspace.content();
    let first = workspace.run(1, &["plan", "run.toml", "--gpus", "2"]).succeeded();
    assert!(first.stdout.contains("lengths of the first"), "{}", first.stdout);
    assert_eq!(workspace.content(), before);
    workspace.prepare(1, &[]).succeeded();
    let whole = workspace.run(1, &["plan", "run.toml", "--gpus", "2"]).succeeded();
    assert!(whole.stdout.contains("lengths of the data's pairs"), "{}", whole.stdout);
}

#[test]
fn lists_have_a_form_for_programs_too() {
    let workspace = Workspace::new();
    let lines = |arguments: &[&str]| crate::tiny::parse_lines(&workspace.run(1, arguments).succeeded().stdout);
    let families = lines(&["models", "--json"]);
    assert!(families.iter().any(|line| line["model_type"] == "llama" && line["covers"].is_string()), "{families:?}");
    let model = lines(&["models", "model", "--json"]);
    assert_eq!((model.len(), &model[0]["class"]), (1, &Value::from("LlamaForSequenceClassification")));
    let layouts = lines(&["formats", "--json"]);
    let pairs = layouts.iter().find(|line| line["format"] == "pairs").unwrap();
    assert!(pairs["keys"]["prompt"].is_string() && pairs["example"][0]["chosen"].is_string(), "{pairs}");
    assert_eq!(lines(&["formats", "pairs", "--json"]), std::slice::from_ref(pairs));
}
