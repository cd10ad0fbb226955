//! Reads pairs on one thread and encodes them on all, in order, in bounded memory, with a progress count.
//!
//! Not here: the encoding (`tokenize/`) and the use of its result (`prepared.rs`).

use crate::data::Pair;
use crate::data::tokenize::Encoded;
use crate::error::{Error, Result};
use crate::logging::{Progress, Unit};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::thread::{Builder, Scope};

/// Pairs that a thread takes at a time: enough to make taking cheap, few enough to keep all threads busy to the end.
const CHUNK: usize = 64;

/// Chunks per thread that are read and not yet taken: enough that no thread waits for a slow one.
const AHEAD: usize = 8;

/// A chunk's number and its pairs.
type Chunk = (usize, Vec<Pair>);
/// The same with the pairs' encodings.
type Done = (usize, Vec<Pair>, Result<Vec<Encoded>>);

/// Encodes the pairs that `read` passes on, with a progress count titled `label`, and passes them to `take` in their order. The
/// result does not depend on `threads`, and at most 8 chunks of 64 pairs per thread are in memory.
///
/// # Errors
/// The error of the first pair that has one, or of `take`; else that of `read`.
pub(super) fn encode_all<R: Send>(
    threads: usize,
    label: &str,
    read: impl FnOnce(&mut dyn FnMut(Pair) -> Result<()>) -> Result<R> + Send,
    encode: impl Fn(&Pair) -> Result<Encoded> + Sync,
    mut take: impl FnMut(Pair, Encoded) -> Result<()>,
) -> Result<R> {
    let threads = threads.max(1);
    let mut progress = Progress::new(label, Unit::Pairs, 0, None);
    std::thread::scope(|scope| {
        let ((to_encode, chunks), (to_take, done)) = (bounded(AHEAD * threads), bounded(AHEAD * threads));
        // One permit for each chunk that may be in memory.
        let (permit, permits) = bounded(AHEAD * threads);
        for _ in 0..AHEAD * threads {
            // There is room for all.
            let _ = permit.send(());
        }
        for _ in 0..threads {
            let (chunks, to_take, encode) = (chunks.clone(), to_take.clone(), &encode);
            start(scope, move || encode_chunks(&chunks, &to_take, encode))?;
        }
        // Only workers hold these from here on: the last one that ends closes the channel.
        drop((chunks, to_take));
        let reader = start(scope, move || {
            let mut sending = Sending { permits, to_encode, chunk: Vec::new(), number: 0 };
            let read = read(&mut |pair| sending.push(pair))?;
            sending.send().map(|()| read)
        })?;
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        let mut failed = None;
        for (number, pairs, encoded) in done {
            waiting.insert(number, (pairs, encoded));
            while let Some((pairs, encoded)) = waiting.remove(&next).filter(|_| failed.is_none()) {
                next += 1;
                progress.add(pairs.len() as u64);
                let taken = encoded.and_then(|encoded| {
                    pairs.into_iter().zip(encoded).try_for_each(|(pair, encoded)| take(pair, encoded))
                });
                failed = taken.err();
                let _ = permit.send(());
            }
            if failed.is_some() {
                break;
            }
        }
        // Nothing is taken any more: without a permit, the reader stops.
        drop(permit);
        drop(progress);
        let read = reader.join().map_err(|_| Error::runtime("the thread that reads rows has panicked"))?;
        failed.map_or(read, Err)
    })
}

/// Encodes chunks until there are none, or none are taken any more.
fn encode_chunks(chunks: &Receiver<Chunk>, to_take: &Sender<Done>, encode: &impl Fn(&Pair) -> Result<Encoded>) {
    for (number, pairs) in chunks {
        let encoded = pairs.iter().map(encode).collect();
        if to_take.send((number, pairs, encoded)).is_err() {
            break;
        }
    }
}

/// The reader's side: pairs become chunks.
struct Sending {
    permits: Receiver<()>,
    to_encode: Sender<Chunk>,
    chunk: Vec<Pair>,
    number: usize,
}

