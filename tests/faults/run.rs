//! What the kinds of faults share: a run with a fault, the result that it must end with, and how many faults are tried.

use crate::job;
use crate::tiny::{Workspace, with_config};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// A job must be over within this time, whatever is under it.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The shim, built once.
static SHIM: LazyLock<PathBuf> = LazyLock::new(|| {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libfaults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim/lib.rs");
    let built = Command::new(std::env::var("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "faults", "-O", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.expect("rustc starts").success(), "the shim does not build");
    library
});

/// How many faults of a kind are tried; `None`: every one.
pub fn wanted() -> Option<usize> {
    let text = std::env::var("HAF_DIST_FAULTS").unwrap_or_else(|_| "5".into());
    Some(text.parse().expect("HAF_DIST_FAULTS is a number")).filter(|&count| count > 0)
}

/// The same faults for the same seed; `kind` sets the kinds apart.
pub fn random(kind: &str) -> ChaCha8Rng {
    let seed = std::env::var("HAF_DIST_FAULTS_SEED").map_or(1, |text| text.parse().expect("a number"));
    ChaCha8Rng::seed_from_u64(
        kind.bytes().fold(seed, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into())),
    )
}

/// A sample of 1 to `last`, spread over all of it: one of each of equal stretches.
pub fn sample(last: usize, kind: &str) -> Vec<usize> {
    let Some(count) = wanted().filter(|&count| count < last) else { return (1..=last).collect() };
    let mut random = random(kind);
    let stretch = |index: usize| 1 + index * last / count..1 + (index + 1) * last / count;
    (0..count).map(|index| random.random_range(stretch(index))).collect()
}

/// How a job ended.
pub struct Ended {
    /// Its exit code; -1: by a signal.
    pub code: i32,
    /// What it gave.
    pub stdout: String,
    /// Both streams.
    pub printed: String,
    /// What the shim has done or counted.
    pub noted: Vec<String>,
}

impl Ended {
    /// Its errors of our own.
    pub fn errors(&self) -> usize {
        self.printed.lines().filter(|line| line.starts_with("error:")).count()
    }

    /// One error and a code that is documented, and no panic.
    #[track_caller]
    pub fn failed_well(&self, what: &str) {
        assert!(matches!(self.code, 1 | 2), "{what}: code {}\n{}", self.code, self.printed);
        assert_eq!(self.errors(), 1, "{what}: code {}\n{}", self.code, self.printed);
        assert!(!self.printed.contains("panicked"), "{what}:\n{}", self.printed);
    }
}

/// What is to happen to which operation.
#[derive(Clone, Copy)]
pub struct Fault<'a> {
    pub mode: &'a str,
    pub operations: &'a str,
    pub at: usize,
    pub errno: i32,
    /// A file whose flushes do nothing, though they say they do.
    pub lie: &'a str,
    /// The rank that it happens to.
    pub rank: usize,
    /// A rank that does not hear the others' votes.
    pub deaf: Option<usize>,
    /// How many times as fast as others the process's clock goes.
    pub haste: usize,
}

impl Fault<'_> {
    /// Nothing happens, and all operations are noted.
    pub fn count(operations: &str) -> Fault<'_> {
        Fault { mode: "count", operations, at: 0, errno: 0, lie: "", rank: 0, deaf: None, haste: 1 }
    }
}

