//! The haf-dist program.

fn main() {}
