//! Debian's kernel with redis as a guest.

mod boot;
mod failover;
mod qemu;
