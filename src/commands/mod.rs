//! Runs the command that was asked for. Each command has a small file of its own.

mod alike;
mod bench;
mod best_of;
mod check;
mod closing;
mod compare;
mod debug;
mod doctor;
mod eval;
mod export;
mod findings;
mod formats;
mod hub;
mod init;
mod models;
mod plan;
mod prepare;
mod score;
mod scored;
mod setup;
mod shell;
mod suites;
mod train;
mod verify;

use crate::checkpoint::Changed;
use crate::cli::{self, Alone, Command, Evaluating};
use crate::comm::CommThread;
use crate::config::Config;
use crate::error::{Error, Result, libtorch};
use crate::memory;
use crate::terminal;
use std::path::Path;
use std::time::Duration;

/// Checks that every rank runs this program with this command. Call it before anything else.
///
/// # Errors
/// An input error, the same on every rank: what differs.
pub fn compare_ranks(command: &Command, traced: bool, comm: &CommThread) -> Result<()> {
    alike::command(command, traced, comm)
}

/// Runs a command for one process. Nothing below calls libtorch or MPI: the launcher is not linked with them.
///
/// # Errors
/// Those of the command.
pub fn alone(asked: &Alone) -> Result<()> {
    match asked {
        Alone::Plan(planning) => plan::run(planning),
        Alone::Models { folder, json } => {
            let folder = folder.as_deref().map(hub::fetch_model_alone).transpose()?;
            folder.as_deref().map_or(Ok(()), hub::expect_model)?;
            models::run(folder.as_deref(), *json)
        }
        Alone::Formats { format, json } => formats::run(*format, *json),
        Alone::Check(checking) => check::run(checking),
        Alone::Compare(comparing) => compare::run(comparing),
        Alone::Init(asked) => init::run(asked),
        Alone::Doctor { json } => doctor::run(*json),
        Alone::Completions(shell) => terminal::out(String::from_utf8_lossy(&cli::completions(*shell)).trim_end()),
    }
}

/// Sets the hint that a lack of memory gets from now on: what the user of this command can do about it.
pub fn advise_on_memory(command: &Command) {
    memory::advise(match command {
        Command::Train { .. } | Command::Prepare { .. } => {
            "lower train.tokens_per_micro_batch, set train.activation_checkpointing = true, or give the job more memory; \
             `haf-dist plan` tells what a run needs"
        }
        Command::Eval(_) | Command::Score { .. } | Command::Bench(_) => {
            "lower --tokens-per-micro-batch, or give the job more memory"
        }
        Command::Export(_) | Command::Verify(_) => "give the job more memory: the model must fit",
    });
}

/// Runs a command on every rank.
///
/// # Errors
/// Those of the command, including what libtorch throws on this thread. An error on only some ranks leaves the others waiting:
/// the caller must end the job.
pub fn run(command: &Command, comm: &CommThread) -> Result<()> {
    libtorch(|| dispatch(command, comm))
}

fn dispatch(command: &Command, comm: &CommThread) -> Result<()> {
    match command {
        Command::Train { config, set, debug: true, allow_changed, .. } => {
            debug::run(&load(config, set, comm)?, Changed::allowed_if(*allow_changed), comm)
        }
        Command::Train { config, set, resume, allow_changed, json, .. } => {
            train::run(&load(config, set, comm)?, *resume, Changed::allowed_if(*allow_changed), *json, comm)
        }
        Command::Prepare { config, set, allow_changed, json } => {
            prepare::run(&load(config, set, comm)?, Changed::allowed_if(*allow_changed), *json, comm)
        }
        Command::Eval(evaluating) if !evaluating.suites.is_empty() => {
            suites::run(&hub::fetch_evaluating(evaluating, comm)?, comm)
        }
        Command::Eval(Evaluating { scoring, best_of: Some(_), json, .. }) => {
            let (scoring, files) = hub::fetch_scoring(scoring, comm)?;
            let [file] = &files[..] else {
                return Err(Error::input(format!("--best-of: the split has {} files, expected one", files.len()))
                    .hint("name the file in the path"));
            };
            best_of::run(&scoring, file, *json, comm)
        }
        Command::Eval(evaluating) => {
            let (scoring, _) = hub::fetch_scoring(&evaluating.scoring, comm)?;
            eval::run(evaluating, &scoring, &hub::fetch_pairs(&evaluating.data, comm)?, comm)
        }
        Command::Score { scoring, output, combined, tokens } => {
            let (scoring, files) = hub::fetch_scoring(scoring, comm)?;
            if files.len() > 1 {
                return Err(Error::input(format!("--data: the split has {} files, expected one", files.len()))
                    .hint("name the file in the path: every row gets one line of scores"));
            }
            score::run(&scoring, output, score::Added { combined: *combined, tokens: *tokens }, comm)
        }
        Command::Export(exporting) => {
            let exporting = hub::fetch_exporting(exporting, comm)?;
            let _work = comm.at_work("exporting");
            comm.agree(if comm.rank() == 0 { export::run(&exporting) } else { Ok(()) })
        }
        Command::Verify(verifying) => verify::run(&hub::fetch_verifying(verifying, comm)?, comm),
        Command::Bench(options) => bench::run(options, comm),
    }
}

/// Loads a config, checks that it is the same on every rank, and fetches its files.
fn load(config: &Path, set: &[String], comm: &CommThread) -> Result<Config> {
    let config = comm.agree(Config::load(config, set))?;
    alike::config(&config, comm)?;
    comm.set_limit(Duration::from_secs(config.parallel.timeout_seconds as u64));
    hub::fetch_all(config, comm)
}