/// Runs a command to its end, with a fault under it.
pub fn finish(workspace: &Workspace, mut command: Command, fault: Option<Fault>) -> Ended {
    let beside = tempfile::tempdir_in(workspace.path("").parent().unwrap()).unwrap();
    let path = |name: &str| beside.path().join(name);
    let file = |name: &str| fs::File::create(path(name)).unwrap();
    if let Some(Fault { mode, operations, at, errno, lie, rank, deaf, haste }) = fault {
        command.env("LD_PRELOAD", &*SHIM).env("FAULT_ROOT", workspace.path("")).env("FAULT_MODE", mode);
        command.env("FAULT_OPERATIONS", operations).env("FAULT_AT", at.to_string());
        command.env("FAULT_ERRNO", errno.to_string()).env("FAULT_LIE", lie);
        command.env("FAULT_LOG", path("log")).env("FAULT_KEPT", beside.path()).env("FAULT_RANK", rank.to_string());
        command
            .env("FAULT_DEAF", deaf.map_or(String::new(), |rank| rank.to_string()))
            .env("FAULT_HASTE", haste.to_string());
    }
    command.stdout(file("out")).stderr(file("err")).stdin(Stdio::null());
    let job = command.spawn().expect("mpirun of Open MPI is installed");
    let ended = job::wait(job, LIMIT);
    let text = |name: &str| String::from_utf8_lossy(&fs::read(path(name)).unwrap_or_default()).into_owned();
    let stdout = text("out");
    let printed = stdout.clone() + &text("err");
    let code = ended.unwrap_or_else(|| panic!("{command:?} was not over in time:\n{printed}"));
    Ended { code, stdout, printed, noted: text("log").lines().map(str::to_owned).collect() }
}

/// Trains with `run.toml`, with a fault under it.
pub fn train(workspace: &Workspace, ranks: usize, set: &[&str], fault: Option<Fault>) -> Ended {
    finish(workspace, workspace.command(ranks, &with_config(&[], set)), fault)
}

/// What a run has come to: the last checkpoint's files, the numbers without the clock's, the test pairs.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub checkpoint: BTreeMap<PathBuf, Vec<u8>>,
    pub metrics: Vec<Value>,
    pub pairs: Vec<u8>,
}

impl Outcome {
    /// Of the finished run in `run/`.
    pub fn of(workspace: &Workspace) -> Self {
        let mut metrics = workspace.json_lines("run/metrics.jsonl");
        for line in &mut metrics {
            ["pairs_per_s", "tokens_per_s", "seconds"]
                .iter()
                .for_each(|key| drop(line.as_object_mut().unwrap().remove(*key)));
        }
        let run = workspace.path("run/step-6");
        let content = workspace.content().into_iter();
        let files = content.filter_map(|(path, bytes)| Some((path.strip_prefix(&run).ok()?.to_path_buf(), bytes?)));
        Self { checkpoint: files.collect(), metrics, pairs: workspace.read("run/test-pairs.jsonl") }
    }

    /// Says what differs first.
    #[track_caller]
    pub fn expect(&self, expected: &Self, what: &str) {
        assert!(self.checkpoint.keys().eq(expected.checkpoint.keys()), "{what}: other files");
        for (file, content) in &expected.checkpoint {
            assert!(self.checkpoint[file] == *content, "{what}: {} differs", file.display());
        }
        assert_eq!(self.metrics, expected.metrics, "{what}");
        assert!(self.pairs == expected.pairs, "{what}: the test pairs differ");
    }

    /// As many losses and margins, none farther off than rounding brings it.
    #[track_caller]
    pub fn expect_close(&self, expected: &Self, what: &str) {
        assert_eq!(self.metrics.len(), expected.metrics.len(), "{what}");
        for (found, expected) in self.metrics.iter().zip(&expected.metrics) {
            let (found, expected) = (found.as_object().unwrap(), expected.as_object().unwrap());
            assert!(found.keys().eq(expected.keys()), "{what}: {found:?} {expected:?}");
            for key in ["step", "loss", "reward_loss", "policy_loss", "margin"] {
                let number = |line: &serde_json::Map<String, Value>| line.get(key).and_then(|value| value.as_f64());
                if let (Some(found), Some(expected)) = (number(found), number(expected)) {
                    let far = (found - expected).abs();
                    assert!(far <= 1e-3 * expected.abs() + 1e-5, "{what}: {key} is {found}, not {expected}");
                }
            }
        }
        assert!(self.checkpoint.keys().eq(expected.checkpoint.keys()), "{what}: other files");
    }
}

