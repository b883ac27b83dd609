//! What the clients of a service saw: recorded, checked, kept in a file.

use crate::os::clock;
use serde::{Deserialize, Serialize};
use services::linearizability::{self, Model, Seen, Violation, by_object};
use services::{kv, lock};
use std::io::{self, BufRead, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// A call of a key/value store or of a lock service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "call")]
pub enum Call {
    /// [`kv::Operation::Get`].
    Get {
        /// The key.
        key: String,
    },
    /// [`kv::Operation::Put`].
    Put {
        /// The key.
        key: String,
        /// The value to be set.
        value: String,
    },
    /// [`kv::Operation::Append`].
    Append {
        /// The key.
        key: String,
        /// What is added.
        value: String,
    },
    /// [`kv::Operation::CompareAndSwap`].
    CompareAndSwap {
        /// The key.
        key: String,
        /// The value that must be there, if one must.
        old: Option<String>,
        /// The value to be set.
        value: String,
    },
    /// [`lock::Operation::Lock`].
    Lock {
        /// The lock.
        key: String,
    },
    /// [`lock::Operation::Acquire`].
    Acquire {
        /// The lock.
        key: String,
    },
    /// [`lock::Operation::Unlock`].
    Unlock {
        /// The lock.
        key: String,
    },
}

/// The answer to a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done; of a lock: it was taken, or was held.
    Yes,
    /// Of a lock: it was not.
    No,
    /// The key's value, if it has one.
    Value(Option<String>),
    /// The server refuses the call.
    Refused,
    /// The store has no room.
    Full,
}

impl Answer {
    fn of_store(answer: kv::Answer) -> Self {
        match answer {
            kv::Answer::Done => Self::Yes,
            kv::Answer::Value(value) => Self::Value(value.map(|value| String::from_utf8_lossy(&value).into())),
            kv::Answer::Refused => Self::Refused,
            kv::Answer::Full => Self::Full,
        }
    }

    const fn of_lock(answer: lock::Answer) -> Self {
        match answer {
            lock::Answer::Yes => Self::Yes,
            lock::Answer::No => Self::No,
            lock::Answer::Refused => Self::Refused,
        }
    }
}

impl Call {
    /// The key, or the lock.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::CompareAndSwap { key, .. }
            | Self::Lock { key }
            | Self::Acquire { key }
            | Self::Unlock { key } => key,
        }
    }

    /// The call as its service takes it; `None` if the key or a value is too long, or there is no
    /// key.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        match self.operation() {
            Operation::Store(operation) => {
                let call = kv::Call { key: self.key().into(), operation };
                call.is_valid().then(|| call.encode())
            }
            Operation::Lock(operation) => {
                let name: Vec<u8> = self.key().into();
                (1..=lock::NAME_BYTES_MAX).contains(&name.len()).then(|| lock::Call { operation, name }.encode())
            }
        }
    }

    /// The answer in a reply to this call; `None` if it is none.
    #[must_use]
    pub fn decode(&self, body: &[u8]) -> Option<Answer> {
        match self.operation() {
            Operation::Store(_) => kv::Answer::decode(body).map(Answer::of_store),
            Operation::Lock(_) => lock::Answer::decode(body).map(Answer::of_lock),
        }
    }

    fn operation(&self) -> Operation {
        let bytes = |text: &String| text.clone().into_bytes();
        match self {
            Self::Get { .. } => Operation::Store(kv::Operation::Get),
            Self::Put { value, .. } => Operation::Store(kv::Operation::Put(bytes(value))),
            Self::Append { value, .. } => Operation::Store(kv::Operation::Append(bytes(value))),
            Self::CompareAndSwap { old, value, .. } => {
                Operation::Store(kv::Operation::CompareAndSwap { old: old.as_ref().map(bytes), new: bytes(value) })
            }
            Self::Lock { .. } => Operation::Lock(lock::Operation::Lock),
            Self::Acquire { .. } => Operation::Lock(lock::Operation::Acquire),
            Self::Unlock { .. } => Operation::Lock(lock::Operation::Unlock),
        }
    }
}

