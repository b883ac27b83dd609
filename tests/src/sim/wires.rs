//! Connections as TCP makes them: bytes in order, in pieces of any length, late, and cut anywhere.

use crate::random::Random;
use std::collections::{BTreeMap, VecDeque};

/// Where something runs that others can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Host(usize),
    Lan,
    Arbiter,
}

/// A connection, from when it is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WireId(pub(super) u64);

/// One end of a connection: what that side reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct End {
    pub(super) wire: WireId,
    is_listener: bool,
}

impl End {
    const fn other(self) -> Self {
        Self { wire: self.wire, is_listener: !self.is_listener }
    }
}

/// Bytes under way beyond which a writer has to wait, as with full socket buffers.
const WINDOW_BYTES: usize = 128 << 10;

/// What has come to one end.
#[derive(Debug, Default)]
struct Inbound {
    /// When each piece arrives; never falls.
    pieces: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    last_arrival_ns: u64,
    /// When the connection ends, behind all pieces.
    ends_at_ns: Option<u64>,
    /// Whoever reads here is gone: nothing is kept.
    is_deaf: bool,
}

#[derive(Debug)]
struct Wire {
    dialler: Place,
    listener: Place,
    /// What comes to the listener.
    forth: Inbound,
    /// What comes to the dialler.
    back: Inbound,
    /// Nothing arrives any more, and nobody is told.
    is_dead: bool,
}

impl Wire {
    const fn inbound(&mut self, end: End) -> &mut Inbound {
        if end.is_listener { &mut self.forth } else { &mut self.back }
    }

    const fn place(&self, end: End) -> Place {
        if end.is_listener { self.listener } else { self.dialler }
    }
}

/// What an end reads.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    /// The connection has ended; nothing follows.
    pub(super) has_ended: bool,
    /// A writer that had to wait may go on.
    pub(super) has_made_room: bool,
}

/// All connections, and who can't reach whom.
#[derive(Debug)]
pub(super) struct Wires {
    wires: BTreeMap<WireId, Wire>,
    next: u64,
    /// Until when two places can't reach each other.
    partitions: BTreeMap<(Place, Place), u64>,
    random: Random,
}

impl Wires {
    pub(super) const fn new(random: Random) -> Self {
        Self { wires: BTreeMap::new(), next: 0, partitions: BTreeMap::new(), random }
    }

    /// Connects `dialler` to `listener`; returns the two ends.
    pub(super) fn connect(&mut self, dialler: Place, listener: Place) -> (End, End) {
        let wire = WireId(self.next);
        self.next += 1;
        self.wires.insert(
            wire,
            Wire { dialler, listener, forth: Inbound::default(), back: Inbound::default(), is_dead: false },
        );
        let end = End { wire, is_listener: false };
        (end, end.other())
    }

    /// Makes two places unreachable for each other; what they send meanwhile arrives afterwards.
    pub(super) fn part(&mut self, one: Place, other: Place, until_ns: u64) {
        self.partitions.insert(ordered(one, other), until_ns);
    }

    /// Lets everybody reach everybody; all that is under way arrives until `by_ns`.
    pub(super) fn heal(&mut self, by_ns: u64) {
        self.partitions.clear();
        for wire in self.wires.values_mut() {
            for inbound in [&mut wire.forth, &mut wire.back] {
                inbound.last_arrival_ns = inbound.last_arrival_ns.min(by_ns);
                inbound.ends_at_ns = inbound.ends_at_ns.map(|ends_at_ns| ends_at_ns.min(by_ns));
                for (arrival_ns, _) in &mut inbound.pieces {
                    *arrival_ns = by_ns.min(*arrival_ns);
                }
            }
        }
    }

    /// When something sent now arrives.
    pub(super) fn arrival_ns(&mut self, now_ns: u64, from: Place, to: Place) -> u64 {
        let late = if self.random.one_in(60) { 4_000_000 } else { 150_000 };
        let leaves_ns = self.partitions.get(&ordered(from, to)).copied().unwrap_or_default().max(now_ns);
        leaves_ns + 15_000 + u64::from(self.random.below(late))
    }

    /// Whether the other side's buffers take more.
    pub(super) fn has_room(&mut self, end: End) -> bool {
        self.wires.get_mut(&end.wire).is_none_or(|wire| wire.inbound(end.other()).bytes < WINDOW_BYTES)
    }

    /// Sends bytes, in one or several pieces. Returns who gets them, and when each piece arrives.
    pub(super) fn send(&mut self, now_ns: u64, end: End, mut bytes: &[u8]) -> Option<(Place, Vec<u64>)> {
        let wire = self.wires.get(&end.wire).filter(|wire| !wire.is_dead)?;
        let (from, to) = (wire.place(end), wire.place(end.other()));
        let mut arrivals = Vec::new();
        while !bytes.is_empty() {
            let whole = !self.random.one_in(8);
            let (piece, rest) = bytes.split_at(if whole { bytes.len() } else { 1 + self.random.index(bytes.len()) });
            bytes = rest;
            let arrival_ns = self.arrival_ns(now_ns, from, to);
            let inbound = self.wires.get_mut(&end.wire)?.inbound(end.other());
            if inbound.is_deaf || inbound.ends_at_ns.is_some() {
                return None;
            }
            inbound.last_arrival_ns = inbound.last_arrival_ns.max(arrival_ns);
            inbound.pieces.push_back((inbound.last_arrival_ns, piece.to_vec()));
            inbound.bytes += piece.len();
            arrivals.push(inbound.last_arrival_ns);
        }
        Some((to, arrivals))
    }

