//! The nodes' environment: the network, the arbiter, the LAN.

use ft::claim::{Claim, ClaimKind, Verdict, is_successor};
use ft::role::{ClaimRequest, LatestAnswer};
use logchannel::entry::Generation;
use logchannel::entry::LogSeq;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::NodeId;
use std::collections::VecDeque;
use vm::OutputId;

/// The connection of a backup to its primary.
///
/// Until the pair is protected it is a stream that loses at most its end, which joining needs.
/// After that, messages in both directions may be lost, duplicated and reordered: once sent, a
/// message may arrive at any time, any number of times.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Channel {
    pub(super) primary: Option<usize>,
    pub(super) backup_listens: bool,
    pub(super) stream: VecDeque<Message>,
    is_stream_over: bool,
    pub(super) to_backup: Vec<Message>,
    pub(super) to_primary: Vec<Message>,
    /// One past the last entry that is or was in the backup's log buffer; for the properties only.
    pub(super) received: LogSeq,
}

impl Channel {
    pub(super) fn open(primary: usize) -> Self {
        Self { primary: Some(primary), backup_listens: true, ..Self::default() }
    }

    pub(super) fn send_to_backup(&mut self, message: Message) {
        if !self.backup_listens {
            return;
        }
        if self.is_stream_over {
            add(&mut self.to_backup, message);
            return;
        }
        self.is_stream_over = matches!(message, Message::Protected { .. });
        self.stream.push_back(message);
    }

    pub(super) fn send_to_primary(&mut self, message: Message) {
        if self.primary.is_some() {
            add(&mut self.to_primary, message);
        }
    }

    /// The number of different messages that may arrive next at the backup.
    pub(super) fn arrivals_at_backup(&self) -> usize {
        if self.stream.is_empty() { self.to_backup.len() } else { 1 }
    }

    pub(super) fn next_at_backup(&self, index: usize) -> Option<&Message> {
        self.stream.front().or_else(|| self.to_backup.get(index))
    }

    pub(super) fn close_at_primary(&mut self) {
        self.primary = None;
        self.to_primary.clear();
        self.forget_if_closed();
    }

    pub(super) fn close_at_backup(&mut self) {
        self.backup_listens = false;
        self.stream.clear();
        self.to_backup.clear();
        self.forget_if_closed();
    }

    fn forget_if_closed(&mut self) {
        if self.primary.is_none() && !self.backup_listens {
            *self = Self::default();
        }
    }
}

fn add(messages: &mut Vec<Message>, message: Message) {
    if !messages.contains(&message) {
        messages.push(message);
    }
}

/// The messages in a role's bytes without the guest's clock, which is a heartbeat here: the model
/// has no time.
pub(super) fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let mut messages = Vec::new();
    while let Some(frame) = decoder.next_frame().expect("a role sends whole frames") {
        let message = Message::decode(frame).expect("a role sends messages");
        if !matches!(message, Message::Clock { .. }) {
            messages.push(message);
        }
    }
    messages
}

/// A test-and-set per generation.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub(super) struct Arbiter {
    /// Generation, holder and kind of each claim, ordered by generation.
    claims: Vec<(u64, usize, ClaimKind)>,
    /// Requests in flight of nodes that are gone.
    pub(super) late: Vec<(usize, ClaimRequest)>,
    /// The arbiter has lost its claims once.
    pub(super) has_forgotten: bool,
}

impl Arbiter {
    pub(super) fn claim_of(&self, generation: u64) -> Option<(usize, ClaimKind)> {
        self.claims.iter().find(|(of, ..)| *of == generation).map(|(_, holder, kind)| (*holder, *kind))
    }

    pub(super) fn latest(&self) -> Option<(u64, ClaimKind)> {
        self.claims.last().map(|(generation, _, kind)| (*generation, *kind))
    }

    /// The latest claim, as the answer to a node.
    pub(super) fn latest_answer(&self) -> LatestAnswer {
        LatestAnswer::Known(self.latest_claim())
    }

    /// The latest claim and its flag.
    pub(super) fn latest_claim(&self) -> Option<(Generation, Claim)> {
        self.claims.last().map(|(flag, holder, kind)| (Generation(*flag), claim(*holder, *kind)))
    }

