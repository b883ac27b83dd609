//! The clients of forwards (TCP connections and UDP flows): how many there may be, and when an idle
//! one is closed.
//!
//! A connection is evicted for a new one only when it has been idle for
//! [`IDLE_BEFORE_EVICTION_US`], the longest idle first. So a client that opens connections and
//! leaves them idle doesn't keep others out for longer, and a client that uses its connections
//! keeps them.
//!
//! A flow is evicted at once, the longest silent first: of the same address if that has too many,
//! else of the same forward, else of all. A UDP client doesn't say when it is done. One that loses
//! its flow gets another with its next datagram, and only appears to the guest under another port.
//! If the new flow were refused instead, an address that changes its ports, as a resolver does,
//! would be served once in two minutes.

use crate::lan::server::limits::ClientLimits;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use tokio::sync::Notify;

/// A connection that is idle this long is closed, in microseconds.
const IDLE_US_MAX: u64 = 24 * 60 * 60 * 1_000_000;
/// The same for a half-closed connection: the other side has nothing more to say, or is gone.
const HALF_CLOSED_IDLE_US_MAX: u64 = 120 * 1_000_000;
/// A connection that has been idle this long may be evicted for a new one.
const IDLE_BEFORE_EVICTION_US: u64 = 60 * 1_000_000;
/// A UDP flow that is silent this long both ways loses its port at the gateway.
const FLOW_IDLE_US_MAX: u64 = 120 * 1_000_000;

/// The id of a connection or flow; never used again for another.
pub(in crate::lan) type ClientId = u64;

/// A limit of connections or flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) struct Limit {
    clients: usize,
    scope: &'static str,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.clients, self.scope)
    }
}

/// A limit is reached, and no connection has been idle long enough to be evicted.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the limit of {0} is reached, and all of them are in use")]
pub(in crate::lan) struct Full(Limit);

/// A client that was admitted.
#[derive(Debug)]
pub(in crate::lan) struct EnteredClient {
    /// Its id.
    pub(in crate::lan) id: ClientId,
    /// Wakes its task to look at its [`ClientStatus`].
    pub(in crate::lan) changed: Rc<Notify>,
    /// The limits for which other clients are evicted, one each.
    pub(in crate::lan) evicted: Vec<Limit>,
}

/// Whether a client may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) enum ClientStatus {
    /// It may, at least until this time.
    Until(u64),
    /// Nothing has passed over it for too long.
    Idle,
    /// Another client has taken its entry.
    Evicted,
}

#[derive(Debug)]
struct Client {
    forward: SocketAddr,
    address: IpAddr,
    used_at_us: u64,
    is_half_closed: bool,
    /// Tells its task to look at its [`ClientStatus`].
    changed: Rc<Notify>,
}

/// How long a client may be idle.
#[derive(Clone, Copy, Debug)]
struct IdleTimes {
    max_us: u64,
    half_closed_max_us: u64,
    before_eviction_us: u64,
}

/// All clients of one protocol.
#[derive(Debug)]
pub(in crate::lan) struct Clients {
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    limits: ClientLimits,
    idle: IdleTimes,
}

impl Clients {
    /// The connections of TCP clients: none yet.
    pub(in crate::lan) const fn connections(limits: ClientLimits) -> Self {
        let idle = IdleTimes {
            max_us: IDLE_US_MAX,
            half_closed_max_us: HALF_CLOSED_IDLE_US_MAX,
            before_eviction_us: IDLE_BEFORE_EVICTION_US,
        };
        Self { clients: BTreeMap::new(), next: 0, limits, idle }
    }

    /// The flows of UDP clients: none yet.
    pub(in crate::lan) const fn flows(limits: ClientLimits) -> Self {
        let idle = IdleTimes { max_us: FLOW_IDLE_US_MAX, half_closed_max_us: FLOW_IDLE_US_MAX, before_eviction_us: 0 };
        Self { clients: BTreeMap::new(), next: 0, limits, idle }
    }

