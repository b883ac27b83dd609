//! The gateway: an IP host on the LAN, in this process, from which forwarded connections come.
//!
//! It terminates the guest's TCP with smoltcp. Time is an argument, packets are queues: no sockets
//! of the host here.
//!
//! On retransmission: smoltcp's retransmission timeout starts at 1 s and doubles up to 60 s;
//! neither can be set. It hardly matters here, because the LAN loses nothing while a guest's host
//! is away: the packets sent meanwhile are kept and delivered as soon as the VM is attached again.
//! Only an overflow of the kept packets makes TCP wait for it.

use super::ports::PortSequence;
use super::switch::Mac;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress,
    IpAddress, IpCidr, Ipv4Cidr,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use vm::PACKET_BYTES_MAX;

/// The gateway's address on the LAN.
pub(in crate::lan) const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Length of the LAN's network prefix.
pub(in crate::lan) const PREFIX_BITS: u8 = 24;
/// The gateway's Ethernet address: locally administered.
pub(in crate::lan) const GATEWAY_MAC: Mac = [0x02, 0x46, 0x54, 0x00, 0x02, 0x02];
/// The largest UDP payload that there is; what doesn't fit one packet travels in fragments.
pub(in crate::lan) const UDP_PAYLOAD_BYTES_MAX: usize = 65535 - 20 - 8;
/// How long a guest may be silent before a half-open or half-closed connection is given up. An
/// established one waits for its guest for ever.
pub(in crate::lan) const GUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes in flight for each direction of a connection.
const TCP_BUFFER_BYTES: usize = 128 << 10;
/// Datagrams in flight for each direction of a flow.
const UDP_BUFFER_PACKETS: usize = 32;
/// Bytes of them: two of the largest.
const UDP_BUFFER_BYTES: usize = 128 << 10;
/// How long the fragments of a datagram may take to come together. There is room for a few at a
/// time, and a guest that sends halves must not have it for long.
const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(2);
/// The most packets between the gateway and the switch, each way; they are emptied after every
/// event.
const QUEUE_PACKETS_MAX: usize = 1024;
/// From one question for the Ethernet address of a guest that is waited for to the next. smoltcp
/// itself asks, and then says nothing to anybody for a second; a guest that comes meanwhile would
/// be found late.
const ASK_INTERVAL_US: u64 = 100_000;
/// After so many questions without an answer the gateway asks once a second.
const QUICK_ASKS: u32 = 20;
/// The same when the guest is late.
const SLOW_ASK_INTERVAL_US: u64 = 1_000_000;
/// An acknowledgement waits this long for data to ride on. Every packet saved is a log entry and an
/// interrupt of the guest saved; longer than a round trip under fault tolerance, and far shorter
/// than any retransmission timeout.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// The IP host.
pub(in crate::lan) struct Gateway {
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    tcp_connections: usize,
    /// The guest at the other end of each UDP socket.
    udp_guests: BTreeMap<SocketHandle, Ipv4Addr>,
    /// Of connections to each port of a guest that there is a forward to.
    tcp_ports: BTreeMap<SocketAddrV4, PortSequence>,
    /// Of flows.
    udp_ports: PortSequence,
    /// A guest may be waited for.
    is_asking: bool,
    /// Questions since a VM has attached or nobody was waited for.
    asked: u32,
    ask_due_us: u64,
}

impl Gateway {
    /// A gateway; `seed` makes its sequence numbers hard to guess.
    pub(in crate::lan) fn new(seed: u64, now_us: u64) -> Self {
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GATEWAY_MAC)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, instant(now_us));
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::Ipv4(Ipv4Cidr::new(GATEWAY_IP, PREFIX_BITS)))
                .expect("smoltcp has room for at least one address");
        });
        interface.set_reassembly_timeout(REASSEMBLY_TIMEOUT);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            link,
            tcp_connections: 0,
            udp_guests: BTreeMap::new(),
            tcp_ports: BTreeMap::new(),
            udp_ports: PortSequence::default(),
            is_asking: false,
            asked: 0,
            ask_due_us: 0,
        }
    }

    /// A guest has come: it is asked at once whether it is the one that is waited for.
    pub(in crate::lan) const fn guest_attached(&mut self) {
        (self.is_asking, self.asked, self.ask_due_us) = (true, 0, 0);
    }

    /// Forgets which Ethernet address has which IP address; it asks again.
    pub(in crate::lan) fn forget_neighbors(&mut self) {
        // The only call that does; the addresses stay as they are.
        self.interface.update_ip_addrs(|_| {});
    }

    /// Takes a packet from the LAN; it is processed by the next [`Gateway::poll`]. Returns `false`
    /// if it was dropped.
    pub(in crate::lan) fn receive(&mut self, packet: &[u8]) -> bool {
        let room = self.link.received.len() < QUEUE_PACKETS_MAX;
        if room {
            self.link.received.push_back(packet.into());
        }
        room
    }

    /// Processes everything received and sends everything due. Returns the packets for the LAN;
    /// when there were some, there may be more.
    pub(in crate::lan) fn poll(&mut self, now_us: u64) -> VecDeque<Vec<u8>> {
        self.interface.poll(instant(now_us), &mut self.link, &mut self.sockets);
        if self.is_asking && now_us >= self.ask_due_us {
            self.ask(now_us);
        }
        std::mem::take(&mut self.link.sent)
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
        self.link.sent.extend(guests.into_iter().map(arp_request));
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

    /// Begins a TCP connection to a guest. How many there may be is for
    /// [`Clients`](super::clients::Clients) to say.
    pub(in crate::lan) fn connect_tcp(&mut self, guest: SocketAddrV4, now_us: u64) -> SocketHandle {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]),
            tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]),
        );
        // What the client sends goes to the guest at once, as it came.
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

    /// A UDP socket with a port of its own, for datagrams to `guest`. How many there may be is for
    /// [`Clients`](super::clients::Clients) to say, too.
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

    /// Removes a TCP socket; what it had still to send is not sent.
    pub(in crate::lan) fn remove_tcp(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
        self.tcp_connections -= 1;
    }

    /// Removes a UDP socket.
    pub(in crate::lan) fn remove_udp(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
        self.udp_guests.remove(&handle);
    }

    /// The next port of `sequence` that no socket of the gateway has. There are many more ports
    /// than sockets.
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

