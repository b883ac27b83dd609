//! The gateway: an IP host on the LAN, inside this process, from which forwarded connections reach
//! the guests.
//!
//! It terminates the guest's TCP with smoltcp. Time is an argument, packets are queues: no sockets
//! of the host here.
//!
//! On retransmission: smoltcp's retransmission timeout starts at 1 s and doubles up to 60 s;
//! neither can be set. It hardly matters here, because the LAN loses nothing while a guest's host
//! is away: the packets sent meanwhile are kept and delivered as soon as the VM is attached again.
//! Only an overflow of the kept packets makes TCP wait for it.

use super::packet_queues::{PacketQueues, QUEUE_PACKETS_MAX};
use super::ports::PortSequence;
use super::switch::Mac;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress,
    IpAddress, IpCidr, Ipv4Cidr,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

/// The gateway's address on the LAN.
pub(in crate::lan) const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Length of the LAN's network prefix.
pub(in crate::lan) const PREFIX_BITS: u8 = 24;
/// The gateway's Ethernet address: locally administered.
pub(in crate::lan) const GATEWAY_MAC: Mac = [0x02, 0x46, 0x54, 0x00, 0x02, 0x02];
/// The largest UDP payload; a payload that doesn't fit one packet is sent in fragments.
pub(in crate::lan) const UDP_PAYLOAD_BYTES_MAX: usize = 65535 - 20 - 8;
/// How long a guest may be silent before a half-open or half-closed connection is given up. An
/// established one waits for its guest for ever.
pub(in crate::lan) const GUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes in flight for each direction of a connection.
const TCP_BUFFER_BYTES: usize = 128 << 10;
/// Datagrams in flight for each direction of a flow.
const UDP_BUFFER_PACKETS: usize = 32;
/// Bytes in flight for each direction of a flow: two of the largest datagrams.
const UDP_BUFFER_BYTES: usize = 128 << 10;
/// How long the gateway waits for all fragments of a datagram. It has room for a few datagrams at a
/// time, which a guest that sends only parts must not occupy for long.
const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval of ARP requests for a guest that a client waits for. smoltcp asks by itself, and
/// then sends nothing for a second, so that a guest that attaches meanwhile would be found late.
const ASK_INTERVAL_US: u64 = 100_000;
/// After this many unanswered ARP requests the gateway asks at [`SLOW_ASK_INTERVAL_US`].
const QUICK_ASKS: u32 = 20;
/// The interval of ARP requests after [`QUICK_ASKS`].
const SLOW_ASK_INTERVAL_US: u64 = 1_000_000;
/// How long a TCP acknowledgement waits for data to go with. Every packet saved saves a log entry
/// and an interrupt of the guest. The delay is longer than a round trip under fault tolerance, and
/// far shorter than any retransmission timeout.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// An IP host that connects to guests on behalf of the clients of forwards.
pub(in crate::lan) struct Gateway {
    interface: Interface,
    sockets: SocketSet<'static>,
    queues: PacketQueues,
    tcp_connections: usize,
    /// The guest at the other end of each UDP socket.
    udp_guests: BTreeMap<SocketHandle, Ipv4Addr>,
    /// The local ports of connections, for each guest port that is forwarded to.
    tcp_ports: BTreeMap<SocketAddrV4, PortSequence>,
    /// The local ports of UDP flows.
    udp_ports: PortSequence,
    /// `true` if a socket may be waiting for a guest's Ethernet address.
    is_asking: bool,
    /// ARP requests sent since a VM last attached, or since no socket waited.
    asked: u32,
    ask_due_us: u64,
}

