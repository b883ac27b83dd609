//! A service of [`services`] on a UDP port.

use crate::network;
use alloc::{vec, vec::Vec};
use core::fmt;
use services::rpc::server::{Server, Service};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp;
use smoltcp::wire::IpEndpoint;

/// The UDP port that is served.
pub const PORT: u16 = 7;

const UDP_BUFFER_BYTES: usize = 128 * 1024;
const UDP_DATAGRAMS_MAX: usize = 128;

/// A server at [`PORT`].
pub struct RpcServer<S> {
    server: Server<S, IpEndpoint>,
    udp: SocketHandle,
    datagrams: u64,
}

impl<S: Service> RpcServer<S> {
    /// Adds the socket of a server of `service` to `sockets`.
    pub fn new(sockets: &mut SocketSet<'static>, service: S) -> Self {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; UDP_DATAGRAMS_MAX], vec![0; UDP_BUFFER_BYTES]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(PORT).expect("a new socket can be bound to a port that isn't 0");
        Self { server: Server::new(service), udp: sockets.add(socket), datagrams: 0 }
    }

    /// The service and its sessions.
    pub const fn server(&self) -> &Server<S, IpEndpoint> {
        &self.server
    }

    /// How many datagrams have arrived.
    pub const fn datagrams(&self) -> u64 {
        self.datagrams
    }
}

impl<S: Service> network::Service for RpcServer<S> {
    fn serve(&mut self, sockets: &mut SocketSet<'static>) {
        let socket = sockets.get_mut::<udp::Socket<'static>>(self.udp);
        while socket.can_send() {
            let Ok((datagram, metadata)) = socket.recv() else { break };
            self.datagrams += 1;
            let mut replies: Vec<(IpEndpoint, Vec<u8>)> = Vec::new();
            self.server.handle(&metadata.endpoint, datagram, |to, reply| replies.push((*to, reply)));
            for (to, reply) in replies {
                // With no room left the reply is lost, as datagrams may be: the client asks again.
                let _ = socket.send_slice(&reply, to);
            }
        }
    }
}

impl<S: Service> fmt::Debug for RpcServer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcServer").field("datagrams", &self.datagrams).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::RpcServer;
    use crate::test_network::TestNetwork;
    use services::lock::{Answer, Call, Locks, Operation};
    use services::rpc::client::{self, Client};

    #[test]
    fn a_lock_is_taken_over_the_network_once_however_often_it_is_asked_for() {
        let mut network = TestNetwork::new(|sockets| RpcServer::new(sockets, Locks::default()));
        let socket = network.bind(1000);
        let mut client = Client::open(0, 1);
        let mut exchange = |client: &mut Client| {
            let request = client.poll(0).unwrap().to_vec();
            // The first copy's answer is lost.
            let _ = network.ask(socket, &request);
            let reply = network.ask(socket, &request).unwrap();
            client.handle(&reply).unwrap()
        };
        assert_eq!(exchange(&mut client), client::Answer::Opened);
        for expected in [Answer::Yes, Answer::No] {
            client.call(0, Call { operation: Operation::Lock, name: b"a".to_vec() }.encode());
            let client::Answer::Done(body) = exchange(&mut client) else { panic!() };
            assert_eq!(Answer::decode(&body), Some(expected));
        }
    }
}
