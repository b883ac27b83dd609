//! The logging channel's socket: one thread reads it, any thread may write to it, nobody waits for a stuck peer.

use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

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

/// The writing side of a logging channel, for the thread that has it at the moment.
#[derive(Debug, Default)]
pub struct ChannelWriter {
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl ChannelWriter {
    /// Takes what `fill` gives and writes it. Without a connection the bytes go nowhere: their reader is lost.
    ///
    /// # Errors
    /// If the peer is gone.
    pub fn write(&mut self, sent: &AtomicU64, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.buffer.clear();
        fill(&mut self.buffer);
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let result = stream.write_all(&self.buffer);
        match result {
            Ok(()) => {
                sent.fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
            }
            Err(_) => self.stream = None,
        }
        result
    }
}

/// A logging channel that may be connected, cut, and connected again.
#[derive(Debug, Default)]
pub struct Channel {
    pub(crate) writer: Mutex<ChannelWriter>,
    /// The same socket once more, so that it can be cut while a writer is stuck in it.
    control: Mutex<Option<TcpStream>>,
    /// Bytes written so far.
    pub(crate) sent: AtomicU64,
}

impl Channel {
    /// Connects the channel; gives back the side to read from.
    ///
    /// # Errors
    /// If the socket can't be set up.
    pub fn connect(&self, stream: TcpStream) -> io::Result<TcpStream> {
        stream.set_nodelay(true)?;
        let reader = stream.try_clone()?;
        *lock(&self.control) = Some(stream.try_clone()?);
        lock(&self.writer).stream = Some(stream);
        Ok(reader)
    }

    /// Cuts the connection: whoever reads or writes it gets an error at once.
    pub fn cut(&self) {
        if let Some(stream) = lock(&self.control).take() {
            // Fails if the peer has closed it already, which is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Reads messages until the connection ends; gives each read's messages to `on_messages` together, so that they are
/// answered together.
///
/// Returns why it ended.
pub fn read_messages(mut stream: TcpStream, mut on_messages: impl FnMut(Vec<Message>)) -> String {
    let mut decoder = FrameDecoder::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return "connection closed".into(),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return format!("connection lost: {error}"),
        };
        decoder.push(&buffer[..length]);
        let (messages, error) = decode_all(&mut decoder);
        if !messages.is_empty() {
            on_messages(messages);
        }
        if let Some(error) = error {
            return error;
        }
    }
}

fn decode_all(decoder: &mut FrameDecoder) -> (Vec<Message>, Option<String>) {
    let mut messages = Vec::new();
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => match Message::decode(frame) {
                Ok(message) => messages.push(message),
                Err(error) => return (messages, Some(format!("the peer sent a bad message: {error}"))),
            },
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(format!("the peer sent a bad frame: {error}"))),
        }
    }
}
