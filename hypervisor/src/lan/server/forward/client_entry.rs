//! A client's place among all that came through forwards.

use crate::lan::server::ServerState;
use crate::lan::server::clients::{ClientId, EnteredClient, Full, Limit, Standing};
use crate::lan::server::forward::Protocol;
use crate::os::clock;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// A client's place, until it is dropped.
pub(in crate::lan) struct ClientEntry {
    shared: Rc<ServerState>,
    protocol: Protocol,
    id: ClientId,
    changed: Rc<Notify>,
}

/// Why a client has lost its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) enum Lost {
    /// Nothing has passed for too long.
    Idle,
    /// Another client has it.
    Evicted,
}

impl ClientEntry {
    /// A place for the client at `peer`, which has come to `listen`; and the limits for which
    /// others have lost theirs to it.
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

    /// Something has passed.
    pub(in crate::lan) fn used(&self) {
        self.shared.clients(self.protocol).used(self.id, clock::now_us());
    }

    /// One side has closed its direction.
    pub(in crate::lan) fn half_closed(&self) {
        self.shared.clients(self.protocol).half_closed(self.id, clock::now_us());
    }

    /// Whether another client has the place.
    pub(in crate::lan) fn is_evicted(&self) -> bool {
        self.shared.clients(self.protocol).standing(self.id, clock::now_us()) == Standing::Evicted
    }

    /// Waits until the client has to go.
    pub(in crate::lan) async fn lost(&self) -> Lost {
        loop {
            let now_us = clock::now_us();
            let standing = self.shared.clients(self.protocol).standing(self.id, now_us);
            let left = match standing {
                Standing::Until(until_us) => Duration::from_micros(until_us - now_us),
                Standing::Evicted => return Lost::Evicted,
                Standing::Idle => return Lost::Idle,
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
