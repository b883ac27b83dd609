//! Random guests, run on the fast interpreter and on the plain one.

pub(crate) mod choices;
mod code;
pub(crate) mod lockstep;
pub(crate) mod program;
