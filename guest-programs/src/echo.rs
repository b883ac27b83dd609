//! The echo protocol (RFC 862) over TCP and UDP.

use crate::network::Service;
use alloc::{boxed::Box, vec, vec::Vec};
use core::fmt;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;

/// The TCP and UDP port of the echo server.
pub const PORT: u16 = 7;
/// The most TCP connections at once; a further one is refused.
pub const CONNECTIONS_MAX: usize = 64;

const TCP_BUFFER_BYTES: usize = 16 * 1024;
const UDP_BUFFER_BYTES: usize = 128 * 1024;
const UDP_DATAGRAMS_MAX: usize = 64;

/// The silence after which TCP probes a peer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The silence after which a peer is given up, so that it doesn't hold its socket for ever.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An event of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// A peer has connected.
    Accepted(IpEndpoint),
    /// The connection is over, closed, reset or timed out.
    Closed(IpEndpoint),
}

impl fmt::Display for ConnectionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted(peer) => write!(f, "accepted {peer}"),
            Self::Closed(peer) => write!(f, "closed {peer}"),
        }
    }
}

/// The echo server.
///
/// Each TCP socket listens until a peer connects, and listens again after the peer has gone, so the
/// free sockets are the backlog.
pub struct EchoServer<F> {
    connections: Vec<Connection>,
    udp: SocketHandle,
    /// Bytes on their way from a socket's receive buffer to its send buffer.
    scratch: Box<[u8]>,
    report: F,
}

struct Connection {
    socket: SocketHandle,
    /// The connected peer, from its `Accepted` to its `Closed` event.
    peer: Option<IpEndpoint>,
}

impl<F: FnMut(ConnectionEvent)> EchoServer<F> {
    /// Adds the server's sockets to `sockets`. `report` gets every connection's events.
    pub fn new(sockets: &mut SocketSet<'static>, report: F) -> Self {
        let connections =
            (0..CONNECTIONS_MAX).map(|_| Connection { socket: sockets.add(tcp_socket()), peer: None }).collect();
        let udp = sockets.add(udp_socket());
        Self { connections, udp, scratch: vec![0; TCP_BUFFER_BYTES].into_boxed_slice(), report }
    }
}

impl<F: FnMut(ConnectionEvent)> Service for EchoServer<F> {
    fn serve(&mut self, sockets: &mut SocketSet<'static>) {
        for connection in &mut self.connections {
            let socket = sockets.get_mut(connection.socket);
            connection.report_changes(socket, &mut self.report);
            if socket.is_open() {
                echo_stream(socket, &mut self.scratch);
            } else {
                socket.listen(PORT).expect("a closed socket can listen on a port that isn't 0");
            }
        }
        echo_datagrams(sockets.get_mut(self.udp), &mut self.scratch);
    }
}

impl<F> fmt::Debug for EchoServer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.connections.iter().filter(|connection| connection.peer.is_some()).count();
        f.debug_struct("EchoServer").field("connected", &connected).finish_non_exhaustive()
    }
}

impl Connection {
    /// Reports a change of peer since the last call: one may have gone, and another one come.
    fn report_changes(&mut self, socket: &tcp::Socket<'_>, report: &mut impl FnMut(ConnectionEvent)) {
        // A SYN alone is no peer yet, as its address may be forged.
        let peer = socket.remote_endpoint().filter(|_| socket.is_open() && socket.state() != tcp::State::SynReceived);
        if peer == self.peer {
            return;
        }
        if let Some(gone) = self.peer {
            report(ConnectionEvent::Closed(gone));
        }
        if let Some(come) = peer {
            report(ConnectionEvent::Accepted(come));
        }
        self.peer = peer;
    }
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER_BYTES]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    // Without Nagle's algorithm an answer leaves at once, and an acknowledgement with it.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.set_keep_alive(Some(KEEP_ALIVE));
    socket.set_timeout(Some(TIMEOUT));
    socket
}

fn udp_socket() -> udp::Socket<'static> {
    let buffer =
        || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; UDP_DATAGRAMS_MAX], vec![0; UDP_BUFFER_BYTES]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(PORT).expect("a new socket can be bound to a port that isn't 0");
    socket
}