    /// Admits a client at `address` that came through `forward`.
    ///
    /// # Errors
    /// [`Full`]
    pub(in crate::lan) fn enter(
        &mut self,
        forward: SocketAddr,
        address: IpAddr,
        now_us: u64,
    ) -> Result<EnteredClient, Full> {
        let ClientLimits { total, of_forward, of_address } = self.limits;
        let limit = |clients, scope| Limit { clients, scope };
        let evicted = [
            self.make_room(limit(of_address, "of one address"), now_us, |client| client.address == address)?,
            self.make_room(limit(of_forward, "of one forward"), now_us, |client| client.forward == forward)?,
            self.make_room(limit(total, "of all forwards"), now_us, |_| true)?,
        ];
        let id = self.next;
        self.next += 1;
        let changed = Rc::new(Notify::new());
        let client = Client { forward, address, used_at_us: now_us, is_half_closed: false, changed: changed.clone() };
        self.clients.insert(id, client);
        Ok(EnteredClient { id, changed, evicted: evicted.into_iter().flatten().collect() })
    }

    /// Evicts the longest idle client among those that count towards a limit, if the limit is
    /// reached. Returns the limit if a client was evicted.
    fn make_room(
        &mut self,
        limit: Limit,
        now_us: u64,
        is_counted: impl Fn(&Client) -> bool,
    ) -> Result<Option<Limit>, Full> {
        let counted = || self.clients.iter().filter(|(_, client)| is_counted(client));
        if counted().count() < limit.clients {
            return Ok(None);
        }
        let idlest = counted().min_by_key(|(_, client)| client.used_at_us);
        let (&id, _) = idlest
            .filter(|(_, client)| now_us.saturating_sub(client.used_at_us) >= self.idle.before_eviction_us)
            .ok_or(Full(limit))?;
        self.leave(id);
        Ok(Some(limit))
    }

