//! The protocol between clients and `ft-arbiter`: a frame for each request and each answer, in
//! order.
//!
//! Frames are those of [`logchannel::frame`].
//!
//! | kind | from | body |
//! |---|---|---|
//! | 64 request | client | version (u16 LE), then [`Request`] |
//! | 65 answer | server | version (u16 LE), then [`Answer`] |
//!
//! Version 2: this table; before it a claim had no predecessor. This module checks version, lengths
//! and names.

use bincode::{Decode, Encode};
use ft::claim::{ADDRESS_BYTES_MAX, Claim, ClaimKind};
use logchannel::codec::{CodecError, decode_value, encode_value};
use logchannel::entry::Generation;
use logchannel::frame::{Frame, FrameKind, append_frame_with};
use logchannel::session::{NodeId, VM_ID_BYTES_MAX, VmId};

/// The longest body, in bytes: a name, an address, a reason, and numbers.
pub(super) const BODY_BYTES_MAX: usize = 2048;

const VERSION: u16 = 2;
const REQUEST: FrameKind = FrameKind(64);
const ANSWER: FrameKind = FrameKind(65);
/// The longest reason in an answer, in bytes.
const REASON_BYTES_MAX: usize = 1024;

// Numbers and lengths take less than 64 bytes.
const _: () = assert!(64 + VM_ID_BYTES_MAX + ADDRESS_BYTES_MAX <= BODY_BYTES_MAX, "a request fits");
const _: () = assert!(64 + REASON_BYTES_MAX <= BODY_BYTES_MAX, "an answer fits");

/// A frame that is not of this protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("a frame of kind {0} where {expected} belongs", expected = .1.0)]
    Kind(u8, FrameKind),
    #[error("protocol version {found}, this build speaks {VERSION}")]
    Version { found: u16 },
    #[error("{0}")]
    Body(#[from] CodecError),
}

/// A client's question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    TestAndSet { vm: VmId, generation: Generation, claim: Claim, predecessor: Option<NodeId> },
    Latest { vm: VmId },
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Won,
    Lost(Claim),
    Latest(Option<(Generation, Claim)>),
    /// There is no answer now: ask again.
    Unreachable(String),
    /// There is no answer until an operator has repaired the arbiter.
    Failed(String),
    /// The flag before isn't held by the predecessor that the claim names; by this claim instead,
    /// if by any.
    NotSuccessor(Option<Claim>),
}

#[derive(Encode, Decode)]
enum WireRequest {
    TestAndSet { vm: String, generation: u64, claim: WireClaim, predecessor: Option<[u8; 16]> },
    Latest { vm: String },
}

#[derive(Encode, Decode)]
enum WireAnswer {
    Won,
    Lost(WireClaim),
    Latest(Option<(u64, WireClaim)>),
    Unreachable(String),
    Failed(String),
    NotSuccessor(Option<WireClaim>),
}

#[derive(Encode, Decode)]
struct WireClaim {
    node: [u8; 16],
    ended: bool,
    address: Option<String>,
}

impl Request {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let wire = match self {
            Self::TestAndSet { vm, generation, claim, predecessor } => WireRequest::TestAndSet {
                vm: vm.to_string(),
                generation: generation.0,
                claim: claim.into(),
                predecessor: predecessor.map(|node| node.0.to_le_bytes()),
            },
            Self::Latest { vm } => WireRequest::Latest { vm: vm.to_string() },
        };
        append(REQUEST, &wire, out);
    }

    pub(super) fn decode(frame: Frame<'_>) -> Result<Self, WireError> {
        Ok(match open(frame, REQUEST)? {
            WireRequest::TestAndSet { vm, generation, claim, predecessor } => {
                // The winner would own the generation after it, and the next start would claim that
                // one.
                if generation == u64::MAX {
                    let reason = "there is none after it".into();
                    return Err(CodecError::Invalid { what: "generation", reason }.into());
                }
                Self::TestAndSet {
                    vm: vm_id(&vm)?,
                    generation: Generation(generation),
                    claim: claim.checked()?,
                    predecessor: predecessor.map(|node| NodeId(u128::from_le_bytes(node))),
                }
            }
            WireRequest::Latest { vm } => Self::Latest { vm: vm_id(&vm)? },
        })
    }
}

impl Answer {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let cut = |reason: &String| reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned();
        let wire = match self {
            Self::Won => WireAnswer::Won,
            Self::Lost(holder) => WireAnswer::Lost(holder.into()),
            Self::Latest(latest) => {
                WireAnswer::Latest(latest.as_ref().map(|(generation, claim)| (generation.0, claim.into())))
            }
            Self::Unreachable(reason) => WireAnswer::Unreachable(cut(reason)),
            Self::Failed(reason) => WireAnswer::Failed(cut(reason)),
            Self::NotSuccessor(holder) => WireAnswer::NotSuccessor(holder.as_ref().map(WireClaim::from)),
        };
        append(ANSWER, &wire, out);
    }

    pub(super) fn decode(frame: Frame<'_>) -> Result<Self, WireError> {
        Ok(match open(frame, ANSWER)? {
            WireAnswer::Won => Self::Won,
            WireAnswer::Lost(holder) => Self::Lost(holder.checked()?),
            WireAnswer::Latest(None) => Self::Latest(None),
            WireAnswer::Latest(Some((generation, claim))) => {
                Self::Latest(Some((Generation(generation), claim.checked()?)))
            }
            WireAnswer::Unreachable(reason) => Self::Unreachable(reason),
            WireAnswer::Failed(reason) => Self::Failed(reason),
            WireAnswer::NotSuccessor(holder) => Self::NotSuccessor(holder.map(WireClaim::checked).transpose()?),
        })
    }
}

