//! A library's panic over a damaged file becomes an error.
//!
//! Not for this crate's own mistakes: those shall end the program. Only for calls into a library that is known to panic
//! on input that a user can cause, and that leaves nothing half done behind.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is within [`contain`]: a panic hook that ends the program must let such a panic pass.
pub fn contained() -> bool {
    CONTAINED.get()
}

/// Runs `call`; a panic in it is returned as its message. What `call` was changing must not be used after that.
///
/// # Errors
/// The panic's message.
pub fn contain<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    CONTAINED.set(outer);
    result.map_err(|panic| message(&*panic))
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
        assert!(!contained());
        assert_eq!(contain(contained), Ok(true));
        assert_eq!(contain(|| panic!("{} of 3", 7)), Err::<(), _>("7 of 3".to_owned()));
        assert!(!contained(), "a panic after this one must not pass unseen");
    }
}
