//! The TCP clients that have come through forwards: how many there may be, and when one that does nothing has to go.
//!
//! A place is given up for a new client only by one that has been idle for [`IDLE_BEFORE_EVICTION_US`], the longest idle
//! first. So a client that opens connections and leaves them alone keeps nobody out for longer, and one that uses its
//! connections keeps them.

use super::limits::ConnectionLimits;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use tokio::sync::Notify;

/// A connection over which nothing passes for so long is closed.
pub(super) const IDLE_US_MAX: u64 = 24 * 60 * 60 * 1_000_000;
/// The same for a connection that one side has closed: the other has nothing to say, or nobody is there to hear it.
pub(super) const HALF_CLOSED_IDLE_US_MAX: u64 = 120 * 1_000_000;
/// A connection that has been idle for so long may lose its place to a new one.
pub(super) const IDLE_BEFORE_EVICTION_US: u64 = 60 * 1_000_000;

/// Names one connection; no two ever have the same.
pub(super) type ClientId = u64;

/// A limit is reached, and nobody has been idle for long.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the limit of {limit} connections {scope} is reached, and all of them are in use")]
pub(super) struct Full {
    limit: usize,
    scope: &'static str,
}

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It hasn't, before this time.
    Until(u64),
    /// Nothing has passed over it for too long.
    Idle,
    /// Its place was given to another one.
    Evicted,
}

#[derive(Debug)]
struct Client {
    forward: SocketAddr,
    address: IpAddr,
    used_at_us: u64,
    is_half_closed: bool,
    /// Tells its task to look at its [`Standing`].
    changed: Rc<Notify>,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    limits: ConnectionLimits,
}

impl Clients {
    /// Nobody yet, and at most so many.
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes in a client at `address` that came through `forward`. Returns its id and what wakes it, and how many idle ones
    /// lose their places to it.
    ///
    /// # Errors
    /// [`Full`]
    pub(super) fn enter(
        &mut self,
        forward: SocketAddr,
        address: IpAddr,
        now_us: u64,
    ) -> Result<(ClientId, Rc<Notify>, u64), Full> {
        let mut evicted = 0;
        let limits = self.limits;
        evicted +=
            self.make_room(limits.clients_of_address, "of one address", now_us, |client| client.address == address)?;
        evicted +=
            self.make_room(limits.clients_of_forward, "of one forward", now_us, |client| client.forward == forward)?;
        evicted += self.make_room(limits.clients, "of all forwards", now_us, |_| true)?;
        let id = self.next;
        self.next += 1;
        let changed = Rc::new(Notify::new());
        let client = Client { forward, address, used_at_us: now_us, is_half_closed: false, changed: changed.clone() };
        self.clients.insert(id, client);
        Ok((id, changed, evicted))
    }

    fn make_room(
        &mut self,
        limit: usize,
        scope: &'static str,
        now_us: u64,
        is_counted: impl Fn(&Client) -> bool,
    ) -> Result<u64, Full> {
        let counted = || self.clients.iter().filter(|(_, client)| is_counted(client));
        if counted().count() < limit {
            return Ok(0);
        }
        let idlest = counted().min_by_key(|(_, client)| client.used_at_us);
        let (&id, _) = idlest
            .filter(|(_, client)| now_us.saturating_sub(client.used_at_us) >= IDLE_BEFORE_EVICTION_US)
            .ok_or(Full { limit, scope })?;
        self.leave(id);
        Ok(1)
    }

    /// Bytes have passed.
    pub(super) fn used(&mut self, id: ClientId, now_us: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.used_at_us = now_us;
        }
    }

    /// One side has closed its direction.
    pub(super) fn half_closed(&mut self, id: ClientId, now_us: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            (client.is_half_closed, client.used_at_us) = (true, now_us);
            client.changed.notify_one();
        }
    }

    /// Whether a client may stay.
    pub(super) fn standing(&self, id: ClientId, now_us: u64) -> Standing {
        let Some(client) = self.clients.get(&id) else { return Standing::Evicted };
        let idle_us_max = if client.is_half_closed { HALF_CLOSED_IDLE_US_MAX } else { IDLE_US_MAX };
        let until_us = client.used_at_us.saturating_add(idle_us_max);
        if until_us <= now_us { Standing::Idle } else { Standing::Until(until_us) }
    }

    /// Takes leave of a client.
    pub(super) fn leave(&mut self, id: ClientId) {
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

    fn enter(clients: &mut Clients, port: u16, address: u8, now_us: u64) -> Result<(ClientId, u64), Full> {
        let entered = clients.enter(forward(port), [10, 0, 0, address].into(), now_us);
        entered.map(|(id, _, evicted)| (id, evicted))
    }

    #[test]
    fn one_address_leaves_places_to_others_and_one_forward_to_the_next() {
        let (mut clients, limits) = (Clients::default(), ConnectionLimits::default());
        (0..limits.clients_of_address).for_each(|_| _ = enter(&mut clients, 1, 1, 0).unwrap());
        for port in [1, 2] {
            assert_eq!(enter(&mut clients, port, 1, 0).map_err(|full| full.scope), Err("of one address"));
        }
        for n in limits.clients_of_address..limits.clients_of_forward {
            enter(&mut clients, 1, 2 + u8::try_from(n % 100).unwrap(), 0).unwrap();
        }
        assert_eq!(enter(&mut clients, 1, 200, 0).map_err(|full| full.scope), Err("of one forward"));
        enter(&mut clients, 2, 200, 0).unwrap();
    }

    #[test]
    fn who_has_been_idle_longest_makes_room_and_who_is_busy_does_not() {
        let (mut clients, limits) = (Clients::default(), ConnectionLimits::default());
        let ids: Vec<_> = (0..limits.clients_of_address).map(|_| enter(&mut clients, 1, 1, 0).unwrap().0).collect();
        clients.used(ids[0], 5);
        let now_us = IDLE_BEFORE_EVICTION_US;
        assert_eq!(enter(&mut clients, 1, 1, now_us).unwrap().1, 1);
        assert_eq!(clients.standing(ids[1], now_us), Standing::Evicted);
        assert_eq!(clients.standing(ids[0], now_us), Standing::Until(5 + IDLE_US_MAX));
        ids.iter().for_each(|&id| clients.used(id, now_us));
        assert!(enter(&mut clients, 1, 1, now_us + 1).is_err());
    }

    #[test]
    fn half_closed_and_silent_ends_soon_and_idle_ends_late() {
        let mut clients = Clients::default();
        let (open, _) = enter(&mut clients, 1, 1, 0).unwrap();
        let (half, _) = enter(&mut clients, 1, 1, 0).unwrap();
        clients.half_closed(half, 7);
        assert_eq!(clients.standing(half, 7), Standing::Until(7 + HALF_CLOSED_IDLE_US_MAX));
        clients.used(half, 9);
        assert_eq!(clients.standing(half, 9 + HALF_CLOSED_IDLE_US_MAX), Standing::Idle);
        assert_eq!(clients.standing(open, 9 + HALF_CLOSED_IDLE_US_MAX), Standing::Until(IDLE_US_MAX));
        assert_eq!(clients.standing(open, IDLE_US_MAX), Standing::Idle);
    }
}
