//! Gives a reader many changed files, one after another, and checks that it stays within the bounds for each.

#![allow(unsafe_code)]

use crate::mutate::{Seed, changed};
use haf_dist::error::{Kind, Result};
use nix::sys::resource::{UsageWho, getrusage};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Processor time of one input; on a machine that others use too, the clock on the wall says little.
const LONGEST: Duration = Duration::from_secs(1);
/// After so long on the wall the program ends itself: an input hangs.
const HANGS: Duration = Duration::from_secs(60);
/// Bytes that one input may have allocated at a time.
const MOST_BYTES: usize = 512 << 20;
/// The largest memory of the process, libraries that are no Rust included, in MiB.
const MOST_MIB: usize = 2048;
/// Bad inputs after which a kind is given up.
const MOST_BAD: usize = 10;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a count of what is out.
pub struct Counting;

fn took(bytes: usize) {
    let now = ALLOCATED.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(old, layout) }
    }
}

/// What a reader made of an input.
pub enum Verdict {
    Taken,
    Refused,
    /// Neither, or not as it should be.
    Wrong(String),
}

/// Every refusal is the user's to mend, and says how.
pub fn judged<T>(outcome: Result<T>) -> Verdict {
    match outcome {
        Ok(_) => Verdict::Taken,
        Err(error) if error.kind == Kind::Input && error.hint.is_some() => Verdict::Refused,
        Err(error) => Verdict::Wrong(format!("{:?} error, hint {:?}: {}", error.kind, error.hint, error.message)),
    }
}

/// Inputs of each kind, where the environment says it.
fn asked() -> Option<usize> {
    let text = std::env::var("HAF_DIST_FUZZ").ok()?;
    Some(text.parse().expect("HAF_DIST_FUZZ is a number"))
}

fn random(kind: &str) -> ChaCha8Rng {
    let seed = std::env::var("HAF_DIST_FUZZ_SEED").map_or(1, |text| text.parse().expect("a number"));
    ChaCha8Rng::seed_from_u64(
        kind.bytes().fold(seed, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into())),
    )
}

fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::new(time.tv_sec() as u64, 1000 * time.tv_usec() as u32)
}

/// The largest memory of this process so far, in MiB.
fn largest_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

fn keep(kind: &str, number: usize, input: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{kind}-{number}"));
    std::fs::write(&path, input).unwrap();
    path
}

/// The input under work.
struct AtWork {
    kind: String,
    number: usize,
    since: Instant,
    input: Vec<u8>,
}

static AT_WORK: Mutex<Option<AtWork>> = Mutex::new(None);

/// Ends the program at an input that hangs, and says which.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A panic that a reader turns into an error is none.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !haf_dist::panics::becomes_an_error(&panic.to_string()) {
                usual(panic);
            }
        }));
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(AtWork { kind, number, since, input }) = &*at_work
                    && since.elapsed() > HANGS
                {
                    eprintln!("{kind}: input {number} hangs: {}", keep(kind, *number, input).display());
                    std::process::abort();
                }
            }
        });
    });
}

/// Reads `few` changed files, or as many as the environment asks for. `read` is given the number of the seed and the
/// changed bytes. One kind at a time: memory and time are the process's.
#[track_caller]
pub fn fuzz(kind: &str, few: usize, seeds: &[Seed], mut read: impl FnMut(usize, &[u8]) -> Verdict) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    watch();
    for (number, seed) in seeds.iter().enumerate() {
        let whole = read(number, &seed.bytes);
        assert!(matches!(whole, Verdict::Taken), "{kind}: seed {number} is not taken as it is");
    }
    let (inputs, mut random) = (asked().unwrap_or(few), random(kind));
    let (mut taken, mut refused, mut bad) = (0, 0, Vec::new());
    let (mut longest, mut most, started) = (Duration::ZERO, 0, Instant::now());
    for number in 0..inputs {
        let seed = number % seeds.len();
        let input = changed(seeds, seed, &mut random);
        *AT_WORK.lock().unwrap() =
            Some(AtWork { kind: kind.to_owned(), number, since: Instant::now(), input: input.clone() });
        let before = ALLOCATED.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let mut time = |input: &[u8]| {
            let begun = processor_time();
            (catch_unwind(AssertUnwindSafe(|| read(seed, input))), processor_time() - begun)
        };
        let (verdict, mut took) = time(&input);
        let bytes = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        if took > LONGEST {
            // Once more: the machine may have been elsewhere.
            took = took.min(time(&input).1);
        }
        *AT_WORK.lock().unwrap() = None;
        (longest, most) = (longest.max(took), most.max(bytes));
        let wrong = match verdict {
            Err(_) => Some("a panic".to_owned()),
            Ok(Verdict::Wrong(why)) => Some(why),
            Ok(_) if took > LONGEST => Some(format!("{} ms", took.as_millis())),
            Ok(_) if bytes > MOST_BYTES => Some(format!("{} MiB at a time", bytes >> 20)),
            Ok(Verdict::Taken) => {
                taken += 1;
                None
            }
            Ok(Verdict::Refused) => {
                refused += 1;
                None
            }
        };
        if let Some(why) = wrong {
            bad.push(format!("input {number} (seed {seed}): {why}: {}", keep(kind, number, &input).display()));
            if bad.len() == MOST_BAD {
                break;
            }
        }
    }
    println!(
        "fuzz | {kind} | {} | {taken} | {refused} | {} | {} ms | {} MiB | {} MiB | {} s",
        taken + refused + bad.len(),
        bad.len(),
        longest.as_millis(),
        most >> 20,
        largest_mib(),
        started.elapsed().as_secs()
    );
    assert!(bad.is_empty(), "{kind}:\n{}", bad.join("\n"));
    assert!(largest_mib() < MOST_MIB, "{kind}: the process has had {} MiB", largest_mib());
    // The control: the changes are felt, and some are not refused at the first look.
    assert!(inputs < 100 || (taken > 0 && refused > 0), "{kind}: {taken} taken, {refused} refused");
}
