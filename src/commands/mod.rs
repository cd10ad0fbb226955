//! One small file a command; this one picks it.

use crate::cli::Command;
use crate::config::Config;
use crate::error::{Error, Result};

/// Does what the command line asks for.
///
/// # Errors
/// Whatever the command meets.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Train { config, set, .. } | Command::Prepare { config, set } => {
            Config::load(&config, &set)?;
        }
        Command::Eval { .. } | Command::Score { .. } => {}
    }
    Err(Error::runtime("not built yet"))
}
