//! The environment of both sides, which outlives them: the LAN, the console's reader and the
//! arbiter, with what they have seen.

use super::guest::Story;
use super::points::Points;
use crate::world::Arbiter;
use logchannel::entry::Generation;
use logchannel::message::Left;
use logchannel::session::NodeId;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use vm::{OutputId, OutputOperation};

/// The number of packets for the guest.
pub(super) const PACKETS: u64 = 36;

/// A packet in flight to the LAN, on the port of a generation.
pub(super) type PacketUnderWay = (Generation, OutputId, Arc<OutputOperation>);

/// The environment.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) now_ns: u64,
    pub(super) points: Points,
    pub(super) arbiter: Arbiter,
    pub(super) lan: Lan,
    /// The console as read: each line, and the node that wrote it last.
    console: Vec<(OutputOperation, NodeId)>,
    /// Lines that a successor has written again.
    pub(super) words_again: u32,
    /// Whether an output has left, by its id.
    has_left: Vec<bool>,
    /// The outputs of which backups were told that they have left.
    told: Left,
    /// The number of entries that are known from outputs that have left, and their digest.
    known: (usize, u64),
    pub(super) owners: BTreeMap<Generation, NodeId>,
}

impl Outside {
    pub(super) fn new(points: Points) -> Self {
        Self {
            now_ns: 1_000_000_000,
            points,
            arbiter: Arbiter::default(),
            lan: Lan::default(),
            console: Vec::new(),
            words_again: 0,
            has_left: Vec::new(),
            told: Left::default(),
            known: (0, 0),
            owners: BTreeMap::new(),
        }
    }

    /// A side owns the VM as this generation.
    pub(super) fn owns(&mut self, generation: Generation, node: NodeId, story: &Story) {
        let flag = generation.0 - 1;
        assert_eq!(self.arbiter.claims.get(&flag).map(|claim| claim.node), Some(node), "without a won claim");
        assert_eq!(self.owners.insert(generation, node), None, "generation {generation} has two owners");
        self.check_known(story);
    }

    /// A log must begin with all entries that are known from outputs.
    pub(super) fn check_known(&self, story: &Story) {
        let (entries, digest) = self.known;
        assert!(story.entries() >= entries, "{entries} entries are known of, and the owner has {}", story.entries());
        assert_eq!(story.digest(entries), digest, "the owner's log is another than what is known of");
    }

    /// An output whose entry is at `position` leaves its owner.
    pub(super) fn learn(&mut self, story: &Story, position: usize) {
        if position >= self.known.0 {
            self.check_known(story);
            self.known = (position + 1, story.digest(position + 1));
        }
    }

    /// A line is written to the console. Each is read at least once; again only from a successor
    /// that wasn't told that it had left, and then it must be the same.
    pub(super) fn write(&mut self, writer: NodeId, id: OutputId, word: &OutputOperation) {
        let index = index_of(word);
        match self.console.get_mut(index) {
            Some((before, last_writer)) => {
                assert_eq!(before, word, "word {index} is written again, and is another");
                assert_ne!(*last_writer, writer, "word {index} is written twice by {writer}");
                *last_writer = writer;
                self.words_again += 1;
            }
            None => {
                assert_eq!(index, self.console.len(), "words before this one are written by nobody");
                self.console.push((word.clone(), writer));
            }
        }
        self.left(id, word);
    }

    /// The LAN carries the next packet in flight.
    pub(super) fn carry(&mut self) {
        let Some((port, id, packet)) = self.lan.under_way.pop_front() else { return };
        if port < self.lan.generation {
            self.lan.refused += 1;
            return;
        }
        let index = index_of(&packet);
        match self.lan.carried.get(index) {
            Some(before) => {
                assert_eq!(before, &*packet, "frame {index} comes again, and is another");
                self.lan.dropped += 1;
            }
            None => {
                assert_eq!(index, self.lan.carried.len(), "frames before this one are sent by nobody");
                self.lan.carried.push((*packet).clone());
                self.lan.next_output = id.next();
                self.left(id, &packet);
            }
        }
    }

    fn left(&mut self, id: OutputId, output: &OutputOperation) {
        let index = usize::try_from(id.0).unwrap();
        self.has_left.resize(self.has_left.len().max(index + 1), false);
        let had_left = std::mem::replace(&mut self.has_left[index], true);
        assert!(had_left || !self.told.has(id, output), "{id:?} was said to have left, and leaves now");
    }

    /// A backup is told which outputs have left, so that it needn't send them.
    pub(super) fn check_released(&mut self, left: Left) {
        self.told.packets = self.told.packets.max(left.packets);
        self.told.console = self.told.console.max(left.console);
        // Which outputs are packets is known only when they leave.
        let next = left.packets.min(left.console);
        let not_left =
            (0..next.0).find(|id| !self.has_left.get(usize::try_from(*id).unwrap()).is_some_and(|left| *left));
        assert_eq!(not_left, None, "all outputs below {} are said to have left", next.0);
    }

    /// At the end all outputs must have been carried or read once, in order, and all packets to the
    /// guest must have arrived.
    pub(super) fn check_end(&self, story: &Story) {
        self.check_known(story);
        let (mut packets, mut words) = (self.lan.carried.iter(), self.console.iter().map(|(word, _)| word));
        for (id, digest) in story.outputs().enumerate() {
            let next = [packets.as_slice().first(), words.clone().next()];
            match next.map(|output| output.is_some_and(|output| output.digest() == digest)) {
                [true, _] => _ = packets.next(),
                [_, true] => _ = words.next(),
                [false, false] => panic!("output {id} has reached nobody"),
            }
        }
        assert_eq!((packets.count(), words.count()), (0, 0), "more has left than the guest has sent");
        assert_eq!((story.next_packet, self.lan.packets), (PACKETS, PACKETS), "packets that the guest has got");
    }
}

/// The index of an output among its kind, as the guest wrote it into it.
fn index_of(output: &OutputOperation) -> usize {
    usize::from(output.bytes()[0]) | usize::from(output.bytes()[1]) << 8
}

/// The network, which outlives the owners of the VM.
#[derive(Debug, Default)]
pub(super) struct Lan {
    generation: Generation,
    pub(super) under_way: VecDeque<PacketUnderWay>,
    carried: Vec<OutputOperation>,
    next_output: OutputId,
    /// Packets for the guest so far; all are retained.
    pub(super) packets: u64,
    /// Repeated packets, which it had carried.
    pub(super) dropped: u32,
    /// Packets on ports of older generations.
    pub(super) refused: u32,
}

impl Lan {
    /// An owner attaches. Returns one past the last output carried, or `None` if there is a newer
    /// owner.
    pub(super) fn attach(&mut self, generation: Generation) -> Option<OutputId> {
        if generation < self.generation {
            return None;
        }
        self.generation = generation;
        Some(self.next_output)
    }

    /// What the owner with this port is told about its packets.
    pub(super) fn tell(&self, port: Generation) -> Option<OutputId> {
        (port >= self.generation).then_some(self.next_output)
    }
}
