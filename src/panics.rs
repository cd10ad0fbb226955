//! A library's panic over a damaged file, or where libtorch fails, becomes an error.
//!
//! Not for this crate's own mistakes: those shall end the program. Only for calls into a library that is known to panic
//! on input that a user can cause, and that leaves nothing half done behind.

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
    /// Those of libtorch's bindings, which panic where libtorch throws.
    Libtorch,
    Everything,
}

/// Whether a panic with this message becomes an error on this thread: a panic hook that ends the program must let it pass.
pub fn becomes_an_error(message: &str) -> bool {
    match CONTAINED.get() {
        Contained::Nothing => false,
        Contained::Libtorch => is_libtorchs(message),
        Contained::Everything => true,
    }
}

/// Runs `call`; a panic in it is returned as its message. What `call` was changing must not be used after that.
///
/// # Errors
/// The panic's message.
pub fn contain<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CONTAINED.replace(Contained::Everything);
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(outer);
    result.map_err(|panic| message(&*panic))
}

/// Runs `call`; where libtorch throws in it, its message is returned. Any other panic goes on. What `call` was changing must
/// not be used after an error.
///
/// # Errors
/// The message of libtorch's bindings.
pub fn contain_libtorch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CONTAINED.replace(Contained::Libtorch);
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(outer);
    result.map_err(|panic| match message(&*panic) {
        text if is_libtorchs(&text) => text,
        _ => resume_unwind(panic),
    })
}

/// As the bindings write it: an unwrapped error of theirs.
fn is_libtorchs(message: &str) -> bool {
    message.contains("Torch(\"")
}

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
    fn of_libtorchs_panics_and_others_only_the_first_are_returned() {
        let failing = || tch::Tensor::zeros([2], (tch::Kind::Float, tch::Device::Cpu)).view([3]);
        let text = contain_libtorch(failing).unwrap_err();
        assert!(text.contains("is invalid for input of size 2"), "{text}");
        assert_eq!(contain_libtorch(|| becomes_an_error(&text)), Ok(true));
        assert_eq!(contain_libtorch(|| becomes_an_error("index out of bounds")), Ok(false));
        let other = std::panic::catch_unwind(|| contain_libtorch(|| panic!("a mistake of our own")));
        assert_eq!(other.unwrap_err().downcast_ref::<&str>(), Some(&"a mistake of our own"));
    }
}