    /// Bytes have passed.
    pub(in crate::lan) fn used(&mut self, id: ClientId, now_us: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.used_at_us = now_us;
        }
    }

    /// One side has closed its direction.
    pub(in crate::lan) fn half_closed(&mut self, id: ClientId, now_us: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            (client.is_half_closed, client.used_at_us) = (true, now_us);
            client.changed.notify_one();
        }
    }

    /// Whether a client may stay.
    pub(in crate::lan) fn status(&self, id: ClientId, now_us: u64) -> ClientStatus {
        let Some(client) = self.clients.get(&id) else { return ClientStatus::Evicted };
        let idle_us_max = if client.is_half_closed { self.idle.half_closed_max_us } else { self.idle.max_us };
        let until_us = client.used_at_us.saturating_add(idle_us_max);
        if until_us <= now_us { ClientStatus::Idle } else { ClientStatus::Until(until_us) }
    }

    /// Removes a client.
    pub(in crate::lan) fn leave(&mut self, id: ClientId) {
        if let Some(client) = self.clients.remove(&id) {
            client.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    const LIMITS: ClientLimits = ClientLimits { total: 12, of_forward: 8, of_address: 6 };

    /// The admitted client's id and how many were evicted for it; or the scope of the limit that is
    /// reached.
    fn enter(
        clients: &mut Clients,
        port: u16,
        address: u8,
        now_us: u64,
    ) -> Result<(ClientId, Vec<&'static str>), &'static str> {
        let entered = clients.enter(forward(port), [10, 0, 0, address].into(), now_us);
        entered
            .map(|entered| (entered.id, entered.evicted.iter().map(|limit| limit.scope).collect()))
            .map_err(|Full(limit)| limit.scope)
    }

    #[test]
    fn one_address_leaves_places_to_others_and_one_forward_to_the_next() {
        let mut clients = Clients::connections(LIMITS);
        (0..LIMITS.of_address).for_each(|_| _ = enter(&mut clients, 1, 1, 0).unwrap());
        for port in [1, 2] {
            assert_eq!(enter(&mut clients, port, 1, 0), Err("of one address"));
        }
        (LIMITS.of_address..LIMITS.of_forward).for_each(|_| _ = enter(&mut clients, 1, 2, 0).unwrap());
        assert_eq!(enter(&mut clients, 1, 200, 0), Err("of one forward"));
        (LIMITS.of_forward..LIMITS.total).for_each(|_| _ = enter(&mut clients, 2, 200, 0).unwrap());
        assert_eq!(enter(&mut clients, 2, 3, 0), Err("of all forwards"));
    }

    #[test]
    fn a_new_flow_takes_the_place_of_the_longest_silent_of_its_address_then_of_its_forward_then_of_all() {
        let mut flows = Clients::flows(LIMITS);
        let (other, _) = enter(&mut flows, 1, 2, 0).unwrap();
        let ids: Vec<_> = (1..=6).map(|now_us| enter(&mut flows, 1, 1, now_us).unwrap().0).collect();
        flows.used(ids[0], 7);
        let (seventh, evicted) = enter(&mut flows, 2, 1, 8).unwrap();
        assert_eq!(evicted, ["of one address"]);
        assert_eq!(flows.status(ids[1], 8), ClientStatus::Evicted);
        assert_eq!(flows.status(other, 8), ClientStatus::Until(FLOW_IDLE_US_MAX), "others keep theirs");
        (3..5).for_each(|address| assert_eq!(enter(&mut flows, 1, address, 9).unwrap().1, [""; 0]));
        assert_eq!(enter(&mut flows, 1, 5, 9).unwrap().1, ["of one forward"]);
        assert_eq!(flows.status(other, 9), ClientStatus::Evicted);
        (0..3).for_each(|address| assert_eq!(enter(&mut flows, 2, 10 + address, 10).unwrap().1, [""; 0]));
        assert_eq!(enter(&mut flows, 3, 20, 11).unwrap().1, ["of all forwards"]);
        assert_eq!(flows.status(ids[2], 11), ClientStatus::Evicted);
        assert_eq!(flows.status(seventh, 8 + FLOW_IDLE_US_MAX), ClientStatus::Idle);
    }

    #[test]
    fn who_has_been_idle_longest_makes_room_and_who_is_busy_does_not() {
        let mut clients = Clients::connections(LIMITS);
        let ids: Vec<_> = (0..LIMITS.of_address).map(|_| enter(&mut clients, 1, 1, 0).unwrap().0).collect();
        clients.used(ids[0], 5);
        let now_us = IDLE_BEFORE_EVICTION_US;
        assert_eq!(enter(&mut clients, 1, 1, now_us).unwrap().1, ["of one address"]);
        assert_eq!(clients.status(ids[1], now_us), ClientStatus::Evicted);
        assert_eq!(clients.status(ids[0], now_us), ClientStatus::Until(5 + IDLE_US_MAX));
        ids.iter().for_each(|&id| clients.used(id, now_us));
        assert!(enter(&mut clients, 1, 1, now_us + 1).is_err());
    }

    #[test]
    fn half_closed_and_silent_ends_soon_and_idle_ends_late() {
        let mut clients = Clients::connections(LIMITS);
        let (open, _) = enter(&mut clients, 1, 1, 0).unwrap();
        let (half, _) = enter(&mut clients, 1, 1, 0).unwrap();
        clients.half_closed(half, 7);
        assert_eq!(clients.status(half, 7), ClientStatus::Until(7 + HALF_CLOSED_IDLE_US_MAX));
        clients.used(half, 9);
        assert_eq!(clients.status(half, 9 + HALF_CLOSED_IDLE_US_MAX), ClientStatus::Idle);
        assert_eq!(clients.status(open, 9 + HALF_CLOSED_IDLE_US_MAX), ClientStatus::Until(IDLE_US_MAX));
        assert_eq!(clients.status(open, IDLE_US_MAX), ClientStatus::Idle);
    }
}