impl Sending {
    fn push(&mut self, pair: Pair) -> Result<()> {
        self.chunk.push(pair);
        if self.chunk.len() == CHUNK { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> Result<()> {
        let chunk = (self.number, std::mem::take(&mut self.chunk));
        if chunk.1.is_empty() {
            return Ok(());
        }
        self.number += 1;
        // The other side's error is the one that is returned.
        let ended = || Error::runtime("reading was ended by an error");
        self.permits.recv().map_err(|_| ended())?;
        self.to_encode.send(chunk).map_err(|_| ended())
    }
}

fn start<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    work: impl FnOnce() -> T + Send + 's,
) -> Result<std::thread::ScopedJoinHandle<'s, T>> {
    Builder::new().spawn_scoped(scope, work).map_err(|error| Error::runtime(format!("cannot start a thread: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sequence::OwnedPair;
    use crate::data::{AnswerSpan, Message, Prompt, TemplateInputs};
    use std::sync::atomic::{AtomicUsize, Ordering};
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

    /// The lines of what is taken of so many pairs.
    fn lines(count: usize, threads: usize, encode: impl Fn(&Pair) -> Result<Encoded> + Sync) -> Result<Vec<u32>> {
        let mut lines = Vec::new();
        let read = |take: &mut dyn FnMut(Pair) -> Result<()>| pairs(count).into_iter().try_for_each(take);
        encode_all(threads, "", read, encode, |pair, encoded| {
            let Encoded::Kept(kept) = encoded else { panic!("dropped") };
            assert_eq!(kept.tokens, [pair.line as u32]);
            lines.push(kept.tokens[0]);
            Ok(())
        })
        .map(|()| lines)
    }

    #[test]
    fn any_number_of_threads_gives_every_pair_in_order() {
        for count in [0, 1, CHUNK, 10 * CHUNK + 1] {
            for threads in [0, 1, 2, 5, 100] {
                let expected: Vec<u32> = (1..=count as u32).collect();
                assert_eq!(lines(count, threads, encode).unwrap(), expected, "{count} pairs, {threads} threads");
            }
        }
    }

    /// Promise: however slow one chunk is, no more pairs are in memory than a few chunks a thread.
    #[test]
    fn reading_waits_for_what_is_taken() {
        let (read, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let slow = |pair: &Pair| {
            if pair.line == 1 {
                std::thread::sleep(Duration::from_millis(100));
                most.store(read.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            encode(pair)
        };
        let reading = |take: &mut dyn FnMut(Pair) -> Result<()>| {
            pairs(10_000).into_iter().try_for_each(|pair| {
                read.fetch_add(1, Ordering::SeqCst);
                take(pair)
            })
        };
        encode_all(2, "", reading, slow, |_, _| Ok(())).unwrap();
        let most = most.load(Ordering::SeqCst);
        assert!((CHUNK..=(2 * AHEAD + 1) * CHUNK).contains(&most), "{most}");
    }

    #[test]
    fn the_first_of_several_errors_is_reported() {
        let faulty = |pair: &Pair| match pair.line {
            200 | 201 | 500 | 640 => Err(Error::input(pair.line.to_string())),
            _ => encode(pair),
        };
        for threads in [1, 2, 5] {
            assert_eq!(lines(700, threads, faulty).unwrap_err().message, "200");
        }
        // An error of reading comes after the pairs that were read before it.
        let ends = |after: usize| {
            move |take: &mut dyn FnMut(Pair) -> Result<()>| -> Result<()> {
                pairs(after).into_iter().try_for_each(take)?;
                Err(Error::input("damaged"))
            }
        };
        let mut taken = 0;
        let error = encode_all(2, "", ends(150), encode, |_, _| {
            taken += 1;
            Ok(())
        });
        assert_eq!((error.unwrap_err().message.as_str(), taken), ("damaged", 128));
        let error = encode_all(2, "", ends(300), faulty, |_, _| Ok(()));
        assert_eq!(error.unwrap_err().message, "200");
        let full = encode_all(2, "", ends(300), encode, |_, _| Err::<(), _>(Error::runtime("no space")));
        assert_eq!(full.unwrap_err().message, "no space");
    }
}
