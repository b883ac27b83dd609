//! A key/value store.

use crate::bytes::{Reader, Writer};
use crate::rpc::SessionId;
use crate::rpc::server::{Execution, Service};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// First bytes of calls, which differ from those of other services, so that their calls are
/// refused.
const GET: u8 = 0x10;
const PUT: u8 = 0x11;
const APPEND: u8 = 0x12;
const COMPARE_AND_SWAP: u8 = 0x13;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// The longest value, in bytes: a call carries two of them, a compare-and-swap.
pub const VALUE_BYTES_MAX: usize = 600;
/// The most bytes of all keys and values together. A guest's heap of 8 MiB must hold them, the
/// replies that the server keeps for its sessions (1.4 MiB), and what fragments between them.
pub const STORE_BYTES_MAX: usize = 2 << 20;

/// The map's bytes for each key, besides those of key and value: an estimate for nodes that are
/// half full.
const ENTRY_BYTES: usize = 128;

/// An operation on a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// The value.
    Get,
    /// Sets the value.
    Put(Vec<u8>),
    /// Adds to the end of the value; a key without one has the empty value.
    Append(Vec<u8>),
    /// Sets the value to `new` if it is `old` (`None`: if there is none).
    CompareAndSwap {
        /// The value that must be there.
        old: Option<Vec<u8>>,
        /// The value to be set.
        new: Vec<u8>,
    },
}

/// A call: an operation on a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The key, of 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Vec<u8>,
    /// The operation.
    pub operation: Operation,
}

/// The reply to a call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Of `Put`, `Append`, and a `CompareAndSwap` that has set the value: done.
    Done,
    /// Of `Get`, and of a `CompareAndSwap` that found another value: the value, if there is one.
    Value(Option<Vec<u8>>),
    /// Nothing was done: the call is malformed, or the value would be longer than
    /// [`VALUE_BYTES_MAX`].
    Refused,
    /// Nothing was done: the store has [`STORE_BYTES_MAX`] bytes.
    Full,
}

fn put_optional(writer: Writer, value: Option<&[u8]>) -> Writer {
    match value {
        None => writer.byte(0),
        Some(value) => writer.byte(1).string(value),
    }
}

fn optional(reader: &mut Reader<'_>) -> Option<Option<Vec<u8>>> {
    match reader.byte()? {
        0 => Some(None),
        1 => Some(Some(reader.string(VALUE_BYTES_MAX)?.to_vec())),
        _ => None,
    }
}

impl Call {
    /// `true` if key and values are within their limits.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let longest = match &self.operation {
            Operation::Get => 0,
            Operation::Put(value) | Operation::Append(value) => value.len(),
            Operation::CompareAndSwap { old, new } => old.as_ref().map_or(0, Vec::len).max(new.len()),
        };
        (1..=KEY_BYTES_MAX).contains(&self.key.len()) && longest <= VALUE_BYTES_MAX
    }

    /// The call as the body of a request.
    ///
    /// # Panics
    /// If it isn't [valid](Self::is_valid).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.is_valid(), "a key or a value is too long");
        let writer = Writer::new();
        match &self.operation {
            Operation::Get => writer.byte(GET).string(&self.key),
            Operation::Put(value) => writer.byte(PUT).string(&self.key).string(value),
            Operation::Append(piece) => writer.byte(APPEND).string(&self.key).string(piece),
            Operation::CompareAndSwap { old, new } => {
                put_optional(writer.byte(COMPARE_AND_SWAP).string(&self.key), old.as_deref()).string(new)
            }
        }
        .finish()
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let kind = reader.byte()?;
        let key = reader.string(KEY_BYTES_MAX)?.to_vec();
        let operation = match kind {
            GET => Operation::Get,
            PUT => Operation::Put(reader.string(VALUE_BYTES_MAX)?.to_vec()),
            APPEND => Operation::Append(reader.string(VALUE_BYTES_MAX)?.to_vec()),
            COMPARE_AND_SWAP => {
                Operation::CompareAndSwap { old: optional(&mut reader)?, new: reader.string(VALUE_BYTES_MAX)?.to_vec() }
            }
            _ => return None,
        };
        if key.is_empty() { None } else { reader.end(Self { key, operation }) }
    }
}

impl Answer {
    fn encode(&self) -> Vec<u8> {
        let writer = Writer::new();
        match self {
            Self::Done => writer.byte(0),
            Self::Value(value) => put_optional(writer.byte(1), value.as_deref()),
            Self::Refused => writer.byte(2),
            Self::Full => writer.byte(3),
        }
        .finish()
    }

    /// The answer in the body of a reply; `None` if it is none.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let answer = match reader.byte()? {
            0 => Self::Done,
            1 => Self::Value(optional(&mut reader)?),
            2 => Self::Refused,
            3 => Self::Full,
            _ => return None,
        };
        reader.end(answer)
    }
}

/// A key's value after `operation`, and the answer, in a store that has room.
#[must_use]
pub fn apply(value: Option<&Vec<u8>>, operation: &Operation) -> (Option<Vec<u8>>, Answer) {
    match operation {
        Operation::Get => (value.cloned(), Answer::Value(value.cloned())),
        Operation::Put(new) => (Some(new.clone()), Answer::Done),
        Operation::Append(piece) => {
            let mut new = value.cloned().unwrap_or_default();
            if new.len() + piece.len() > VALUE_BYTES_MAX {
                return (value.cloned(), Answer::Refused);
            }
            new.extend_from_slice(piece);
            (Some(new), Answer::Done)
        }
        Operation::CompareAndSwap { old, new } if old.as_ref() == value => (Some(new.clone()), Answer::Done),
        Operation::CompareAndSwap { .. } => (value.cloned(), Answer::Value(value.cloned())),
    }
}