/// Asks everybody on the LAN who has the address `guest`.
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

/// smoltcp's network device: a queue each way.
#[derive(Debug, Default)]
struct Link {
    received: VecDeque<Box<[u8]>>,
    sent: VecDeque<Vec<u8>>,
}

struct Received(Box<[u8]>);

struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received, Sent<'_>)> {
        Some((Received(self.received.pop_front()?), Sent(&mut self.sent)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sent<'_>> {
        (self.sent.len() < QUEUE_PACKETS_MAX).then_some(Sent(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = PACKET_BYTES_MAX;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 7);
    const GUEST_MAC: Mac = [2, 0, 0, 0, 0, 0x15];

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }

        fn below(&mut self, end: usize) -> usize {
            usize::try_from(self.next() % end as u64).unwrap()
        }

        fn byte(&mut self) -> u8 {
            self.next().to_le_bytes()[0]
        }
    }

    fn checksum(bytes: &[u8], start: u32) -> [u8; 2] {
        let mut sum = start;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(!sum & 0xffff).unwrap().to_be_bytes()
    }

    /// Puts the checksums right again that a whole IPv4 packet without options has.
    fn repair(packet: &mut [u8]) {
        if packet.len() < 42 || packet[12..15] != [8, 0, 0x45] {
            return;
        }
        packet[24..26].fill(0);
        let header = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&header);
        let (place, pseudo) = match packet[23] {
            6 => (50, true),
            17 => (40, true),
            1 => (36, false),
            _ => return,
        };
        let end = usize::from(u16::from_be_bytes([packet[16], packet[17]])) + 14;
        if end <= place + 2 || end > packet.len() {
            return;
        }
        packet[place..place + 2].fill(0);
        let addresses = packet[26..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
        let start = if pseudo { addresses + u32::from(packet[23]) + u32::try_from(end - 34).unwrap() } else { 0 };
        let sum = checksum(&packet[34..end], start);
        packet[place..place + 2].copy_from_slice(&sum);
    }

    /// What the guest might answer to a packet of the gateway: addresses and ports exchanged,
    /// acknowledged, and then changed at random.
    fn answer(random: &mut Random, packet: &[u8]) -> Vec<u8> {
        let mut answer = packet.to_vec();
        answer[..6].copy_from_slice(&packet[6..12]);
        answer[6..12].copy_from_slice(&GUEST_MAC);
        match packet[12..14] {
            [8, 6] => {
                answer[21] = 2;
                answer[22..28].copy_from_slice(&GUEST_MAC);
                answer[28..32].copy_from_slice(&packet[38..42]);
                answer[32..42].copy_from_slice(&packet[22..32]);
            }
            _ => {
                answer[26..30].copy_from_slice(&packet[30..34]);
                answer[30..34].copy_from_slice(&packet[26..30]);
                answer[34..36].copy_from_slice(&packet[36..38]);
                answer[36..38].copy_from_slice(&packet[34..36]);
                if packet[23] == 6 && packet.len() >= 54 {
                    let theirs = u32::from_be_bytes([packet[38], packet[39], packet[40], packet[41]]);
                    let syn = u32::from(packet[47] & 2 != 0);
                    answer[38..42].copy_from_slice(&packet[42..46]);
                    let payload = u32::try_from(packet.len() - 34 - usize::from(packet[46] >> 4) * 4).unwrap_or(0);
                    answer[42..46].copy_from_slice(&theirs.wrapping_add(syn).wrapping_add(payload).to_be_bytes());
                    answer[47] |= 0x10;
                }
            }
        }
        if random.below(3) > 0 {
            return answer;
        }
        for _ in 0..=random.below(4) {
            match random.below(4) {
                0 => answer.resize(14 + random.below(1500), 0),
                1 => {
                    let length = u16::try_from(random.below(1600)).unwrap().to_be_bytes();
                    answer[16..18].copy_from_slice(&length);
                }
                _ => {
                    let place = random.below(answer.len());
                    answer[place] = if random.below(2) == 0 { random.byte() } else { [0, 255][random.below(2)] };
                }
            }
            answer.resize(answer.len().max(42), 0);
        }
        answer
    }

    /// A stranger that opens flows, or connections to another port, without end must not bring back
    /// the ports that a guest still remembers.
    #[test]
    fn connections_elsewhere_use_up_no_ports() {
        let mut gateway = Gateway::new(7, 0);
        let other = SocketAddrV4::new(*GUEST.ip(), GUEST.port() + 1);
        let ports = (0..4).map(|_| {
            let flow = gateway.open_udp(*GUEST.ip(), 0);
            gateway.remove_udp(flow);
            let handle = gateway.connect_tcp(other, 0);
            gateway.remove_tcp(handle);
            let handle = gateway.connect_tcp(GUEST, 0);
            let port = gateway.tcp(handle).local_endpoint().unwrap().port;
            gateway.remove_tcp(handle);
            port
        });
        assert_eq!(ports.collect::<Vec<_>>(), [1024, 1025, 1026, 1027]);
    }

    #[test]
    fn a_guest_that_is_waited_for_is_asked_often_and_then_rarely_and_at_once_when_it_attaches() {
        let mut gateway = Gateway::new(7, 0);
        let asks = |packets: VecDeque<Vec<u8>>| packets.iter().filter(|packet| packet[12..14] == [8, 6]).count();
        assert_eq!(gateway.deadline_us(0), None, "nobody is waited for");
        gateway.connect_tcp(GUEST, 0);
        assert!(asks(gateway.poll(0)) > 0);
        // What smoltcp sends in the seconds to come is its own.
        let quick = (1..u64::from(QUICK_ASKS)).map(|n| asks(gateway.poll(n * ASK_INTERVAL_US))).collect::<Vec<_>>();
        assert!(quick.iter().all(|&asks| asks >= 1), "{quick:?}");
        let now_us = u64::from(QUICK_ASKS) * ASK_INTERVAL_US;
        gateway.poll(now_us);
        assert!(gateway.deadline_us(now_us).is_some_and(|due_us| due_us > now_us));
        gateway.guest_attached();
        let packets = gateway.poll(now_us + 1);
        assert_eq!(asks(packets.clone()), 1);
        // The guest's answer lets the first segment go, before smoltcp would ask again.
        gateway.receive(&answer(&mut Random(0), &packets[0]));
        let sent = gateway.poll(now_us + 2);
        assert!(sent.iter().any(|packet| packet[12..14] == [8, 0] && packet[23] == 6), "{sent:?}");
    }

    #[test]
    fn no_packet_of_a_guest_makes_the_gateway_panic_or_go_on_for_ever() {
        let (mut opened, mut answered) = (0, 0);
        for seed in 0..40 {
            println!("seed {seed}");
            let mut random = Random(seed);
            let mut gateway = Gateway::new(seed, 0);
            let (tcp, udp) = (gateway.connect_tcp(GUEST, 0), gateway.open_udp(*GUEST.ip(), 0));
            let mut now_us = 0;
            for _ in 0..300 {
                now_us += random.next() % 2_000_000;
                let _ = gateway.udp(udp).send_slice(b"datagram", (*GUEST.ip(), GUEST.port()));
                let _ = gateway.tcp(tcp).send_slice(b"stream");
                for turn in 0.. {
                    assert!(turn < 1000, "the gateway and a guest that answers each frame once never end");
                    let packets = gateway.poll(now_us);
                    if packets.is_empty() {
                        break;
                    }
                    answered += packets.len();
                    for packet in packets.iter().filter(|_| turn < 20) {
                        let mut answer = answer(&mut random, packet);
                        if random.below(8) > 0 {
                            repair(&mut answer);
                        }
                        gateway.receive(&answer);
                    }
                }
                let _ = gateway.deadline_us(now_us);
                let _ = gateway.udp(udp).recv();
                let socket = gateway.tcp(tcp);
                opened += u64::from(socket.state() == tcp::State::Established);
                let _ = socket.recv(|bytes| (bytes.len(), ()));
            }
        }
        println!("{opened} times open, {answered} frames answered");
        assert!(opened > 100 && answered > 1000, "too tame a run");
    }
}