/// The undisturbed run on so many ranks.
pub fn undisturbed(ranks: usize) -> &'static Outcome {
    undisturbed_with(ranks, &[])
}

/// The same with other settings.
pub fn undisturbed_with(ranks: usize, set: &[&str]) -> &'static Outcome {
    static RUNS: Mutex<BTreeMap<(usize, String), &'static Outcome>> = Mutex::new(BTreeMap::new());
    // A run that failed here has its say in the first test that needs it.
    let mut runs = RUNS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    runs.entry((ranks, set.join(" "))).or_insert_with(|| {
        let workspace = Workspace::new();
        let ended = train(&workspace, ranks, set, None);
        assert_eq!(ended.code, 0, "{}", ended.printed);
        Box::leak(Box::new(Outcome::of(&workspace)))
    })
}

/// Nothing under a name that says "not finished" is left.
#[track_caller]
pub fn nothing_is_left(workspace: &Workspace, what: &str) {
    let mut folders = vec![workspace.path("")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
            let name = name.to_string_lossy().into_owned();
            assert!(!name.contains("unfinished") && !name.contains("partial"), "{what}: {} is left", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}

/// Starts the run again, as its user would, until it is over; it must come to what the undisturbed one came to.
#[track_caller]
pub fn recovers(workspace: &Workspace, ranks: usize, what: &str) {
    recovers_with(workspace, ranks, &[], what);
}

/// The same with other settings.
#[track_caller]
pub fn recovers_with(workspace: &Workspace, ranks: usize, set: &[&str], what: &str) {
    recovered(workspace, ranks, set, what).expect(undisturbed_with(ranks, set), what);
    nothing_is_left(workspace, what);
}

/// The same, without a verdict.
#[track_caller]
pub fn recovered(workspace: &Workspace, ranks: usize, set: &[&str], what: &str) -> Outcome {
    let resumed = train(workspace, ranks, &[set, &["--resume"]].concat(), None);
    if resumed.code != 0 {
        // Nothing of a run was there yet.
        assert!(resumed.printed.contains("holds no run to continue"), "{what}: {}", resumed.printed);
        let again = train(workspace, ranks, set, None);
        assert_eq!(again.code, 0, "{what}: {}", again.printed);
    }
    Outcome::of(workspace)
}

/// The processes of a job's ranks, in rank order; fewer where some have not started, or are over.
pub fn ranks_of(job: u32) -> Vec<u32> {
    let found = Command::new("pgrep").args(["-P", &job.to_string(), "haf-dist"]).output().unwrap().stdout;
    let processes = String::from_utf8(found).unwrap();
    let mut ranks: Vec<(usize, u32)> = processes
        .lines()
        .map(|line| line.parse().unwrap())
        .filter_map(|process: u32| {
            let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
            let mut all = environment.split(|&byte| byte == 0).filter_map(|one| std::str::from_utf8(one).ok());
            let rank = all.find_map(|one| one.strip_prefix("OMPI_COMM_WORLD_RANK="))?;
            Some((rank.parse().unwrap(), process))
        })
        .collect();
    ranks.sort_unstable();
    ranks.into_iter().map(|(_, process)| process).collect()
}

/// Sends a signal; whether the process was there.
pub fn send(signal: &str, process: u32) -> bool {
    Command::new("kill").args([signal, &process.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

/// Waits until no process is left of those, zombies apart.
#[track_caller]
pub fn all_are_over(processes: &[u32], what: &str) {
    let started = Instant::now();
    let runs = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    while processes.iter().any(runs) {
        assert!(started.elapsed() < LIMIT, "{what}: a rank outlives the job");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command under limits that a shell sets first.
pub fn under(limits: &str, plain: &Command, workspace: &Workspace) -> Command {
    let mut command = Command::new("bash");
    let script = format!("{limits}; exec \"$@\"");
    command.args(["-c", &script, "bash"]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(workspace.path(""));
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
