//! The cable between a primary and its backup, for tests to hold things back on, to cut, and to
//! look into.
//!
//! It carries whole messages, so that acknowledgements can be let through one at a time.

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

/// Which way messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the primary: the session, entries, what is released.
    ToBackup,
    /// From the backup: acknowledgements, what is consumed.
    ToPrimary,
}

/// One cable. Dropping it cuts it.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    lanes: [Arc<Lane>; 2],
}

/// One direction of it.
#[derive(Debug, Default)]
struct Lane {
    state: Mutex<LaneState>,
}

#[derive(Debug)]
struct LaneState {
    /// Every message that came, in order.
    seen: Vec<Message>,
    /// How many of them have gone on.
    passed: usize,
    /// How many may go on.
    limit: usize,
    /// The sender has closed its side.
    ended: bool,
    /// To the receiver, once both are connected.
    receiver: Option<TcpStream>,
}

impl Default for LaneState {
    fn default() -> Self {
        Self { seen: Vec::new(), passed: 0, limit: usize::MAX, ended: false, receiver: None }
    }
}

impl LaneState {
    /// Lets go on what may.
    fn pump(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        let mut bytes = Vec::new();
        let until = self.limit.min(self.seen.len());
        self.seen[self.passed..until].iter().for_each(|message| message.encode(&mut bytes));
        self.passed = until;
        // A receiver that is gone takes nothing more, as on any cable.
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

    /// Takes messages from `sender` until it ends.
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
            // Fails if the connection is over already, which is as good.
            let _ = receiver.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    /// A link whose far end is the primary at `primary`. A backup that connects to
    /// [`address`](Self::address) is connected through; there is one connection in a link's life.
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

    /// Where the backup connects.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    fn lane(&self, direction: Direction) -> MutexGuard<'_, LaneState> {
        self.lanes[direction as usize].lock()
    }

    /// Holds back what comes from now on, in silence: the connections stay open.
    pub fn hold(&self, direction: Direction) {
        let mut lane = self.lane(direction);
        lane.limit = lane.passed;
    }

    /// Holds back both directions: neither side hears of the other any more, nor that it is cut
    /// off.
    pub fn silence(&self) {
        self.hold(Direction::ToBackup);
        self.hold(Direction::ToPrimary);
    }

    /// Lets through what is held back, and what comes.
    pub fn release(&self, direction: Direction) {
        let mut lane = self.lane(direction);
        lane.limit = usize::MAX;
        lane.pump();
    }

    /// Lets through what is held back up to and including the first message that `is_last` says so
    /// of, and waits for that one to come.
    ///
    /// # Panics
    /// If no such message comes within [`PATIENCE`].
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

    /// Lets through what is held back up to and including the batch with the entry at `seq`, which
    /// must have come.
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

    /// Cuts the connection: both sides see it end. What is held back is lost.
    pub fn cut(&self) {
        self.lanes.iter().for_each(|lane| lane.cut());
    }

    /// Every message that came, held back or not.
    #[must_use]
    pub fn seen(&self, direction: Direction) -> Vec<Message> {
        self.lane(direction).seen.clone()
    }

    /// Every message that went on to its receiver.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> Vec<Message> {
        let lane = self.lane(direction);
        lane.seen[..lane.passed].to_vec()
    }

    /// The entries that the primary has sent; the place of each is its sequence number.
    ///
    /// # Panics
    /// If they don't follow each other from the log's first on.
    #[must_use]
    pub fn entries(&self) -> Vec<LogEntry> {
        entries(&self.lane(Direction::ToBackup).seen)
    }

    /// Those of them that went on to the backup.
    ///
    /// # Panics
    /// As [`entries`](Self::entries).
    #[must_use]
    pub fn passed_entries(&self) -> Vec<LogEntry> {
        let lane = self.lane(Direction::ToBackup);
        entries(&lane.seen[..lane.passed])
    }

    /// Waits until the primary has sent an entry, at or behind the place `from`, that `is_wanted`
    /// says so of, and gives its place and the entry.
    ///
    /// # Panics
    /// If none comes within [`PATIENCE`].
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

    /// Waits until the primary has sent the guest's answer to the packet that carries `request`:
    /// the first output behind it. Gives the places of both, the packet's first.
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

    /// How many outputs the primary may let out when it has heard `messages`: those whose entries
    /// they acknowledge.
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

/// All entries below this are acknowledged by `messages`.
fn acknowledged(messages: &[Message]) -> LogSeq {
    let ack = |message: &Message| if let Message::Ack { received } = message { Some(*received) } else { None };
    messages.iter().rev().find_map(ack).unwrap_or(LogSeq(0))
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}