/// The service.
#[derive(Debug, Default)]
pub struct Store {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl Store {
    /// How many keys have a value.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.values.len()
    }

    fn call(&mut self, call: Call) -> Answer {
        let before = self.values.get(&call.key);
        let (after, answer) = apply(before, &call.operation);
        if after.as_ref() == before {
            return answer;
        }
        let cost = |value: Option<&Vec<u8>>| value.map_or(0, |value| call.key.len() + value.len() + ENTRY_BYTES);
        let bytes = self.bytes - cost(before) + cost(after.as_ref());
        if bytes > STORE_BYTES_MAX {
            return Answer::Full;
        }
        self.bytes = bytes;
        // No operation removes a value.
        if let Some(mut after) = after {
            // Appending has reserved up to as much again, which isn't counted.
            after.shrink_to_fit();
            self.values.insert(call.key, after);
        }
        answer
    }
}

impl Service for Store {
    fn execute(&mut self, _session: SessionId, call: &[u8]) -> Execution {
        Execution::Done(Call::decode(call).map_or(Answer::Refused, |call| self.call(call)).encode())
    }

    fn take_completed(&mut self) -> Option<(SessionId, Vec<u8>)> {
        None
    }

    fn cancel(&mut self, _session: SessionId) {}
}

#[cfg(test)]
mod tests {
    use super::{Answer, Call, KEY_BYTES_MAX, Operation, STORE_BYTES_MAX, Store, VALUE_BYTES_MAX};
    use crate::rpc::server::{Execution, Service};
    use crate::rpc::{BODY_BYTES_MAX, SessionId};
    use alloc::{format, vec};

    fn ask(store: &mut Store, key: &str, operation: Operation) -> Answer {
        let call = Call { key: key.into(), operation };
        assert_eq!(Call::decode(&call.encode()), Some(call.clone()));
        match store.execute(SessionId(1), &call.encode()) {
            Execution::Done(body) => Answer::decode(&body).unwrap(),
            Execution::Waits => panic!("no call of the store waits"),
        }
    }

    fn swap(old: Option<&str>, new: &str) -> Operation {
        Operation::CompareAndSwap { old: old.map(Into::into), new: new.into() }
    }

    fn value(text: &str) -> Answer {
        Answer::Value(Some(text.into()))
    }

    #[test]
    fn values_are_set_appended_to_and_swapped() {
        let mut store = Store::default();
        assert_eq!(ask(&mut store, "a", Operation::Get), Answer::Value(None));
        assert_eq!(ask(&mut store, "a", swap(Some("x"), "y")), Answer::Value(None));
        assert_eq!(ask(&mut store, "a", swap(None, "one")), Answer::Done);
        assert_eq!(ask(&mut store, "a", swap(None, "two")), value("one"));
        assert_eq!(ask(&mut store, "a", Operation::Append(b" and".to_vec())), Answer::Done);
        assert_eq!(ask(&mut store, "a", swap(Some("one and"), "2")), Answer::Done);
        assert_eq!(ask(&mut store, "a", Operation::Get), value("2"));
        assert_eq!(ask(&mut store, "b", Operation::Append(b"new".to_vec())), Answer::Done);
        assert_eq!(ask(&mut store, "b", Operation::Get), value("new"));
        assert_eq!(ask(&mut store, "a", Operation::Put(vec![])), Answer::Done);
        assert_eq!(ask(&mut store, "a", Operation::Get), value(""));
        assert_eq!(store.keys(), 2);
    }

    #[test]
    fn the_longest_call_and_the_longest_answer_fit_a_datagram() {
        let (key, longest) = ("k".repeat(KEY_BYTES_MAX), vec![b'v'; VALUE_BYTES_MAX]);
        let operation = Operation::CompareAndSwap { old: Some(longest.clone()), new: longest.clone() };
        assert!(Call { key: key.as_str().into(), operation: operation.clone() }.encode().len() <= BODY_BYTES_MAX);
        let mut store = Store::default();
        assert_eq!(ask(&mut store, &key, Operation::Put(longest.clone())), Answer::Done);
        assert_eq!(ask(&mut store, &key, operation), Answer::Done);
        assert_eq!(ask(&mut store, &key, Operation::Append(b"x".to_vec())), Answer::Refused);
        assert_eq!(ask(&mut store, &key, Operation::Get), Answer::Value(Some(longest)));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let call = Call { key: b"key".to_vec(), operation: swap(Some("old"), "new") }.encode();
        for length in 0..call.len() {
            assert_eq!(Call::decode(&call[..length]), None, "cut after {length} bytes");
        }
        let too_long = Call { key: vec![b'k'; KEY_BYTES_MAX + 1], operation: Operation::Get };
        assert!(!too_long.is_valid());
        let answer = Store::default().execute(SessionId(1), b"noise");
        assert_eq!(answer, Execution::Done(Answer::Refused.encode()));
    }

    #[test]
    fn memory_is_bounded() {
        let mut store = Store::default();
        let longest = vec![b'v'; VALUE_BYTES_MAX];
        let mut keys = 0;
        while ask(&mut store, &format!("{keys}"), Operation::Put(longest.clone())) == Answer::Done {
            keys += 1;
        }
        assert!(keys > STORE_BYTES_MAX / 1_000, "{keys}");
        assert_eq!(ask(&mut store, "0", Operation::Get), Answer::Value(Some(longest)));
        assert_eq!(ask(&mut store, &format!("{keys}"), Operation::Get), Answer::Value(None));
        // A shorter value makes room.
        assert_eq!(ask(&mut store, "0", Operation::Put(vec![])), Answer::Done);
        assert_eq!(ask(&mut store, "new", Operation::Put(b"short".to_vec())), Answer::Done);
    }
}
