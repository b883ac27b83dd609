//! A lock service, as the first lab of the courses has it: named locks, which any client may take
//! and release.
//!
//! `Lock` and `Unlock` never wait, and say what they found. `Acquire` waits for its turn, in the
//! order of arrival. A lock belongs to no session: who has taken it may release it from another
//! process, and a client that dies leaves it locked.

use crate::bytes::{Reader, Writer};
use crate::rpc::SessionId;
use crate::rpc::server::{Execution, Service};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// First bytes of calls, which differ from those of other services, so that their calls are
/// refused.
const LOCK: u8 = 0x20;
const ACQUIRE: u8 = 0x21;
const UNLOCK: u8 = 0x22;

/// The longest name of a lock, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The most locks that may be held at once.
pub const HELD_MAX: usize = 10_000;

/// An operation on a lock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Takes the lock if it is free.
    Lock,
    /// Waits until the lock is free, and takes it.
    Acquire,
    /// Releases the lock; the client that has waited for it longest gets it.
    Unlock,
}

/// A call: an operation on a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The operation.
    pub operation: Operation,
    /// The lock's name, of 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: Vec<u8>,
}

/// The reply to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Of `Lock` and `Acquire`: the caller has the lock. Of `Unlock`: it was locked.
    Yes,
    /// Of `Lock`: a client holds the lock. Of `Unlock`: it wasn't locked.
    No,
    /// Nothing was done: the call is malformed, or [`HELD_MAX`] locks are held.
    Refused,
}

impl Call {
    /// The call as the body of a request.
    ///
    /// # Panics
    /// If the name is too long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!((1..=NAME_BYTES_MAX).contains(&self.name.len()), "a name of {} bytes", self.name.len());
        let operation = match self.operation {
            Operation::Lock => LOCK,
            Operation::Acquire => ACQUIRE,
            Operation::Unlock => UNLOCK,
        };
        Writer::new().byte(operation).string(&self.name).finish()
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let operation = match reader.byte()? {
            LOCK => Operation::Lock,
            ACQUIRE => Operation::Acquire,
            UNLOCK => Operation::Unlock,
            _ => return None,
        };
        let name = reader.string(NAME_BYTES_MAX)?.to_vec();
        if name.is_empty() { None } else { reader.end(Self { operation, name }) }
    }
}

impl Answer {
    const fn byte(self) -> u8 {
        match self {
            Self::No => 0,
            Self::Yes => 1,
            Self::Refused => 2,
        }
    }

    fn encode(self) -> Vec<u8> {
        Writer::new().byte(self.byte()).finish()
    }

    /// The answer in the body of a reply; `None` if it is none.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        [Self::No, Self::Yes, Self::Refused].into_iter().find(|answer| body == [answer.byte()])
    }
}

/// The service.
#[derive(Debug, Default)]
pub struct Locks {
    /// The locks that are held, each with the sessions that wait for it.
    held: BTreeMap<Vec<u8>, VecDeque<SessionId>>,
    /// The sessions whose turn has come.
    completed: VecDeque<SessionId>,
}

impl Locks {
    /// The number of held locks.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn take(&mut self, name: Vec<u8>) -> Answer {
        if self.held.len() == HELD_MAX {
            return Answer::Refused;
        }
        self.held.insert(name, VecDeque::new());
        Answer::Yes
    }

    fn release(&mut self, name: &[u8]) -> Answer {
        match self.held.get_mut(name) {
            None => Answer::No,
            Some(waiting) => {
                match waiting.pop_front() {
                    Some(next) => self.completed.push_back(next),
                    None => drop(self.held.remove(name)),
                }
                Answer::Yes
            }
        }
    }
}

impl Service for Locks {
    fn execute(&mut self, session: SessionId, call: &[u8]) -> Execution {
        let Some(Call { operation, name }) = Call::decode(call) else {
            return Execution::Done(Answer::Refused.encode());
        };
        let answer = match operation {
            Operation::Lock if self.held.contains_key(&name) => Answer::No,
            Operation::Lock => self.take(name),
            Operation::Acquire => match self.held.get_mut(&name) {
                Some(waiting) => {
                    waiting.push_back(session);
                    return Execution::Waits;
                }
                None => self.take(name),
            },
            Operation::Unlock => self.release(&name),
        };
        Execution::Done(answer.encode())
    }

