//! One stream and the thread that writes it.

use super::OutputDropped;
use super::queue::{Lost, WriteQueue};
use crate::os::clock;
use crate::os::report::Reporter;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::Duration;
use vm::OutputId;

/// How often an ending process checks whether its reader has stalled.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How often a panicking thread tries to lock a stream, which it may have locked itself.
const PANIC_TRIES: u32 = 50;
const PANIC_PAUSE: Duration = Duration::from_millis(2);

/// Where a stream's bytes go.
#[derive(Debug)]
pub(super) enum Descriptor {
    Stdout,
    Stderr,
    Other(OwnedFd),
}

impl Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout => rustix::stdio::stdout(),
            Self::Stderr => rustix::stdio::stderr(),
            Self::Other(descriptor) => descriptor.as_fd(),
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
            Self::Other(_) => "output",
        }
    }

    /// Writes all bytes, however long that takes. A reader that has gone is ignored, so that it
    /// doesn't end the process.
    fn write_all(&self, bytes: &[u8]) {
        let _ = match self {
            Self::Stdout => io::stdout().lock().write_all(bytes).and_then(|()| io::stdout().flush()),
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::Other(descriptor) => rustix::io::write(descriptor, bytes).map(drop).map_err(Into::into),
        };
    }
}

/// An output stream of this process.
pub struct Stream {
    descriptor: Descriptor,
    state: Mutex<State>,
    changed: Condvar,
}

type ConsoleListener = Arc<dyn Fn(OutputId) + Send + Sync>;

struct State {
    queue: Option<WriteQueue>,
    writer: Option<Writer>,
    /// Called with the cursor below which console output has left, whenever it moves.
    listener: Option<ConsoleListener>,
    console_left: OutputId,
    /// Something was dropped that isn't reported yet.
    is_losing: bool,
    /// The last write has failed.
    is_failing: bool,
}

