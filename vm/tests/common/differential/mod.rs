//! Random guests on the fast path against the same on the plain interpreter.

pub(crate) mod choices;
mod code;
pub(crate) mod lockstep;
pub(crate) mod program;
