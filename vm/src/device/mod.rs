//! Register models of the board's devices.
//!
//! A device has no backend: inputs are arguments of its methods and outputs are results. An access
//! to a register that doesn't exist reads zero and writes nothing; an access of a width that the
//! device doesn't take is an access fault (`None`).

pub(crate) mod clint;
pub(crate) mod finisher;
pub(crate) mod plic;
pub(crate) mod rtc;
pub(crate) mod uart;
pub(crate) mod virtio;
