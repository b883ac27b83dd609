//! Redis' checking client, as tests use it.

use crate::linux::PATIENCE;
use hypervisor::program::client::redis;
use hypervisor::program::client::{Client, ClientResult};
use std::net::SocketAddr;

/// A client at work on a thread of its own: it increments a counter and sets keys, and every reply
/// must be what follows from the ones before it.
#[derive(Debug)]
pub struct RedisLoad(Client);

impl RedisLoad {
    /// Replies that the client has between two looks at a test's guest.
    pub const REPLIES: u64 = 2000;

    /// Connects to the redis at `service`, which must be empty, and lets the client have its first
    /// [`REPLIES`](Self::REPLIES).
    ///
    /// # Panics
    /// If there is no redis, or it isn't right.
    #[track_caller]
    #[must_use]
    pub fn on(service: SocketAddr) -> Self {
        let load = Self(redis::start(service).expect("redis accepts connections"));
        load.goes_on();
        load
    }

    /// Waits until the client has had [`REPLIES`](Self::REPLIES) more, all of them right.
    ///
    /// # Panics
    /// If it hasn't within [`PATIENCE`], or something was wrong.
    #[track_caller]
    pub fn goes_on(&self) {
        let answered = self.0.wait_for_replies(Self::REPLIES, PATIENCE);
        assert!(answered, "redis: after {} replies: {:?}", self.0.received(), self.0.error());
    }

    /// Ends the client, which reads everything back on the connection that it always had. Gives the
    /// number of commands that redis acknowledged; the effect of every one of them is there, once.
    ///
    /// # Panics
    /// If something is missing, or a reply was wrong, or the connection was lost.
    #[track_caller]
    pub fn lost_nothing(self) -> u64 {
        let result = self.0.finish();
        assert!(result.is_perfect(), "redis: {result:?}");
        result.received
    }
}

/// What a client sees of the redis at `service` that isn't empty, as it expects.
///
/// # Panics
/// If there is no redis.
#[must_use]
pub fn misled_client(service: SocketAddr) -> ClientResult {
    let client = redis::start(service).expect("redis accepts connections");
    // It ends at its first wrong reply.
    let _ = client.wait_for_replies(1, PATIENCE);
    client.finish()
}
