//! The modes of a primary, and the peer on its channel in each.

use super::join::Join;
use super::link::{Link, Stream};
use crate::mutation::{Mutation, mutated};
use crate::role::Claiming;
use alloc::boxed::Box;
use alloc::vec::Vec;
use logchannel::entry::LogSeq;

/// What a primary does. Each mode owns the state that means something only in it.
#[derive(Clone, Debug, Hash)]
pub(super) enum Mode {
    /// Owns the VM. The guest waits for its first backup, which may be joining.
    AwaitingBackup(Option<Box<Joiner>>),
    /// Owns the VM and runs it without a backup; one may be joining.
    Alone(Option<Box<Joiner>>),
    /// A backup acknowledges the log, and outputs are held until it has.
    Protected(Box<Backup>),
    /// Has lost its backup and asks for the pair's flag. Outputs are held.
    Claiming(Claiming),
    /// Asks for the pair's flag as the end mark of a guest that has ended. The backup has the whole
    /// log and is still told what leaves, but the primary doesn't wait for it any more.
    MarkingEnd(Claiming, Box<Backup>),
    /// Over. These bytes are still to be sent to the backup.
    Ended(Vec<u8>),
}

/// A backup that is joining.
#[derive(Clone, Debug, Hash)]
pub(super) struct Joiner {
    pub(super) link: Link,
    pub(super) join: Join,
}

/// The backup of a protected pair.
#[derive(Clone, Debug, Hash)]
pub(super) struct Backup {
    pub(super) link: Link,
    pub(super) stream: Stream,
    /// Outputs of entries before this may leave: they were made before the pair was protected, or
    /// the backup has acknowledged them since.
    pub(super) settled: LogSeq,
}

impl Backup {
    /// The position below which the backup allows outputs to leave.
    pub(super) fn allows(&self) -> LogSeq {
        if mutated(Mutation::TellBeforeHolding) {
            return self.stream.appended();
        }
        if mutated(Mutation::ReleaseOnSend) { self.stream.sent() } else { self.stream.acked() }
    }

    /// Asserts `released <= settled <= sent`, of outputs that have been released up to those of
    /// entries before `released`.
    ///
    /// # Panics
    /// If an output was released that the Output Rule holds: our own bug, as the backup's numbers
    /// were checked before.
    pub(super) fn check_released(&self, released: LogSeq) {
        let is_broken_on_purpose =
            [Mutation::TellBeforeHolding, Mutation::ReleaseOnSend, Mutation::SkipOutputRule].into_iter().any(mutated);
        let (settled, sent) = (self.settled, self.stream.sent());
        assert!(
            (released <= settled && settled <= sent) || is_broken_on_purpose,
            "cursors out of order: released {released} settled {settled} sent {sent}"
        );
    }
}

impl Mode {
    /// The joining backup.
    pub(super) fn joiner(&self) -> Option<&Joiner> {
        match self {
            Self::AwaitingBackup(joiner) | Self::Alone(joiner) => joiner.as_deref(),
            Self::Protected(_) | Self::Claiming(_) | Self::MarkingEnd(..) | Self::Ended(_) => None,
        }
    }

    /// As [`Mode::joiner`], mutable.
    pub(super) fn joiner_mut(&mut self) -> Option<&mut Joiner> {
        match self {
            Self::AwaitingBackup(joiner) | Self::Alone(joiner) => joiner.as_deref_mut(),
            Self::Protected(_) | Self::Claiming(_) | Self::MarkingEnd(..) | Self::Ended(_) => None,
        }
    }

    /// `true` if there is a backup, joined or joining, to which this side listens.
    pub(super) fn has_backup(&self) -> bool {
        matches!(self, Self::Protected(_)) || self.joiner().is_some()
    }

    /// The channel to the joined or joining backup.
    pub(super) fn link_mut(&mut self) -> Option<&mut Link> {
        match self {
            Self::AwaitingBackup(joiner) | Self::Alone(joiner) => joiner.as_mut().map(|joiner| &mut joiner.link),
            Self::Protected(backup) => Some(&mut backup.link),
            Self::Claiming(_) | Self::MarkingEnd(..) | Self::Ended(_) => None,
        }
    }

