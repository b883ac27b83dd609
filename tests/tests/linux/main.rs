//! Guests with Debian's kernel and redis.

mod boot;
mod failover;
mod qemu;
