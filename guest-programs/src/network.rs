//! The guests' TCP/IP stack: smoltcp with an address, and the order in which it is polled.
//!
//! A poll receives, lets the service answer, and then sends. smoltcp's own `poll` sends before the
//! service has seen what arrived, so that every request costs a bare acknowledgement and then an
//! answer; in this order the answer carries the acknowledgement, one packet instead of two.

use alloc::vec::Vec;
use core::fmt;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::phy::Device;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

/// The guest's address.
pub const ADDRESS: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
/// The guest's default gateway.
pub const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const PREFIX_BITS: u8 = 24;

/// The longest packet in bytes: an Ethernet frame without its frame check sequence. The machine's
/// network device has the same limit, which it can't share with its guests: both follow Ethernet.
pub const PACKET_BYTES_MAX: usize = 1514;

/// The most packets received before the service answers: a full receive queue, so that a flood
/// delays an answer by a bounded time.
const INGRESS_PACKETS_MAX: usize = 64;

/// A service on a guest's sockets.
pub trait Service {
    /// Reads and writes as much as possible without waiting.
    fn serve(&mut self, sockets: &mut SocketSet<'static>);
}

/// A TCP/IP stack at [`ADDRESS`] and the service on top of it.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Stack {
    /// A stack without sockets.
    ///
    /// `random_seed` decides the initial sequence numbers. The same seed and inputs give the same
    /// packets.
    pub fn new(device: &mut (impl Device + ?Sized), mac: [u8; 6], random_seed: u64, now: Instant) -> Self {
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = random_seed;
        let mut interface = Interface::new(config, device, now);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(ADDRESS.into(), PREFIX_BITS)).expect("the interface has room for one address");
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("the interface has room for one route");
        Self { interface, sockets: SocketSet::new(Vec::new()) }
    }

    /// The sockets, for a service to add its own.
    pub fn sockets_mut(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    /// Receives packets, serves and sends. Returns when to poll again if no packet arrives before;
    /// `None` if only a packet makes that necessary.
    ///
    /// At most a full queue of packets is received: the caller polls again while its device has
    /// more.
    pub fn poll(
        &mut self,
        now: Instant,
        device: &mut (impl Device + ?Sized),
        service: &mut (impl Service + ?Sized),
    ) -> Option<Instant> {
        self.interface.poll_maintenance(now);
        let took_packets = self.take_in(now, device);
        service.serve(&mut self.sockets);
        while self.interface.poll_egress(now, device, &mut self.sockets) == PollResult::SocketStateChanged {}
        if !took_packets {
            // A timer may have ended a connection, whose socket the service can use again.
            service.serve(&mut self.sockets);
        }
        self.interface.poll_at(now, &self.sockets)
    }

    fn take_in(&mut self, now: Instant, device: &mut (impl Device + ?Sized)) -> bool {
        for packets in 0..INGRESS_PACKETS_MAX {
            match self.interface.poll_ingress_single(now, device, &mut self.sockets) {
                PollIngressSingleResult::None => return packets > 0,
                PollIngressSingleResult::PacketProcessed | PollIngressSingleResult::SocketStateChanged => {}
            }
        }
        true
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("sockets", &self.sockets.iter().count()).finish_non_exhaustive()
    }
}
