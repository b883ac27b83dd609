//! What happened in a run: a hash of all of it, and the events themselves if somebody wants to
//! read them.

mod html;
mod messages;
mod names;
mod table;

pub(super) use messages::{channel_message, in_a_word, question, said};
pub(super) use names::for_people;

pub use html::html;
pub use table::{View, table};

use super::plan::{Fault, Record};
use super::wires::Place;
use hypervisor::os::report::Level;
use std::fmt;
use std::sync::{Arc, PoisonError};

/// A column of the table: whom an event happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The operator, the judge, and all that happens to everybody at once.
    World,
    /// The LAN and its stations.
    Lan,
    /// A host with its process and its disk.
    Host(usize),
    /// The arbiter.
    Arbiter,
}

impl Lane {
    /// A number for the hash.
    const fn number(self) -> u64 {
        match self {
            Self::World => 0,
            Self::Lan => 1,
            Self::Arbiter => 2,
            Self::Host(host) => 3 + host as u64,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::World => f.write_str("world"),
            Self::Lan => f.write_str("LAN"),
            Self::Host(host) => write!(f, "host {host}"),
            Self::Arbiter => f.write_str("arbiter"),
        }
    }
}

impl From<Place> for Lane {
    fn from(place: Place) -> Self {
        match place {
            Place::Host(host) => Self::Host(host),
            Place::Lan => Self::Lan,
            Place::Arbiter => Self::Arbiter,
        }
    }
}

/// What kind of event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something goes wrong.
    Fault,
    /// An operator does something, or the run goes on to its next phase.
    Course,
    /// A process becomes something: it starts, backs the VM up, owns it, ends.
    Role,
    /// The arbiter is asked for a flag, or answers.
    Claim,
    /// A message that changes what two sides are to each other.
    Message,
    /// One of the hundreds: entries, acknowledgements, outputs, heartbeats.
    Detail,
    /// What a program reports to its operator.
    Report(Level),
    /// A rule is broken.
    Verdict,
}

impl Kind {
    /// Whether it is one of the hundreds, which are left out of a table that isn't to show all.
    #[must_use]
    pub const fn is_detail(self) -> bool {
        matches!(self, Self::Detail)
    }
}

/// What the process on a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no process.
    Down,
    /// It looks for a primary.
    Seeking,
    /// It goes on from a log on disk.
    Resuming,
    /// It has the VM's memory, and doesn't protect it yet.
    Joining,
    /// It protects the VM of this generation.
    Backup(u64),
    /// It owns the VM as this generation.
    Primary(u64),
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, on the run's clock.
    pub at_ns: u64,
    /// To whom.
    pub lane: Lane,
    /// What kind of event it is.
    pub kind: Kind,
    /// Who sent the message that this is about.
    pub from: Option<Lane>,
    /// What the process in this lane is from now on.
    pub state: Option<State>,
    /// Which fault this is.
    pub fault: Option<Fault>,
    /// What happened, in words.
    pub text: String,
}

/// Every step of a run goes into the hash: two runs with the same hash did the same.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    record: Arc<Record>,
}

/// Something that is noted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note<'a> {
    lane: Lane,
    kind: Kind,
    from: Option<Lane>,
    state: Option<State>,
    /// Each `{}` stands for the next number, each `{ms}` for the next one as a time.
    what: &'static str,
    numbers: &'a [u64],
    words: &'a str,
}

impl<'a> Note<'a> {
    /// `what` happens to `lane`. In it each `{}` stands for the next of `numbers`, and each `{ms}`
    /// for the next one as a time, which is in nanoseconds.
    pub(super) const fn new(lane: Lane, kind: Kind, what: &'static str, numbers: &'a [u64]) -> Self {
        Self { lane, kind, from: None, state: None, what, numbers, words: "" }
    }

    /// It is a message of another lane.
    pub(super) fn from(self, from: impl Into<Lane>) -> Self {
        Self { from: Some(from.into()), ..self }
    }

    /// The process in this lane is this from now on.
    pub(super) const fn becomes(self, state: State) -> Self {
        Self { state: Some(state), ..self }
    }

    /// Goes on with these words.
    pub(super) const fn words(self, words: &'a str) -> Self {
        Self { words, ..self }
    }

    /// The words, with their numbers.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut numbers = self.numbers.iter();
        let mut rest = self.what;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (unit, after) = after.split_once('}').unwrap_or((after, ""));
            let number = numbers.next().copied().unwrap_or_default();
            text.push_str(&if unit == "ms" { milliseconds(number) } else { number.to_string() });
            rest = after;
        }
        text.push_str(rest);
        text.push_str(&for_people(self.words));
        text
    }
}

/// A time in words, to the tenth of a millisecond.
fn milliseconds(ns: u64) -> String {
    let tenths = ns / 100_000;
    if tenths.is_multiple_of(10) {
        format!("{} ms", tenths / 10)
    } else {
        format!("{}.{} ms", tenths / 10, tenths % 10)
    }
}

impl Trace {
    pub(super) const fn new(record: Arc<Record>) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, record }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Notes that something happened. The hash is the same whether the events are kept or not.
    /// `current` is the fault that strikes at the moment.
    pub(super) fn note(&mut self, now_ns: u64, current: Option<Fault>, note: Note<'_>) {
        self.fold(note.lane.number());
        for byte in note.what.bytes().chain(note.words.bytes()) {
            self.fold(byte.into());
        }
        self.fold(now_ns);
        for number in note.numbers {
            self.fold(*number);
        }
        if let Some(events) = &self.record.events {
            let Note { lane, kind, from, state, .. } = note;
            let fault = current.filter(|_| kind == Kind::Fault);
            let event = Event { at_ns: now_ns, lane, kind, from, state, fault, text: note.text() };
            events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }

    const fn fold(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Lane, Note};

    #[test]
    fn a_note_has_its_numbers_in_its_words() {
        let note = Note::new(Lane::Lan, Kind::Fault, "dies after {} sends, in {ms}", &[3, 1_500_000]).words(": why");
        assert_eq!(note.text(), "dies after 3 sends, in 1.5 ms: why");
    }
}
