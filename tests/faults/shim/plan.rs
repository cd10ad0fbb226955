//! What the environment asks the shim to do, and the count of operations.

use super::disk::DISK;
use std::cell::Cell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What happens to the operation of the number asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing: all of them are written into the log.
    Count,
    /// It fails.
    Fail,
    /// The process dies in place of it.
    Kill,
    /// The same, and what the disk was not told to keep is lost.
    Cut,
}

/// The number of ranks, if this one is deaf to the others.
pub fn deaf_among() -> Option<usize> {
    let variable = |name: &str| std::env::var(name).ok();
    let rank = variable("OMPI_COMM_WORLD_RANK")?;
    variable("FAULT_DEAF").filter(|deaf| *deaf == rank)?;
    variable("OMPI_COMM_WORLD_SIZE")?.parse().ok()
}

/// The plan of this process.
pub struct Plan {
    /// The folder whose files count.
    pub root: PathBuf,
    log: PathBuf,
    mode: Mode,
    operations: Vec<String>,
    at: usize,
    /// What a failing operation says.
    pub errno: i32,
    /// How many times as fast as others this process's clock goes.
    pub haste: i64,
}

/// When the clock was looked at first, in nanoseconds.
pub static FIRST_LOOK: OnceLock<i64> = OnceLock::new();

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is at the shim's own work.
pub fn inside() -> bool {
    INSIDE.get()
}

/// Runs `ours` unless the operation is the shim's own, which is to be done `really`, and nothing else.
pub fn outside<T>(really: impl FnOnce() -> T, ours: impl FnOnce() -> T) -> T {
    if INSIDE.replace(true) {
        return really();
    }
    let done = match Plan::get() {
        Some(_) => ours(),
        None => really(),
    };
    INSIDE.set(false);
    done
}

impl Plan {
    /// The plan; none in a process that is not the one meant.
    pub fn get() -> Option<&'static Self> {
        PLAN.get_or_init(Self::read).as_ref()
    }

    fn read() -> Option<Self> {
        let text = |name: &str| std::env::var(name).ok();
        let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let root = PathBuf::from(text("FAULT_ROOT")?);
        let program = std::env::current_exe().ok()?;
        let rank = text("OMPI_COMM_WORLD_RANK").unwrap_or_else(|| "0".into());
        if program.file_name()? != "haf-dist-engine" || rank != text("FAULT_RANK").unwrap_or_else(|| "0".into()) {
            return None;
        }
        let mode = match text("FAULT_MODE")?.as_str() {
            "fail" => Mode::Fail,
            "kill" => Mode::Kill,
            "cut" => Mode::Cut,
            _ => Mode::Count,
        };
        let operations = text("FAULT_OPERATIONS")?.split(',').map(str::to_owned).collect();
        let (at, errno) = (number("FAULT_AT"), number("FAULT_ERRNO") as i32);
        let haste = number("FAULT_HASTE") as i64;
        Some(Self { root, log: PathBuf::from(text("FAULT_LOG")?), mode, operations, at, errno, haste })
    }

    /// Counts an operation; whether it is to fail. Does not return where the process is to die.
    pub fn reaches(&self, operation: &str, path: &Path) -> bool {
        if !path.starts_with(&self.root) || !self.operations.iter().any(|wanted| wanted == operation) {
            return false;
        }
        let number = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
        if self.mode == Mode::Count {
            self.note(operation, path);
        }
        if self.mode == Mode::Count || number != self.at {
            return false;
        }
        self.note(operation, path);
        if self.mode == Mode::Cut {
            DISK.cut();
        }
        if self.mode != Mode::Fail {
            super::die();
        }
        true
    }

    fn note(&self, operation: &str, path: &Path) {
        let own = INSIDE.replace(true);
        if let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(&self.log) {
            let _ = writeln!(log, "{operation} {}", path.display());
        }
        INSIDE.set(own);
    }
}