/// Echoes received bytes while the send buffer has room; unread bytes close the peer's window.
fn echo_stream(socket: &mut tcp::Socket<'_>, scratch: &mut [u8]) {
    while socket.can_recv() && socket.can_send() {
        let room = (socket.send_capacity() - socket.send_queue()).min(scratch.len());
        let length = socket.recv_slice(&mut scratch[..room]).expect("can_recv() said that there is data");
        let sent = socket.send_slice(&scratch[..length]).expect("can_send() said that there is room");
        assert_eq!(sent, length, "the send buffer takes as much as it said");
    }
    if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
        socket.close();
    }
}

fn echo_datagrams(socket: &mut udp::Socket<'_>, scratch: &mut [u8]) {
    while socket.can_send() {
        // A datagram fits the scratch buffer, because it came in one Ethernet frame.
        let Ok((length, metadata)) = socket.recv_slice(scratch) else { break };
        // Not to another echo server: the two would echo for ever.
        if metadata.endpoint.port != PORT {
            // Without room the datagram is dropped, as datagrams may be.
            let _ = socket.send_slice(&scratch[..length], metadata.endpoint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CONNECTIONS_MAX, ConnectionEvent, EchoServer, KEEP_ALIVE, PORT, TIMEOUT};
    use crate::network::Service;
    use crate::test_network::TestNetwork;
    use alloc::{boxed::Box, rc::Rc, vec, vec::Vec};
    use core::cell::{Cell, RefCell};
    use smoltcp::socket::tcp::State;
    use smoltcp::time::{Duration, Instant};

    type Events = Rc<RefCell<Vec<ConnectionEvent>>>;

    fn network() -> (TestNetwork<impl Service>, Events) {
        let events = Events::default();
        let reported = Rc::clone(&events);
        let network = TestNetwork::new(|sockets| EchoServer::new(sockets, move |e| reported.borrow_mut().push(e)));
        (network, events)
    }

    fn data(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index * 7 + index / 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn an_answer_is_one_packet_that_acknowledges_too() {
        let (mut network, _) = network();
        let connection = network.connect(1000);
        for round in 0..20 {
            let before = network.guest_packets;
            assert_eq!(network.exchange(connection, &data(100)), data(100));
            assert_eq!(network.guest_packets - before, 1, "round {round}");
        }
    }

    #[test]
    fn a_stream_longer_than_all_buffers_comes_back_whole() {
        let (mut network, _) = network();
        let connection = network.connect(1000);
        let data = data(1 << 20);
        assert_eq!(network.exchange(connection, &data), data);
    }

    #[test]
    fn unread_data_closes_the_window_and_is_kept() {
        let (mut network, _) = network();
        let connection = network.connect(1000);
        let data = data(256 * 1024);
        let mut sent = 0;
        for _ in 0..100 {
            let socket = network.tcp(connection);
            sent += socket.send_slice(&data[sent..]).unwrap();
            network.settle();
        }
        assert!(sent < data.len(), "the guest has taken in all of {} bytes", data.len());
        let mut received = network.exchange(connection, &data[sent..]);
        for _ in 0..100 {
            network.pass(Duration::from_millis(10));
            network.tcp(connection).recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        assert_eq!(received, data);
    }

    #[test]
    fn a_lost_answer_is_sent_again() {
        let (mut network, _) = network();
        let connection = network.connect(1000);
        let lost = Rc::new(Cell::new(0));
        let losses = Rc::clone(&lost);
        network.loses = Box::new(move |packet| {
            let loses = packet.len() > 100 && losses.get() < 2;
            losses.set(losses.get() + usize::from(loses));
            loses
        });
        assert_eq!(network.exchange(connection, &data(500)), data(500));
        assert_eq!(lost.get(), 2);
    }

    #[test]
    fn every_tenth_packet_lost_loses_no_data() {
        let (mut network, _) = network();
        let connection = network.connect(1000);
        let mut packets = 0;
        network.loses = Box::new(move |_| {
            packets += 1;
            packets % 10 == 0
        });
        let data = data(200_000);
        assert_eq!(network.exchange(connection, &data), data);
    }

    #[test]
    fn as_many_connections_as_sockets_and_again_when_they_are_gone() {
        let (mut network, events) = network();
        for round in 0..3_u16 {
            let first_port = 1000 + 100 * round;
            let ports = first_port..first_port + u16::try_from(CONNECTIONS_MAX).unwrap();
            let connections: Vec<_> = ports.map(|port| network.connect(port)).collect();
            for connection in &connections {
                assert_eq!(network.exchange(*connection, b"hello"), b"hello");
            }
            let refused = network.connect(999 + 100 * round);
            assert_eq!(network.tcp(refused).state(), State::Closed, "one more than there are sockets");
            for connection in &connections {
                network.tcp(*connection).close();
            }
            network.settle();
            for connection in &connections {
                assert_eq!(network.tcp(*connection).state(), State::TimeWait, "the guest has closed its side");
            }
            let accepted = events.borrow().iter().filter(|e| matches!(e, ConnectionEvent::Accepted(_))).count();
            let closed = events.borrow().len() - accepted;
            let expected = CONNECTIONS_MAX * usize::from(round + 1);
            assert_eq!((accepted, closed), (expected, expected));
        }
    }

    #[test]
    fn half_closed_connections_get_their_answer_and_are_closed() {
        let (mut network, _) = network();
        let connection = network.connect(1000);
        network.tcp(connection).send_slice(b"last words").unwrap();
        network.tcp(connection).close();
        network.settle();
        let mut answer = [0; 32];
        let length = network.tcp(connection).recv_slice(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"last words");
        assert_eq!(network.tcp(connection).state(), State::TimeWait);
    }

    #[test]
    fn a_peer_that_vanished_is_given_up_and_its_socket_listens_again() {
        let (mut network, events) = network();
        let connection = network.connect(1000);
        network.exchange(connection, b"hello");
        network.loses = Box::new(|_| true);
        network.pass(TIMEOUT + KEEP_ALIVE);
        assert!(matches!(events.borrow()[..], [ConnectionEvent::Accepted(a), ConnectionEvent::Closed(b)] if a == b));
        network.loses = Box::new(|_| false);
        let ports = 2000..2000 + u16::try_from(CONNECTIONS_MAX).unwrap();
        for port in ports {
            let connection = network.connect(port);
            assert_eq!(network.exchange(connection, b"x"), b"x", "port {port}");
        }
    }

    #[test]
    fn an_idle_connection_outlives_the_timeout_if_its_peer_is_alive() {
        let (mut network, events) = network();
        let connection = network.connect(1000);
        network.pass(TIMEOUT + TIMEOUT);
        assert_eq!(network.exchange(connection, b"still here"), b"still here");
        assert_eq!(events.borrow().len(), 1);
    }

    #[test]
    fn an_idle_server_asks_for_no_poll() {
        let (mut network, _) = network();
        assert_eq!(network.next_poll, None);
        network.connect(1000);
        let next_poll = network.next_poll.expect("a connection has a keep-alive timer");
        assert!(next_poll > Instant::ZERO, "nothing is left to be done now");
    }

    #[test]
    fn datagrams_of_all_lengths_come_back() {
        let (mut network, _) = network();
        let socket = network.bind(1000);
        // The first datagram is for address resolution only.
        network.ask(socket, b"");
        for length in [0, 1, 2, 17, 18, 512, 1471, 1472] {
            assert_eq!(network.ask(socket, &data(length)), Some(data(length)), "{length} bytes");
        }
    }

    #[test]
    fn another_echo_server_gets_no_answer() {
        let (mut network, _) = network();
        let socket = network.bind(PORT);
        assert_eq!(network.ask(socket, b"ping pong"), None);
    }

    #[test]
    fn events_name_the_peer() {
        let (mut network, events) = network();
        network.connect(1234);
        let text: Vec<_> = events.borrow().iter().map(alloc::string::ToString::to_string).collect();
        assert_eq!(text, vec!["accepted 10.0.2.2:1234"]);
    }
}
