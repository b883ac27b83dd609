//! The tally: it counts requests in raw Ethernet frames, and answers each with enough of its state
//! that the answers alone show whether one machine gave them all.
//!
//! Request, after the Ethernet header (numbers big-endian): operation (1), client (4), number (4),
//! argument (4). Answer: operation | 0x80 (1), client (4), number (4), part (2), parts (2), count
//! (8), clock (8), noise (8), hash (8).
//!
//! `count` is the number of requests so far. `hash` is [`mix`] of the last hash with all other
//! fields of the answer but `part` and `parts`, so that a count that is skipped, repeated or of
//! another history changes every later hash.

/// The packets' type: "local experimental" (IEEE 802).
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// An answer's length, in bytes: the shortest packet that an Ethernet carries.
pub const ANSWER_BYTES: usize = 60;

/// The most answers to one request.
pub const PARTS_MAX: u16 = 32;

/// The most steps, in thousands, that a request can make the guest compute.
const COMPUTE_THOUSANDS_MAX: u32 = 1000;

const ETHERNET_HEADER_BYTES: usize = 14;
const REQUEST_BYTES: usize = 13;
const ANSWER_FLAG: u8 = 0x80;

/// The operation of a request, besides counting it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One answer.
    Count,
    /// As many answers at once as the argument says, at most [`PARTS_MAX`].
    Burst(u16),
    /// An answer after computing as many thousand steps as the argument says.
    Compute(u32),
    /// An answer, after which the guest powers off.
    PowerOff,
}

/// The answer to a request that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's operation.
    pub operation: Operation,
    station: [u8; 6],
    identity: [u8; 9],
    count: u64,
    clock: u64,
    noise: u64,
    hash: u64,
}

/// The state of the guest.
#[derive(Debug, Default)]
pub struct Tally {
    count: u64,
    hash: u64,
}

impl Tally {
    /// The number of requests so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The hash over all answers so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Counts the request in `packet` and returns its answer; `None` if `packet` is no request.
    /// `read` returns a clock value and a noise value.
    pub fn take(&mut self, packet: &[u8], read: impl FnOnce() -> (u64, u64)) -> Option<Answer> {
        let (header, body) = packet.split_first_chunk::<ETHERNET_HEADER_BYTES>()?;
        let request = body.first_chunk::<REQUEST_BYTES>()?;
        if header[12..] != ETHERTYPE {
            return None;
        }
        let [code, client0, client1, client2, client3, number0, number1, number2, number3, argument @ ..] = *request;
        let argument = u32::from_be_bytes(argument);
        let operation = match code {
            1 => Operation::Count,
            2 => Operation::Burst(u16::try_from(argument).unwrap_or(PARTS_MAX).clamp(1, PARTS_MAX)),
            3 => Operation::Compute(argument.min(COMPUTE_THOUSANDS_MAX)),
            4 => Operation::PowerOff,
            _ => return None,
        };
        let (clock, noise) = read();
        let noise = match operation {
            Operation::Compute(thousands) => compute(thousands, noise),
            Operation::Count | Operation::Burst(_) | Operation::PowerOff => noise,
        };
        self.count += 1;
        let asker = u64::from_be_bytes([client0, client1, client2, client3, number0, number1, number2, number3]);
        self.hash = mix(self.hash, [asker, self.count, clock, noise]);
        let mut station = [0; 6];
        station.copy_from_slice(&header[6..12]);
        let mut identity = [0; 9];
        identity.copy_from_slice(&request[..9]);
        identity[0] |= ANSWER_FLAG;
        Some(Answer { operation, station, identity, count: self.count, clock, noise, hash: self.hash })
    }
}

impl Answer {
    /// The number of packets of this answer.
    #[must_use]
    pub fn parts(&self) -> u16 {
        match self.operation {
            Operation::Burst(parts) => parts,
            Operation::Count | Operation::Compute(_) | Operation::PowerOff => 1,
        }
    }

    /// The packet of one part, from a guest with this address.
    #[must_use]
    pub fn packet(&self, mac: [u8; 6], part: u16) -> [u8; ANSWER_BYTES] {
        let mut packet = [0; ANSWER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            packet[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.station);
        put(&mac);
        put(&ETHERTYPE);
        put(&self.identity);
        put(&part.to_be_bytes());
        put(&self.parts().to_be_bytes());
        for word in [self.count, self.clock, self.noise, self.hash] {
            put(&word.to_be_bytes());
        }
        packet
    }
}

/// A hash of all inputs and their order.
#[must_use]
pub fn mix(hash: u64, words: [u64; 4]) -> u64 {
    words.iter().fold(hash, |hash, word| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

/// Computes for about this many thousand steps.
fn compute(thousands: u32, mut noise: u64) -> u64 {
    /// A round is about ten instructions.
    const ROUNDS_PER_THOUSAND: u32 = 100;
    for round in 0..thousands * ROUNDS_PER_THOUSAND {
        noise = (noise ^ u64::from(round)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    noise
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const STATION: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn request(operation: u8, client: u32, number: u32, argument: u32) -> Vec<u8> {
        let mut packet = [&MAC[..], &STATION, &ETHERTYPE, &[operation]].concat();
        for word in [client, number, argument] {
            packet.extend_from_slice(&word.to_be_bytes());
        }
        packet
    }

    #[test]
    fn answers_show_the_history() {
        let mut tally = Tally::default();
        let first = tally.take(&request(1, 7, 1, 0), || (100, 5)).expect("a request");
        let second = tally.take(&request(2, 8, 1, 3), || (200, 6)).expect("a request");
        let after_first = mix(0, [7 << 32 | 1, 1, 100, 5]);
        assert_eq!((first.hash, second.hash), (after_first, mix(after_first, [8 << 32 | 1, 2, 200, 6])));
        assert_eq!((tally.count(), tally.hash()), (2, second.hash));

        let packet = second.packet(MAC, 2);
        assert_eq!((&packet[..6], &packet[6..12], &packet[12..14]), (&STATION[..], &MAC[..], &ETHERTYPE[..]));
        assert_eq!(packet[14..27], [0x82, 0, 0, 0, 8, 0, 0, 0, 1, 0, 2, 0, 3]);
        assert_eq!(packet[27..35], 2_u64.to_be_bytes());
        assert_eq!(packet[35..43], 200_u64.to_be_bytes());
        assert_eq!(packet[43..51], 6_u64.to_be_bytes());
        assert_eq!(packet[51..59], second.hash.to_be_bytes());
    }

    #[test]
    fn packets_that_are_no_requests_are_not_counted() {
        let mut tally = Tally::default();
        let mut foreign = request(1, 1, 1, 0);
        foreign[13] = 0;
        for packet in [foreign, request(9, 1, 1, 0), request(1, 1, 1, 0)[..20].to_vec(), Vec::new()] {
            assert_eq!(tally.take(&packet, || panic!("nothing to answer")), None);
        }
        assert_eq!(tally.count(), 0);
    }

    #[test]
    fn arguments_are_bounded() {
        let operation = |code, argument| {
            let answer = Tally::default().take(&request(code, 1, 1, argument), || (0, 0));
            answer.map(|answer| (answer.operation, answer.parts()))
        };
        assert_eq!(operation(2, u32::MAX), Some((Operation::Burst(PARTS_MAX), PARTS_MAX)));
        assert_eq!(operation(2, 0), Some((Operation::Burst(1), 1)));
        assert_eq!(operation(3, u32::MAX), Some((Operation::Compute(COMPUTE_THOUSANDS_MAX), 1)));
        assert_eq!(operation(4, 0), Some((Operation::PowerOff, 1)));
    }
}
