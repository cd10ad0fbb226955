//! A stopped run resumes as if it had not been stopped, and a lost rank ends the others.

use crate::job;
use crate::tiny::{Workspace, with_config};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// After the loss of a rank the job must be over within this time.
const LOSS_LIMIT: Duration = Duration::from_secs(10);

/// Every file of a checkpoint: weights, masters, moments, state, config, tokenizer.
fn checkpoint(workspace: &Workspace, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let folder = workspace.path(name);
    let files = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    };
    let all = [files(&folder), files(&folder.join("trainer"))].concat();
    let name = |path: &PathBuf| path.strip_prefix(&folder).unwrap().to_path_buf();
    all.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

#[track_caller]
fn assert_same_checkpoint(found: &Workspace, expected: &Workspace, name: &str) {
    let (found, expected) = (checkpoint(found, name), checkpoint(expected, name));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(expected.contains_key(Path::new("trainer/moments.safetensors")));
    for (file, expected) in &expected {
        assert!(found[file] == *expected, "{} differs", file.display());
    }
}

/// The lines of a run's metrics without what depends on the clock.
fn timeless(workspace: &Workspace) -> Vec<Value> {
    let mut lines = workspace.json_lines("run/metrics.jsonl");
    for line in &mut lines {
        for key in ["pairs_per_s", "tokens_per_s", "seconds"] {
            line.as_object_mut().unwrap().remove(key);
        }
    }
    lines
}

