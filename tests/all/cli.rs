//! What the program prints and its exit codes, seen from outside.
//!
//! The texts are in `snapshots/`; after an intended change `INSTA_UPDATE=always cargo test --test all cli::` renews them.

use clap::CommandFactory;
use std::process::{Command, Stdio};

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run_as(rank: Option<usize>, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_haf-dist"));
    // The test itself may run under a launcher or in a narrow terminal.
    for name in [
        "OMPI_COMM_WORLD_RANK",
        "PMIX_RANK",
        "PMI_RANK",
        "SLURM_PROCID",
        "HAF_LOG",
        "RUST_LOG",
        "COLUMNS",
        "HAF_COLUMNS",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(name);
    }
    if let Some(rank) = rank {
        command.env("OMPI_COMM_WORLD_RANK", rank.to_string());
    }
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(arguments: &[&str]) -> Outcome {
    run_as(None, arguments)
}

/// The error's text, having made sure that nothing else was printed and that the code says "input".
fn refusal(arguments: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = run(arguments);
    assert_eq!(code, Some(2), "{stderr}");
    assert_eq!(stdout, "", "errors go to stderr");
    stderr.replace(env!("CARGO_MANIFEST_DIR"), "/FOLDER")
}

fn help(arguments: &[&str]) -> String {
    let Outcome { code, stdout, stderr } = run(arguments);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    stdout
}

#[test]
fn help_of_every_command() {
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_short", help(&["-h"]));
    insta::assert_snapshot!("help_eval", help(&["eval", "--help"]));
    insta::assert_snapshot!("help_score", help(&["score", "--help"]));
    insta::assert_snapshot!("help_export", help(&["export", "--help"]));
    insta::assert_snapshot!("help_prepare", help(&["prepare", "--help"]));
    insta::assert_snapshot!("help_plan", help(&["plan", "--help"]));
}

#[test]
fn version() {
    assert_eq!(help(&["-V"]), format!("haf-dist {}\n", env!("CARGO_PKG_VERSION")));
    let long = help(&["--version"]);
    for part in [env!("CARGO_PKG_VERSION"), "commit ", "libtorch 2.", "MPI "] {
        assert!(long.contains(part), "{part}: {long}");
    }
}

#[test]
fn nothing_to_do_is_explained_rather_than_dumped() {
    insta::assert_snapshot!("nothing", refusal(&[]));
}

#[test]
fn slips_of_the_keyboard() {
    insta::assert_snapshot!("mistyped_option", refusal(&["--confg", "a.toml"]));
    insta::assert_snapshot!("mistyped_command", refusal(&["evl"]));
    insta::assert_snapshot!("set_without_config", refusal(&["--set", "loss.alpha=1"]));
    insta::assert_snapshot!("debug_and_resume", refusal(&["--config", "a.toml", "--debug", "--resume"]));
    insta::assert_snapshot!("eval_without_data", refusal(&["eval", "--checkpoint", "a"]));
    let eval = ["eval", "--checkpoint", "a", "--data", "b"];
    insta::assert_snapshot!("wrong_format", refusal(&[&eval[..], &["--format", "saver"]].concat()));
    insta::assert_snapshot!("wrong_number", refusal(&[&eval[..], &["--max-length", "0"]].concat()));
}

/// Promise: an option that suites and scored answers would ignore is refused.
#[test]
fn options_for_pairs_are_refused_with_suites() {
    for options in [&["--worst", "3"][..], &["--check-swap"], &["--data", "c.jsonl"]] {
        let suite = ["eval", "--checkpoint", "a", "--suite", "rewardbench", "b.jsonl"];
        let stderr = refusal(&[&suite[..], options].concat());
        assert!(stderr.contains("cannot be used with") && stderr.contains(options[0]), "{options:?}: {stderr}");
    }
    let stderr = refusal(&["eval", "--checkpoint", "a", "--best-of", "b.jsonl", "--worst", "3"]);
    assert!(stderr.contains("cannot be used with") && stderr.contains("--worst"), "{stderr}");
}

/// Promise: an option for suites that pairs and scored answers would ignore is refused.
#[test]
fn options_for_suites_are_refused_with_pairs_and_scored_answers() {
    for rows in ["--data", "--best-of"] {
        for option in ["--against", "--train-data"] {
            let stderr = refusal(&["eval", "--checkpoint", "a", rows, "b.jsonl", option, "c"]);
            assert!(stderr.contains("cannot be used with") && stderr.contains(option), "{rows} {option}: {stderr}");
        }
    }
}

#[test]
fn a_wrong_config_is_reported_once_with_a_hint() {
    insta::assert_snapshot!("missing_config", refusal(&["--config", "no/such.toml"]));
    let safety = ["--config", "configs/safety.toml", "--set"];
    insta::assert_snapshot!("mistyped_key", refusal(&[&safety[..], &["loss.alhpa=1"]].concat()));
    insta::assert_snapshot!("out_of_range", refusal(&[&safety[..], &["train.learning_rate=-1"]].concat()));
    insta::assert_snapshot!("prepare_mistyped_key", refusal(&[&["prepare"], &safety[..], &["data.sed=1"]].concat()));
}

/// Promise: users of the wheel have the reference too.
#[test]
fn the_reference_is_in_the_program() {
    assert_eq!(help(&["init", "--reference"]), include_str!("../../configs/reference.toml"));
}

#[test]
fn only_rank_0_prints_what_every_rank_would() {
    for arguments in [&["--help"][..], &["--version"]] {
        let (first, second) = (run_as(Some(0), arguments), run_as(Some(1), arguments));
        assert_ne!(first.stdout + &first.stderr, "");
        assert_eq!(second.stdout + &second.stderr, "");
        assert_eq!(first.code, second.code);
    }
}

#[test]
fn an_error_of_one_rank_alone_is_not_lost() {
    let outcome = run_as(Some(1), &["--config", "no/such.toml"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.starts_with("error: rank 1: cannot read the config file"), "{}", outcome.stderr);
    // Ranks may be started with arguments of their own.
    let outcome = run_as(Some(1), &["--confg", "a.toml"]);
    assert!(outcome.stderr.starts_with("rank 1: error: unexpected argument '--confg'"), "{}", outcome.stderr);
}

#[test]
fn an_unreadable_log_filter_is_an_input_error() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_haf-dist")).env("HAF_LOG", "a=b=c").args(["--config", "a"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("error: HAF_LOG=a=b=c: not a log filter"), "{told}");
}

/// Commands without `--json`, and why.
const NO_JSON: [(&str, &str); 4] = [
    ("score", "what it prints is JSON lines"),
    ("init", "what it prints is a config"),
    ("completions", "what it prints is a script"),
    ("help", "what it prints is for people"),
];

/// Promise: what a command finds out can be read by a program.
#[test]
fn every_command_prints_json_or_has_a_reason_not_to() {
    let mut command = haf_dist::cli::Arguments::command();
    command.build();
    let mut without = Vec::new();
    for command in command.get_subcommands() {
        if !command.get_arguments().any(|argument| argument.get_long() == Some("json")) {
            without.push(command.get_name().to_owned());
        }
    }
    assert_eq!(without.len(), NO_JSON.len(), "{without:?}");
    for name in without {
        assert!(NO_JSON.iter().any(|(known, _)| *known == name), "{name} has no --json");
    }
}
