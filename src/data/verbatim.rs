//! Pairs for `haf-dist bench`: plain texts without a chat template; pairs that are too long or have equal answers are left
//! out.
//!
//! Selection and tokens are those of `benches/peer.py`, so that both time the same work. Not here: sources of a run
//! (`formats/`).

use crate::config::DEFAULT_MAX_ROW_BYTES;
use crate::data::builder::LabeledPair;
use crate::data::rows;
use crate::data::tokenize::{Encoded, Encoder};
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The marker before the last answer of an hh-rlhf transcript.
const ASSISTANT: &str = "\n\nAssistant:";

/// The first `count` pairs of a file whose answers differ and that fit the encoder's `max_length`, tokenized.
///
/// Rows are `{"prompt", "chosen", "rejected"}` with plain texts, or hh-rlhf's transcripts `{"chosen", "rejected"}`, which are
/// taken if they have a common prompt.
///
/// # Errors
/// A file that cannot be read, a row of another shape, or too few pairs.
pub fn first_pairs(path: &Path, encoder: &Encoder, count: usize) -> Result<Vec<LabeledPair>> {
    let mut kept = Vec::with_capacity(count);
    rows::for_each(path, DEFAULT_MAX_ROW_BYTES, |place, row| {
        if kept.len() == count {
            return Ok(());
        }
        let Some(Texts { prompt, chosen, rejected }) = texts(&row).ok_or_else(|| {
            Error::input(format!("{place}: neither prompt, chosen, rejected nor two transcripts"))
                .hint("expected three texts, or two hh-rlhf transcripts that hold \"\\n\\nAssistant:\"")
        })?
        else {
            return Ok(());
        };
        if chosen != rejected
            && let Encoded::Kept(pair) = encoder.encode_apart(prompt, chosen, rejected).map_err(|e| e.at(place))?
        {
            kept.push(LabeledPair { pair, margin: 0.0, tied: false, domain: String::from("bench") });
        }
        Ok(())
    })?;
    if kept.len() < count {
        return Err(Error::input(format!("{} holds {} usable pairs, {count} are needed", path.display(), kept.len()))
            .hint("lower --count, or give a larger file: one global batch more than --count is needed to warm up"));
    }
    Ok(kept)
}

/// The texts of a pair.
struct Texts<'r> {
    prompt: &'r str,
    chosen: &'r str,
    rejected: &'r str,
}

/// The texts of a row; `Some(None)` for transcripts of different prompts, `None` for another shape.
#[expect(clippy::option_option, reason = "no such row, and no common prompt, are two things")]
fn texts(row: &Value) -> Option<Option<Texts<'_>>> {
    let text = |key| row.get(key).and_then(Value::as_str);
    let (chosen, rejected) = (text("chosen")?, text("rejected")?);
    if let Some(prompt) = text("prompt") {
        return Some(Some(Texts { prompt, chosen, rejected }));
    }
    let split = |text: &'_ str| text.rfind(ASSISTANT).map(|at| at + ASSISTANT.len());
    let ((prompt, chosen), (other, rejected)) = (chosen.split_at(split(chosen)?), rejected.split_at(split(rejected)?));
    Some((prompt == other).then_some(Texts { prompt, chosen, rejected }))
}