    /// Takes what has arrived.
    pub(super) fn receive(&mut self, now_ns: u64, end: End) -> Received {
        let Some(wire) = self.wires.get_mut(&end.wire) else {
            return Received { has_ended: true, ..Received::default() };
        };
        let inbound = wire.inbound(end);
        let was_full = inbound.bytes >= WINDOW_BYTES;
        let mut received = Received::default();
        while let Some((_, piece)) = inbound.pieces.pop_front_if(|(arrival_ns, _)| *arrival_ns <= now_ns) {
            inbound.bytes -= piece.len();
            received.bytes.extend_from_slice(&piece);
        }
        received.has_ended = inbound.pieces.is_empty() && inbound.ends_at_ns.is_some_and(|at| at <= now_ns);
        received.has_made_room = was_full && inbound.bytes < WINDOW_BYTES;
        received
    }

    /// Who is at the other end.
    pub(super) fn peer(&self, end: End) -> Option<Place> {
        self.wires.get(&end.wire).map(|wire| wire.place(end.other()))
    }

    /// Closes one end: the other reads what was sent, and then the end. Returns who has to be woken
    /// when.
    pub(super) fn close(&mut self, now_ns: u64, end: End) -> Option<(Place, u64)> {
        self.fall_silent(end);
        let (from, to) = self
            .wires
            .get(&end.wire)
            .filter(|wire| !wire.is_dead)
            .map(|wire| (wire.place(end), wire.place(end.other())))?;
        let arrival_ns = self.arrival_ns(now_ns, from, to);
        let inbound = self.wires.get_mut(&end.wire)?.inbound(end.other());
        let ends_at_ns = *inbound.ends_at_ns.get_or_insert(arrival_ns.max(inbound.last_arrival_ns));
        Some((to, ends_at_ns))
    }

    /// The reader at `end` is gone, and nobody is told.
    pub(super) fn fall_silent(&mut self, end: End) {
        if let Some(wire) = self.wires.get_mut(&end.wire) {
            let inbound = wire.inbound(end);
            *inbound = Inbound { is_deaf: true, ends_at_ns: Some(0), ..Inbound::default() };
        }
    }

    /// Cuts a connection: of what is under way, only so many bytes arrive as had left already; both
    /// sides learn of it. Returns who has to be woken when.
    pub(super) fn cut(&mut self, now_ns: u64, wire: WireId) -> Vec<(Place, u64)> {
        let dialler = End { wire, is_listener: false };
        let ends = [dialler, dialler.other()];
        for end in ends {
            self.tear(end);
        }
        ends.into_iter()
            .filter_map(|end| {
                let (place, peer) = self.wires.get(&wire).map(|wire| (wire.place(end), wire.place(end.other())))?;
                let arrival_ns = self.arrival_ns(now_ns, peer, place);
                let inbound = self.wires.get_mut(&wire)?.inbound(end);
                let ends_at_ns = *inbound.ends_at_ns.get_or_insert(arrival_ns.max(inbound.last_arrival_ns));
                Some((place, ends_at_ns))
            })
            .collect()
    }

    /// Makes a connection dead: of what is under way some is lost, nothing that is sent later
    /// arrives, and nobody is told, not even when one side closes.
    pub(super) fn kill(&mut self, wire: WireId) {
        let dialler = End { wire, is_listener: false };
        self.tear(dialler);
        self.tear(dialler.other());
        self.wires.entry(wire).and_modify(|wire| wire.is_dead = true);
    }

    /// Loses the end of what is on its way to `end`, from some byte on. `true` if something was
    /// lost.
    pub(super) fn tear(&mut self, end: End) -> bool {
        let Some(wire) = self.wires.get_mut(&end.wire) else { return false };
        let inbound = wire.inbound(end);
        if inbound.bytes == 0 {
            return false;
        }
        let kept = self.random.index(inbound.bytes + 1);
        let lost = inbound.bytes - kept;
        let mut room = kept;
        inbound.pieces.retain_mut(|(_, piece)| {
            piece.truncate(room);
            room -= piece.len();
            !piece.is_empty()
        });
        inbound.bytes = kept;
        lost > 0
    }

    /// As [`Wires::tear`], for what `end` has sent.
    pub(super) fn tear_behind(&mut self, end: End) -> bool {
        self.tear(end.other())
    }

    /// The ends that are at `place`.
    pub(super) fn ends_at(&self, place: Place) -> Vec<End> {
        let ends = self.wires.keys().flat_map(|&wire| [false, true].map(|is_listener| End { wire, is_listener }));
        ends.filter(|end| self.wires.get(&end.wire).is_some_and(|wire| wire.place(*end) == place)).collect()
    }

    /// Forgets connections that both sides have left.
    pub(super) fn sweep(&mut self) {
        self.wires.retain(|_, wire| !(wire.forth.is_deaf && wire.back.is_deaf));
    }

    /// The connections between two places that are still up.
    pub(super) fn between(&self, one: Place, other: Place) -> Vec<WireId> {
        let pair = ordered(one, other);
        let is_up = |wire: &Wire| wire.forth.ends_at_ns.is_none() && wire.back.ends_at_ns.is_none();
        self.wires
            .iter()
            .filter(|(_, wire)| ordered(wire.dialler, wire.listener) == pair && is_up(wire))
            .map(|(id, _)| *id)
            .collect()
    }
}

fn ordered(one: Place, other: Place) -> (Place, Place) {
    if one <= other { (one, other) } else { (other, one) }
}
