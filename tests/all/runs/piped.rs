//! Promise: `-` is standard input wherever rows are read. The result is that of a file, on any number of ranks, and messages say
//! where in the input an error is.

use crate::tiny::{Outcome, Workspace, parse_lines, with_config};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// Runs the program with a file of the workspace as its standard input. Several ranks are started by `--ranks`.
fn piped(workspace: &Workspace, file: &str, ranks: &'static str, arguments: &[&str]) -> Outcome {
    under(workspace.command(1, &[arguments, &["--ranks", ranks]].concat()), workspace, file)
}

fn under(mut command: Command, workspace: &Workspace, file: &str) -> Outcome {
    command.stdin(File::open(workspace.path(file)).unwrap());
    workspace.finish(command)
}

#[test]
fn rows_from_standard_input_are_scored_as_those_of_a_file() {
    let workspace = Workspace::trained(1);
    let before = workspace.content();
    let score = |data| ["score", "--checkpoint", "run", "--output", "-", "--data", data];
    let of_file = workspace.run(1, &score("test.jsonl")).succeeded().stdout;
    let of_pipe = piped(&workspace, "test.jsonl", "1", &score("-")).succeeded().stdout;
    assert_eq!(of_pipe, of_file);
    assert_eq!(parse_lines(&of_pipe).len(), 7);

    let eval = |data| ["eval", "--checkpoint", "run", "--json", "--data", data];
    let of_file = workspace.run(2, &eval("test.jsonl")).succeeded().stdout;
    let of_pipe = piped(&workspace, "test.jsonl", "2", &eval("-")).succeeded().stdout;
    // Pairs are called by the file that they come from.
    assert_eq!(of_pipe.replace("standard input", "test"), of_file);
    // Open MPI 5's mpirun garbles it, so there it is refused.
    let of_mpirun = under(workspace.command(2, &eval("-")), &workspace, "test.jsonl");
    match of_mpirun.code {
        0 => assert_eq!(of_mpirun.stdout.replace("standard input", "test"), of_file),
        _ => assert!(of_mpirun.code == 2 && of_mpirun.stderr.contains("--ranks N"), "{}", of_mpirun.stderr),
    }
    assert!(workspace.content() == before, "something was left behind");

    workspace.write("broken.jsonl", "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \n");
    let outcome = piped(&workspace, "broken.jsonl", "2", &score("-"));
    assert_eq!(outcome.code, 2);
    assert!(outcome.errors()[0].starts_with("error: standard input:2: broken JSON"), "{}", outcome.stderr);
}

/// Whatever it is, and wherever a shell has left off reading it.
#[test]
fn ranks_read_the_standard_input_of_the_program_that_starts_them() {
    let workspace = Workspace::trained(1);
    let score = ["score", "--checkpoint", "run", "--output", "-", "--data", "-"];
    let rows = String::from_utf8(workspace.read("test.jsonl")).unwrap();
    let rows_after_the_first = || {
        let mut file = File::open(workspace.path("test.jsonl")).unwrap();
        file.seek(SeekFrom::Start(rows.find('\n').unwrap() as u64 + 1)).unwrap();
        file.into()
    };
    // Whoever wrote them is gone by the time they are read.
    let socket = || {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(rows.as_bytes()).unwrap();
        OwnedFd::from(reader)
    };
    let pipe = || {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(rows.as_bytes()).unwrap();
        OwnedFd::from(reader)
    };
    for (input, count) in [(rows_after_the_first(), 6), (socket(), 7), (pipe(), 7)] {
        let mut command = workspace.command(1, &[&score[..], &["--ranks", "2"]].concat());
        command.stdin(input);
        let scored = workspace.finish(command).succeeded();
        assert_eq!(parse_lines(&scored.stdout).len(), count);
    }
    // What ranks are told if the program was started from a terminal.
    let mut command = workspace.command(1, &score);
    command.env("HAF_DIST_STANDARD_INPUT", "not offered: it is a terminal");
    let outcome = workspace.finish(command);
    assert!(outcome.code == 2 && outcome.errors()[0].contains("(`-`): it is a terminal"), "{}", outcome.stderr);
}

#[test]
fn a_split_of_a_config_may_be_standard_input_once() {
    let workspace = Workspace::new();
    let prepare = |set: &[&'static str]| with_config(&["prepare", "--json"], set);
    let outcome = piped(&workspace, "dev.jsonl", "2", &prepare(&["data.dev=-"])).succeeded();
    let [said] = &parse_lines(&outcome.stdout)[..] else { panic!("{}", outcome.stdout) };
    assert_eq!(said["prepare"], "cache");
    let splits = said["splits"].as_array().unwrap();
    let of = |split: usize, key: &str| splits[split]["sources"][0][key].clone();
    assert_eq!((of(1, "name"), of(1, "counts")["kept"].clone()), ("standard input".into(), 5.into()));
    assert_eq!(of(2, "name"), "test.jsonl");

    let twice = piped(&workspace, "dev.jsonl", "1", &prepare(&["data.dev=-", "data.test=-"]));
    assert!(twice.code == 2 && twice.errors()[0].contains("data.test.0.path: `-` stands for standard input"));
    // Who only looks at files leaves it alone.
    let check = workspace.run(1, &["check", "run.toml", "data.dev=-"]).succeeded();
    assert!(check.stdout.contains("-: standard input, which is read at the start"), "{}", check.stdout);
}
