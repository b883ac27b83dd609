//! The port of one VM: which owner may use it, which outputs it has carried, which packets it
//! keeps.
//!
//! ```text
//!              attach (generation >= known)                  attach (generation > known): the old connection is fenced
//!   unknown ────────────────────────────────► attached ◄───┐
//!                                              │    ▲  └────┘
//!                                  detach      ▼    │ attach
//!                                             detached: packets are numbered and kept
//! ```
//!
//! Invariants: `first_kept <= cursor <= next_packet`; the ring holds exactly the numbers
//! `first_kept..next_packet`; `told_output <= expected_output`; `expected_output`, `generation`
//! and, within a run of the guest, `next_packet` never fall.

use super::switch::Mac;
use crate::lan::attachment::Attachment;
use crate::lan::pulse::Pulse;
use crate::lan::wire::ServerMessage;
use ft::mutation::{Mutation, mutated};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::collections::VecDeque;
use vm::{OutputId, PACKET_BYTES_MAX};

/// The most packets that a port keeps for a VM.
pub(in crate::lan) const KEPT_PACKETS_MAX: usize = 4096;
/// The most bytes that a port keeps for a VM, [`PACKET_OVERHEAD_BYTES`] for each packet included.
pub(in crate::lan) const KEPT_BYTES_MAX: usize = 8 << 20;
/// The memory that a kept packet takes beyond its bytes, roughly.
const PACKET_OVERHEAD_BYTES: usize = 32;

const _: () = assert!(PACKET_BYTES_MAX + PACKET_OVERHEAD_BYTES <= KEPT_BYTES_MAX, "any packet can be kept");

/// The greatest packet number that an attachment may name; there are enough numbers after it for
/// any VM.
const LAST_PACKET_MAX: u64 = u64::MAX >> 1;

/// The id of a connection to the LAN; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Why an attachment is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The VM has a newer owner.
    #[error("generation {asked} is fenced: generation {current} owns the VM")]
    OlderGeneration {
        /// The generation that asks.
        asked: Generation,
        /// The owner's generation.
        current: Generation,
    },
    /// Another process has attached as this generation, and only one process may.
    #[error("another process has generation {0} of the VM; claim a new generation at the arbiter")]
    OtherNode(Generation),
    /// The Ethernet address is a group address.
    #[error("the MAC address is a group address or zero")]
    InvalidMac,
    /// The address is another VM's, or the gateway's.
    #[error("another station of this LAN has the same MAC address; give each VM its own")]
    MacTaken,
    /// All ports are taken; this many VMs are attached.
    #[error("the LAN has no room for another VM: {0} are attached")]
    Full(usize),
    /// The number of the last packet is out of range.
    #[error("frame number {0} can't be right: no VM lives that long")]
    Number(u64),
}

/// The result of queuing a packet for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) struct Delivery {
    /// The connection was idle before, so it has to be woken.
    pub(in crate::lan) wake: bool,
    /// How many kept packets were overwritten that no connection had been sent.
    pub(in crate::lan) overflowed: u64,
}

/// The answer to an accepted attachment.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lan) struct Attached {
    /// Number of the first packet that will be delivered.
    pub(in crate::lan) first_packet: u64,
    /// Outputs with smaller ids will be dropped.
    pub(in crate::lan) next_output: OutputId,
    /// Packets after the VM's last one that aren't kept any more.
    pub(in crate::lan) lost: u64,
    /// The connection that had the port until now.
    pub(in crate::lan) replaced: Option<ConnectionId>,
}

/// State of one VM on the LAN.
#[derive(Debug)]
pub(in crate::lan) struct VmPort {
    vm: VmId,
    generation: Generation,
    node: NodeId,
    /// The run of the guest to which outputs and packets belong.
    booted: Generation,
    mac: Mac,
    connection: Option<ConnectionId>,
    /// The number of the last detachment, in the order of all; 0 if never.
    detached_at: u64,
    expected_output: OutputId,
    /// The value of `expected_output` that the attached connection was told last.
    told_output: OutputId,
    /// The attached connection's heartbeats.
    pulse: Pulse,
    owes_heartbeat: bool,
    kept: VecDeque<Box<[u8]>>,
    kept_bytes: usize,
    /// Number of the next packet that will be kept; the first packet of a VM has number 1.
    next_packet: u64,
    /// Number of the next packet to send to the attached connection; while detached, of the next
    /// one that the last connection would have got.
    cursor: u64,
}

impl VmPort {
    /// A port that takes over the VM's own numbering: for a VM that the LAN doesn't know.
    ///
    /// # Errors
    /// [`Refusal::Number`].
    pub(in crate::lan) fn adopt(attachment: &Attachment) -> Result<Self, Refusal> {
        check_number(attachment)?;
        let next_packet = attachment.last_packet + 1;
        Ok(Self {
            vm: attachment.vm.clone(),
            generation: attachment.generation,
            node: attachment.node,
            booted: attachment.booted,
            mac: attachment.mac,
            connection: None,
            detached_at: 0,
            expected_output: attachment.next_output,
            told_output: attachment.next_output,
            pulse: Pulse::default(),
            owes_heartbeat: false,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next_packet,
            cursor: next_packet,
        })
    }

