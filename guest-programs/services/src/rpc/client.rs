//! The client's side: when a request is sent, and which datagram is its reply.

use super::{BODY_BYTES_MAX, Reply, Request, SessionId};
use alloc::vec::Vec;

/// How long the first copy of a request is waited for before the next is sent, in nanoseconds. Each
/// further wait is twice as long.
const RETRY_NS: u64 = 50_000_000;

/// The longest wait between two copies, in nanoseconds: a server that is away is asked as often.
const RETRY_NS_MAX: u64 = 800_000_000;

/// A client's session. Times are the caller's, in nanoseconds.
#[derive(Debug)]
pub struct Client {
    state: State,
    /// The number of the last call.
    sequence: u64,
    /// The request that is waited for, if one is, as it is sent.
    pending: Option<Vec<u8>>,
    /// `true` once a copy of it was sent.
    is_sent: bool,
    /// When the next copy is due, and how long that one is waited for.
    due_ns: u64,
    retry_ns: u64,
    /// How many times a request was sent again.
    retries: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Opening { nonce: u64 },
    Open(SessionId),
    Expired,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The session is open: calls can be made.
    Opened,
    /// The reply to the call.
    Done(Vec<u8>),
    /// The server has dropped the session. The call may have been executed or not.
    Expired,
}

impl Client {
    /// A client that asks for a session. `nonce` should differ from those of other clients.
    #[must_use]
    pub fn open(now_ns: u64, nonce: u64) -> Self {
        let mut client = Self {
            state: State::Opening { nonce },
            sequence: 0,
            pending: None,
            is_sent: false,
            due_ns: now_ns,
            retry_ns: RETRY_NS,
            retries: 0,
        };
        client.begin(now_ns, &Request::Open { nonce });
        client
    }

    /// Begins a call; an earlier one that is still waited for is given up.
    ///
    /// # Panics
    /// If the session isn't open, or `body` is longer than [`BODY_BYTES_MAX`].
    pub fn call(&mut self, now_ns: u64, body: Vec<u8>) {
        let State::Open(session) = self.state else { panic!("a call without a session") };
        assert!(body.len() <= BODY_BYTES_MAX, "a call of {} bytes", body.len());
        self.sequence += 1;
        self.begin(now_ns, &Request::Call { session, sequence: self.sequence, body });
    }

    fn begin(&mut self, now_ns: u64, request: &Request) {
        self.pending = Some(request.encode());
        (self.is_sent, self.due_ns, self.retry_ns) = (false, now_ns, RETRY_NS);
    }

    /// When the next copy of the request is due; `None` if none is waited for.
    #[must_use]
    pub fn due_ns(&self) -> Option<u64> {
        self.pending.as_ref().map(|_| self.due_ns)
    }

    /// The datagram that is to be sent now, if one is due.
    pub fn poll(&mut self, now_ns: u64) -> Option<&[u8]> {
        let pending = self.pending.as_ref().filter(|_| now_ns >= self.due_ns)?;
        self.due_ns = now_ns + self.retry_ns;
        self.retry_ns = (self.retry_ns * 2).min(RETRY_NS_MAX);
        self.retries += u64::from(self.is_sent);
        self.is_sent = true;
        Some(pending)
    }

    /// Takes a datagram. `None` if it isn't the answer that is waited for.
    pub fn handle(&mut self, datagram: &[u8]) -> Option<Answer> {
        self.pending.as_ref()?;
        let answer = match (Reply::decode(datagram)?, self.state) {
            (Reply::Opened { nonce, session }, State::Opening { nonce: asked }) if nonce == asked => {
                self.state = State::Open(session);
                Answer::Opened
            }
            (Reply::Done { session, sequence, body }, State::Open(own))
                if session == own && sequence == self.sequence =>
            {
                Answer::Done(body)
            }
            (Reply::Expired { session }, State::Open(own)) if session == own => {
                self.state = State::Expired;
                Answer::Expired
            }
            // Running: it is asked again, ever more rarely.
            _ => return None,
        };
        self.pending = None;
        Some(answer)
    }

    /// How many times a request had to be sent again.
    #[must_use]
    pub const fn retries(&self) -> u64 {
        self.retries
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Client, RETRY_NS, RETRY_NS_MAX};
    use crate::rpc::{Reply, Request, SessionId};
    use alloc::vec;

    const SESSION: SessionId = SessionId(9);

    fn opened() -> Client {
        let mut client = Client::open(0, 5);
        assert_eq!(client.poll(0).map(Request::decode), Some(Some(Request::Open { nonce: 5 })));
        assert_eq!(client.handle(&Reply::Opened { nonce: 4, session: SESSION }.encode()), None, "another's");
        assert_eq!(client.handle(&Reply::Opened { nonce: 5, session: SESSION }.encode()), Some(Answer::Opened));
        client
    }

    #[test]
    fn a_request_is_sent_until_its_reply_comes_ever_more_rarely() {
        let mut client = opened();
        client.call(0, vec![1]);
        let (mut now_ns, mut waits) = (0, vec![]);
        for _ in 0..7 {
            assert!(client.poll(now_ns).is_some());
            assert!(client.poll(now_ns).is_none(), "not twice");
            let due_ns = client.due_ns().unwrap();
            waits.push((due_ns - now_ns) / RETRY_NS);
            now_ns = due_ns;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 16, 16]);
        assert_eq!(waits[6] * RETRY_NS, RETRY_NS_MAX);
        assert_eq!(client.retries(), 6);
        let done = Reply::Done { session: SESSION, sequence: 1, body: vec![2] }.encode();
        assert_eq!(client.handle(&done), Some(Answer::Done(vec![2])));
        assert_eq!(client.due_ns(), None);
        assert_eq!(client.handle(&done), None, "the second copy of a reply");
    }

    #[test]
    fn only_the_reply_to_the_last_call_counts() {
        let mut client = opened();
        client.call(0, vec![1]);
        client.call(0, vec![2]);
        let done = |session, sequence| Reply::Done { session, sequence, body: vec![] }.encode();
        assert_eq!(client.handle(&done(SESSION, 1)), None);
        assert_eq!(client.handle(&done(SessionId(8), 2)), None);
        assert_eq!(client.handle(&Reply::Running { session: SESSION, sequence: 2 }.encode()), None);
        assert_eq!(client.handle(b"noise"), None);
        assert_eq!(client.handle(&done(SESSION, 2)), Some(Answer::Done(vec![])));
    }

    #[test]
    fn a_session_that_was_dropped_is_told() {
        let mut client = opened();
        client.call(0, vec![1]);
        assert_eq!(client.handle(&Reply::Expired { session: SESSION }.encode()), Some(Answer::Expired));
    }
}