/// Whether a process is there and not merely waiting for its parent to look at its end.
fn runs(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The state follows the name, which stands in parentheses.
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// Leaves of a finished run what a kill inside step 6 would have: step-3, and metrics with a line cut short.
fn interrupt(workspace: &Workspace) {
    fs::remove_dir_all(workspace.path("run/step-6")).unwrap();
    let text = String::from_utf8(workspace.read("run/metrics.jsonl")).unwrap();
    let end = text.find("{\"step\":6").unwrap() + 20;
    workspace.write("run/metrics.jsonl", &text[..end]);
}

/// The step of a run's newest checkpoint.
pub fn newest_step(workspace: &Workspace) -> usize {
    let names = fs::read_dir(workspace.path("run")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.to_str()?.strip_prefix("step-")?.parse::<usize>().ok()).max().unwrap()
}

#[test]
fn a_resumed_run_equals_the_uninterrupted_one_bit_for_bit() {
    for ranks in [1, 2] {
        let (whole, resumed) = (Workspace::trained(ranks), Workspace::trained(ranks));
        interrupt(&resumed);
        let outcome = resumed.train(ranks, &["--resume"]).succeeded();
        assert!(outcome.stderr.contains("resuming after step 3"), "{}", outcome.stderr);
        assert_same_checkpoint(&resumed, &whole, "run/step-6");
        assert_eq!(timeless(&resumed), timeless(&whole), "each line once, in order");
        assert!(resumed.path("run/metrics-after-step-3.jsonl").exists(), "what was not saved is kept aside");
    }
    // The control: files that differ are told apart.
    let whole = Workspace::trained(1);
    assert!(checkpoint(&whole, "run/step-3") != checkpoint(&whole, "run/step-6"));
}

/// Values of a checkpoint's tensor files in one vector.
fn values(workspace: &Workspace, file: &str) -> Vec<f32> {
    let file = haf_dist::safetensors_io::Mapped::open(&workspace.path(file)).unwrap();
    let names = file.names().into_iter();
    names.flat_map(|name| Vec::<f32>::try_from(&file.read(&name).unwrap().view(-1)).unwrap()).collect()
}

#[test]
fn sharded_state_is_saved_whole_and_resumes_with_any_number_of_ranks() {
    let shard = "parallel.shard_optimizer=true";
    let whole = Workspace::trained(2);
    let sharded = Workspace::new();
    let outcome = sharded.train(2, &[shard]).succeeded();
    assert!(outcome.stderr.contains("optimizer state is sharded over 2 ranks"), "{}", outcome.stderr);
    for (ranks, settings) in [(1, &[][..]), (2, &[shard]), (3, &[shard]), (2, &[])] {
        let resumed = Workspace::new();
        resumed.train(2, &[shard]).succeeded();
        interrupt(&resumed);
        resumed.train(ranks, &[settings, &["--resume"]].concat()).succeeded();
        if ranks == 2 && settings == [shard] {
            // Bit for bit where nothing is otherwise.
            for file in ["run/step-6/trainer/masters.safetensors", "run/step-6/trainer/moments.safetensors"] {
                assert!(resumed.read(file) == sharded.read(file), "{file}");
            }
        }
        for file in ["masters", "moments"] {
            let file = format!("run/step-6/trainer/{file}.safetensors");
            let (found, expected) = (values(&resumed, &file), values(&whole, &file));
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
            let far = square(&mut found.iter().zip(&expected).map(|(found, expected)| found - expected)).sqrt();
            let far = far / square(&mut expected.iter().copied()).sqrt();
            assert!(found.len() == expected.len() && far < 1e-4, "{ranks} ranks, {settings:?}, {file}: {far:.1e}");
        }
    }
}

#[test]
fn tensors_with_another_order_in_files_than_in_memory_resume_too() {
    let run = || {
        let workspace = Workspace::of("gpt-neox-parallel");
        workspace.train(1, &[]).succeeded();
        workspace
    };
    let (whole, resumed) = (run(), run());
    interrupt(&resumed);
    resumed.train(1, &["--resume"]).succeeded();
    assert_same_checkpoint(&resumed, &whole, "run/step-6");
}

#[test]
fn a_damaged_checkpoint_is_skipped_with_a_warning_and_set_aside() {
    let (whole, resumed) = (Workspace::trained(1), Workspace::trained(1));
    let moments = resumed.read("run/step-6/trainer/moments.safetensors");
    fs::write(resumed.path("run/step-6/trainer/moments.safetensors"), &moments[..moments.len() - 1]).unwrap();
    let outcome = resumed.train(1, &["--resume"]).succeeded();
    let warned = outcome.stderr.lines().any(|line| line.contains("WARN") && line.contains("step-6, which is damaged"));
    assert!(warned && outcome.stderr.contains("resuming after step 3"), "{}", outcome.stderr);
    assert_same_checkpoint(&resumed, &whole, "run/step-6");
    assert!(resumed.path("run/step-6.damaged").is_dir(), "nothing is deleted");
}

#[test]
fn resuming_a_finished_run_says_so_and_does_nothing() {
    let workspace = Workspace::trained(1);
    let before = workspace.content();
    for ranks in [1, 2] {
        let outcome = workspace.train(ranks, &["--resume"]).succeeded();
        assert!(outcome.stdout.starts_with("run is finished: all of its 6 steps are done"), "{}", outcome.stdout);
        assert!(workspace.content() == before, "something changed");
    }
    // Unless its test pairs are not evaluated: a kill came before that.
    let before = (checkpoint(&workspace, "run/step-6"), timeless(&workspace), workspace.read("run/test-pairs.jsonl"));
    fs::remove_file(workspace.path("run/test-pairs.jsonl")).unwrap();
    let outcome = workspace.train(1, &["--resume"]).succeeded();
    assert!(outcome.stdout.contains("| test"), "{}", outcome.stdout);
    assert!(outcome.stderr.contains("its test pairs are not evaluated yet"), "{}", outcome.stderr);
    assert!(checkpoint(&workspace, "run/step-6") == before.0, "the checkpoint changed");
    assert_eq!(timeless(&workspace), before.1, "each line once");
    assert!(workspace.read("run/test-pairs.jsonl") == before.2);
    assert!(workspace.path("run/metrics-after-step-6.jsonl").exists(), "the line of the first ranking is kept");
    let beyond = workspace.train(1, &["--resume", "train.steps=5"]);
    assert!(beyond.code == 2 && beyond.stderr.contains("run/step-6 is beyond the run's 5 steps"), "{}", beyond.stderr);
}

#[test]
fn a_run_that_is_alive_is_not_resumed_nor_written_over() {
    let workspace = Workspace::new();
    let endless = with_config(&[], &["train.schedule='constant'", "checkpoint.every=5", "train.steps=1000000"]);
    let mut job = workspace.start(1, "alive", &endless);
    let started = Instant::now();
    while !workspace.path("run/step-5").exists() {
        assert!(job.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60), "no step-5");
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = workspace.train(1, &["--resume", "train.steps=1000000"]);
    assert_eq!((second.code, second.errors().len()), (2, 1), "{}", second.stderr);
    assert!(second.stderr.contains("another run is writing into run") && second.stderr.contains("hint:"));
    let lines = workspace.read("run/metrics.jsonl").len();
    while workspace.read("run/metrics.jsonl").len() <= lines {
        assert!(
            job.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60),
            "the first run stopped"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    job.kill().unwrap();
    job.wait().unwrap();
    let end = format!("train.steps={}", newest_step(&workspace) + 2);
    workspace.train(1, &["--resume", "train.schedule='constant'", &end]).succeeded();
}

#[test]
fn a_resume_with_other_data_settings_is_refused_and_changes_nothing() {
    let workspace = Workspace::trained(1);
    interrupt(&workspace);
    let before = workspace.content();
    for (set, told) in [
        ("data.seed=1", "data.seed: 0 -> 1"),
        ("data.shuffle=false", "data.shuffle: true -> false"),
        ("data.max_length=31", "data.max_length: 28 -> 31"),
        ("train.pairs_per_step=5", "train.pairs_per_step: 6 -> 5"),
    ] {
        let outcome = workspace.train(1, &["--resume", set]);
        assert!(outcome.stderr.contains(told), "{set}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("log-probs"), "it is refused before they are computed: {}", outcome.stderr);
        assert_eq!((outcome.code, outcome.errors().len()), (2, 1), "{set}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("other data") && outcome.stderr.contains("hint:"), "{}", outcome.stderr);
        assert!(workspace.content() == before, "{set} changed a file");
    }
}

#[test]
fn a_run_that_is_asked_to_stop_saves_first_and_resumes_as_if_it_had_not_been() {
    for (ranks, signal) in [(1, "-TERM"), (1, "-INT"), (2, "-USR1")] {
        let constant = ["train.schedule='constant'", "checkpoint.every=0", "eval.every=0"];
        let stopped = Workspace::new();
        let endless = with_config(&[], &[&constant[..], &["train.steps=1000000"]].concat());
        let mut job = stopped.start(ranks, "stopped", &endless);
        let started = Instant::now();
        while !stopped.path("run/metrics.jsonl").exists() || stopped.losses("run").len() < 4 {
            assert!(job.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60), "no fourth step");
            std::thread::sleep(Duration::from_millis(5));
        }
        Command::new("kill").args([signal, &job.id().to_string()]).status().unwrap();
        let code = job::wait(job, Duration::from_secs(60)).expect("it does not stop");
        let said = fs::read_to_string(stopped.log("stopped", "err")).unwrap();
        assert_eq!(code, 143, "{signal}: {said}");
        let step = newest_step(&stopped);
        assert!(said.contains(&format!("stopped by a signal after step {step} of 1000000")), "{said}");
        assert!(said.contains("--resume"), "{said}");
        for kind in ["out", "err"] {
            fs::remove_file(stopped.log("stopped", kind)).unwrap();
        }
        let end = step + 3;
        let length = format!("train.steps={end}");
        let rest = [&constant[..], &[&length[..]]].concat();
        stopped.train(ranks, &[&rest[..], &["--resume"]].concat()).succeeded();
        let whole = Workspace::new();
        whole.train(ranks, &rest).succeeded();
        assert_same_checkpoint(&stopped, &whole, &format!("run/step-{end}"));
        assert_eq!(stopped.losses("run"), whole.losses("run"));
    }
}

#[test]
fn a_killed_rank_ends_the_job_and_the_run_resumes_from_its_last_checkpoint() {
    let constant = ["train.schedule='constant'", "checkpoint.every=20", "eval.every=0"];
    let killed = Workspace::new();
    let endless = with_config(&[], &[&constant[..], &["train.steps=1000000"]].concat());
    let mut job = killed.start(2, "killed", &endless);
    let started = Instant::now();
    while !killed.path("run/step-40").exists() {
        assert!(job.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60), "no step-40");
        std::thread::sleep(Duration::from_millis(5));
    }
    let ranks = Command::new("pgrep").args(["-P", &job.id().to_string(), "haf-dist"]).output().unwrap().stdout;
    let ranks: Vec<String> = String::from_utf8(ranks).unwrap().lines().map(String::from).collect();
    assert_eq!(ranks.len(), 2, "{ranks:?}");
    Command::new("kill").args(["-KILL", &ranks[1]]).status().unwrap();
    let lost = Instant::now();
    let code = job::wait(job, LOSS_LIMIT).expect("the job outlives its rank");
    assert_ne!(code, 0);
    while ranks.iter().any(|rank| runs(rank)) {
        assert!(lost.elapsed() < LOSS_LIMIT, "a rank outlives the job");
        std::thread::sleep(Duration::from_millis(20));
    }
    for kind in ["out", "err"] {
        fs::remove_file(killed.log("killed", kind)).unwrap();
    }

    let end = newest_step(&killed) + 5;
    let (length, last) = (format!("train.steps={end}"), format!("run/step-{end}"));
    let rest = [&constant[..], &[&length[..]]].concat();
    killed.train(2, &[&rest[..], &["--resume"]].concat()).succeeded();
    let whole = Workspace::new();
    whole.train(2, &rest).succeeded();
    assert_same_checkpoint(&killed, &whole, &last);
    assert_eq!(killed.losses("run"), whole.losses("run"));
}
