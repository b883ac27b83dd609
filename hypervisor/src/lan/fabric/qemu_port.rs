//! The port of a QEMU process, which speaks QEMU's stream framing: 4 bytes big-endian length,
//! Ethernet frame.
//!
//! `qemu-system-riscv64 -netdev
//! stream,id=lan,server=off,addr.type=inet,addr.host=127.0.0.1,addr.port=P`; passt speaks it
//! too. Packets for a peer that doesn't read are dropped, as on any Ethernet.

use super::vm_port::Delivery;
use std::collections::VecDeque;

/// The longest packet that QEMU's framing carries (its `NET_BUFSIZE`); longer ones mean that the
/// peer is no QEMU.
pub(in crate::lan) const STREAM_PACKET_BYTES_MAX: usize = 4096 + 65536;
/// The most packets that wait for a peer that doesn't read.
const QUEUE_PACKETS_MAX: usize = 1024;

/// State of one QEMU connection on the LAN.
#[derive(Debug, Default)]
pub(in crate::lan) struct QemuPort {
    queue: VecDeque<Box<[u8]>>,
}

impl QemuPort {
    /// Queues a packet, or drops it if the queue is full.
    pub(in crate::lan) fn deliver(&mut self, packet: &[u8]) -> Delivery {
        if self.queue.len() >= QUEUE_PACKETS_MAX {
            return Delivery { wake: false, overflowed: 1 };
        }
        self.queue.push_back(packet.into());
        Delivery { wake: self.queue.len() == 1, overflowed: 0 }
    }

    /// Appends queued packets in QEMU's framing until `out` holds about `bytes`.
    pub(in crate::lan) fn take_pending(&mut self, out: &mut Vec<u8>, bytes: usize) {
        while out.len() < bytes
            && let Some(packet) = self.queue.pop_front()
        {
            let length = u32::try_from(packet.len()).expect("frames on the LAN are short");
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_out_in_order_in_qemus_framing() {
        let mut port = QemuPort::default();
        assert!(port.deliver(b"first").wake);
        assert!(!port.deliver(b"second").wake);
        let mut out = Vec::new();
        port.take_pending(&mut out, usize::MAX);
        assert_eq!(out, b"\0\0\0\x05first\0\0\0\x06second");
        assert!(port.deliver(b"third").wake, "the queue is empty again");
    }

    #[test]
    fn a_peer_that_does_not_read_costs_bounded_memory_and_is_counted() {
        let mut port = QemuPort::default();
        let overflowed: u64 = (0..QUEUE_PACKETS_MAX + 7).map(|_| port.deliver(b"frame").overflowed).sum();
        assert_eq!(port.queue.len(), QUEUE_PACKETS_MAX);
        assert_eq!(overflowed, 7);
    }
}
