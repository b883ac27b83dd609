//! The checking client of redis, for tests.

use crate::linux::PATIENCE;
use hypervisor::program::client::redis;
use hypervisor::program::client::{Client, ClientResult};
use std::net::SocketAddr;

/// A client on a thread of its own. It increments a counter and sets keys; every reply must follow
/// from the ones before it.
#[derive(Debug)]
pub struct RedisLoad(Client);

impl RedisLoad {
    /// The replies for which a test waits to see that the client is served.
    pub const REPLIES: u64 = 2000;

    /// Connects to the redis at `service`, which must be empty, and waits until the client has had
    /// its first [`REPLIES`](Self::REPLIES).
    ///
    /// # Panics
    /// If there is no redis, or a reply is wrong.
    #[track_caller]
    #[must_use]
    pub fn on(service: SocketAddr) -> Self {
        let load = Self(redis::start(service).expect("redis accepts connections"));
        load.goes_on();
        load
    }

    /// Waits until the client has had [`REPLIES`](Self::REPLIES) more, all of them correct.
    ///
    /// # Panics
    /// If it hasn't within [`PATIENCE`], or a reply is wrong.
    #[track_caller]
    pub fn goes_on(&self) {
        let answered = self.0.wait_for_replies(Self::REPLIES, PATIENCE);
        assert!(answered, "redis: after {} replies: {:?}", self.0.received(), self.0.error());
    }

    /// Ends the client, which reads everything back on its only connection. Returns the number of
    /// commands that redis acknowledged; each has had its effect once.
    ///
    /// # Panics
    /// If something is missing, a reply was wrong, or the connection was lost.
    #[track_caller]
    pub fn lost_nothing(self) -> u64 {
        let result = self.0.finish();
        assert!(result.is_perfect(), "redis: {result:?}");
        result.received
    }
}

/// The result of a client that expects the redis at `service` to be empty, which it isn't.
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