    /// Loses all claims.
    pub(super) fn forget(&mut self) {
        self.claims.clear();
        self.has_forgotten = true;
    }

    /// The claim of the flag before that of `request`, and whether its holder is the one that the
    /// request names.
    fn before(&self, request: ClaimRequest) -> (Option<Claim>, bool) {
        let before = request.generation.0.checked_sub(1).and_then(|before| self.claim_of(before));
        let before = before.map(|(holder, kind)| claim(holder, kind));
        let may_follow = is_successor(request.generation, request.predecessor, before.as_ref());
        (before, may_follow)
    }

    /// A request arrives.
    pub(super) fn decide(&mut self, node: usize, request: ClaimRequest) {
        let node = claimer(node, request);
        if self.claim_of(request.generation.0).is_none() && self.before(request).1 {
            self.claims.push((request.generation.0, node, request.kind));
            self.claims.sort_unstable_by_key(|(generation, ..)| *generation);
        }
        let claims = &self.claims;
        self.late.retain(|(_, late)| claims.iter().all(|(generation, ..)| *generation != late.generation.0));
    }

    /// The answer to `node`, once the flag is decided or refused.
    pub(super) fn answer(&self, node: usize, request: ClaimRequest) -> Option<Verdict> {
        let node = claimer(node, request);
        let Some((holder, kind)) = self.claim_of(request.generation.0) else {
            let (before, may_follow) = self.before(request);
            return (!may_follow).then_some(Verdict::NotSuccessor(before));
        };
        Some(match holder == node {
            true => Verdict::Won,
            false => Verdict::Lost(claim(holder, kind)),
        })
    }
}

const fn claim(holder: usize, kind: ClaimKind) -> Claim {
    Claim { node: node_id(holder), kind, address: None }
}

/// The VM's port on the LAN.
#[derive(Clone, Debug, Hash)]
pub(super) struct Lan {
    generation: u64,
    node: usize,
    is_attached: bool,
    /// Packets in flight on the attached connection.
    pub(super) wire: VecDeque<(OutputId, Vec<u8>)>,
    /// The packets that it has carried, by output id.
    pub(super) carried: Vec<Vec<u8>>,
}

impl Lan {
    /// A LAN that serves `node` as generation 1.
    pub(super) const fn new(node: usize) -> Self {
        Self { generation: 1, node, is_attached: true, wire: VecDeque::new(), carried: Vec::new() }
    }

    pub(super) fn serves(&self, node: usize) -> bool {
        self.is_attached && self.node == node
    }

    pub(super) const fn is_attached(&self) -> bool {
        self.is_attached
    }

    pub(super) fn next_output(&self) -> OutputId {
        OutputId(self.carried.len() as u64)
    }

    /// Attaches `node`; `false` if it is refused.
    pub(super) fn attach(&mut self, node: usize, generation: u64) -> bool {
        if generation < self.generation || generation == self.generation && node != self.node {
            return false;
        }
        (self.generation, self.node, self.is_attached) = (generation, node, true);
        self.wire.clear();
        true
    }

    /// Cuts the connection, and loses the packets in flight on it.
    pub(super) fn cut(&mut self) {
        self.is_attached = false;
        self.wire.clear();
    }

    /// The next packet arrives. `false` if an earlier one never did.
    pub(super) fn carry(&mut self) -> bool {
        let Some((id, bytes)) = self.wire.pop_front() else { return true };
        if id == self.next_output() {
            self.carried.push(bytes);
        }
        id < self.next_output()
    }
}

/// Added to the index of a node that claims as a stand-in.
const STAND_IN: usize = 100;

/// The index under which `node` claims.
fn claimer(node: usize, request: ClaimRequest) -> usize {
    if request.node == node_id(node) { node } else { node + STAND_IN }
}

pub(super) const fn node_id(node: usize) -> NodeId {
    match node.checked_sub(STAND_IN) {
        Some(node) => NodeId(!(node as u128 + 1)),
        None => NodeId(node as u128 + 1),
    }
}