enum Operation {
    Store(kv::Operation),
    Lock(lock::Operation),
}

/// A call that a client has made. In a file: one as a JSON object on each line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The client's number.
    pub client: u32,
    /// What it asked.
    #[serde(flatten)]
    pub call: Call,
    /// What was answered; nothing if no answer came.
    pub answer: Option<Answer>,
    /// When it began, in nanoseconds of the clients' host's monotonic clock.
    pub began_ns: u64,
    /// When the answer came.
    pub ended_ns: u64,
}

/// What several clients have seen, in the order in which the answers came.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Entry>>>);

impl History {
    /// Makes a call by `make` and records it; returns what `make` returned.
    pub fn record<E>(
        &self,
        client: u32,
        call: &Call,
        make: impl FnOnce(&Call) -> Result<Answer, E>,
    ) -> Result<Answer, E> {
        let began_ns = clock::now_ns();
        let result = make(call);
        let answer = result.as_ref().ok().cloned();
        let entry = Entry { client, call: call.clone(), answer, began_ns, ended_ns: clock::now_ns() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        result
    }

    /// What was recorded so far.
    #[must_use]
    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A history that no order of its calls explains.
#[derive(Clone, Debug)]
pub struct Unexplained {
    /// The key, or the lock.
    pub key: String,
    /// The calls of it.
    pub entries: Vec<Entry>,
    /// Why not.
    pub violation: Violation,
}

impl Unexplained {
    /// The call whose answer can't be explained.
    #[must_use]
    pub fn call(&self) -> &Entry {
        match self.violation {
            Violation::Unexplained { call, .. } | Violation::TooManyOrders { call } => &self.entries[call],
        }
    }
}

/// Checks that the calls of each key have an order, one after the other, that explains all answers.
///
/// # Errors
/// The first key for which there is none.
pub fn check(history: &[Entry]) -> Result<(), Box<Unexplained>> {
    let split = |(index, entry): (usize, &Entry)| Seen {
        client: entry.client,
        call: index,
        answer: entry.answer.clone(),
        began: entry.began_ns,
        ended: entry.ended_ns,
    };
    let key = |index: usize| (history[index].call.key(), history[index].call.operation());
    for (key, seen) in by_object(history.iter().enumerate().map(split), key) {
        linearizability::check(&KeyModel, &seen).map_err(|violation| {
            let entries = history.iter().filter(|entry| entry.call.key() == key).cloned().collect();
            Box::new(Unexplained { key: key.into(), entries, violation })
        })?;
    }
    Ok(())
}

/// A key of the store, or a lock: each has calls of one kind only.
struct KeyModel;

impl Model for KeyModel {
    /// The key's value, and whether the lock is held.
    type State = (Option<Vec<u8>>, bool);
    type Call = Operation;
    type Answer = Answer;

    fn initial(&self) -> Self::State {
        (None, false)
    }

    fn step(&self, (value, held): &Self::State, call: &Operation, answer: Option<&Answer>) -> Option<Self::State> {
        let (after, right) = match call {
            Operation::Store(call) => {
                let (value, right) = kv::apply(value.as_ref(), call);
                ((value, *held), Answer::of_store(right))
            }
            Operation::Lock(call) => {
                let (held, right) = lock::apply(*held, call)?;
                ((value.clone(), held), Answer::of_lock(right))
            }
        };
        answer.is_none_or(|answer| *answer == right).then_some(after)
    }
}

/// Writes a history, a JSON object on each line.
///
/// # Errors
/// If `out` takes no more.
pub fn write(history: &[Entry], mut out: impl Write) -> io::Result<()> {
    for entry in history {
        serde_json::to_writer(&mut out, entry)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Reads a history.
///
/// # Errors
/// If it can't be read, or a line is none of a history's; the error names the line.
pub fn read(input: impl BufRead) -> io::Result<Vec<Entry>> {
    let entry = |(number, line): (usize, io::Result<String>)| {
        serde_json::from_str(&line?).map_err(|error| {
            let message = format!("line {}: not a call of a history: {error}", number + 1);
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    };
    input.lines().enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::{Answer, Call, Entry, check, read, write};

    fn entry(client: u32, call: Call, answer: Option<Answer>, began_ns: u64, ended_ns: u64) -> Entry {
        Entry { client, call, answer, began_ns, ended_ns }
    }

    fn get(client: u32, value: &str, began_ns: u64) -> Entry {
        let answer = Answer::Value(Some(value.into()));
        entry(client, Call::Get { key: "k".into() }, Some(answer), began_ns, began_ns + 1)
    }

    fn append(client: u32, value: &str, began_ns: u64) -> Entry {
        entry(client, Call::Append { key: "k".into(), value: value.into() }, Some(Answer::Yes), began_ns, began_ns + 5)
    }

    fn locking(call: Call, answer: Answer, began_ns: u64) -> Entry {
        entry(1, call, Some(answer), began_ns, began_ns + 1)
    }

    #[test]
    fn histories_that_are_wrong_are_found() {
        let (a, b) = (append(1, "a", 0), append(2, "b", 2));
        let lock = || Call::Lock { key: "l".into() };
        let unlock = || Call::Unlock { key: "l".into() };
        let right = [
            vec![a.clone(), b.clone(), get(3, "ab", 10)],
            vec![a.clone(), b.clone(), get(3, "ba", 10)],
            vec![locking(lock(), Answer::Yes, 0), locking(lock(), Answer::No, 2), locking(unlock(), Answer::Yes, 4)],
        ];
        for history in right {
            assert!(check(&history).is_ok(), "{history:?}");
        }
        let wrong = [
            ("an append that was executed twice", vec![a.clone(), get(3, "aa", 10)]),
            ("an acknowledged append that is gone", vec![a.clone(), b.clone(), get(3, "a", 10)]),
            ("a value that goes back", vec![a, b, get(3, "a", 4), get(3, "b", 10)]),
            ("a lock that two have", vec![locking(lock(), Answer::Yes, 0), locking(lock(), Answer::Yes, 2)]),
            (
                "a lock that was released twice",
                vec![
                    locking(lock(), Answer::Yes, 0),
                    locking(unlock(), Answer::Yes, 2),
                    locking(unlock(), Answer::Yes, 4),
                ],
            ),
        ];
        for (what, history) in wrong {
            assert!(check(&history).is_err(), "{what}");
        }
    }

    #[test]
    fn keys_do_not_matter_to_each_other_and_the_wrong_one_is_named() {
        let other = |value: &str, began_ns| Entry {
            call: Call::Put { key: "other".into(), value: value.into() },
            ..append(5, "", began_ns)
        };
        let history = [other("x", 0), append(1, "a", 0), other("y", 6), get(3, "b", 10)];
        let unexplained = check(&history).unwrap_err();
        assert_eq!((unexplained.key.as_str(), unexplained.entries.len()), ("k", 2));
        assert_eq!(*unexplained.call(), history[3]);
    }

    #[test]
    fn a_history_comes_back_from_its_file_and_a_foreign_line_is_named() {
        let swap = Call::CompareAndSwap { key: "k".into(), old: None, value: "v".into() };
        let history = vec![get(1, "a", 1), append(2, "b", 2), entry(3, swap, None, 4, 9)];
        let mut file = Vec::new();
        write(&history, &mut file).unwrap();
        assert_eq!(read(&file[..]).unwrap(), history);
        file.extend_from_slice(b"noise\n");
        assert!(read(&file[..]).unwrap_err().to_string().starts_with("line 4: "));
    }

    #[test]
    fn what_is_too_long_for_a_service_is_no_call() {
        assert_eq!(Call::Get { key: String::new() }.encode(), None);
        assert_eq!(Call::Lock { key: "k".repeat(65) }.encode(), None);
        assert_eq!(Call::Put { key: "k".into(), value: "v".repeat(601) }.encode(), None);
        assert!(Call::Lock { key: "k".repeat(64) }.encode().is_some());
    }
}
