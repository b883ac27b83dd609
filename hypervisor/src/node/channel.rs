//! The logging channel of a process. Any thread may read or write it, one at a time, and no thread
//! waits for a peer that doesn't read.

use crate::os::connection::{Connection, is_idle};
use ft::mutation::{Mutation, mutated};
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use nix::errno::Errno;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// The most bytes that one call reads from the connection.
const READ_BYTES: usize = 64 << 10;

/// Locks a mutex and ignores poisoning: after a panic the process ends anyway.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `job` on `resource` while `is_pending`, on one thread at a time and without waiting. A
/// thread that finds the resource locked returns: its holder checks `is_pending` again after
/// unlocking it.
pub(crate) fn serve<T>(resource: &Mutex<T>, mut is_pending: impl FnMut() -> bool, mut job: impl FnMut(&mut T)) {
    while is_pending() {
        match resource.try_lock() {
            Ok(mut guard) => job(&mut guard),
            Err(TryLockError::Poisoned(guard)) => job(&mut guard.into_inner()),
            Err(TryLockError::WouldBlock) => return,
        }
    }
}

/// Sends a short message on a connection that is no logging channel (yet). Never waits for the
/// peer.
///
/// # Errors
/// Of the connection; `WouldBlock` if it is full, because the peer has read nothing so far.
pub(crate) fn send_message<C: Connection>(connection: &C, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    let sent = connection.send(&bytes)?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
}

/// The writing end of a logging channel.
#[derive(Debug)]
pub(crate) struct ChannelWriter<C> {
    connection: Option<Arc<C>>,
    buffer: Vec<u8>,
    /// The bytes of `buffer` that have been sent.
    sent: usize,
}

impl<C: Connection> ChannelWriter<C> {
    /// Sends the rest of the buffer. `true` if nothing is left.
    ///
    /// An error of the connection isn't reported here: its reader finds it, after everything that
    /// the peer has sent.
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

    /// Sends the bytes that `fill` writes, as [`ChannelWriter::send_rest`]. Without a connection
    /// they are dropped.
    fn send(&mut self, count: &AtomicU64, fill: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.buffer.clear();
        self.sent = 0;
        fill(&mut self.buffer);
        self.send_rest(count)
    }
}

/// The result of reading the channel once.
#[derive(Debug)]
pub enum Arrived {
    /// Whole messages, perhaps none.
    Messages(Vec<Message>),
    /// The connection has ended.
    Last {
        /// The whole messages before the end, perhaps none.
        messages: Vec<Message>,
        /// Why it ended, for people.
        reason: String,
    },
}

/// The reading end of a logging channel: bytes into messages.
#[derive(Debug)]
pub struct ChannelReader<C> {
    connection: Arc<C>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

impl<C: Connection> ChannelReader<C> {
    /// A reader at the beginning of `connection`.
    #[must_use]
    pub fn new(connection: Arc<C>) -> Self {
        Self { connection, decoder: FrameDecoder::new(), buffer: vec![0; READ_BYTES] }
    }

    /// The connection that it reads.
    #[must_use]
    pub fn connection(&self) -> Arc<C> {
        self.connection.clone()
    }

    /// Reads what has arrived. With a blocking connection it waits for the first bytes.
    pub fn wait(&mut self) -> Arrived {
        let received = self.connection.receive(&mut self.buffer);
        self.decode(received)
    }

    /// Reads what has arrived, without waiting.
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

/// A logging channel: its connection can be cut, and replaced by another.
#[derive(Debug)]
pub struct Channel<C> {
    writer: Mutex<ChannelWriter<C>>,
    /// `None` once the connection has ended.
    pub(crate) reader: Mutex<Option<ChannelReader<C>>>,
    /// The connection, to wait for messages and to cut it.
    connection: Mutex<Option<Arc<C>>>,
    /// The connection was full, and a rest is still to be sent.
    is_blocked: AtomicBool,
    /// Bytes sent, over all connections.
    sent: AtomicU64,
}

impl<C> Default for Channel<C> {
    fn default() -> Self {
        Self {
            writer: Mutex::new(ChannelWriter { connection: None, buffer: Vec::new(), sent: 0 }),
            reader: Mutex::default(),
            connection: Mutex::default(),
            is_blocked: AtomicBool::default(),
            sent: AtomicU64::default(),
        }
    }
}

impl<C: Connection> Channel<C> {
    /// Connects the channel. What the previous connection had not sent or decoded yet is dropped,
    /// so that no byte of one peer is taken for the other's.
    pub fn connect(&self, connection: Arc<C>) {
        *lock(&self.reader) = None;
        *lock(&self.connection) = Some(connection.clone());
        let mut writer = lock(&self.writer);
        *writer = ChannelWriter { connection: Some(connection), buffer: std::mem::take(&mut writer.buffer), sent: 0 };
        writer.buffer.clear();
        self.is_blocked.store(false, Ordering::SeqCst);
    }

    /// The connection, to wait for messages; `None` once it has been cut.
    #[must_use]
    pub fn connection(&self) -> Option<Arc<C>> {
        lock(&self.connection).clone()
    }

    /// The bytes sent so far, over all connections.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// `true` if the connection was full, so that [`Channel::send`] must be called again soon.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::SeqCst)
    }

    /// `true` if everything given to [`Channel::send`] has been sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.is_blocked() && !matches!(self.writer.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Sends the rest that the connection had not taken, and then what `fill` writes for as long as
    /// `has_more`. Returns at once if the connection is full or another thread is sending.
    pub fn send(&self, has_more: impl Fn() -> bool, mut fill: impl FnMut(&mut Vec<u8>)) {
        let mut tries_again = self.is_blocked();
        while std::mem::take(&mut tries_again) || (has_more() && !self.is_blocked()) {
            // The thread that holds the writer checks for more after unlocking it.
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::Poisoned(writer)) => writer.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let mut is_free = writer.send_rest(&self.sent);
            while is_free && has_more() {
                is_free = writer.send(&self.sent, &mut fill);
            }
            self.is_blocked.store(!is_free, Ordering::SeqCst);
        }
    }

    /// Cuts the connection. Reading and writing it fail at once, on all threads.
    pub fn cut(&self) {
        if let Some(connection) = lock(&self.connection).take() {
            connection.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::send_message;
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
        // On a thread of its own, so that the test can fail by a timeout.
        let sender = move || {
            let reason = "a".repeat(4000);
            let error = loop {
                if let Err(error) = send_message(&stream, &Message::Refused { reason: reason.clone() }) {
                    break error;
                }
            };
            tell.send(error.kind())
        };
        thread::Builder::new().spawn(sender).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(ErrorKind::WouldBlock));
    }
}
