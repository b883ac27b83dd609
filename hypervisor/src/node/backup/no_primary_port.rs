//! The port of a backup: it answers connections that there is no primary here (yet).
//!
//! Other backups connect here because a primary was here, as the arbiter says, or will be, as the
//! operator says. Without an answer they would take this node for a primary that doesn't respond,
//! and their connections would still be in the accept queue when this node has gone live.

use crate::node::channel::send_message;
use crate::node::host::Connection;
use crate::os::accept::AcceptTrouble;
use logchannel::message::Message;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The most answered connections that stay open until their peers have read the answer; the oldest
/// is closed for a new one. Closing a socket with unread bytes in it would discard the answer.
const KEPT_MAX: usize = 16;

/// The most connections that are answered before the thread checks for the stop, so that a flood of
/// them doesn't delay going live.
const ANSWERED_AT_ONCE_MAX: usize = 64;

/// A thread that answers at the port until the node needs the port itself.
#[derive(Debug)]
pub struct NoPrimaryPort {
    stop: Arc<EventFd>,
    thread: JoinHandle<TcpListener>,
}

impl NoPrimaryPort {
    /// Starts to answer connections to `listener`.
    ///
    /// # Errors
    /// If the host has no descriptor or thread left.
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        listener.set_nonblocking(true)?;
        let thread = thread::Builder::new().name("no-primary".into()).spawn({
            let stop = stop.clone();
            move || {
                answer(&listener, &stop);
                listener
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops the thread and returns the listener. Connections from before this call have been
    /// answered, up to the limit of a round.
    ///
    /// # Errors
    /// If the listener can't be made to block again.
    ///
    /// # Panics
    /// If the thread has panicked, which ends the process.
    pub fn stop(self) -> io::Result<TcpListener> {
        self.stop.write(1)?;
        let listener = self.thread.join().expect("a thread that panics ends the process");
        listener.set_nonblocking(false)?;
        Ok(listener)
    }
}

fn answer(listener: &TcpListener, stop: &EventFd) {
    let mut answers = NoPrimaryAnswers::default();
    let mut trouble = AcceptTrouble::default();
    loop {
        let mut waited_for =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        // Fails by a signal, or without memory; then the loop just runs once more.
        let _ = poll(&mut waited_for, PollTimeout::NONE);
        let is_over = waited_for[0].any().unwrap_or(false);
        // The connections beyond the limit are answered in the next round, or by the port's next
        // user.
        for stream in (0..ANSWERED_AT_ONCE_MAX).map_while(|_| accept(listener, &mut trouble)) {
            answers.answer(Arc::new(stream));
        }
        if is_over {
            return;
        }
    }
}

fn accept(listener: &TcpListener, trouble: &mut AcceptTrouble) -> Option<TcpStream> {
    match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) => {
            if error.kind() != io::ErrorKind::WouldBlock {
                // No descriptors are left: this waits until old connections have been closed.
                thread::sleep(trouble.failed("this side can't answer those who look for a primary", &error));
            }
            None
        }
    }
}

/// Answers connections to a port without a primary, and keeps them open for a while.
#[derive(Debug)]
pub struct NoPrimaryAnswers<C> {
    answered: VecDeque<Arc<C>>,
}

impl<C> Default for NoPrimaryAnswers<C> {
    fn default() -> Self {
        Self { answered: VecDeque::new() }
    }
}

impl<C: Connection> NoPrimaryAnswers<C> {
    /// Tells the peer that there is no primary here, without waiting for it.
    pub fn answer(&mut self, connection: Arc<C>) {
        if send_message(&*connection, &Message::NoPrimary).is_ok() {
            self.answered.push_back(connection);
        }
        if self.answered.len() > KEPT_MAX
            && let Some(oldest) = self.answered.pop_front()
        {
            let _ = oldest.receive_now(&mut [0; 1024]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NoPrimaryPort;
    use crate::node::channel::{Arrived, ChannelReader};
    use logchannel::message::Message;
    use logchannel::session::NodeId;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn every_connection_is_told_that_there_is_no_primary_and_the_listener_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let no_primary_port = NoPrimaryPort::start(listener).unwrap();
        for node in 0..40 {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut bytes = Vec::new();
            Message::Join { vm: "vm0".parse().unwrap(), node: NodeId(node) }.encode(&mut bytes);
            stream.write_all(&bytes).unwrap();
            match ChannelReader::new(Arc::new(stream)).wait() {
                Arrived::Messages(messages) => assert_eq!(messages, [Message::NoPrimary]),
                Arrived::Last { messages, .. } => assert_eq!(messages, [Message::NoPrimary]),
            }
        }
        // Connections that send nothing are answered too, also when there are more than stay open.
        let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
        let silent: Vec<_> = silent.into_iter().map(Arc::new).collect();
        for stream in &silent {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            match ChannelReader::new(stream.clone()).wait() {
                Arrived::Messages(messages) => assert_eq!(messages, [Message::NoPrimary]),
                Arrived::Last { messages, .. } => assert_eq!(messages, [Message::NoPrimary]),
            }
        }
        let listener = no_primary_port.stop().unwrap();
        let _waits = TcpStream::connect(address).unwrap();
        assert!(listener.accept().is_ok(), "nobody takes connections from the one who listens");
    }
}
