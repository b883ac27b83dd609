//! The environment of the roles, in memory: a guest, wires, an arbiter and a LAN.

use crate::roles_image::image;
use ft::claim::{Claim, ClaimKind, Verdict, is_successor};
use ft::role::{ClaimAnswer, ClaimRequest, Expectation, LatestAnswer};
use logchannel::entry::Generation;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::{ImageDigest, NodeId, SessionHeader, VmId};
use std::collections::{BTreeMap, VecDeque};
use vm::{Machine, MachineConfig, OutputId, OutputOperation};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const PRIMARY: NodeId = NodeId(1);
pub(crate) const BACKUP: NodeId = NodeId(2);
/// The first pair's generation in every test.
pub(crate) const G: Generation = Generation(3);
/// The generation after it.
pub(crate) const NEXT: Generation = G.next();

/// The steps in which the guest writes one page.
pub(crate) const STEPS_PER_PAGE: u64 = 8;

/// The image of a guest that writes an increasing number to each of `pages` (a power of 2) pages in
/// turn, for ever.
pub(crate) fn writing_guest(pages: u32) -> Vec<u8> {
    const BEGIN: [u32; 4] = [
        0x0010_0293, // li t0, 1
        0x01f2_9293, // slli t0, t0, 31
        0x0010_0337, // lui t1, 0x100
        0x0062_82b3, // add t0, t0, t1: 1 MiB behind the beginning of RAM
    ];
    let mask = (pages - 1) << 12;
    let turn = [
        0x0072_8eb3,        // add t4, t0, t2
        0x001e_0e13,        // addi t3, t3, 1
        0x01ce_b023,        // sd t3, 0(t4)
        0x0000_1f37,        // lui t5, 1
        0x01e3_83b3,        // add t2, t2, t5
        0x0000_0fb7 | mask, // lui t6, pages - 1
        0x01f3_f3b3,        // and t2, t2, t6
        0xfe5f_f06f,        // jump to the first of these
    ];
    image(&[&BEGIN[..], &turn].concat())
}

/// The guest of most tests, with few pages, so that its snapshot is small.
pub(crate) fn guest_image() -> Vec<u8> {
    writing_guest(4)
}

pub(crate) fn config() -> MachineConfig {
    MachineConfig { ram_bytes: 4 << 20, ..MachineConfig::default() }
}

pub(crate) fn machine(image: &[u8]) -> Machine {
    Machine::new(&config(), image).unwrap()
}

/// The guest's output `id` while `maker` runs it; another maker's output would differ.
pub(crate) fn operation(maker: NodeId, id: OutputId) -> OutputOperation {
    OutputOperation::Packet([id.0.to_le_bytes(), maker.0.to_le_bytes()[..8].try_into().unwrap()].concat().repeat(4))
}

pub(crate) fn vm_id() -> VmId {
    VmId::new("vm0").unwrap()
}

pub(crate) fn session() -> SessionHeader {
    let session = SessionHeader::new(vm_id(), G, config(), "test", &guest_image()).unwrap();
    // The guest was reset before the first generation of any test.
    SessionHeader { booted: Generation(0), ..session }
}

pub(crate) fn expectation() -> Expectation {
    Expectation { vm: vm_id(), image: Some(("test".into(), ImageDigest::of(&guest_image()))) }
}

/// xorshift64*.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// A number of bytes, so that messages arrive cut anywhere, but do arrive.
    pub(crate) fn bytes(&mut self) -> usize {
        let bound = [60, 6000, 1 << 20][usize::try_from(self.below(3)).unwrap()];
        usize::try_from(self.below(bound)).unwrap()
    }
}

/// One direction of the channel: the bytes in flight, decoded into messages as in production.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    bytes: VecDeque<u8>,
    decoder: FrameDecoder,
    pub(crate) is_cut: bool,
}

