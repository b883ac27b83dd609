//! One end of a logging channel: bytes in, messages out, as `hypervisor::node::channel` does it with a socket.

use super::env::Env;
use super::sightings::Sighting;
use super::wires::End;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;

/// A connection to the other side of the pair.
#[derive(Debug)]
pub(super) struct Channel {
    end: End,
    decoder: FrameDecoder,
}

/// What has come.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) messages: Vec<Message>,
    /// Why nothing more will come, if so.
    pub(super) end: Option<String>,
}

impl Channel {
    pub(super) const fn new(end: End) -> Self {
        Self { end, decoder: FrameDecoder::new() }
    }

    /// Takes the whole messages that have arrived.
    pub(super) fn receive(&mut self, env: &mut Env) -> Arrived {
        let received = env.receive(self.end);
        self.decoder.push(&received.bytes);
        let mut messages = Vec::new();
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => match Message::decode(frame) {
                    Ok(message) => messages.push(message),
                    Err(error) => panic!("a bad message on a channel that only cuts: {error}"),
                },
                Ok(None) => break,
                Err(error) => panic!("a bad frame on a channel that only cuts: {error}"),
            }
        }
        if received.has_ended && !self.decoder.unread().is_empty() {
            env.saw(Sighting::TornFrame);
        }
        Arrived { messages, end: received.has_ended.then(|| "connection closed".to_owned()) }
    }

    /// Whether the channel takes more.
    pub(super) fn has_room(&self, env: &mut Env) -> bool {
        env.wires.has_room(self.end)
    }

    pub(super) fn send(&self, env: &mut Env, host: usize, bytes: &[u8]) {
        env.send(host, self.end, bytes);
    }

    /// Closes it: the other side reads what was sent, and then the end.
    pub(super) fn close(self, env: &mut Env) {
        env.close(self.end);
    }
}