    fn take_completed(&mut self) -> Option<(SessionId, Vec<u8>)> {
        self.completed.pop_front().map(|session| (session, Answer::Yes.encode()))
    }

    fn cancel(&mut self, session: SessionId) {
        for waiting in self.held.values_mut() {
            waiting.retain(|waits| *waits != session);
        }
    }
}

/// One lock's behaviour: `true` if it is held after `operation`, and the answer; `None` while an
/// `Acquire` waits.
#[must_use]
pub const fn apply(held: bool, operation: &Operation) -> Option<(bool, Answer)> {
    Some(match (operation, held) {
        (Operation::Lock, true) => (true, Answer::No),
        (Operation::Acquire, true) => return None,
        (Operation::Lock | Operation::Acquire, false) => (true, Answer::Yes),
        (Operation::Unlock, true) => (false, Answer::Yes),
        (Operation::Unlock, false) => (false, Answer::No),
    })
}

#[cfg(test)]
mod tests {
    use super::{Answer, Call, HELD_MAX, Locks, NAME_BYTES_MAX, Operation};
    use crate::rpc::SessionId;
    use crate::rpc::server::{Execution, Service};
    use alloc::vec::Vec;

    fn ask(locks: &mut Locks, session: u64, operation: Operation, name: &str) -> Option<Answer> {
        let call = Call { operation, name: name.into() };
        match locks.execute(SessionId(session), &call.encode()) {
            Execution::Done(body) => Answer::decode(&body),
            Execution::Waits => None,
        }
    }

    fn completed(locks: &mut Locks) -> Vec<u64> {
        core::iter::from_fn(|| locks.take_completed()).map(|(session, _)| session.0).collect()
    }

    #[test]
    fn a_lock_is_taken_once_and_released_once() {
        let mut locks = Locks::default();
        let answers = [Operation::Lock, Operation::Lock, Operation::Unlock, Operation::Unlock, Operation::Lock]
            .map(|operation| ask(&mut locks, 1, operation, "a").unwrap());
        assert_eq!(answers, [Answer::Yes, Answer::No, Answer::Yes, Answer::No, Answer::Yes]);
        assert_eq!(ask(&mut locks, 2, Operation::Lock, "b"), Some(Answer::Yes), "another lock");
        assert_eq!(locks.held(), 2);
    }

    #[test]
    fn those_who_wait_get_the_lock_in_their_order() {
        let mut locks = Locks::default();
        assert_eq!(ask(&mut locks, 1, Operation::Acquire, "a"), Some(Answer::Yes));
        for session in 2..=4 {
            assert_eq!(ask(&mut locks, session, Operation::Acquire, "a"), None);
        }
        locks.cancel(SessionId(3));
        assert_eq!(completed(&mut locks), []);
        for expected in [&[2][..], &[4], &[], &[]] {
            let answer = ask(&mut locks, 1, Operation::Unlock, "a");
            let was_held = locks.held() > 0 || expected.is_empty();
            assert!(was_held && answer.is_some());
            assert_eq!(completed(&mut locks), expected);
        }
        assert_eq!(locks.held(), 0);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let mut locks = Locks::default();
        let call = Call { operation: Operation::Lock, name: b"name".to_vec() }.encode();
        for length in 0..call.len() {
            assert_eq!(Call::decode(&call[..length]), None);
        }
        let longest = Call { operation: Operation::Lock, name: Vec::from([b'x'; NAME_BYTES_MAX]) };
        assert_eq!(Call::decode(&longest.encode()), Some(longest));
        let Execution::Done(body) = locks.execute(SessionId(1), b"\x10\x01\x00a") else { panic!() };
        assert_eq!(Answer::decode(&body), Some(Answer::Refused));
    }

    #[test]
    fn memory_is_bounded() {
        let mut locks = Locks::default();
        for number in 0..HELD_MAX {
            assert_eq!(ask(&mut locks, 1, Operation::Lock, &alloc::format!("{number}")), Some(Answer::Yes));
        }
        assert_eq!(ask(&mut locks, 1, Operation::Lock, "one more"), Some(Answer::Refused));
        assert_eq!(ask(&mut locks, 1, Operation::Acquire, "one more"), Some(Answer::Refused));
        assert_eq!(ask(&mut locks, 1, Operation::Unlock, "7"), Some(Answer::Yes));
        assert_eq!(ask(&mut locks, 1, Operation::Lock, "one more"), Some(Answer::Yes));
    }
}