    /// The log stream and the channel of the backup that receives it.
    pub(super) fn stream_mut(&mut self) -> Option<(&mut Stream, &mut Link)> {
        match self {
            Self::AwaitingBackup(joiner) | Self::Alone(joiner) => match joiner.as_deref_mut()? {
                Joiner { link, join: Join::Restoring(stream) } => Some((stream, link)),
                Joiner { join: Join::Copying(_), .. } => None,
            },
            Self::Protected(backup) | Self::MarkingEnd(_, backup) => Some((&mut backup.stream, &mut backup.link)),
            Self::Claiming(_) | Self::Ended(_) => None,
        }
    }

    /// The test-and-set of the pair's flag in progress.
    pub(super) const fn claiming(&self) -> Option<&Claiming> {
        match self {
            Self::Claiming(claiming) | Self::MarkingEnd(claiming, _) => Some(claiming),
            Self::AwaitingBackup(_) | Self::Alone(_) | Self::Protected(_) | Self::Ended(_) => None,
        }
    }

    /// As [`Mode::claiming`], mutable.
    pub(super) const fn claiming_mut(&mut self) -> Option<&mut Claiming> {
        match self {
            Self::Claiming(claiming) | Self::MarkingEnd(claiming, _) => Some(claiming),
            Self::AwaitingBackup(_) | Self::Alone(_) | Self::Protected(_) | Self::Ended(_) => None,
        }
    }

    /// Bytes that wait for the channel.
    pub(super) fn outgoing(&self) -> &[u8] {
        match self {
            Self::AwaitingBackup(joiner) | Self::Alone(joiner) => {
                joiner.as_ref().map_or(&[], |joiner| &joiner.link.outgoing)
            }
            Self::Protected(backup) | Self::MarkingEnd(_, backup) => &backup.link.outgoing,
            Self::Claiming(_) => &[],
            Self::Ended(farewell) => farewell,
        }
    }

    /// As [`Mode::outgoing`], mutable; `None` if there is no channel.
    pub(super) fn outgoing_mut(&mut self) -> Option<&mut Vec<u8>> {
        match self {
            Self::AwaitingBackup(joiner) | Self::Alone(joiner) => {
                joiner.as_mut().map(|joiner| &mut joiner.link.outgoing)
            }
            Self::Protected(backup) | Self::MarkingEnd(_, backup) => Some(&mut backup.link.outgoing),
            Self::Claiming(_) => None,
            Self::Ended(farewell) => Some(farewell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logchannel::entry::{EntryBody, LogEntry};
    use logchannel::message::Left;
    use vm::{InstructionCount, StopReason};

    /// A backup that joined at entry 3, and has been sent that and acknowledged nothing.
    fn backup() -> Backup {
        let (mut link, mut stream) = (Link::new(0), Stream::new(LogSeq(3), Left::default(), 1));
        let body = EntryBody::Stopped(StopReason::PowerOff { code: 0 });
        stream.append(0, &LogEntry { count: InstructionCount(0), body });
        stream.flush(0, &mut link);
        Backup { link, stream, settled: LogSeq(3) }
    }

    #[test]
    fn what_left_before_the_pair_was_protected_is_in_order() {
        backup().check_released(LogSeq(3));
    }

    #[test]
    #[should_panic(expected = "cursors out of order: released 4 settled 3 sent 4")]
    fn an_output_released_before_its_entry_is_acknowledged_is_a_bug() {
        backup().check_released(LogSeq(4));
    }

    #[test]
    #[should_panic(expected = "cursors out of order: released 3 settled 5 sent 4")]
    fn a_backup_that_may_claim_and_was_not_sent_what_has_left_is_a_bug() {
        Backup { settled: LogSeq(5), ..backup() }.check_released(LogSeq(3));
    }
}
