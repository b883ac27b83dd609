//! Calls that are executed at most once.
//!
//! A client opens a *session* and numbers its calls. It sends a call again until the reply comes,
//! so a server may receive one several times; it keeps the last reply of each session and sends
//! that instead of executing the call again. A client has one call at a time: the next number says
//! that the reply to the one before has come, so the server keeps one reply for each session. This
//! is the scheme of Raft's thesis (§6.3) and of the courses' at-most-once RPC.
//!
//! The number of sessions is limited ([`SESSIONS_MAX`](server::SESSIONS_MAX)). The server issues
//! their numbers and never uses one twice, so a call of a session that it has dropped is recognised
//! and refused ([`Reply::Expired`]), never executed a second time.

pub mod client;
pub mod server;

use crate::bytes::{Reader, Writer};
use alloc::vec::Vec;

/// The longest body of a call or a reply, in bytes: with the header it fits an Ethernet packet.
pub const BODY_BYTES_MAX: usize = 1_400;

/// First byte of every datagram, so that stray ones are not taken for calls.
const MAGIC: u8 = 0xf7;

/// The number of a session, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A datagram from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Asks for a session. May be received, and answered, twice; the client uses one of them.
    Open {
        /// Chosen by the client, so that it knows the answer to its own request.
        nonce: u64,
    },
    /// A call.
    Call {
        /// The session, as the server has named it.
        session: SessionId,
        /// The call's number within its session, from 1 on.
        sequence: u64,
        /// The call in the form of the service.
        body: Vec<u8>,
    },
}

/// A datagram from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The session that was asked for.
    Opened {
        /// The request's.
        nonce: u64,
        /// The new session.
        session: SessionId,
    },
    /// The reply to a call.
    Done {
        /// The call's session.
        session: SessionId,
        /// The call's number.
        sequence: u64,
        /// The reply in the form of the service.
        body: Vec<u8>,
    },
    /// The call has arrived before, and is still being executed.
    Running {
        /// The call's session.
        session: SessionId,
        /// The call's number.
        sequence: u64,
    },
    /// The server has no such session (any more). The call may have been executed or not.
    Expired {
        /// The call's session.
        session: SessionId,
    },
}

impl Request {
    /// The request as a datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::new().byte(MAGIC);
        match self {
            Self::Open { nonce } => writer.byte(0).number(*nonce),
            Self::Call { session, sequence, body } => writer.byte(1).number(session.0).number(*sequence).raw(&body[..]),
        }
        .finish()
    }

    /// The request in a datagram; `None` if it is none.
    #[must_use]
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(datagram);
        match (reader.byte()?, reader.byte()?) {
            (MAGIC, 0) => {
                let nonce = reader.number()?;
                reader.end(Self::Open { nonce })
            }
            (MAGIC, 1) => {
                let (session, sequence) = (SessionId(reader.number()?), reader.number()?);
                let body = body(reader)?;
                Some(Self::Call { session, sequence, body })
            }
            _ => None,
        }
    }
}

impl Reply {
    /// The reply as a datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let writer = Writer::new().byte(MAGIC);
        match self {
            Self::Opened { nonce, session } => writer.byte(0).number(*nonce).number(session.0),
            Self::Done { session, sequence, body } => writer.byte(1).number(session.0).number(*sequence).raw(&body[..]),
            Self::Running { session, sequence } => writer.byte(2).number(session.0).number(*sequence),
            Self::Expired { session } => writer.byte(3).number(session.0),
        }
        .finish()
    }

    /// The reply in a datagram; `None` if it is none.
    #[must_use]
    pub fn decode(datagram: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(datagram);
        match (reader.byte()?, reader.byte()?) {
            (MAGIC, 0) => {
                let (nonce, session) = (reader.number()?, SessionId(reader.number()?));
                reader.end(Self::Opened { nonce, session })
            }
            (MAGIC, 1) => {
                let (session, sequence) = (SessionId(reader.number()?), reader.number()?);
                let body = body(reader)?;
                Some(Self::Done { session, sequence, body })
            }
            (MAGIC, 2) => {
                let (session, sequence) = (SessionId(reader.number()?), reader.number()?);
                reader.end(Self::Running { session, sequence })
            }
            (MAGIC, 3) => {
                let session = SessionId(reader.number()?);
                reader.end(Self::Expired { session })
            }
            _ => None,
        }
    }
}

fn body(reader: Reader<'_>) -> Option<Vec<u8>> {
    let body = reader.rest();
    (body.len() <= BODY_BYTES_MAX).then(|| body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::{BODY_BYTES_MAX, Reply, Request, SessionId};
    use alloc::vec;

    #[test]
    fn messages_come_back_from_their_datagrams() {
        let (session, sequence, body) = (SessionId(3), 1 << 40, vec![1, 2, 3]);
        for request in [Request::Open { nonce: 7 }, Request::Call { session, sequence, body: body.clone() }] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for reply in [
            Reply::Opened { nonce: 7, session },
            Reply::Done { session, sequence, body },
            Reply::Running { session, sequence },
            Reply::Expired { session },
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
    }

    #[test]
    fn other_datagrams_are_neither_request_nor_reply() {
        let call = Request::Call { session: SessionId(1), sequence: 1, body: vec![] }.encode();
        for length in 0..call.len() {
            assert_eq!(Request::decode(&call[..length]), None, "cut after {length} bytes");
        }
        let mut longer = Request::Open { nonce: 7 }.encode();
        longer.push(0);
        assert_eq!(Request::decode(&longer), None);
        assert_eq!(Request::decode(b"hello"), None);
        assert_eq!(Reply::decode(b"hello"), None);
        let body = vec![0; BODY_BYTES_MAX + 1];
        assert_eq!(Request::decode(&Request::Call { session: SessionId(1), sequence: 1, body }.encode()), None);
    }
}
