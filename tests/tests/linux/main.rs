//! Guests with Debian's kernel and redis.

mod boot;
mod failover;
mod qemu;
mod time_of_day;