impl Gateway {
    /// A gateway; `seed` makes its sequence numbers hard to guess.
    pub(in crate::lan) fn new(seed: u64, now_us: u64) -> Self {
        let mut queues = PacketQueues::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GATEWAY_MAC)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut queues, instant(now_us));
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::Ipv4(Ipv4Cidr::new(GATEWAY_IP, PREFIX_BITS)))
                .expect("smoltcp has room for at least one address");
        });
        interface.set_reassembly_timeout(REASSEMBLY_TIMEOUT);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            queues,
            tcp_connections: 0,
            udp_guests: BTreeMap::new(),
            tcp_ports: BTreeMap::new(),
            udp_ports: PortSequence::default(),
            is_asking: false,
            asked: 0,
            ask_due_us: 0,
        }
    }

    /// A VM has attached: asks at once whether it is the guest that a socket waits for.
    pub(in crate::lan) const fn guest_attached(&mut self) {
        (self.is_asking, self.asked, self.ask_due_us) = (true, 0, 0);
    }

    /// Forgets all learned Ethernet addresses of IP addresses; the gateway asks for them again.
    pub(in crate::lan) fn forget_neighbors(&mut self) {
        // smoltcp forgets its neighbors only in this call; the addresses stay as they are.
        self.interface.update_ip_addrs(|_| {});
    }

    /// Takes a packet from the LAN; it is processed by the next [`Gateway::poll`]. Returns `false`
    /// if it was dropped.
    pub(in crate::lan) fn receive(&mut self, packet: &[u8]) -> bool {
        let room = self.queues.received.len() < QUEUE_PACKETS_MAX;
        if room {
            self.queues.received.push_back(packet.into());
        }
        room
    }

    /// Processes everything received and sends everything due. Returns the packets for the LAN;
    /// when there were some, there may be more.
    pub(in crate::lan) fn poll(&mut self, now_us: u64) -> VecDeque<Vec<u8>> {
        self.interface.poll(instant(now_us), &mut self.queues, &mut self.sockets);
        if self.is_asking && now_us >= self.ask_due_us {
            self.ask(now_us);
        }
        std::mem::take(&mut self.queues.sent)
    }

    /// When [`Gateway::poll`] must be called at the latest.
    pub(in crate::lan) fn deadline_us(&mut self, now_us: u64) -> Option<u64> {
        let delay = self.interface.poll_delay(instant(now_us), &self.sockets);
        let poll_due_us = delay.map(|delay| now_us.saturating_add(delay.total_micros()));
        poll_due_us.into_iter().chain(self.is_asking.then_some(self.ask_due_us)).min()
    }

    /// Asks for the Ethernet addresses of the guests to which something could not be sent yet.
    fn ask(&mut self, now_us: u64) {
        let guests: BTreeSet<_> =
            self.sockets.iter().filter_map(|(handle, socket)| self.awaited(handle, socket)).collect();
        self.is_asking = !guests.is_empty();
        self.asked = if self.is_asking { self.asked + 1 } else { 0 };
        self.ask_due_us = now_us + if self.asked < QUICK_ASKS { ASK_INTERVAL_US } else { SLOW_ASK_INTERVAL_US };
        self.queues.sent.extend(guests.into_iter().map(arp_request));
    }

    /// The guest that `socket` waits for: for the answer to its first segment, or to send a
    /// datagram.
    fn awaited(&self, handle: SocketHandle, socket: &smoltcp::socket::Socket<'_>) -> Option<Ipv4Addr> {
        match socket {
            smoltcp::socket::Socket::Tcp(socket) if socket.state() == tcp::State::SynSent => {
                let IpAddress::Ipv4(guest) = socket.remote_endpoint()?.addr;
                Some(guest)
            }
            smoltcp::socket::Socket::Udp(socket) if socket.send_queue() > 0 => self.udp_guests.get(&handle).copied(),
            smoltcp::socket::Socket::Tcp(_) | smoltcp::socket::Socket::Udp(_) => None,
        }
    }

    /// Begins a TCP connection to a guest. [`Clients`](super::clients::Clients) limits how many
    /// there are.
    pub(in crate::lan) fn connect_tcp(&mut self, guest: SocketAddrV4, now_us: u64) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]),
            tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]),
        );
        // The client's data goes to the guest at once, in the pieces in which it came.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_timeout(Some(GUEST_TIMEOUT));
        let mut ports = self.tcp_ports.get(&guest).copied().unwrap_or_default();
        let port = self.free_port(&mut ports, now_us);
        self.tcp_ports.insert(guest, ports);
        socket
            .connect(self.interface.context(), (*guest.ip(), guest.port()), (GATEWAY_IP, port))
            .expect("a new socket connects to the checked address of a forward");
        self.tcp_connections += 1;
        self.is_asking = true;
        self.sockets.add(socket)
    }

    /// Opens a UDP socket with a port of its own, for datagrams to `guest`.
    /// [`Clients`](super::clients::Clients) limits how many there are, too.
    pub(in crate::lan) fn open_udp(&mut self, guest: Ipv4Addr, now_us: u64) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; UDP_BUFFER_PACKETS], vec![0; UDP_BUFFER_BYTES]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        let mut ports = self.udp_ports;
        let port = self.free_port(&mut ports, now_us);
        self.udp_ports = ports;
        socket.bind((GATEWAY_IP, port)).expect("a new socket binds to a port that is not 0");
        let handle = self.sockets.add(socket);
        self.udp_guests.insert(handle, guest);
        handle
    }

    /// The TCP socket behind `handle`.
    pub(in crate::lan) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// The UDP socket behind `handle`.
    pub(in crate::lan) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.is_asking = true;
        self.sockets.get_mut(handle)
    }

    /// Removes a TCP socket; data that it has not sent is dropped.
    pub(in crate::lan) fn remove_tcp(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
        self.tcp_connections -= 1;
    }

    /// Removes a UDP socket.
    pub(in crate::lan) fn remove_udp(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
        self.udp_guests.remove(&handle);
    }

    /// The next port of `sequence` that isn't in use. There are many more ports than sockets.
    fn free_port(&self, sequence: &mut PortSequence, now_us: u64) -> u16 {
        loop {
            let port = sequence.take(now_us);
            if !self.sockets.iter().any(|(_, socket)| local_port(socket) == Some(port)) {
                return port;
            }
        }
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("tcp_connections", &self.tcp_connections)
            .field("udp_flows", &self.udp_guests.len())
            .finish_non_exhaustive()
    }
}

fn local_port(socket: &smoltcp::socket::Socket<'_>) -> Option<u16> {
    match socket {
        smoltcp::socket::Socket::Tcp(socket) => socket.local_endpoint().map(|endpoint| endpoint.port),
        smoltcp::socket::Socket::Udp(socket) => Some(socket.endpoint().port),
    }
}

/// An ARP request that asks all stations for the address `guest`.
fn arp_request(guest: Ipv4Addr) -> Vec<u8> {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: GATEWAY_IP,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: guest,
    };
    let header = EthernetRepr {
        src_addr: EthernetAddress(GATEWAY_MAC),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; header.buffer_len() + request.buffer_len()];
    let mut packet = EthernetFrame::new_unchecked(&mut bytes);
    header.emit(&mut packet);
    request.emit(&mut ArpPacket::new_unchecked(packet.payload_mut()));
    bytes
}

fn instant(now_us: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_us).expect("the monotonic clock is far from its end"))
}

#[cfg(test)]
mod tests;