impl From<&Claim> for WireClaim {
    fn from(claim: &Claim) -> Self {
        let ended = match claim.kind {
            ClaimKind::Owner => false,
            ClaimKind::Ended => true,
        };
        Self { node: claim.node.0.to_le_bytes(), ended, address: claim.address.clone() }
    }
}

impl WireClaim {
    fn checked(self) -> Result<Claim, CodecError> {
        if let Some(address) = self.address.as_ref().filter(|address| address.len() > ADDRESS_BYTES_MAX) {
            return Err(CodecError::TooLong { what: "address", bytes: address.len(), max: ADDRESS_BYTES_MAX });
        }
        let kind = if self.ended { ClaimKind::Ended } else { ClaimKind::Owner };
        Ok(Claim { node: NodeId(u128::from_le_bytes(self.node)), kind, address: self.address })
    }
}

fn append<T: Encode>(kind: FrameKind, wire: &T, out: &mut Vec<u8>) {
    append_frame_with(kind, out, |out| {
        out.extend_from_slice(&VERSION.to_le_bytes());
        encode_value(wire, out);
    });
}

fn open<T: Decode<()> + Encode>(frame: Frame<'_>, kind: FrameKind) -> Result<T, WireError> {
    if frame.kind != kind {
        return Err(WireError::Kind(frame.kind.0, kind));
    }
    let (version, value) = frame.body.split_first_chunk::<2>().ok_or(CodecError::Truncated)?;
    match u16::from_le_bytes(*version) {
        VERSION => Ok(decode_value(value)?),
        found => Err(WireError::Version { found }),
    }
}

fn vm_id(name: &str) -> Result<VmId, CodecError> {
    VmId::new(name).map_err(|error| CodecError::Invalid { what: "VM name", reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use logchannel::frame::FrameDecoder;

    fn claim() -> Claim {
        Claim { node: NodeId(u128::MAX - 1), kind: ClaimKind::Ended, address: Some("a".repeat(ADDRESS_BYTES_MAX)) }
    }

    fn reframe<T>(bytes: &[u8], decode: impl FnOnce(Frame<'_>) -> T) -> T {
        let mut decoder = FrameDecoder::with_body_limit(BODY_BYTES_MAX);
        decoder.push(bytes);
        decode(decoder.next_frame().unwrap().unwrap())
    }

    #[test]
    fn requests_and_answers_come_back() {
        let vm = VmId::new(&"v".repeat(64)).unwrap();
        for request in [
            Request::TestAndSet {
                vm: vm.clone(),
                generation: Generation(u64::MAX - 1),
                claim: claim(),
                predecessor: Some(NodeId(u128::MAX - 2)),
            },
            Request::TestAndSet { vm: vm.clone(), generation: Generation(0), claim: claim(), predecessor: None },
            Request::Latest { vm },
        ] {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            assert_eq!(reframe(&bytes, Request::decode).unwrap(), request);
            assert!(reframe(&bytes, Answer::decode).is_err(), "a request is no answer");
        }
        for answer in [
            Answer::Won,
            Answer::Lost(claim()),
            Answer::Latest(None),
            Answer::Latest(Some((Generation(3), Claim { kind: ClaimKind::Owner, address: None, ..claim() }))),
            Answer::Unreachable("no space left".into()),
            Answer::Failed("r".repeat(REASON_BYTES_MAX)),
            Answer::NotSuccessor(None),
            Answer::NotSuccessor(Some(claim())),
        ] {
            let mut bytes = Vec::new();
            answer.encode(&mut bytes);
            assert_eq!(reframe(&bytes, Answer::decode).unwrap(), answer);
        }
    }

    #[test]
    fn a_generation_that_has_no_next_is_refused() {
        let vm = VmId::new("v").unwrap();
        let mut bytes = Vec::new();
        Request::TestAndSet { vm, generation: Generation(u64::MAX), claim: claim(), predecessor: None }
            .encode(&mut bytes);
        assert!(reframe(&bytes, Request::decode).unwrap_err().to_string().contains("generation"));
    }

    #[test]
    fn another_version_and_bad_names_are_refused() {
        let open = |body: &[u8]| Request::decode(Frame { kind: REQUEST, body }).map_err(|error| error.to_string());
        assert_eq!(open(&[9, 0, 1]), Err("protocol version 9, this build speaks 2".into()));
        assert!(open(&[2, 0, 1, 2, b'.', b'.']).unwrap_err().contains("is not a VM name"));
        assert!(open(&[2]).is_err());
        assert!(open(&[2, 0]).is_err());
    }
}
