//! The logging channel: any thread may read or write it, one at a time, and nobody waits for a
//! stuck peer.

use crate::os::connection::{Connection, is_idle};
use ft::mutation::{Mutation, mutated};
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use nix::errno::Errno;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Bytes read from the connection in one call.
const READ_BYTES: usize = 64 << 10;

/// Locks a mutex whose data stays whole even if a holder panicked: a panic ends the process soon
/// enough.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does a job with `resource`, by one thread at a time, without any thread waiting for another: a
/// thread that finds it taken goes on, because whoever has it looks again, by `is_pending`, after
/// giving it back.
pub(crate) fn serve<T>(resource: &Mutex<T>, mut is_pending: impl FnMut() -> bool, mut job: impl FnMut(&mut T)) {
    while is_pending() {
        match resource.try_lock() {
            Ok(mut guard) => job(&mut guard),
            Err(TryLockError::Poisoned(guard)) => job(&mut guard.into_inner()),
            Err(TryLockError::WouldBlock) => return,
        }
    }
}

/// Says something short on a connection that is no logging channel (yet). A peer that doesn't read
/// isn't waited for.
///
/// # Errors
/// Of the connection; `WouldBlock` if it is full, as its peer has read nothing of what was said
/// before.
pub(crate) fn say<C: Connection>(connection: &C, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    let sent = connection.send(&bytes)?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
}

/// The writing side of a logging channel, for the thread that has it at the moment.
#[derive(Debug)]
pub(crate) struct ChannelWriter<C> {
    connection: Option<Arc<C>>,
    buffer: Vec<u8>,
    /// How much of the buffer has been sent.
    sent: usize,
}

impl<C: Connection> ChannelWriter<C> {
    /// Sends what the connection has not taken yet. `true` if there is nothing left of it.
    ///
    /// That a peer is gone is noticed by whoever reads the connection, after all that the peer has
    /// sent.
    fn send_rest(&mut self, count: &AtomicU64) -> bool {
        while let Some(connection) = &self.connection
            && self.sent < self.buffer.len()
        {
            match connection.send(&self.buffer[self.sent..]) {
                Ok(sent) => {
                    self.sent += sent;
                    count.fetch_add(sent as u64, Ordering::Relaxed);
                }
                Err(error) if is_idle(&error) && mutated(Mutation::ChannelRestForgotten) => return true,
                Err(error) if is_idle(&error) => return false,
                Err(_) => self.connection = None,
            }
        }
        true
    }

    /// Sends what `fill` gives, as [`ChannelWriter::send_rest`]. Without a connection the bytes go
    /// nowhere: their reader is lost.
    fn send(&mut self, count: &AtomicU64, fill: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.buffer.clear();
        self.sent = 0;
        fill(&mut self.buffer);
        self.send_rest(count)
    }
}

/// What a look at the channel brought.
#[derive(Debug)]
pub enum Arrived {
    /// Whole messages, perhaps none.
    Messages(Vec<Message>),
    /// Whole messages, and then the end of the connection.
    Last {
        /// Perhaps none.
        messages: Vec<Message>,
        /// Why it ended.
        reason: String,
    },
}

/// The reading side of a logging channel.
#[derive(Debug)]
pub struct ChannelReader<C> {
    connection: Arc<C>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

impl<C: Connection> ChannelReader<C> {
    /// A reader of `connection`.
    #[must_use]
    pub fn new(connection: Arc<C>) -> Self {
        Self { connection, decoder: FrameDecoder::new(), buffer: vec![0; READ_BYTES] }
    }

    /// What it reads.
    #[must_use]
    pub fn connection(&self) -> Arc<C> {
        self.connection.clone()
    }

    /// Takes what has arrived; a host that has a thread for this waits until something has.
    pub fn wait(&mut self) -> Arrived {
        let received = self.connection.receive(&mut self.buffer);
        self.decode(received)
    }

    /// Takes what has arrived already.
    pub fn take(&mut self) -> Arrived {
        let received = self.connection.receive_now(&mut self.buffer);
        self.decode(received)
    }

