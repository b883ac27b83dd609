//! The machine compared with QEMU's `virt` board.

mod conformance;
mod differential;
mod echo;
