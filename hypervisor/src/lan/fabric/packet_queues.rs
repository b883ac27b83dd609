//! The network device of a smoltcp stack, as two queues of packets.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use std::collections::VecDeque;
use vm::PACKET_BYTES_MAX;

/// The most packets in a queue. The gateway's queues are emptied after every event.
pub(super) const QUEUE_PACKETS_MAX: usize = 1024;

/// A network device for smoltcp: a queue each way. The gateway's connects it to the switch.
#[derive(Debug, Default)]
pub struct PacketQueues {
    /// Packets for the stack, oldest first.
    pub received: VecDeque<Box<[u8]>>,
    /// Packets from the stack, oldest first.
    pub sent: VecDeque<Vec<u8>>,
}

/// A packet for the stack.
#[derive(Debug)]
pub struct Received(Box<[u8]>);

/// Room for one packet from the stack.
#[derive(Debug)]
pub struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for PacketQueues {
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