    fn decode(&mut self, received: io::Result<usize>) -> Arrived {
        let last = |reason| Arrived::Last { messages: Vec::new(), reason };
        match received {
            Ok(0) => return last("connection closed".into()),
            Ok(length) => self.decoder.push(&self.buffer[..length]),
            Err(error) if is_idle(&error) => return Arrived::Messages(Vec::new()),
            Err(error) => {
                let reason =
                    error.raw_os_error().map_or_else(|| error.to_string(), |code| Errno::from_raw(code).desc().into());
                return last(format!("connection lost: {reason}"));
            }
        }
        let mut messages = Vec::new();
        let reason = loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => match Message::decode(frame) {
                    Ok(message) => messages.push(message),
                    Err(error) => break format!("the peer sent a bad message: {error}"),
                },
                Ok(None) => return Arrived::Messages(messages),
                Err(error) => break format!("the peer sent a bad frame: {error}"),
            }
        };
        Arrived::Last { messages, reason }
    }
}

/// A logging channel that may be connected, cut, and connected again.
#[derive(Debug)]
pub struct Channel<C> {
    writer: Mutex<ChannelWriter<C>>,
    /// Gone once its connection has ended.
    pub(crate) reader: Mutex<Option<ChannelReader<C>>>,
    /// The connection, so that it can be waited for, and cut.
    connection: Mutex<Option<Arc<C>>>,
    /// The connection has not taken all that was to be sent.
    is_clogged: AtomicBool,
    /// Bytes sent so far.
    sent: AtomicU64,
}

impl<C> Default for Channel<C> {
    fn default() -> Self {
        Self {
            writer: Mutex::new(ChannelWriter { connection: None, buffer: Vec::new(), sent: 0 }),
            reader: Mutex::default(),
            connection: Mutex::default(),
            is_clogged: AtomicBool::default(),
            sent: AtomicU64::default(),
        }
    }
}

impl<C: Connection> Channel<C> {
    /// Connects the channel. The reader of an earlier connection is gone, so that nothing it still
    /// had is taken for a word of the new peer, and so is what the earlier connection had not
    /// taken.
    pub fn connect(&self, connection: Arc<C>) {
        *lock(&self.reader) = None;
        *lock(&self.connection) = Some(connection.clone());
        let mut writer = lock(&self.writer);
        *writer = ChannelWriter { connection: Some(connection), buffer: std::mem::take(&mut writer.buffer), sent: 0 };
        writer.buffer.clear();
        self.is_clogged.store(false, Ordering::SeqCst);
    }

    /// The connection, to wait for what arrives on it; none once it has ended.
    #[must_use]
    pub fn connection(&self) -> Option<Arc<C>> {
        lock(&self.connection).clone()
    }

    /// Bytes sent so far, over all connections.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether the connection has not taken all that was to be sent. [`Channel::send`] is to be
    /// called again soon then.
    #[must_use]
    pub fn is_clogged(&self) -> bool {
        self.is_clogged.load(Ordering::SeqCst)
    }

    /// Whether all that was given to [`Channel::send`] has been sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.is_clogged() && !matches!(self.writer.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Sends the rest of what the connection had not taken and then, as long as `has_more`, what
    /// `fill` gives. If the connection takes no more now, or another thread sends already, this
    /// returns at once.
    pub fn send(&self, has_more: impl Fn() -> bool, mut fill: impl FnMut(&mut Vec<u8>)) {
        let mut tries_again = self.is_clogged();
        while std::mem::take(&mut tries_again) || (has_more() && !self.is_clogged()) {
            // Whoever sends looks for more after giving the writer back.
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::Poisoned(writer)) => writer.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let mut is_free = writer.send_rest(&self.sent);
            while is_free && has_more() {
                is_free = writer.send(&self.sent, &mut fill);
            }
            self.is_clogged.store(!is_free, Ordering::SeqCst);
        }
    }

    /// Cuts the connection: whoever reads or writes it gets an error at once.
    pub fn cut(&self) {
        if let Some(connection) = lock(&self.connection).take() {
            connection.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::say;
    use logchannel::message::Message;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn a_peer_that_does_not_read_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _deaf = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (tell, told) = mpsc::channel();
        // A thread of its own, which ends with the test however long it waits.
        let sender = move || {
            let reason = "a".repeat(4000);
            let error = loop {
                if let Err(error) = say(&stream, &Message::Refused { reason: reason.clone() }) {
                    break error;
                }
            };
            tell.send(error.kind())
        };
        thread::Builder::new().spawn(sender).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(ErrorKind::WouldBlock));
    }
}
