//! A forward's task for a client holds the client's entry in the table of clients.

use crate::lan::server::ServerState;
use crate::lan::server::clients::{ClientId, ClientStatus, EnteredClient, Full, Limit};
use crate::lan::server::forward::Protocol;
use crate::os::clock;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// The entry of one client in [`Clients`](crate::lan::server::clients::Clients), removed when
/// dropped.
pub(in crate::lan) struct ClientEntry {
    shared: Rc<ServerState>,
    protocol: Protocol,
    id: ClientId,
    changed: Rc<Notify>,
}

/// Why a client has lost its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) enum Lost {
    /// Nothing has passed for too long.
    Idle,
    /// Another client has taken its entry.
    Evicted,
}

impl ClientEntry {
    /// Enters the client at `peer`, which has connected to `listen`. Returns the limits for which
    /// other clients were evicted, too.
    ///
    /// # Errors
    /// [`Full`]
    pub(in crate::lan) fn take(
        shared: &Rc<ServerState>,
        protocol: Protocol,
        listen: SocketAddr,
        peer: SocketAddr,
    ) -> Result<(Self, Vec<Limit>), Full> {
        let entered = shared.clients(protocol).enter(listen, peer.ip(), clock::now_us())?;
        let EnteredClient { id, changed, evicted } = entered;
        Ok((Self { shared: shared.clone(), protocol, id, changed }, evicted))
    }

    /// Bytes have passed.
    pub(in crate::lan) fn used(&self) {
        self.shared.clients(self.protocol).used(self.id, clock::now_us());
    }

    /// One side has closed its direction.
    pub(in crate::lan) fn half_closed(&self) {
        self.shared.clients(self.protocol).half_closed(self.id, clock::now_us());
    }

    /// `true` if another client has taken the entry.
    pub(in crate::lan) fn is_evicted(&self) -> bool {
        self.shared.clients(self.protocol).status(self.id, clock::now_us()) == ClientStatus::Evicted
    }

    /// Waits until the client has to go.
    pub(in crate::lan) async fn lost(&self) -> Lost {
        loop {
            let now_us = clock::now_us();
            let status = self.shared.clients(self.protocol).status(self.id, now_us);
            let left = match status {
                ClientStatus::Until(until_us) => Duration::from_micros(until_us - now_us),
                ClientStatus::Evicted => return Lost::Evicted,
                ClientStatus::Idle => return Lost::Idle,
            };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

impl Drop for ClientEntry {
    fn drop(&mut self) {
        self.shared.clients(self.protocol).leave(self.id);
    }
}
