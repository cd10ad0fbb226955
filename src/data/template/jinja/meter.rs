//! The bounds of a rendering: how much it may compute, allocate and nest.
//!
//! Not here: what is charged; the code that computes or allocates does that.

use super::{Fault, Outcome};

/// Steps that a rendering may take: expressions, statements, items visited and each [`BYTES_A_STEP`] bytes read. About
/// half a second; a long conversation takes a tenth of it.
const STEPS: usize = 5_000_000;
/// Bytes that a rendering may allocate in all, freed or not: texts, lists and output.
const BYTES: usize = 256 << 20;
/// Bytes that are read, compared or searched in a step.
const BYTES_A_STEP: usize = 64;
/// Calls, loops and expressions within each other. At most 2 kB of stack each, measured.
const DEPTH: usize = 400;
/// Lists and dicts within each other.
pub(crate) const VALUE_DEPTH: u16 = 200;
/// Memory of a list's item.
pub(crate) const SLOT: usize = size_of::<super::Value>();

/// The steps, bytes and levels that are left for a rendering.
#[derive(Debug)]
pub(crate) struct Meter {
    steps: usize,
    bytes: usize,
    depth: usize,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { steps: STEPS, bytes: BYTES, depth: 0 }
    }

    /// Charges steps.
    pub(crate) fn steps(&mut self, count: usize) -> Outcome<()> {
        let left = self.steps.checked_sub(count);
        self.steps = left.ok_or_else(|| {
            self.steps = 0;
            Fault::bound(format!("the template computes too long: more than {STEPS} steps for one conversation"))
        })?;
        Ok(())
    }

    /// Charges the reading of a text.
    pub(crate) fn read(&mut self, text: &str) -> Outcome<()> {
        self.steps(text.len() / BYTES_A_STEP + 1)
    }

    /// Charges memory, before it is allocated.
    pub(crate) fn bytes(&mut self, count: usize) -> Outcome<()> {
        let left = self.bytes.checked_sub(count);
        self.bytes = left.ok_or_else(|| {
            self.bytes = 0;
            let limit = BYTES >> 20;
            Fault::bound(format!("the template makes too much text: more than {limit} MiB for one conversation"))
        })?;
        self.steps(count / BYTES_A_STEP + 1)
    }

    /// Charges a list of `count` items.
    pub(crate) fn items(&mut self, count: usize) -> Outcome<()> {
        self.bytes(count.saturating_mul(SLOT))?;
        self.steps(count)
    }

    /// Goes a level deeper; [`Meter::leave`] comes back.
    pub(crate) fn enter(&mut self) -> Outcome<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault::bound(format!("the template nests too deep: more than {DEPTH} calls and expressions")));
        }
        self.steps(1)
    }

    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }
}
