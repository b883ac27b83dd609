//! The counter: it counts for ever and answers each UDP datagram with its count.

use crate::network::Service;
use crate::workload::Workload;
use alloc::{format, string::String, vec};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::udp;

/// The UDP port that answers with the count.
pub const PORT: u16 = 7;

const DATAGRAMS_MAX: usize = 16;
const REQUEST_BYTES_MAX: usize = 1472;

/// Does a [`Workload`], and answers every datagram with the steps done so far.
#[derive(Debug)]
pub struct Counter {
    workload: Workload,
    udp: SocketHandle,
}

impl Counter {
    /// Adds the counter's socket to `sockets`.
    pub fn new(sockets: &mut SocketSet<'static>) -> Self {
        let buffer = || {
            let bytes = DATAGRAMS_MAX * REQUEST_BYTES_MAX;
            udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; DATAGRAMS_MAX], vec![0; bytes])
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(PORT).expect("a new socket can be bound to a port that isn't 0");
        Self { workload: Workload::new(), udp: sockets.add(socket) }
    }

    /// Does one more step of the workload.
    pub fn advance(&mut self) {
        self.workload.advance();
    }

    /// The count, and the [`Workload`]'s state after that many steps, by which a client can check
    /// the count: `count 17 state 0123456789abcdef`.
    #[must_use]
    pub fn text(&self) -> String {
        format!("count {} state {:016x}", self.workload.chunks(), self.workload.state())
    }
}

impl Service for Counter {
    fn serve(&mut self, sockets: &mut SocketSet<'static>) {
        let socket = sockets.get_mut::<udp::Socket<'static>>(self.udp);
        while socket.can_send() {
            let Ok((_, metadata)) = socket.recv() else { break };
            if metadata.endpoint.port != PORT {
                // Without room the answer is dropped, as datagrams may be.
                let _ = socket.send_slice(format!("{}\n", self.text()).as_bytes(), metadata.endpoint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Counter, PORT};
    use crate::test_network::TestNetwork;
    use crate::workload::Workload;
    use alloc::format;

    #[test]
    fn tells_a_count_that_can_be_checked() {
        let mut network = TestNetwork::new(Counter::new);
        let socket = network.bind(1000);
        let mut workload = Workload::new();
        for count in 0..40 {
            let expected = format!("count {count} state {:016x}\n", workload.state());
            assert_eq!(network.ask(socket, b"?").as_deref(), Some(expected.as_bytes()));
            network.service.advance();
            workload.advance();
        }
    }

    #[test]
    fn another_counter_gets_no_answer() {
        let mut network = TestNetwork::new(Counter::new);
        let socket = network.bind(PORT);
        assert_eq!(network.ask(socket, b"?"), None);
    }
}
