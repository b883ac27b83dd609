//! The channel to a backup, and the stream of log entries on it.

use super::lag::LagControl;
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::message::{Left, Message};
use logchannel::stream::{ChannelError, LogSender};

use alloc::vec::Vec;

/// When this many bytes of entries wait, they are sent without waiting for an output or for
/// [`FLUSH_NS`].
const FLUSH_BYTES: usize = 64 << 10;

/// The longest that an entry waits to be sent when no output asks for it, in nanoseconds.
const FLUSH_NS: u64 = 10_000_000;

/// The longest from one message about the guest's clock to the next, in nanoseconds: under load
/// there are no heartbeats.
const CLOCK_NS: u64 = 1_000_000_000;

/// The state of the channel to a backup; it exists only while there is one.
#[derive(Clone, Debug, Hash)]
pub(super) struct Link {
    /// Bytes that wait for the channel.
    pub(super) outgoing: Vec<u8>,
    pub(super) heard_ns: u64,
    pub(super) spoke_ns: u64,
    /// When the backup last made progress: took memory, acknowledged something, or had nothing to
    /// acknowledge.
    pub(super) progress_ns: u64,
    /// When the backup was last told what the guest's clock reads; `None` if it is to be told at
    /// once.
    pub(super) clock_told_ns: Option<u64>,
}

impl Link {
    /// The channel to a backup that has just connected. The backup needs the clock only when it may
    /// claim.
    pub(super) const fn new(now_ns: u64) -> Self {
        Self {
            outgoing: Vec::new(),
            heard_ns: now_ns,
            spoke_ns: now_ns,
            progress_ns: now_ns,
            clock_told_ns: Some(now_ns),
        }
    }

    /// Appends a message to the bytes that wait for the channel.
    pub(super) fn put(&mut self, message: &Message) {
        message.encode(&mut self.outgoing);
    }

    /// `true` if it is time to tell the backup the clock: so that it doesn't take this side for
    /// lost, and so that its estimate of the clock stays right.
    pub(super) fn is_clock_due(&self, now_ns: u64, heartbeat_ns: u64) -> bool {
        now_ns.saturating_sub(self.spoke_ns) >= heartbeat_ns
            || self.clock_told_ns.is_none_or(|told_ns| now_ns.saturating_sub(told_ns) >= CLOCK_NS)
    }

    /// Tells the backup what the guest's clock reads.
    pub(super) fn tell_clock(&mut self, now_ns: u64, clock: &Message) {
        self.put(clock);
        self.spoke_ns = now_ns;
        self.clock_told_ns = Some(now_ns);
    }
}

/// The log as it is sent to a backup, from its snapshot on.
///
/// Invariant: `consumed <= acked <= sent <= appended`. The sender asserts its three cursors; what
/// the backup reports is checked before it counts.
#[derive(Clone, Debug, Hash)]
pub(super) struct Stream {
    sender: LogSender,
    /// Follows how far the backup has replayed.
    pub(super) lag: LagControl,
    /// When the oldest entry that isn't sent yet was appended.
    pending_since_ns: Option<u64>,
    /// The outputs of which the backup knows that they have left: from this side's messages, or
    /// from its snapshot.
    told_released: Left,
}

impl Stream {
    /// A stream from `first` on, to a backup whose snapshot has all outputs except those that had
    /// `left`.
    pub(super) fn new(first: LogSeq, left: Left, lag_bound_ns: u64) -> Self {
        Self {
            sender: LogSender::new(first),
            lag: LagControl::new(lag_bound_ns, first),
            pending_since_ns: None,
            told_released: left,
        }
    }

    pub(super) fn append(&mut self, now_ns: u64, entry: &LogEntry) -> LogSeq {
        self.pending_since_ns.get_or_insert(now_ns);
        self.sender.append(entry)
    }

    pub(super) const fn appended(&self) -> LogSeq {
        self.sender.appended()
    }

    pub(super) const fn sent(&self) -> LogSeq {
        self.sender.sent()
    }

    pub(super) const fn acked(&self) -> LogSeq {
        self.sender.acked()
    }

    /// `true` if the backup has acknowledged all that was appended.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.acked() == self.appended()
    }

    /// `true` if entries have waited long enough to be sent.
    pub(super) fn is_flush_due(&self, now_ns: u64) -> bool {
        self.sender.pending_bytes() >= FLUSH_BYTES
            || self.pending_since_ns.is_some_and(|since_ns| now_ns >= since_ns.saturating_add(FLUSH_NS))
    }

    /// Moves all appended entries to the bytes that wait for the channel.
    pub(super) fn flush(&mut self, now_ns: u64, link: &mut Link) {
        if self.acked() == self.sent() {
            link.progress_ns = now_ns;
        }
        while self.sender.take_frame(&mut link.outgoing) {
            link.spoke_ns = now_ns;
        }
        self.pending_since_ns = None;
    }

    /// The backup says that it has received all entries before `received`.
    pub(super) fn acknowledge(&mut self, received: LogSeq) -> Result<(), ChannelError> {
        self.sender.acknowledge(received)
    }

    /// Tells the backup which outputs have left, so that it doesn't send them at go-live.
    pub(super) fn tell_left(&mut self, left: Left, link: &mut Link) {
        if left.packets > self.told_released.packets || left.console > self.told_released.console {
            self.told_released = left;
            link.put(&Message::Released(left));
        }
    }
}
