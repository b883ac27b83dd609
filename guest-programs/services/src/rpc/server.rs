//! The server's side: which calls are executed, and which replies are kept.

use super::{BODY_BYTES_MAX, Reply, Request, SessionId};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The most sessions at once; one more replaces the one that has been silent longest.
pub const SESSIONS_MAX: usize = 1_024;

/// The outcome of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Execution {
    /// The call is done, with this reply of at most [`BODY_BYTES_MAX`] bytes.
    Done(Vec<u8>),
    /// The call waits for another client; [`Service::take_completed`] will give its reply.
    Waits,
}

/// A service whose calls are executed at most once.
pub trait Service {
    /// Executes a call of `session`, which has no other.
    fn execute(&mut self, session: SessionId, call: &[u8]) -> Execution;

    /// A call that waited and is done now, with its reply.
    fn take_completed(&mut self) -> Option<(SessionId, Vec<u8>)>;

    /// Cancels the waiting call of `session`: its client has gone on to another call, or its
    /// session was dropped.
    fn cancel(&mut self, session: SessionId);
}

/// A server: a service, and the sessions of its clients, which are at addresses `A`.
#[derive(Debug)]
pub struct Server<S, A> {
    service: S,
    sessions: BTreeMap<SessionId, Session<A>>,
    opened: u64,
    /// Counts requests: the time by which a session's silence is measured.
    requests: u64,
}

#[derive(Debug)]
struct Session<A> {
    /// Where its last request came from.
    address: A,
    /// The value of `requests` at its last request.
    heard: u64,
    /// The number of its last call, 0 before the first.
    sequence: u64,
    /// The reply to that call; `None` while it is executed.
    reply: Option<Vec<u8>>,
}

impl<S: Service, A: Clone> Server<S, A> {
    /// A server without sessions.
    pub const fn new(service: S) -> Self {
        Self { service, sessions: BTreeMap::new(), opened: 0, requests: 0 }
    }

    /// The service.
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// The number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Handles a datagram from `address`, and calls `send` with each datagram to be sent and its
    /// address. Datagrams that are no requests are ignored.
    pub fn handle(&mut self, address: &A, datagram: &[u8], mut send: impl FnMut(&A, Vec<u8>)) {
        self.requests += 1;
        match Request::decode(datagram) {
            Some(Request::Open { nonce }) => {
                let session = self.open(address.clone());
                send(address, Reply::Opened { nonce, session }.encode());
            }
            Some(Request::Call { session, sequence, body }) => {
                if let Some(reply) = self.call(address, session, sequence, &body) {
                    send(address, reply.encode());
                }
            }
            None => {}
        }
        while let Some((session, body)) = self.service.take_completed() {
            if let Some(known) = self.sessions.get_mut(&session) {
                known.reply = Some(limited(body.clone()));
                send(&known.address, Reply::Done { session, sequence: known.sequence, body }.encode());
            }
        }
    }

    fn open(&mut self, address: A) -> SessionId {
        if self.sessions.len() == SESSIONS_MAX {
            let silent = self.sessions.iter().min_by_key(|(_, session)| session.heard).map(|(id, _)| *id);
            if let Some(silent) = silent {
                self.sessions.remove(&silent);
                self.service.cancel(silent);
            }
        }
        self.opened += 1;
        let id = SessionId(self.opened);
        let session = Session { address, heard: self.requests, sequence: 0, reply: Some(Vec::new()) };
        self.sessions.insert(id, session);
        id
    }

    /// The reply to a call, if there is one already.
    fn call(&mut self, address: &A, session: SessionId, sequence: u64, body: &[u8]) -> Option<Reply> {
        let Some(known) = self.sessions.get_mut(&session) else { return Some(Reply::Expired { session }) };
        known.heard = self.requests;
        if sequence < known.sequence || sequence == 0 {
            // A late copy of a call to which the client has the reply.
            return None;
        }
        known.address = address.clone();
        if sequence > known.sequence {
            if known.reply.take().is_none() {
                self.service.cancel(session);
            }
            known.sequence = sequence;
            known.reply = match self.service.execute(session, body) {
                Execution::Done(body) => Some(limited(body)),
                Execution::Waits => None,
            };
        }
        Some(match &known.reply {
            Some(body) => Reply::Done { session, sequence, body: body.clone() },
            None => Reply::Running { session, sequence },
        })
    }
}

/// A reply, which the service has kept within its limit.
fn limited(body: Vec<u8>) -> Vec<u8> {
    assert!(body.len() <= BODY_BYTES_MAX, "a service's reply of {} bytes", body.len());
    body
}

#[cfg(test)]
mod tests {
    use super::{Execution, SESSIONS_MAX, Server, Service};
    use crate::rpc::{Reply, Request, SessionId};
    use alloc::vec;
    use alloc::vec::Vec;

    /// Counts its calls; a call of the byte 0 waits until another client calls.
    #[derive(Default)]
    struct Counter {
        calls: u64,
        waiting: Vec<SessionId>,
        completed: Vec<SessionId>,
        cancelled: Vec<SessionId>,
    }

