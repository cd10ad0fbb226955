//! Code that several test programs share.

pub mod conformance;
