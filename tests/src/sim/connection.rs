//! A simulated process's end of a connection, which the judge reads along with.

use super::env::Env;
use super::host::SimHost;
use super::sightings::Sighting;
use super::trace::{Lane, Note, channel_message};
use super::wires::End;
use hypervisor::node::host::Connection;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A process's end of a connection.
pub(super) struct SimConnection {
    host: SimHost,
    end: End,
    /// It leads to another side of the VM.
    is_channel: bool,
    state: Mutex<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    /// What has arrived and wasn't read yet.
    arrived: Vec<u8>,
    has_ended: bool,
    is_cut: bool,
    /// The judge reads along.
    tap: FrameDecoder,
}

impl fmt::Debug for SimConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimConnection").field(&self.end).finish()
    }
}

impl SimConnection {
    pub(super) fn new(host: SimHost, end: End, is_channel: bool) -> Self {
        Self { host, end, is_channel, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the judge what this side now knows.
    fn read_along(&self, env: &mut Env, tap: &mut FrameDecoder, bytes: &[u8], has_ended: bool) {
        tap.push(bytes);
        let peer = env.wires.peer(self.end);
        while let Some(frame) = tap.next_frame().unwrap_or_else(|error| panic!("a bad frame on a cut channel: {error}"))
        {
            let message = Message::decode(frame);
            if let Ok(message) = &message {
                let (kind, what, numbers) = channel_message(message);
                let note = Note::new(Lane::Host(self.host.me().host), kind, what, &numbers);
                env.tell(peer.map_or(note, |peer| note.from(peer)));
            }
            match message {
                Ok(Message::Clock { ticks, .. }) => {
                    let now_ns = env.now_ns;
                    env.judge_of(self.host.me().host).guest_time.is_told(now_ns, self.host.me().node, ticks);
                }
                Ok(Message::Session { .. }) => self.host.joins(),
                Ok(_) => {}
                Err(error) => panic!("a bad message on a channel that only cuts: {error}"),
            }
        }
        if has_ended && !tap.unread().is_empty() {
            env.saw(Sighting::TornFrame);
        }
    }
}

impl Connection for SimConnection {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_now(buffer)
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        if state.is_cut {
            return Ok(0);
        }
        if state.arrived.is_empty() && !state.has_ended {
            let mut env = self.host.env();
            let received = env.receive(self.end);
            if self.is_channel {
                self.read_along(&mut env, &mut state.tap, &received.bytes, received.has_ended);
            }
            state.arrived = received.bytes;
            state.has_ended = received.has_ended;
        }
        if state.arrived.is_empty() {
            return if state.has_ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let length = state.arrived.len().min(buffer.len());
        buffer[..length].copy_from_slice(&state.arrived[..length]);
        state.arrived.drain(..length);
        Ok(length)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.state().is_cut {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut env = self.host.env();
        if !env.wires.has_room(self.end) || env.is_short_of_room() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length = if env.is_short_of_room() { 1 + env.random.index(bytes.len()) } else { bytes.len() };
        env.send(self.host.me().host, self.end, &bytes[..length]);
        Ok(length)
    }

    fn cut(&self) {
        if !std::mem::replace(&mut self.state().is_cut, true) {
            self.host.env().close(self.end);
        }
    }
}

/// As a process's descriptor, it is closed when nobody has it any more.
impl Drop for SimConnection {
    fn drop(&mut self) {
        let is_cut = self.state.get_mut().is_ok_and(|state| state.is_cut);
        if !is_cut && let Some(mut env) = self.host.try_env() {
            env.close(self.end);
        }
    }
}
