//! The port of a node that is no primary (yet).
//!
//! Backups that wait find it where the arbiter says that a primary was, or where the operator says
//! that one will be. They are told at once that there is none here. Without an answer they would
//! take this side for a primary that doesn't speak, and the connection would still stand in the
//! queue when this side has gone live.

use crate::node::channel::say;
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

/// How many connections are kept until their peers have read the answer; the oldest is closed for
/// one more. One that is closed with something unread in it would take the answer back.
const KEPT_MAX: usize = 16;

/// How many are answered before it is looked whether to stop: going live waits for that, however
/// fast others come.
const ANSWERED_AT_ONCE_MAX: usize = 64;

/// Answers at a port for as long as this node has no other use for it.
#[derive(Debug)]
pub struct NoPrimaryPort {
    stop: Arc<EventFd>,
    thread: JoinHandle<TcpListener>,
}

impl NoPrimaryPort {
    /// Begins to answer at `listener`.
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

    /// Stops answering, and gives the listener back. Who has come until then has an answer.
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
        // A signal, or no memory: it is looked again.
        let _ = poll(&mut waited_for, PollTimeout::NONE);
        let is_over = waited_for[0].any().unwrap_or(false);
        // Not all who come: those behind are answered by the next owner of the port, or in the next
        // round.
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
                // No descriptors left: the oldest connections will be closed, and others wait that
                // long.
                thread::sleep(trouble.failed("this side can't answer those who look for a primary", &error));
            }
            None
        }
    }
}

/// What a node does that is no primary (yet) with those who come to its port.
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
    /// Says that there is no primary here. Nobody is waited for.
    pub fn answer(&mut self, connection: Arc<C>) {
        if say(&*connection, &Message::NoPrimary).is_ok() {
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
    fn everybody_is_told_that_there_is_no_primary_and_the_listener_comes_back() {
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
        // Those that say nothing are told as well, more of them than are kept.
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