impl Wire {
    /// The number of bytes in flight.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The next `bytes` bytes arrive; returns the messages that they complete.
    pub(crate) fn deliver(&mut self, bytes: usize) -> Vec<Message> {
        let bytes: Vec<u8> = self.bytes.drain(..bytes.min(self.bytes.len())).collect();
        self.decoder.push(&bytes);
        let mut messages = Vec::new();
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            messages.push(Message::decode(frame).unwrap());
        }
        messages
    }

    /// Everything in flight arrives; returns the last message.
    pub(crate) fn last(&mut self) -> Option<Message> {
        self.deliver(usize::MAX).pop()
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if !self.is_cut {
            self.bytes.extend(bytes);
        }
    }

    /// Loses the bytes in flight from `bytes` on.
    pub(crate) fn lose_behind(&mut self, bytes: usize) {
        self.bytes.truncate(bytes);
    }
}

/// A test-and-set per generation. The first pair's primary owns the VM by the claim before it.
#[derive(Debug)]
pub(crate) struct Arbiter {
    pub(crate) claims: BTreeMap<u64, Claim>,
    /// Requests don't arrive.
    pub(crate) is_unreachable: bool,
    /// The number of requests that arrive and whose answers are lost.
    pub(crate) lost_replies: u32,
}

impl Default for Arbiter {
    fn default() -> Self {
        let claim = Claim { node: PRIMARY, kind: ClaimKind::Owner, address: None };
        Self { claims: BTreeMap::from([(G.0 - 1, claim)]), is_unreachable: false, lost_replies: 0 }
    }
}

impl Arbiter {
    /// The latest claim, as a driver asks for it.
    pub(crate) fn latest(&self) -> LatestAnswer {
        if self.is_unreachable {
            return LatestAnswer::Unreachable;
        }
        LatestAnswer::Known(self.claims.last_key_value().map(|(flag, claim)| (Generation(*flag), claim.clone())))
    }

    pub(crate) fn ask(&mut self, request: ClaimRequest) -> ClaimAnswer {
        if self.is_unreachable {
            return ClaimAnswer::Unreachable;
        }
        let claim = Claim { node: request.node, kind: request.kind, address: None };
        let before = request.generation.0.checked_sub(1).and_then(|before| self.claims.get(&before));
        let may_follow = is_successor(request.generation, request.predecessor, before);
        if !may_follow && !self.claims.contains_key(&request.generation.0) {
            return ClaimAnswer::Decided(Verdict::NotSuccessor(before.cloned()));
        }
        let holder = self.claims.entry(request.generation.0).or_insert(claim).clone();
        if self.lost_replies > 0 {
            self.lost_replies -= 1;
            return ClaimAnswer::Unreachable;
        }
        ClaimAnswer::Decided(if holder.node == request.node { Verdict::Won } else { Verdict::Lost(holder) })
    }
}

/// The network, which outlives the owners of the VM: it carries each packet once, by its id, and
/// only from the newest generation's port.
#[derive(Debug, Default)]
pub(crate) struct Lan {
    generation: Generation,
    /// The carried outputs; an output's index is its id.
    pub(crate) carried: Vec<OutputOperation>,
    /// Repeated packets, which it had carried.
    pub(crate) dropped: u32,
    /// Packets on ports of older generations.
    pub(crate) refused: u32,
}

impl Lan {
    /// An owner attaches. Returns one past the last output carried, or `None` if there is a newer
    /// owner.
    pub(crate) fn attach(&mut self, generation: Generation) -> Option<OutputId> {
        if generation < self.generation {
            return None;
        }
        self.generation = generation;
        Some(OutputId(self.carried.len() as u64))
    }

    /// A packet arrives on the port that was attached for `generation`.
    ///
    /// A repeated packet must be the same, and no packet may be left out.
    pub(crate) fn carry(&mut self, generation: Generation, id: OutputId, packet: &OutputOperation) -> Option<OutputId> {
        if generation < self.generation {
            self.refused += 1;
            return None;
        }
        match self.carried.get(usize::try_from(id.0).unwrap()) {
            Some(before) => {
                assert_eq!(before, packet, "output {} comes again, and is another", id.0);
                self.dropped += 1;
            }
            None => {
                assert_eq!(id.0, self.carried.len() as u64, "outputs before this one are sent by nobody");
                self.carried.push(packet.clone());
            }
        }
        Some(OutputId(self.carried.len() as u64))
    }
}
