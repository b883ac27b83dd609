//! The port of one VM: who may use it, which outputs it has carried, which packets it keeps.
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
use vm::OutputId;

/// The most packets that a port keeps for a VM.
pub(in crate::lan) const KEPT_PACKETS_MAX: usize = 4096;
/// The most bytes that a port keeps for a VM, [`PACKET_OVERHEAD_BYTES`] for each packet included.
pub(in crate::lan) const KEPT_BYTES_MAX: usize = 8 << 20;
/// What keeping a packet costs beyond its bytes, roughly.
const PACKET_OVERHEAD_BYTES: usize = 32;

/// The greatest packet number that an attachment may tell; above it there is room to count on for
/// ever.
const LAST_PACKET_MAX: u64 = u64::MAX >> 1;

/// One connection to the LAN; no two ever have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Why an attachment is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The VM has a newer owner.
    #[error("generation {asked} is fenced: generation {current} owns the VM")]
    OlderGeneration {
        /// Whose attachment it is.
        asked: Generation,
        /// The owner.
        current: Generation,
    },
    /// Only one process is a generation.
    #[error("another process has generation {0} of the VM; claim a new generation at the arbiter")]
    OtherNode(Generation),
    /// No station has such an address.
    #[error("the MAC address is a group address or zero")]
    InvalidMac,
    /// The address is another VM's, or the gateway's.
    #[error("another station of this LAN has the same MAC address; give each VM its own")]
    MacTaken,
    /// So many VMs are attached.
    #[error("the LAN has no room for another VM: {0} are attached")]
    Full(usize),
    /// The number of the last packet is out of range.
    #[error("frame number {0} can't be right: no VM lives that long")]
    Number(u64),
}

/// What became of a packet for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) struct Delivery {
    /// The port's connection had nothing to send until now.
    pub(in crate::lan) wake: bool,
    /// How many packets were dropped that had never been sent to anybody.
    pub(in crate::lan) overflowed: u64,
}

