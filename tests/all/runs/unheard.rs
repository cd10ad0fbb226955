//! A closed pipe, or a full disk, behind stdout or stderr loses no work and makes no program panic.

use crate::job;
use crate::tiny::Workspace;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// What takes the program's words.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ear {
    /// Everything.
    Open,
    /// Nobody, as with `| true`: every write is a broken pipe.
    Gone,
    /// A disk without room.
    Full,
}

impl Ear {
    fn stdio(self) -> Stdio {
        match self {
            Self::Open => Stdio::null(),
            Self::Gone => std::io::pipe().unwrap().1.into(),
            Self::Full => File::options().write(true).open("/dev/full").unwrap().into(),
        }
    }
}

fn code(workspace: &Workspace, arguments: &[&str], stdout: Ear, stderr: Ear) -> i32 {
    let job = workspace.command(1, arguments).stdout(stdout.stdio()).stderr(stderr.stdio()).spawn().unwrap();
    job::wait(job, LIMIT).unwrap_or_else(|| panic!("{arguments:?} was not over in time"))
}

#[test]
fn a_run_that_nobody_hears_trains_to_its_end_and_leaves_its_checkpoint() {
    let heard = Workspace::trained(1);
    for (stdout, stderr, expected) in
        [(Ear::Open, Ear::Gone, 0), (Ear::Open, Ear::Full, 0), (Ear::Gone, Ear::Gone, 0), (Ear::Full, Ear::Full, 1)]
    {
        let workspace = Workspace::new();
        let place = format!("stdout {stdout:?}, stderr {stderr:?}");
        assert_eq!(code(&workspace, &["--config", "run.toml"], stdout, stderr), expected, "{place}");
        for file in ["step-6/model.safetensors", "step-6/trainer/moments.safetensors", "test-pairs.jsonl"] {
            let file = format!("run/{file}");
            assert!(workspace.read(&file) == heard.read(&file), "{place}: {file}");
        }
    }
}

#[test]
fn no_command_panics_when_its_reader_goes_and_a_full_disk_is_one_error() {
    let workspace = Workspace::trained(1);
    workspace.train(1, &["data.seed=1", "output.dir=run-1"]).succeeded();
    let eval = ["eval", "--checkpoint", "run/step-6", "--data", "test.jsonl"];
    let score = [&["score"], &eval[1..]].concat();
    let commands: &[&[&str]] = &[
        &eval,
        &[&eval[..], &["--json"]].concat(),
        &score,
        &["compare", "run", "run-1"],
        &["compare", "--json", "run", "run-1"],
        &["prepare", "--config", "run.toml"],
        &["plan", "--config", "run.toml", "--gpus", "2"],
        &["--config", "run.toml", "--debug"],
        &["export", "run/step-6", "exported"],
    ];
    for arguments in commands {
        for (stdout, stderr, expected) in [(Ear::Gone, Ear::Gone, 0), (Ear::Full, Ear::Full, 1)] {
            assert_eq!(code(&workspace, arguments, stdout, stderr), expected, "{arguments:?}, {stdout:?}");
            if arguments[0] == "export" {
                assert!(workspace.path("exported/model.safetensors").is_file(), "{stdout:?}");
                fs::remove_dir_all(workspace.path("exported")).unwrap();
            }
        }
    }
    let mut full = workspace.command(1, &score);
    let told = full.stdout(Ear::Full.stdio()).stderr(Stdio::piped()).output().unwrap();
    let told = String::from_utf8(told.stderr).unwrap();
    assert_eq!(told.matches("error: cannot write to standard output").count(), 1, "{told}");
}
