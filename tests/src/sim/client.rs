//! Stations on the LAN that ask the guest `tally`, and what it answers.
//!
//! The packets' layout is described in the guest's own module; it is written down here a second
//! time because a client that shared the guest's code would share its mistakes.

use crate::random::Random;

/// The Ethernet address of the guest of a VM.
pub(super) fn guest_mac(vm: usize) -> [u8; 6] {
    let [.., last] = (vm + 1).to_be_bytes();
    [2, 0, 0, 0, 0, last]
}

const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const HEADER_BYTES: usize = 14;
const POWER_OFF: u8 = 4;

/// Requests that a station leaves unanswered at most.
const OPEN_MAX: u32 = 40;

/// One packet of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) client: u32,
    pub(super) number: u32,
    pub(super) part: u16,
    pub(super) parts: u16,
    pub(super) count: u64,
    pub(super) clock: u64,
    pub(super) noise: u64,
    pub(super) hash: u64,
}

impl Reply {
    /// Reads a packet; `None` if it is no answer.
    fn parse(packet: &[u8]) -> Option<Self> {
        let mut rest = packet.get(HEADER_BYTES + 1..)?;
        if packet[12..14] != ETHERTYPE {
            return None;
        }
        let mut number = |bytes: usize| {
            let (field, after) = rest.split_at_checked(bytes)?;
            rest = after;
            Some(field.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
        };
        Some(Self {
            client: u32::try_from(number(4)?).ok()?,
            number: u32::try_from(number(4)?).ok()?,
            part: u16::try_from(number(2)?).ok()?,
            parts: u16::try_from(number(2)?).ok()?,
            count: number(8)?,
            clock: number(8)?,
            noise: number(8)?,
            hash: number(8)?,
        })
    }

    /// What all parts of an answer have in common.
    pub(super) const fn whole(self) -> Self {
        Self { part: 0, ..self }
    }

    /// The guest's hash after this answer, if it was `hash` before.
    pub(super) fn hash_after(&self, hash: u64) -> u64 {
        let asker = u64::from(self.client) << 32 | u64::from(self.number);
        [asker, self.count, self.clock, self.noise]
            .iter()
            .fold(hash, |hash, word| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }
}

/// A station.
#[derive(Debug)]
pub(super) struct Station {
    /// Which VM's guest it asks.
    vm: usize,
    client: u32,
    asked: u32,
    answered: u32,
}

impl Station {
    pub(super) const fn new(vm: usize, client: u32) -> Self {
        Self { vm, client, asked: 0, answered: 0 }
    }

    /// Which VM's guest it asks.
    pub(super) const fn vm(&self) -> usize {
        self.vm
    }

    /// The next request, unless too many are open.
    pub(super) fn ask(&mut self, random: &mut Random) -> Option<Vec<u8>> {
        if self.open() >= OPEN_MAX {
            return None;
        }
        let (operation, argument) = match random.below(20) {
            0..=13 => (1, 0),
            14..=17 => (2, 2 + random.below(7)),
            _ => (3, random.below(40)),
        };
        Some(self.request(operation, argument))
    }

    /// The request that ends the guest.
    pub(super) fn power_off(&mut self) -> Vec<u8> {
        self.request(POWER_OFF, 0)
    }

    fn request(&mut self, operation: u8, argument: u32) -> Vec<u8> {
        self.asked += 1;
        let mut packet = [&guest_mac(self.vm)[..], &self.mac(), &ETHERTYPE, &[operation]].concat();
        for word in [self.client, self.asked, argument] {
            packet.extend_from_slice(&word.to_be_bytes());
        }
        packet
    }

    /// A packet has come to this station.
    pub(super) fn receive(&mut self, packet: &[u8]) -> Option<Reply> {
        let reply = Reply::parse(packet)?;
        assert_eq!(reply.client, self.client, "an answer to another station: {reply:?}");
        assert!(reply.number <= self.asked, "an answer to a request that was never made: {reply:?}");
        if reply.part + 1 == reply.parts {
            self.answered += 1;
        }
        Some(reply)
    }

    /// How many requests wait for their answer.
    pub(super) const fn open(&self) -> u32 {
        self.asked - self.answered
    }

    /// How many requests are answered.
    pub(super) const fn answered(&self) -> u32 {
        self.answered
    }

    const fn mac(&self) -> [u8; 6] {
        let [.., last] = self.client.to_be_bytes();
        [2, 0, 0, 0, 1, last]
    }
}