/// What an accepted attachment leads to.
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
    /// Which run of the guest the outputs and packets are of.
    booted: Generation,
    mac: Mac,
    connection: Option<ConnectionId>,
    /// When it was detached last, as the LAN counts; 0 if never.
    detached_at: u64,
    expected_output: OutputId,
    /// What the attached connection knows of `expected_output`.
    told_output: OutputId,
    /// Of the attached connection.
    pulse: Pulse,
    owes_heartbeat: bool,
    kept: VecDeque<Box<[u8]>>,
    kept_bytes: usize,
    /// Number of the next packet that will be kept; the first packet of a VM has number 1.
    next_packet: u64,
    /// Number of the next packet that the attached connection gets; while detached, that the last
    /// one would have got.
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

    /// Whether [`VmPort::attach`] would refuse `attachment`.
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

    /// Gives the port to `connection`: delivery goes on after the attachment's last packet.
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
            // The VM has had packets from a LAN that knew more than this one; the numbers must not
            // come twice.
            self.kept.clear();
            self.kept_bytes = 0;
            self.next_packet = wanted;
        }
        self.cursor = wanted.max(self.first_kept());
        // A log that was resumed may be from before what was carried. One incarnation's outputs
        // only become more: its attachment that was long under way says less than is carried by
        // now.
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

    /// Whether `attachment` is of another run of the guest: its outputs and packets were counted
    /// afresh, and none of those that the LAN has counted are its own.
    pub(in crate::lan) fn is_other_run(&self, attachment: &Attachment) -> bool {
        attachment.booted != self.booted
    }

    /// Takes the port from its connection; the later, the greater is `at`.
    pub(in crate::lan) fn detach(&mut self, at: u64) {
        self.connection = None;
        self.detached_at = at;
    }

    /// Whether the output is new and is to be carried. Ids may skip: a guest's console shares the
    /// sequence.
    pub(in crate::lan) fn accept_output(&mut self, id: OutputId) -> bool {
        let new = id >= self.expected_output || mutated(Mutation::CarryTwice);
        if new {
            self.expected_output = OutputId(id.0.saturating_add(1));
        }
        new
    }

    /// Numbers and keeps a packet for the VM; the oldest makes room.
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

    /// Something has come from the attached connection.
    pub(in crate::lan) const fn hear(&mut self) {
        self.pulse.hear();
    }

    /// An interval between heartbeats has passed. `true` if the attached connection is silent and
    /// is to be given up; otherwise it gets a heartbeat.
    pub(in crate::lan) fn is_silent(&mut self) -> bool {
        self.owes_heartbeat = true;
        self.pulse.is_silent()
    }

    /// Whether the attached connection is yet to be told that outputs were carried.
    pub(in crate::lan) fn owes_word(&self) -> bool {
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
mod tests {
    use super::*;
    use vm::PACKET_BYTES_MAX;

    fn attachment(generation: u64, node: u128, next_output: u64, last_packet: u64) -> Attachment {
        Attachment {
            vm: "echo".parse().unwrap(),
            node: NodeId(node),
            generation: Generation(generation),
            mac: [2, 0, 0, 0, 0, 1],
            next_output: OutputId(next_output),
            output_end: OutputId(u64::MAX),
            last_packet,
            booted: Generation(0),
        }
    }

    fn boot(generation: u64, node: u128) -> Attachment {
        Attachment { booted: Generation(generation), ..attachment(generation, node, 0, 0) }
    }

    /// A port that `attachment` has opened as connection 1.
    fn opened(attachment: &Attachment) -> VmPort {
        let mut port = VmPort::adopt(attachment).unwrap();
        port.attach(ConnectionId(1), attachment).unwrap();
        port
    }

    fn attach(port: &mut VmPort, connection: u64, attachment: &Attachment) -> Attached {
        port.attach(ConnectionId(connection), attachment).unwrap()
    }

    fn packet(content: u8) -> Vec<u8> {
        vec![content; 60]
    }

    /// Everything that the port has to send: numbers, and the first byte of each packet.
    fn pending(port: &mut VmPort) -> Vec<(u64, u8)> {
        let mut out = Vec::new();
        port.take_pending(&mut out, usize::MAX);
        let mut rest = &out[..];
        let mut packets = Vec::new();
        while let Some((length, tail)) = rest.split_first_chunk() {
            let (message, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            if let ServerMessage::Packet { number, packet } = ServerMessage::decode(message).unwrap() {
                packets.push((number, packet[0]));
            }
            rest = tail;
        }
        packets
    }

    #[test]
    fn outputs_are_carried_once_and_ids_may_skip() {
        let mut port = opened(&boot(0, 1));
        let verdicts: Vec<_> = [0, 1, 1, 5, 4, 0, 6].map(|id| port.accept_output(OutputId(id))).into();
        assert_eq!(verdicts, [true, true, false, true, false, false, true]);
    }

    /// What the port tells of outputs carried.
    fn told(port: &mut VmPort, bytes: usize) -> Option<u64> {
        let mut out = Vec::new();
        port.take_pending(&mut out, bytes);
        // A message of a kind and one number.
        let message = out.last_chunk::<9>()?;
        match ServerMessage::decode(message) {
            Ok(ServerMessage::Carried { next_output }) => Some(next_output.0),
            Ok(_) | Err(_) => None,
        }
    }

    #[test]
    fn outputs_carried_are_told_once_and_many_at_a_time() {
        let mut port = opened(&boot(0, 1));
        assert!(!port.owes_word());
        (0..3).for_each(|id| _ = port.accept_output(OutputId(id)));
        assert!(port.owes_word());
        assert_eq!(told(&mut port, 0), None, "no room");
        assert_eq!(told(&mut port, usize::MAX), Some(3));
        assert_eq!(told(&mut port, usize::MAX), None);
        port.accept_output(OutputId(1));
        assert!(!port.owes_word(), "a duplicate changes nothing");
        port.accept_output(OutputId(5));
        port.deliver(&packet(1));
        assert_eq!(told(&mut port, usize::MAX), Some(6), "after the frames");
    }

    #[test]
    fn what_the_old_connection_was_not_told_is_in_the_answer_to_the_new_one() {
        let mut port = opened(&boot(0, 1));
        (0..3).for_each(|id| _ = port.accept_output(OutputId(id)));
        port.detach(1);
        assert!(!port.owes_word(), "nobody is there to be told");
        assert_eq!(attach(&mut port, 2, &attachment(0, 1, 0, 0)).next_output, OutputId(3));
        assert!(!port.owes_word());
        assert_eq!(told(&mut port, usize::MAX), None);
    }

    #[test]
    fn a_new_primary_may_send_again_what_the_old_one_had_sent() {
        let mut port = opened(&boot(0, 1));
        (0..10).for_each(|id| assert!(port.accept_output(OutputId(id))));
        let attached = attach(&mut port, 2, &attachment(1, 2, 7, 0));
        assert_eq!(attached.next_output, OutputId(10));
        let carried: Vec<_> = (7..13).filter(|&id| port.accept_output(OutputId(id))).collect();
        assert_eq!(carried, [10, 11, 12]);
    }

    #[test]
    fn the_first_packet_has_number_one_and_each_comes_once() {
        let mut port = opened(&boot(0, 1));
        port.deliver(&packet(10));
        port.deliver(&packet(11));
        assert_eq!(pending(&mut port), [(1, 10), (2, 11)]);
        assert_eq!(pending(&mut port), []);
        port.deliver(&packet(12));
        assert_eq!(pending(&mut port), [(3, 12)]);
    }

    #[test]
    fn only_the_first_of_many_packets_wakes_the_connection() {
        let mut port = opened(&boot(0, 1));
        assert!(port.deliver(&packet(1)).wake);
        assert!(!port.deliver(&packet(2)).wake);
        pending(&mut port);
        assert!(port.deliver(&packet(3)).wake);
        port.detach(1);
        pending(&mut port);
        assert!(!port.deliver(&packet(4)).wake, "nobody is there to be woken");
    }

    #[test]
    fn packets_that_the_old_primary_had_not_logged_are_delivered_again() {
        let mut port = opened(&boot(0, 1));
        (1..=5).for_each(|n| _ = port.deliver(&packet(n)));
        assert_eq!(pending(&mut port).len(), 5);
        let attached = attach(&mut port, 2, &attachment(1, 2, 0, 3));
        assert_eq!(
            attached,
            Attached { first_packet: 4, next_output: OutputId(0), lost: 0, replaced: Some(ConnectionId(1)) }
        );
        assert_eq!(pending(&mut port), [(4, 4), (5, 5)]);
    }

    #[test]
    fn packets_that_come_while_nobody_is_attached_are_kept() {
        let mut port = opened(&boot(0, 1));
        port.deliver(&packet(1));
        pending(&mut port);
        port.detach(1);
        port.deliver(&packet(2));
        port.deliver(&packet(3));
        let attached = attach(&mut port, 2, &attachment(1, 2, 0, 1));
        assert_eq!(attached, Attached { first_packet: 2, next_output: OutputId(0), lost: 0, replaced: None });
        assert_eq!(pending(&mut port), [(2, 2), (3, 3)]);
    }

    #[test]
    fn older_generations_and_other_nodes_are_refused() {
        let mut port = opened(&boot(4, 1));
        let older = port.attach(ConnectionId(2), &boot(3, 2));
        assert_eq!(older, Err(Refusal::OlderGeneration { asked: Generation(3), current: Generation(4) }));
        let other = port.attach(ConnectionId(2), &attachment(4, 2, 0, 0));
        assert_eq!(other, Err(Refusal::OtherNode(Generation(4))));
        assert_eq!(port.connection(), Some(ConnectionId(1)), "a refused attachment changes nothing");
        port.detach(1);
        assert_eq!(
            port.attach(ConnectionId(3), &boot(3, 2)),
            Err(Refusal::OlderGeneration { asked: Generation(3), current: Generation(4) })
        );
        assert_eq!(attach(&mut port, 4, &attachment(4, 1, 0, 0)).replaced, None);
    }

    #[test]
    fn an_unknown_vm_brings_its_numbering_along() {
        let mut port = opened(&attachment(7, 1, 100, 41));
        assert!(!port.accept_output(OutputId(99)));
        assert!(port.accept_output(OutputId(100)));
        port.deliver(&packet(9));
        assert_eq!(pending(&mut port), [(42, 9)]);
    }

    #[test]
    fn a_vm_that_knows_more_than_the_lan_never_gets_a_number_twice() {
        let mut port = opened(&boot(0, 1));
        port.deliver(&packet(1));
        let attached = attach(&mut port, 2, &attachment(1, 2, 0, 50));
        assert_eq!((attached.first_packet, attached.lost), (51, 0));
        port.deliver(&packet(2));
        assert_eq!(pending(&mut port), [(51, 2)]);
    }

    #[test]
    fn a_boot_begins_a_new_run_but_only_with_a_new_generation() {
        let mut port = opened(&boot(0, 1));
        (0..9).for_each(|id| _ = port.accept_output(OutputId(id)));
        port.deliver(&packet(1));
        attach(&mut port, 2, &boot(0, 1));
        assert!(!port.accept_output(OutputId(0)), "the same generation attaching again is the same run");
        assert_eq!(pending(&mut port), [(1, 1)]);

        let attached = attach(&mut port, 3, &boot(1, 2));
        assert_eq!(
            attached,
            Attached { first_packet: 1, next_output: OutputId(0), lost: 0, replaced: Some(ConnectionId(2)) }
        );
        assert_eq!(pending(&mut port), []);
        assert!(port.accept_output(OutputId(0)));
    }

    #[test]
    fn the_ring_is_bounded_in_packets_and_loss_is_counted() {
        let mut port = opened(&boot(0, 1));
        let overflowed: u64 = (0..KEPT_PACKETS_MAX + 10).map(|_| port.deliver(&packet(1)).overflowed).sum();
        assert_eq!(overflowed, 10);
        let packets = pending(&mut port);
        assert_eq!((packets.len(), packets[0].0), (KEPT_PACKETS_MAX, 11));
        assert_eq!(port.deliver(&packet(1)).overflowed, 0, "the oldest was sent already, so nothing is lost yet");
        let attached = attach(&mut port, 2, &attachment(1, 2, 0, 5));
        assert_eq!((attached.first_packet, attached.lost), (12, 6), "frames 6 to 11 are not kept any more");
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let mut port = opened(&boot(0, 1));
        let packet = vec![1; PACKET_BYTES_MAX];
        (0..KEPT_PACKETS_MAX).for_each(|_| _ = port.deliver(&packet));
        let kept = KEPT_BYTES_MAX.min(KEPT_PACKETS_MAX * (PACKET_BYTES_MAX + PACKET_OVERHEAD_BYTES));
        assert_eq!(port.kept.len(), kept / (PACKET_BYTES_MAX + PACKET_OVERHEAD_BYTES));
        assert!(port.kept_bytes <= KEPT_BYTES_MAX);
    }

    #[test]
    fn a_batch_is_bounded_and_goes_on_where_it_ended() {
        let mut port = opened(&boot(0, 1));
        (1..=100).for_each(|n| _ = port.deliver(&packet(n)));
        let mut out = Vec::new();
        port.take_pending(&mut out, 1000);
        assert!((1000..1100).contains(&out.len()), "{}", out.len());
        let rest = pending(&mut port);
        assert!(rest[0].0 > 10 && rest.len() as u64 == 100 - rest[0].0 + 1);
    }

    #[test]
    fn numbers_at_the_end_of_their_range_are_refused() {
        for last_packet in [u64::MAX, u64::MAX - 1, LAST_PACKET_MAX + 1] {
            let refusal = VmPort::adopt(&attachment(0, 1, 0, last_packet)).map(|_| ());
            assert_eq!(refusal, Err(Refusal::Number(last_packet)));
            let mut port = opened(&boot(0, 1));
            let refusal = port.attach(ConnectionId(2), &attachment(1, 1, 0, last_packet));
            assert_eq!(refusal, Err(Refusal::Number(last_packet)));
        }
        let mut port = opened(&attachment(0, 1, u64::MAX, LAST_PACKET_MAX));
        port.deliver(&packet(1));
        assert!(port.accept_output(OutputId(u64::MAX)));
    }

    #[test]
    fn a_guest_that_went_on_from_an_older_log_is_heard_again() {
        let mut port = VmPort::adopt(&attachment(0, 1, 0, 0)).unwrap();
        attach(&mut port, 1, &attachment(0, 1, 0, 0));
        for id in 0..10 {
            assert!(port.accept_output(OutputId(id)));
        }
        // It has made outputs up to 6, and doesn't know whether its former self has sent the last
        // two.
        let resumed = Attachment { output_end: OutputId(7), ..attachment(1, 2, 5, 0) };
        assert_eq!(attach(&mut port, 2, &resumed).next_output, OutputId(7));
        assert!(!port.accept_output(OutputId(6)) && port.accept_output(OutputId(7)));
    }

    /// The LAN was away while the VM ended and was started afresh: the first of the new run that it
    /// hears of is a backup that has gone live, whose outputs have numbers that the LAN has carried
    /// for the run before.
    #[test]
    fn another_run_of_the_guest_is_heard_though_its_boot_was_not() {
        let mut port = opened(&boot(0, 1));
        (0..10).for_each(|id| assert!(port.accept_output(OutputId(id))));
        (0..3).for_each(|content| _ = port.deliver(&packet(content)));
        port.detach(1);
        let live = Attachment { booted: Generation(1), output_end: OutputId(20), ..attachment(2, 3, 4, 1) };
        assert_eq!(
            attach(&mut port, 2, &live),
            Attached { first_packet: 2, next_output: OutputId(4), lost: 0, replaced: None }
        );
        assert!((4..20).all(|id| port.accept_output(OutputId(id))));
        assert_eq!(pending(&mut port), [], "the frames were for the guest before");
        // Its next owner goes on with the same run.
        assert_eq!(attach(&mut port, 3, &Attachment { generation: Generation(3), ..live }).next_output, OutputId(20));
    }

    #[test]
    fn an_attachment_of_the_same_life_that_comes_late_makes_nothing_be_carried_again() {
        let mut port = VmPort::adopt(&attachment(0, 1, 0, 0)).unwrap();
        attach(&mut port, 1, &attachment(0, 1, 0, 0));
        for id in 0..10 {
            assert!(port.accept_output(OutputId(id)));
        }
        let late = Attachment { output_end: OutputId(7), ..attachment(0, 1, 5, 0) };
        assert_eq!(attach(&mut port, 2, &late).next_output, OutputId(10));
        assert!(!port.accept_output(OutputId(9)));
    }
}