    impl Service for Counter {
        fn execute(&mut self, session: SessionId, call: &[u8]) -> Execution {
            self.calls += 1;
            if call == [0] {
                self.waiting.push(session);
                return Execution::Waits;
            }
            self.completed.append(&mut self.waiting);
            Execution::Done(self.calls.to_le_bytes().to_vec())
        }

        fn take_completed(&mut self) -> Option<(SessionId, Vec<u8>)> {
            self.completed.pop().map(|session| (session, b"late".to_vec()))
        }

        fn cancel(&mut self, session: SessionId) {
            self.waiting.retain(|waiting| *waiting != session);
            self.cancelled.push(session);
        }
    }

    type Sent = Vec<(u8, Reply)>;

    fn send(server: &mut Server<Counter, u8>, from: u8, request: &Request) -> Sent {
        let mut sent = Vec::new();
        server.handle(&from, &request.encode(), |to, datagram| sent.push((*to, Reply::decode(&datagram).unwrap())));
        sent
    }

    fn open(server: &mut Server<Counter, u8>, from: u8) -> SessionId {
        match send(server, from, &Request::Open { nonce: 5 })[..] {
            [(to, Reply::Opened { nonce: 5, session })] if to == from => session,
            ref other => panic!("{other:?}"),
        }
    }

    const fn call(session: SessionId, sequence: u64, body: Vec<u8>) -> Request {
        Request::Call { session, sequence, body }
    }

    #[test]
    fn a_call_that_arrives_again_is_answered_and_not_executed_again() {
        let mut server = Server::new(Counter::default());
        let session = open(&mut server, 1);
        let first = send(&mut server, 1, &call(session, 1, vec![7]));
        assert_eq!(first, [(1, Reply::Done { session, sequence: 1, body: 1_u64.to_le_bytes().to_vec() })]);
        // Also from another address: the client's host has got a new one.
        for from in [1, 1, 2] {
            assert_eq!(send(&mut server, from, &call(session, 1, vec![7])), [(from, first[0].1.clone())]);
        }
        assert_eq!(server.service().calls, 1);
    }

    #[test]
    fn a_late_copy_of_an_earlier_call_gets_no_answer() {
        let mut server = Server::new(Counter::default());
        let session = open(&mut server, 1);
        for sequence in 1..=3 {
            assert_eq!(send(&mut server, 1, &call(session, sequence, vec![7])).len(), 1);
        }
        assert_eq!(send(&mut server, 1, &call(session, 2, vec![7])), []);
        assert_eq!(send(&mut server, 1, &call(session, 0, vec![7])), []);
        assert_eq!(server.service().calls, 3);
    }

    #[test]
    fn a_call_that_waits_is_told_to_be_running_and_is_answered_when_it_is_done() {
        let mut server = Server::new(Counter::default());
        let (waiting, other) = (open(&mut server, 1), open(&mut server, 2));
        for from in [1, 3] {
            let running = Reply::Running { session: waiting, sequence: 1 };
            assert_eq!(send(&mut server, from, &call(waiting, 1, vec![0])), [(from, running)]);
        }
        let sent = send(&mut server, 2, &call(other, 1, vec![7]));
        let late = Reply::Done { session: waiting, sequence: 1, body: b"late".to_vec() };
        assert_eq!(sent[1..], [(3, late.clone())], "where the call came from last");
        assert_eq!(send(&mut server, 3, &call(waiting, 1, vec![0])), [(3, late)], "its reply may have been lost");
        assert_eq!(server.service().calls, 2);
    }

    #[test]
    fn a_client_that_stops_waiting_calls_something_else() {
        let mut server = Server::new(Counter::default());
        let session = open(&mut server, 1);
        send(&mut server, 1, &call(session, 1, vec![0]));
        let sent = send(&mut server, 1, &call(session, 2, vec![7]));
        assert!(matches!(&sent[..], [(1, Reply::Done { sequence: 2, .. })]), "{sent:?}");
        assert_eq!(server.service().cancelled, [session]);
    }

    #[test]
    fn a_session_that_was_dropped_is_never_taken_for_a_new_one() {
        let mut server = Server::new(Counter::default());
        let first = open(&mut server, 1);
        send(&mut server, 1, &call(first, 1, vec![0]));
        let others: Vec<_> = (0..SESSIONS_MAX).map(|_| open(&mut server, 2)).collect();
        assert_eq!(server.sessions(), SESSIONS_MAX);
        assert_eq!(server.service().cancelled, [first]);
        assert_eq!(send(&mut server, 1, &call(first, 1, vec![0])), [(1, Reply::Expired { session: first })]);
        assert_eq!(server.service().calls, 1);
        // One that is heard of stays.
        send(&mut server, 2, &call(others[0], 1, vec![7]));
        open(&mut server, 3);
        assert!(matches!(send(&mut server, 2, &call(others[0], 2, vec![7]))[..], [(2, Reply::Done { .. })]));
        assert_eq!(send(&mut server, 2, &call(others[1], 1, vec![7])), [(2, Reply::Expired { session: others[1] })]);
    }
}
