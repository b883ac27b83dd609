//! The machine against QEMU's virt board.

mod conformance;
mod differential;
mod echo;
