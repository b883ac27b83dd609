//! Reports of clients that wait for a guest that isn't there yet: after a second, and then rarely.

use crate::lan::events::LanEvent;
use crate::lan::server::ServerState;
use crate::lan::server::forward::Protocol;
use crate::os::clock;
use crate::os::rate_limit::RateLimit;
use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

/// A client that has waited this long for its guest is reported.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// The shortest time between two reports about a forward's waiting clients.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// [`TELL_INTERVAL`] in nanoseconds.
const TELL_INTERVAL_NS: u64 = TELL_INTERVAL.as_secs() * 1_000_000_000;

/// The waiting clients of one forward.
pub(in crate::lan) struct Waiters {
    shared: Rc<ServerState>,
    protocol: Protocol,
    listen: SocketAddr,
    guest: SocketAddrV4,
    /// Limits the reports of all clients of the forward together.
    told: RefCell<RateLimit>,
}

impl Waiters {
    /// A forward without waiting clients.
    pub(in crate::lan) fn new(
        shared: Rc<ServerState>,
        protocol: Protocol,
        listen: SocketAddr,
        guest: SocketAddrV4,
    ) -> Self {
        Self { shared, protocol, listen, guest, told: RefCell::new(RateLimit::every(TELL_INTERVAL_NS)) }
    }

    /// Reports one client that begins to wait now, for as long as the future isn't dropped.
    pub(in crate::lan) async fn tell(&self) -> Infallible {
        tokio::time::sleep(TELL_AFTER).await;
        loop {
            if self.told.borrow_mut().admit(clock::now_ns()).is_some() {
                self.shared.tell(&LanEvent::ClientWaits {
                    protocol: self.protocol.name(),
                    listen: self.listen.to_string(),
                    guest: self.guest.to_string(),
                    has_vm: self.shared.with(|fabric| fabric.has_vm()),
                });
            }
            tokio::time::sleep(TELL_INTERVAL).await;
        }
    }
}