/// The threads that empty the queue.
struct Writer {
    watch: Thread,
    reporter: Reporter,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) const fn of_process(descriptor: Descriptor) -> Self {
        let state = State {
            queue: None,
            writer: None,
            listener: None,
            console_left: OutputId(0),
            is_losing: false,
            is_failing: false,
        };
        Self { descriptor, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A stream to `descriptor`.
    #[must_use]
    pub const fn new(descriptor: OwnedFd) -> Self {
        Self::of_process(Descriptor::Other(descriptor))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that writes.
    pub(super) fn start(&'static self, watch: Thread, reporter: Reporter) -> io::Result<()> {
        let mut state = self.state();
        if state.writer.is_some() {
            return Ok(());
        }
        thread::Builder::new().name(self.descriptor.name().into()).spawn(|| self.write_for_ever())?;
        state.queue = Some(WriteQueue::default());
        state.writer = Some(Writer { watch, reporter });
        drop(state);
        Ok(())
    }

    /// Writes a line, which has its line end; never blocks once the writer runs.
    pub fn push_line(&self, line: Vec<u8>) {
        self.push(self.state(), None, line);
    }

    /// Writes output of the guest's console; never blocks once the writer runs. The listener hears
    /// when it has left.
    pub fn push_console(&self, id: OutputId, bytes: Vec<u8>) {
        self.push(self.state(), Some(id), bytes);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, output: Option<OutputId>, bytes: Vec<u8>) {
        if let Some(queue) = &mut state.queue {
            queue.push(clock::now_ns(), output, bytes);
        } else {
            self.descriptor.write_all(&bytes);
            state.console_left = output.map_or(state.console_left, |id| id.next());
        }
        self.changed.notify_all();
        if let Some(writer) = &state.writer {
            writer.watch.unpark();
        }
    }

    /// As [`Stream::push_line`], for a thread that panics and may have locked this stream.
    pub(super) fn push_in_panic(&self, line: Vec<u8>) {
        for _ in 0..PANIC_TRIES {
            match self.state.try_lock() {
                Ok(state) => return self.push(state, None, line),
                Err(TryLockError::Poisoned(state)) => return self.push(state.into_inner(), None, line),
                Err(TryLockError::WouldBlock) => thread::sleep(PANIC_PAUSE),
            }
        }
    }

    /// Sets the listener, which gets the cursor below which console output has left (written or
    /// dropped) whenever it moves.
    pub fn on_console_left(&self, listener: impl Fn(OutputId) + Send + Sync + 'static) {
        self.state().listener = Some(Arc::new(listener));
    }

    /// All of the guest's console below this is written or dropped.
    #[must_use]
    pub fn console_left(&self) -> OutputId {
        let state = self.state();
        state.queue.as_ref().map_or(state.console_left, WriteQueue::console_left)
    }

    /// `true` if so much console output waits that the guest should wait too.
    #[must_use]
    pub fn is_console_full(&self) -> bool {
        self.state().queue.as_ref().is_some_and(WriteQueue::is_console_full)
    }

    /// Drops output for a stalled reader. Returns `true` if output waits to be written.
    pub(super) fn watch(&self, now_ns: u64) -> bool {
        let mut state = self.state();
        let Some(queue) = &mut state.queue else { return false };
        queue.shed(now_ns);
        let is_pending = !queue.is_empty();
        self.settle(state, now_ns);
        is_pending
    }

    /// Waits until all is written, until `end_ns` at most, and no longer than `stall_ns` for a
    /// reader that takes nothing. Returns what is lost if that isn't enough.
    pub(super) fn drain(&self, end_ns: u64, stall_ns: u64) -> Option<Lost> {
        let start_ns = clock::now_ns();
        loop {
            let state = match self.state.try_lock() {
                Ok(state) => Some(state),
                Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
                // The lock is held by a thread that panics, or for a moment by another one.
                Err(TryLockError::WouldBlock) => None,
            };
            let now_ns = clock::now_ns();
            let taken_ns = match state.as_ref().map(|state| &state.queue) {
                Some(None) => return None,
                Some(Some(queue)) if queue.is_empty() => return None,
                Some(Some(queue)) => queue.taken_ns(),
                None => start_ns,
            };
            if now_ns >= end_ns || now_ns.saturating_sub(taken_ns.max(start_ns)) >= stall_ns {
                return state.and_then(|state| state.queue.as_ref().map(WriteQueue::not_written));
            }
            match state {
                Some(state) => drop(self.changed.wait_timeout(state, DRAIN_LOOK)),
                None => thread::sleep(PANIC_PAUSE),
            }
        }
    }

    /// The writer thread.
    fn write_for_ever(&self) {
        let mut buffer = Vec::new();
        loop {
            let mut state = self.state();
            loop {
                if let Some(piece) = state.queue.as_ref().and_then(WriteQueue::next_piece) {
                    buffer.clear();
                    buffer.extend_from_slice(piece);
                    break;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            let result = self.write(&buffer);
            let now_ns = clock::now_ns();
            let mut state = self.state();
            let Some(queue) = &mut state.queue else { continue };
            match result {
                Ok(bytes) => queue.wrote(now_ns, bytes),
                Err(_) => queue.failed(now_ns),
            }
            self.changed.notify_all();
            let failure = result.err().filter(|_| !std::mem::replace(&mut state.is_failing, result.is_err()));
            self.settle(state, now_ns);
            if let (Some(error), Descriptor::Stdout) = (failure, &self.descriptor) {
                tracing::warn!("standard output takes nothing, what goes there is lost: {error}");
            }
        }
    }

    /// Writes some of `piece`, as soon as the reader takes something.
    fn write(&self, piece: &[u8]) -> Result<usize, Errno> {
        if piece.is_empty() {
            return Ok(0);
        }
        loop {
            match rustix::io::write(self.descriptor.as_fd(), piece) {
                Ok(0) => return Err(Errno::IO),
                Err(Errno::INTR) => {}
                // Another process with the same terminal or pipe has made it non-blocking.
                Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&self.descriptor.as_fd(), PollFlags::OUT)], None)),
                result => return result,
            }
        }
    }

    /// Tells listener, watch and waiting threads what changed in the queue.
    fn settle(&self, mut state: MutexGuard<'_, State>, now_ns: u64) {
        let Some(queue) = &mut state.queue else { return };
        let left = queue.console_left();
        let lost = queue.take_lost(now_ns);
        let begins_to_lose = queue.has_lost() && !state.is_losing;
        state.is_losing = lost.is_none() && (begins_to_lose || state.is_losing);
        let has_moved = std::mem::replace(&mut state.console_left, left) != left;
        let listener = state.listener.clone().filter(|_| has_moved);
        let reporter = state.writer.as_ref().map(|writer| writer.reporter);
        drop(state);
        if let Some(listener) = listener {
            listener(left);
        }
        if begins_to_lose && matches!(self.descriptor, Descriptor::Stdout) {
            tracing::warn!("nobody reads standard output: what goes there is dropped until somebody does");
        }
        if let (Some(reporter), Some(Lost { console_bytes, lines })) = (reporter, lost) {
            let stream = self.descriptor.name();
            reporter.tell(&OutputDropped { stream, console_bytes, lines });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::Timespec;
    use std::io::Read;

    #[test]
    fn what_is_written_without_a_writer_is_written_at_once() {
        let (mut reader, writer) = io::pipe().unwrap();
        let stream = Stream::new(writer.into());
        stream.push_console(OutputId(4), b"word".to_vec());
        assert_eq!(stream.console_left(), OutputId(5));
        drop(stream);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "word");
    }

    #[test]
    fn a_stalled_reader_blocks_no_writer_and_is_told_what_it_has_missed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let stream: &'static Stream = Box::leak(Box::new(Stream::new(writer.into())));
        stream.start(thread::current(), Reporter::new("test", true)).unwrap();
        let (moved, moves) = crossbeam_channel::unbounded();
        stream.on_console_left(move |next| {
            // Fails once this test has seen enough.
            let _ = moved.send(next);
        });
        // More than a pipe takes and the queue keeps.
        let pieces = 400;
        for id in 0..pieces {
            stream.push_console(OutputId(id), vec![b'x'; 1000]);
        }
        assert!(stream.is_console_full() && stream.console_left() < OutputId(pieces));
        assert!(stream.watch(clock::now_ns() + 2 * super::super::STALL_NS));
        assert!(!stream.is_console_full(), "the guest may go on");
        let not_written = stream.drain(clock::now_ns(), 0).unwrap();
        assert!((200_000..=400_000).contains(&not_written.console_bytes), "{not_written:?}");
        let mut read = 0;
        let mut buffer = [0; 4096];
        while stream.console_left() < OutputId(pieces) {
            // What was read last isn't counted as written yet, perhaps, and nothing comes behind
            // it.
            let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            if poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&moment)).unwrap() > 0 {
                read += reader.read(&mut buffer).unwrap();
            }
        }
        while moves.recv().unwrap() < OutputId(pieces) {}
        assert!((super::super::CONSOLE_BYTES_KEPT / 4..300_000).contains(&read), "{read}");
    }
}
