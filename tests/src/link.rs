//! A link between a primary and its backup, on which tests delay, cut and inspect messages.
//!
//! It passes whole messages, so that acknowledgements can be let through one at a time.

use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::stream::LogReceiver;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use vm::Event;

/// The direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the primary: the session, entries, and released outputs.
    ToBackup,
    /// From the backup: acknowledgements, and consumed positions.
    ToPrimary,
}

/// A link. Dropping it cuts the connection.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    lanes: [Arc<Lane>; 2],
}

/// One direction of the link.
#[derive(Debug, Default)]
struct Lane {
    state: Mutex<LaneState>,
}

#[derive(Debug)]
struct LaneState {
    /// Every message that arrived, in order.
    seen: Vec<Message>,
    /// How many of them were passed on.
    passed: usize,
    /// How many may be passed on.
    limit: usize,
    /// The sender has closed its side.
    ended: bool,
    /// The connection to the receiver, once both sides are connected.
    receiver: Option<TcpStream>,
}

impl Default for LaneState {
    fn default() -> Self {
        Self { seen: Vec::new(), passed: 0, limit: usize::MAX, ended: false, receiver: None }
    }
}

impl LaneState {
    /// Passes on what may be.
    fn pump(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        let mut bytes = Vec::new();
        let until = self.limit.min(self.seen.len());
        self.seen[self.passed..until].iter().for_each(|message| message.encode(&mut bytes));
        self.passed = until;
        // A receiver that is gone takes nothing more, as on a real link.
        let _ = receiver.write_all(&bytes);
        if self.ended && self.limit == usize::MAX {
            let _ = receiver.shutdown(Shutdown::Write);
        }
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads messages from `sender` until it ends.
    fn carry(&self, mut sender: TcpStream) {
        let mut decoder = FrameDecoder::new();
        while let Ok(bytes @ 1..) = sender.read(decoder.space()) {
            decoder.filled(bytes);
            let mut state = self.lock();
            while let Some(frame) = decoder.next_frame().expect("our programs send whole frames") {
                state.seen.push(Message::decode(frame).expect("our programs send messages"));
            }
            state.pump();
        }
        let mut state = self.lock();
        state.ended = true;
        state.pump();
    }

    fn cut(&self) {
        if let Some(receiver) = &self.lock().receiver {
            // Fails if the connection is closed already.
            let _ = receiver.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    /// A link to the primary at `primary`. The first backup that connects to
    /// [`address`](Self::address) is connected through it; a link has one connection in its life.
    ///
    /// # Panics
    /// If the host has no port.
    #[must_use]
    pub fn to(primary: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the host has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let lanes: [Arc<Lane>; 2] = Default::default();
        let [to_backup, to_primary] = lanes.clone();
        thread::spawn(move || {
            let (backup, _) = listener.accept().expect("the backup connects");
            let primary = TcpStream::connect(primary).expect("the primary listens");
            for (lane, sender, receiver) in [(to_backup, &primary, &backup), (to_primary, &backup, &primary)] {
                let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
                receiver.set_nodelay(true).expect("a socket takes options");
                lane.lock().receiver = Some(clone(receiver));
                let sender = clone(sender);
                thread::spawn(move || lane.carry(sender));
            }
        });
        Self { address, lanes }
    }

    /// The address to which the backup connects.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    fn lane(&self, direction: Direction) -> MutexGuard<'_, LaneState> {
        self.lanes[direction as usize].lock()
    }

    /// Holds back all further messages; the connections stay open.
    pub fn hold(&self, direction: Direction) {
        let mut lane = self.lane(direction);
        lane.limit = lane.passed;
    }

    /// Holds back both directions. Neither side hears of the other any more, or that it is cut off.
    pub fn silence(&self) {
        self.hold(Direction::ToBackup);
        self.hold(Direction::ToPrimary);
    }

    /// Passes on what is held back, and everything that arrives.
    pub fn release(&self, direction: Direction) {
        let mut lane = self.lane(direction);
        lane.limit = usize::MAX;
        lane.pump();
    }

    /// Passes on what is held back, up to the first message that `is_last`, and waits for that one.
    ///
    /// # Panics
    /// If no such message arrives within [`PATIENCE`].
    #[track_caller]
    pub fn pass_until(&self, direction: Direction, is_last: impl Fn(&Message) -> bool) {
        crate::stage::wait_until("the message to pass", || {
            let mut lane = self.lane(direction);
            let passed = lane.passed;
            let last = lane.seen[passed..].iter().position(&is_last);
            if let Some(last) = last {
                lane.limit = passed + last + 1;
                lane.pump();
            }
            last.is_some()
        });
    }

    /// Passes on what is held back, up to the batch with the entry at `seq`, which must have
    /// arrived.
    ///
    /// # Panics
    /// If no batch can have it.
    #[track_caller]
    pub fn pass_entry(&self, seq: LogSeq) {
        let mut lane = self.lane(Direction::ToBackup);
        let has_it = |message: &Message| matches!(message, Message::Entries(batch) if batch.first_seq <= seq);
        let last = lane.seen.iter().rposition(has_it).expect("an entry comes in a batch");
        lane.limit = lane.limit.max(last + 1);
        lane.pump();
    }

    /// Cuts the connection: both sides see its end. What is held back is lost.
    pub fn cut(&self) {
        self.lanes.iter().for_each(|lane| lane.cut());
    }

    /// Every message that arrived, held back or not.
    #[must_use]
    pub fn seen(&self, direction: Direction) -> Vec<Message> {
        self.lane(direction).seen.clone()
    }

    /// Every message that was passed on.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> Vec<Message> {
        let lane = self.lane(direction);
        lane.seen[..lane.passed].to_vec()
    }

    /// The entries that the primary has sent; an entry's index is its sequence number.
    ///
    /// # Panics
    /// If they don't follow each other from the log's first on.
    #[must_use]
    pub fn entries(&self) -> Vec<LogEntry> {
        entries(&self.lane(Direction::ToBackup).seen)
    }

    /// The entries that were passed on to the backup.
    ///
    /// # Panics
    /// As [`entries`](Self::entries).
    #[must_use]
    pub fn passed_entries(&self) -> Vec<LogEntry> {
        let lane = self.lane(Direction::ToBackup);
        entries(&lane.seen[..lane.passed])
    }

    /// Waits until the primary has sent an entry that `is_wanted`, at position `from` or later.
    /// Returns its position and the entry.
    ///
    /// # Panics
    /// If none arrives within [`PATIENCE`].
    #[track_caller]
    pub fn wait_for_entry(&self, from: LogSeq, is_wanted: impl Fn(&LogEntry) -> bool) -> (LogSeq, LogEntry) {
        let mut found = None;
        crate::stage::wait_until("the wanted entry", || {
            let entries = self.entries();
            found = (0..).map(LogSeq).zip(entries).find(|(seq, entry)| *seq >= from && is_wanted(entry));
            found.is_some()
        });
        found.unwrap_or_else(|| unreachable!("waited for it, at most {PATIENCE:?}"))
    }

    /// Waits until the primary has sent the guest's answer to the packet with `request`, which is
    /// the first output after it. Returns the positions of the packet and the output.
    ///
    /// # Panics
    /// As [`wait_for_entry`](Self::wait_for_entry).
    #[track_caller]
    pub fn wait_for_answer(&self, request: &[u8]) -> [LogSeq; 2] {
        let carries = |packet: &[u8]| packet.windows(request.len()).any(|window| window == request);
        let is_packet =
            |entry: &LogEntry| matches!(&entry.body, EntryBody::Event(Event::Packet { packet, .. }) if carries(packet));
        let (packet, _) = self.wait_for_entry(LogSeq(0), is_packet);
        let (output, _) = self.wait_for_entry(packet, |entry| matches!(entry.body, EntryBody::Output { .. }));
        [packet, output]
    }

    /// Waits until the backup has acknowledged the entry at `seq`; the acknowledgement may be held
    /// back.
    ///
    /// # Panics
    /// If it doesn't within [`PATIENCE`].
    #[track_caller]
    pub fn wait_for_ack(&self, seq: LogSeq) {
        crate::stage::wait_until("the acknowledgement", || acknowledged(&self.seen(Direction::ToPrimary)) > seq);
    }

    /// How many outputs the primary may release after it has received `messages`: those whose
    /// entries they acknowledge.
    ///
    /// # Panics
    /// If entries are acknowledged that were never sent.
    #[must_use]
    pub fn outputs_covered(&self, messages: &[Message]) -> usize {
        let covered = usize::try_from(acknowledged(messages).0).expect("a log fits in memory");
        self.entries()[..covered].iter().filter(|entry| matches!(entry.body, EntryBody::Output { .. })).count()
    }
}

/// The entries in `messages`, from the log's first on.
fn entries(messages: &[Message]) -> Vec<LogEntry> {
    let (mut receiver, mut entries) = (LogReceiver::new(LogSeq(0)), VecDeque::new());
    for message in messages {
        if let Message::Entries(batch) = message {
            receiver.receive(batch, &mut entries).expect("a primary's batches follow each other");
        }
    }
    entries.into()
}

/// One past the last entry that `messages` acknowledge.
fn acknowledged(messages: &[Message]) -> LogSeq {
    let ack = |message: &Message| if let Message::Ack { received } = message { Some(*received) } else { None };
    messages.iter().rev().find_map(ack).unwrap_or(LogSeq(0))
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}
