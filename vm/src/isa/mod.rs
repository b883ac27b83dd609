//! The instruction set: types and decoding, without state.

pub(crate) mod address;
mod bits;
mod compressed;
pub(crate) mod decode;
pub(crate) mod float;
pub(crate) mod instruction;
pub(crate) mod privilege;
pub(crate) mod trap;