    /// Checks `attachment` without changing anything.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub(in crate::lan) fn check(&self, attachment: &Attachment) -> Result<(), Refusal> {
        if attachment.generation < self.generation {
            return Err(Refusal::OlderGeneration { asked: attachment.generation, current: self.generation });
        }
        if attachment.generation == self.generation && attachment.node != self.node {
            return Err(Refusal::OtherNode(self.generation));
        }
        check_number(attachment)
    }

    /// Gives the port to `connection`; delivery goes on after the attachment's last packet.
    ///
    /// # Errors
    /// [`Refusal`], as [`VmPort::check`].
    pub(in crate::lan) fn attach(
        &mut self,
        connection: ConnectionId,
        attachment: &Attachment,
    ) -> Result<Attached, Refusal> {
        self.check(attachment)?;
        if self.is_other_run(attachment) {
            let fresh = Self::adopt(attachment)?;
            let old = std::mem::replace(self, fresh);
            self.connection = old.connection;
        }
        let is_same_life = (self.generation, self.node) == (attachment.generation, attachment.node);
        self.generation = attachment.generation;
        self.node = attachment.node;
        self.mac = attachment.mac;
        let wanted = attachment.last_packet + u64::from(!mutated(Mutation::RedeliverLoggedPacket));
        if wanted > self.next_packet {
            // The VM has had packets from an earlier LAN that had counted further than this one;
            // numbers must not come twice.
            self.kept.clear();
            self.kept_bytes = 0;
            self.next_packet = wanted;
        }
        self.cursor = wanted.max(self.first_kept());
        // A resumed log may be older than what was carried. The outputs of one node only increase:
        // an attachment that was long in flight names fewer outputs than have been carried by now.
        if !is_same_life {
            self.expected_output = self.expected_output.min(attachment.output_end);
        }
        self.told_output = self.expected_output;
        (self.pulse, self.owes_heartbeat) = (Pulse::default(), false);
        self.pulse.hear();
        Ok(Attached {
            first_packet: self.cursor,
            next_output: self.told_output,
            lost: self.cursor - wanted,
            replaced: self.connection.replace(connection),
        })
    }

    /// `true` if `attachment` is of another run of the guest: its outputs and packets are counted
    /// from the start, and none of those that the LAN has counted are its own.
    pub(in crate::lan) fn is_other_run(&self, attachment: &Attachment) -> bool {
        attachment.booted != self.booted
    }

    /// Takes the port from its connection. `at` counts detachments.
    pub(in crate::lan) fn detach(&mut self, at: u64) {
        self.connection = None;
        self.detached_at = at;
    }

    /// `true` if the output is new and is to be carried. Ids may skip, because a guest's console
    /// output shares the sequence.
    pub(in crate::lan) fn accept_output(&mut self, id: OutputId) -> bool {
        let new = id >= self.expected_output || mutated(Mutation::CarryTwice);
        if new {
            self.expected_output = OutputId(id.0.saturating_add(1));
        }
        new
    }

    /// Numbers and keeps a packet for the VM; the oldest ones make room.
    pub(in crate::lan) fn deliver(&mut self, packet: &[u8]) -> Delivery {
        let was_idle = self.cursor == self.next_packet;
        self.kept.push_back(packet.into());
        self.kept_bytes += packet.len() + PACKET_OVERHEAD_BYTES;
        self.next_packet += 1;
        while self.kept.len() > KEPT_PACKETS_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            let oldest = self.kept.pop_front().expect("a ring over its limits is not empty");
            self.kept_bytes -= oldest.len() + PACKET_OVERHEAD_BYTES;
        }
        let first_kept = self.first_kept();
        let overflowed = first_kept.saturating_sub(self.cursor);
        self.cursor += overflowed;
        Delivery { wake: was_idle && self.connection.is_some(), overflowed }
    }

    /// Appends the packets that the connection hasn't had yet, as messages, until `out` holds about
    /// `bytes`; then, if there is room, how far its outputs have been carried, if it doesn't know
    /// yet, and a heartbeat, if one is due.
    pub(in crate::lan) fn take_pending(&mut self, out: &mut Vec<u8>, bytes: usize) {
        let skip = usize::try_from(self.cursor - self.first_kept()).expect("the ring fits in memory");
        for packet in self.kept.iter().skip(skip) {
            if out.len() >= bytes {
                break;
            }
            ServerMessage::Packet { number: self.cursor, packet }.append(out);
            self.cursor += 1;
        }
        if out.len() < bytes && self.told_output < self.expected_output {
            self.told_output = self.expected_output;
            ServerMessage::Carried { next_output: self.told_output }.append(out);
        }
        if out.len() < bytes && std::mem::take(&mut self.owes_heartbeat) {
            ServerMessage::Heartbeat.append(out);
        }
    }

    /// The attached connection has sent something.
    pub(in crate::lan) const fn hear(&mut self) {
        self.pulse.hear();
    }

    /// An interval between heartbeats has passed. `true` if the attached connection is silent and
    /// is to be given up; otherwise it gets a heartbeat.
    pub(in crate::lan) fn is_silent(&mut self) -> bool {
        self.owes_heartbeat = true;
        self.pulse.is_silent()
    }

    /// `true` if the attached connection hasn't been told yet that outputs were carried.
    pub(in crate::lan) fn owes_carried(&self) -> bool {
        self.connection.is_some() && self.told_output < self.expected_output
    }

    /// The VM.
    pub(in crate::lan) fn vm(&self) -> &VmId {
        &self.vm
    }

    /// The owner's generation.
    pub(in crate::lan) fn generation(&self) -> Generation {
        self.generation
    }

    /// The guest's Ethernet address.
    pub(in crate::lan) fn mac(&self) -> Mac {
        self.mac
    }

    /// The connection that has the port.
    pub(in crate::lan) fn connection(&self) -> Option<ConnectionId> {
        self.connection
    }

    /// When it was detached last.
    pub(in crate::lan) fn detached_at(&self) -> u64 {
        self.detached_at
    }

    fn first_kept(&self) -> u64 {
        self.next_packet - self.kept.len() as u64
    }
}

fn check_number(attachment: &Attachment) -> Result<(), Refusal> {
    if attachment.last_packet > LAST_PACKET_MAX { Err(Refusal::Number(attachment.last_packet)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
