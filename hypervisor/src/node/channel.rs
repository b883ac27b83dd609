//! The logging channel's socket: any thread may read or write it, one at a time, and nobody waits for a stuck peer.

use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Bytes read from the socket in one call.
const READ_BYTES: usize = 64 << 10;

/// Locks a mutex whose data stays whole even if a holder panicked: a panic ends the process soon enough.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does a job with `resource`, by one thread at a time, without any thread waiting for another: a thread that finds it
/// taken goes on, because whoever has it looks again, by `is_pending`, after giving it back.
pub(crate) fn serve<T>(resource: &Mutex<T>, mut is_pending: impl FnMut() -> bool, mut job: impl FnMut(&mut T)) {
    while is_pending() {
        match resource.try_lock() {
            Ok(mut guard) => job(&mut guard),
            Err(TryLockError::Poisoned(guard)) => job(&mut guard.into_inner()),
            Err(TryLockError::WouldBlock) => return,
        }
    }
}

/// Says something short on a connection that is no logging channel (yet). A peer that doesn't read isn't waited for.
///
/// # Errors
/// Of the connection; `WouldBlock` if it is full, as its peer has read nothing of what was said before.
pub(crate) fn say(stream: &TcpStream, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    let sent = send(stream.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WouldBlock.into()) }
}

/// The writing side of a logging channel, for the thread that has it at the moment.
#[derive(Debug, Default)]
pub struct ChannelWriter {
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl ChannelWriter {
    /// Takes what `fill` gives and writes it. Without a connection the bytes go nowhere: their reader is lost.
    ///
    /// That a peer is gone is noticed by whoever reads the connection, after all that the peer has sent.
    pub fn write(&mut self, sent: &AtomicU64, fill: impl FnOnce(&mut Vec<u8>)) {
        self.buffer.clear();
        fill(&mut self.buffer);
        let Some(stream) = &mut self.stream else { return };
        if stream.write_all(&self.buffer).is_ok() {
            sent.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        } else {
            self.stream = None;
        }
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
pub struct ChannelReader {
    stream: Arc<TcpStream>,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
}

impl ChannelReader {
    /// A reader of `stream`.
    #[must_use]
    pub fn new(stream: Arc<TcpStream>) -> Self {
        Self { stream, decoder: FrameDecoder::new(), buffer: vec![0; READ_BYTES] }
    }

    /// What it reads.
    #[must_use]
    pub fn stream(&self) -> Arc<TcpStream> {
        self.stream.clone()
    }

    /// Waits until something has arrived.
    pub fn wait(&mut self) -> Arrived {
        self.read(MsgFlags::empty())
    }

    /// Takes what has arrived already.
    pub fn take(&mut self) -> Arrived {
        self.read(MsgFlags::MSG_DONTWAIT)
    }

    fn read(&mut self, flags: MsgFlags) -> Arrived {
        let last = |reason| Arrived::Last { messages: Vec::new(), reason };
        match recv(self.stream.as_raw_fd(), &mut self.buffer, flags) {
            Ok(0) => last("connection closed".into()),
            Ok(length) => {
                self.decoder.push(&self.buffer[..length]);
                self.decode()
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Arrived::Messages(Vec::new()),
            Err(error) => last(format!("connection lost: {}", error.desc())),
        }
    }

    fn decode(&mut self) -> Arrived {
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
#[derive(Debug, Default)]
pub struct Channel {
    pub(crate) writer: Mutex<ChannelWriter>,
    /// Gone once its connection has ended.
    pub(crate) reader: Mutex<Option<ChannelReader>>,
    /// The connection, so that it can be waited for, and cut while a writer is stuck in it.
    stream: Mutex<Option<Arc<TcpStream>>>,
    /// Bytes written so far.
    pub(crate) sent: AtomicU64,
}

impl Channel {
    /// Connects the channel. The reader of an earlier connection is gone, so that nothing it still had is taken for a word of
    /// the new peer.
    ///
    /// # Errors
    /// If the socket can't be set up.
    pub fn connect(&self, stream: Arc<TcpStream>) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let writer = stream.try_clone()?;
        *lock(&self.reader) = None;
        *lock(&self.stream) = Some(stream);
        lock(&self.writer).stream = Some(writer);
        Ok(())
    }

    /// The connection, to wait for what arrives on it; none once it has ended.
    #[must_use]
    pub fn stream(&self) -> Option<Arc<TcpStream>> {
        lock(&self.stream).clone()
    }

    /// Cuts the connection: whoever reads or writes it gets an error at once.
    pub fn cut(&self) {
        if let Some(stream) = lock(&self.stream).take() {
            // Fails if the peer has closed it already, which is as good.
            let _ = stream.shutdown(Shutdown::Both);
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
