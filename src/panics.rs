//! Turns a library's panic into an error: over a damaged file, or when libtorch fails.
//!
//! Not for bugs in this crate: those must end the program. Only for calls into a library that is known to panic on a user's input
//! and that leaves no half-changed state behind.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    static CONTAINED: Cell<Contained> = const { Cell::new(Contained::Nothing) };
}

/// Which panics of this thread become errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contained {
    Nothing,
    /// Those of libtorch's bindings, which panic when libtorch throws.
    Libtorch,
    Everything,
}

/// Whether a panic with this message becomes an error on this thread: a panic hook that ends the program must let it pass.
pub fn becomes_an_error(message: &str) -> bool {
    match CONTAINED.get() {
        Contained::Nothing => false,
        Contained::Libtorch => message.contains(THROWN),
        Contained::Everything => true,
    }
}

/// Runs `call`; returns the message of a panic in it. After a panic, nothing that `call` was changing may be used.
///
/// # Errors
/// The panic's message.
pub(crate) fn contain<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CONTAINED.replace(Contained::Everything);
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(outer);
    result.map_err(|panic| message(&*panic))
}

/// Runs `call`; returns libtorch's message if libtorch throws in it. Any other panic passes through. After an error, nothing that
/// `call` was changing may be used.
///
/// # Errors
/// The message of libtorch's bindings.
pub(crate) fn contain_libtorch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    // Within a call in which every panic is contained, so is every panic here.
    let outer = CONTAINED.get();
    CONTAINED.set(if outer == Contained::Everything { outer } else { Contained::Libtorch });
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(outer);
    result.map_err(|panic| thrown(&message(&*panic)).unwrap_or_else(|| resume_unwind(panic)))
}

/// libtorch's message in a panic of its bindings. They unwrap their error, so the message is quoted as by `{:?}`.
fn thrown(message: &str) -> Option<String> {
    let (_, quoted) = message.split_once(THROWN)?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => match characters.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
    Some(text)
}

/// How the bindings' error starts in a panic's message.
const THROWN: &str = "Torch(\"";

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_returned_and_only_within_the_call_it_is_contained() {
        assert!(!becomes_an_error("any"));
        assert_eq!(contain(|| becomes_an_error("any")), Ok(true));
        assert_eq!(contain(|| panic!("{} of 3", 7)), Err::<(), _>("7 of 3".to_owned()));
        assert!(!becomes_an_error("any"), "a panic after this one must not pass unseen");
    }

    #[test]
    fn only_libtorchs_panics_become_errors() {
        let failing = || tch::Tensor::zeros([2], (tch::Kind::Float, tch::Device::Cpu)).view([3]);
        let text = contain_libtorch(failing).unwrap_err();
        assert!(text.contains("is invalid for input of size 2"), "{text}");
        let panic = format!("called `Result::unwrap()` on an `Err` value: Torch({text:?})");
        assert_eq!(contain_libtorch(|| becomes_an_error(&panic)), Ok(true));
        assert_eq!(contain(|| contain_libtorch(|| becomes_an_error("any"))), Ok(Ok(true)), "the wider one holds");
        assert_eq!(contain_libtorch(|| becomes_an_error("index out of bounds")), Ok(false));
        let other = std::panic::catch_unwind(|| contain_libtorch(|| panic!("a mistake of our own")));
        assert_eq!(other.unwrap_err().downcast_ref::<&str>(), Some(&"a mistake of our own"));
    }
}
