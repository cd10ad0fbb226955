//! Runs the encoder over pairs on all threads, in order, with a progress bar.
//!
//! Not here: what encoding is (`tokenize/`) and what becomes of the result (`prepared.rs`).

use crate::data::Pair;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};
use crate::logging;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Pairs that a thread takes at a time: enough to make taking free, few enough to keep all threads busy to the end.
const CHUNK: usize = 64;

/// Encodes all pairs under a bar titled `label`; the result does not depend on `threads`.
///
/// # Errors
/// The error of the first pair that has one.
pub(super) fn encode_all(
    pairs: &[Pair],
    threads: usize,
    label: &str,
    encode: impl Fn(&Pair) -> Result<Encoded> + Sync,
) -> Result<Vec<Encoded>> {
    let bar = logging::progress(pairs.len() as u64, label);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let mut chunks: Vec<Option<Result<Vec<Encoded>>>> = Vec::new();
    chunks.resize_with(pairs.len().div_ceil(CHUNK), || None);
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..threads.clamp(1, chunks.len().max(1)) {
            let (sender, next, encode) = (sender.clone(), &next, &encode);
            let work = move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(chunk) = pairs.chunks(CHUNK).nth(index) else { break };
                    let encoded: Result<Vec<Encoded>> = chunk.iter().map(encode).collect();
                    if encoded.is_err() {
                        // No new chunks; those before this one are already taken, so the first error is found.
                        next.store(usize::MAX / 2, Ordering::Relaxed);
                    }
                    if sender.send((index, chunk.len(), encoded)).is_err() {
                        break;
                    }
                }
            };
            std::thread::Builder::new().spawn_scoped(scope, work).map_err(|error| {
                // Those that did start take no more.
                next.store(usize::MAX / 2, Ordering::Relaxed);
                Error::runtime(format!("{threads} threads could not be started: {error}"))
            })?;
        }
        drop(sender);
        for (index, pairs, encoded) in receiver {
            chunks[index] = Some(encoded);
            bar.inc(pairs as u64);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    // The chunks that were never taken follow one with an error.
    let mut all = Vec::with_capacity(pairs.len());
    for chunk in chunks.into_iter().flatten() {
        all.extend(chunk?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sequence::OwnedPair;
    use crate::data::{AnswerSpan, Message, Prompt, TemplateInputs};
    use std::time::Duration;

    fn pairs(count: usize) -> Vec<Pair> {
        let pair = |line| Pair {
            prompt: Prompt::Text(String::new()),
            inputs: TemplateInputs::default(),
            chosen: Message::default(),
            rejected: None,
            margin: None,
            tied: false,
            domain: None,
            line,
        };
        (1..=count).map(pair).collect()
    }

    fn encode(pair: &Pair) -> Result<Encoded> {
        // Every third chunk takes longer, so that threads overtake one another.
        if (pair.line / CHUNK).is_multiple_of(3) {
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(Encoded::Kept(OwnedPair {
            tokens: vec![pair.line as u32],
            prefix: 0,
            chosen: 1,
            rejected: 0,
            spans: AnswerSpan::of_pair(0, 0, 1, 0),
            prompt_hash: 0,
            prompt_cut: false,
            answer_cut: false,
            special_in_text: 0,
        }))
    }

    #[test]
    fn any_number_of_threads_gives_every_pair_in_order() {
        for count in [0, 1, CHUNK, 10 * CHUNK + 1] {
            for threads in [0, 1, 2, 5, 100] {
                let encoded = encode_all(&pairs(count), threads, "", encode).unwrap();
                let lines: Vec<u32> = encoded
                    .iter()
                    .map(|encoded| match encoded {
                        Encoded::Kept(pair) => pair.tokens[0],
                        Encoded::Dropped(_) => 0,
                    })
                    .collect();
                assert_eq!(lines, (1..=count as u32).collect::<Vec<_>>(), "{count} pairs, {threads} threads");
            }
        }
    }

    #[test]
    fn the_first_of_several_errors_is_reported() {
        let faulty = |pair: &Pair| match pair.line {
            200 | 201 | 500 | 640 => Err(Error::input(pair.line.to_string())),
            _ => encode(pair),
        };
        for threads in [1, 2, 5] {
            assert_eq!(encode_all(&pairs(700), threads, "", faulty).err().unwrap().message, "200");
        }
    }
}
