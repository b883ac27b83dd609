//! The one place where a machine takes an event: recording and replaying both come through here.

use logchannel::entry::{EntryBody, LogEntry};
use vm::{ApplyError, Machine};

/// Applies an entry's event, if it has one, to a machine that stands at the entry's count.
///
/// # Errors
/// [`ApplyError`] if the machine isn't in a state in which the event could have happened.
pub fn apply(machine: &mut Machine, entry: &LogEntry) -> Result<(), ApplyError> {
    match &entry.body {
        EntryBody::Event(event) => machine.apply(event),
        EntryBody::Output { .. }
        | EntryBody::Progress
        | EntryBody::Digest(_)
        | EntryBody::PartDigest { .. }
        | EntryBody::Stopped(_)
        | EntryBody::Generation(_) => Ok(()),
    }
}
