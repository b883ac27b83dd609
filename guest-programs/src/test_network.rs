//! A test network: the guest's stack and a client, a wire between them that can lose packets, and a
//! clock that the test advances.

use crate::network::{ADDRESS, GATEWAY, PACKET_BYTES_MAX, Service, Stack};
use alloc::{boxed::Box, collections::VecDeque, vec, vec::Vec};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr};

const CLIENT_BUFFER_BYTES: usize = 64 * 1024;

/// One end of the wire.
#[derive(Default)]
struct Port {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Received(packet), Sent(&mut self.outgoing)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Self::TxToken<'_>> {
        Some(Sent(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = PACKET_BYTES_MAX;
        capabilities
    }
}

/// Decides whether a packet is lost.
pub(crate) type Loses = dyn FnMut(&[u8]) -> bool;

/// The guest under test, its client, and the wire between them.
pub(crate) struct TestNetwork<S> {
    now: Instant,
    guest: Stack,
    guest_port: Port,
    pub(crate) service: S,
    /// The time at which the guest asked to be polled.
    pub(crate) next_poll: Option<Instant>,
    client: Interface,
    client_port: Port,
    client_sockets: SocketSet<'static>,
    /// The number of packets from the guest so far, including lost ones.
    pub(crate) guest_packets: usize,
    /// Decides which packets from the guest the wire loses.
    pub(crate) loses: Box<Loses>,
}

impl<S: Service> TestNetwork<S> {
    pub(crate) fn new(build: impl FnOnce(&mut SocketSet<'static>) -> S) -> Self {
        let now = Instant::ZERO;
        let mut guest_port = Port::default();
        let mut guest = Stack::new(&mut guest_port, [2, 0, 0, 0, 0, 1], 1, now);
        let service = build(guest.sockets_mut());
        let mut client_port = Port::default();
        let mut client = Interface::new(Config::new(EthernetAddress([2, 0, 0, 0, 0, 2]).into()), &mut client_port, now);
        client.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GATEWAY.into(), 24)).unwrap());
        let mut network = Self {
            now,
            guest,
            guest_port,
            service,
            next_poll: None,
            client,
            client_port,
            client_sockets: SocketSet::new(Vec::new()),
            guest_packets: 0,
            loses: Box::new(|_| false),
        };
        network.settle();
        network
    }

    /// Exchanges packets until both sides are silent. Time doesn't pass.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            self.client.poll(self.now, &mut self.client_port, &mut self.client_sockets);
            let from_client = self.client_port.outgoing.drain(..);
            self.guest_port.incoming.extend(from_client);
            self.next_poll = self.guest.poll(self.now, &mut self.guest_port, &mut self.service);
            self.guest_packets += self.guest_port.outgoing.len();
            let loses = &mut self.loses;
            let from_guest = self.guest_port.outgoing.drain(..).filter(|packet| !loses(packet));
            self.client_port.incoming.extend(from_guest);
            if self.client_port.incoming.is_empty() && self.guest_port.incoming.is_empty() {
                return;
            }
        }
        panic!("the network never falls silent");
    }

    /// Advances the clock in steps of a timer tick.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += Duration::from_millis(10);
            self.settle();
        }
    }

    /// A connection from the client's `port` to the guest's port 7, established as far as possible
    /// without time passing.
    pub(crate) fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; CLIENT_BUFFER_BYTES]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let handle = self.client_sockets.add(socket);
        let socket = self.client_sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.client.context(), (ADDRESS, 7), port).unwrap();
        self.settle();
        handle
    }

    /// A UDP socket of the client.
    pub(crate) fn bind(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; CLIENT_BUFFER_BYTES]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.client_sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.client_sockets.get_mut(handle)
    }

    /// Sends a datagram to the guest's port 7; returns the answer if it comes at once.
    pub(crate) fn ask(&mut self, handle: SocketHandle, request: &[u8]) -> Option<Vec<u8>> {
        let socket = self.client_sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(request, (ADDRESS, 7)).unwrap();
        self.settle();
        let socket = self.client_sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(answer, _)| answer.to_vec())
    }

    /// Sends `data` over a connection and reads at least as many bytes, which it returns.
    pub(crate) fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        for _ in 0..10_000 {
            let socket = self.tcp(handle);
            if sent < data.len() && socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            self.settle();
            let socket = self.tcp(handle);
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            if sent == data.len() && received.len() >= sent {
                return received;
            }
            self.pass(Duration::from_millis(10));
        }
        panic!("only {} of {} bytes came back", received.len(), data.len());
    }
}
