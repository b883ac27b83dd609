//! A primary's connection to the LAN: what `hypervisor::node::io::network` and its client do with sockets.

use super::env::Env;
use super::lan::HEARTBEAT_US;
use super::process::Me;
use super::sightings::Sighting;
use super::wires::{End, Place};
use hypervisor::lan::Attachment;
use hypervisor::lan::pulse::Pulse;
use hypervisor::lan::wire::{ClientMessage, Cutter, MESSAGE_BYTES_MAX, Prefix, ServerMessage};
use logchannel::entry::Generation;
use std::collections::VecDeque;
use std::ops::Range;
use vm::{OutputId, OutputOperation};

/// From one try to attach to the next.
const RETRY_NS: u64 = 20_000_000;

/// The same with a LAN that refuses this side.
const RETRY_REFUSED_NS: u64 = 200_000_000;

/// Frames that wait for the guest before no more are read.
const PACKETS_MAX: usize = 64;

/// What the LAN says that the role has to know.
#[derive(Debug)]
pub(super) enum News {
    /// Attached; all outputs below have been carried.
    Attached(OutputId),
    /// All outputs below have been carried.
    Carried(OutputId),
    /// The LAN refuses this owner of the VM.
    Refused,
}

enum State {
    /// Tries again at this time.
    Down(u64),
    Up {
        end: End,
        cutter: Cutter,
        is_attached: bool,
        pulse: Pulse,
        heartbeat_due_ns: u64,
    },
}

/// The connection, and what has come over it.
pub(super) struct Cable {
    state: State,
    last_packet: u64,
    /// In which generation the guest was reset.
    booted: Generation,
    pub(super) packets: VecDeque<(u64, Vec<u8>)>,
}

impl Cable {
    pub(super) const fn new(last_packet: u64, booted: Generation) -> Self {
        Self { state: State::Down(0), last_packet, booted, packets: VecDeque::new() }
    }

    /// When this has something to do that no arrival announces.
    pub(super) const fn due_ns(&self) -> u64 {
        match self.state {
            State::Down(retry_ns) => retry_ns,
            State::Up { heartbeat_due_ns, .. } => heartbeat_due_ns,
        }
    }

    /// Keeps attached, and reads what has come. `owner` is whose attachment it is, and its first output.
    pub(super) fn step(&mut self, env: &mut Env, me: &Me, owner: (Generation, Range<OutputId>)) -> Vec<News> {
        let mut news = Vec::new();
        match &mut self.state {
            State::Down(retry_ns) if *retry_ns <= env.now_ns => self.attach(env, me, owner),
            State::Down(_) => {}
            State::Up { end, pulse, .. } if self.packets.len() < PACKETS_MAX => {
                let end = *end;
                let received = env.receive(end);
                if !received.bytes.is_empty() {
                    pulse.hear();
                }
                self.take_bytes(env, &received.bytes, &mut news);
                if received.has_ended && matches!(self.state, State::Up { .. }) {
                    self.lose(env);
                }
            }
            State::Up { pulse, .. } => pulse.hear(),
        }
        self.beat(env, me);
        news
    }

    /// Sends the heartbeat that is due, or gives up a LAN that sends none.
    fn beat(&mut self, env: &mut Env, me: &Me) {
        let State::Up { end, pulse, heartbeat_due_ns, is_attached, .. } = &mut self.state else { return };
        if *heartbeat_due_ns > env.now_ns {
            return;
        }
        *heartbeat_due_ns = env.now_ns + HEARTBEAT_US * 1000;
        if pulse.is_silent() {
            env.saw(Sighting::LanSilent);
            return self.lose(env);
        }
        if *is_attached {
            let mut bytes = Vec::new();
            ClientMessage::Heartbeat.append(&mut bytes);
            env.send(me.host, *end, &bytes);
        }
    }

    fn attach(&mut self, env: &mut Env, me: &Me, (generation, outputs): (Generation, Range<OutputId>)) {
        let end = env.dial(Place::Host(me.host), Place::Lan);
        let attachment = Attachment {
            vm: me.setup.vm.clone(),
            node: me.node,
            generation,
            mac: me.setup.config.mac,
            next_output: outputs.start,
            output_end: outputs.end,
            last_packet: self.last_packet,
            booted: self.booted,
        };
        let mut bytes = Vec::new();
        ClientMessage::Attach(attachment).append(&mut bytes);
        env.send(me.host, end, &bytes);
        let cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
        let heartbeat_due_ns = env.now_ns + HEARTBEAT_US * 1000;
        self.state = State::Up { end, cutter, is_attached: false, pulse: Pulse::default(), heartbeat_due_ns };
    }

    fn take_bytes(&mut self, env: &mut Env, mut bytes: &[u8], news: &mut Vec<News>) {
        while !bytes.is_empty()
            && let State::Up { cutter, .. } = &mut self.state
        {
            let space = cutter.space();
            let (now, later) = bytes.split_at(bytes.len().min(space.len()));
            space[..now.len()].copy_from_slice(now);
            cutter.filled(now.len());
            bytes = later;
            while self.take_message(env, news) {}
        }
    }

    /// Takes the next message; `false` if there is none.
    fn take_message(&mut self, env: &mut Env, news: &mut Vec<News>) -> bool {
        let State::Up { cutter, is_attached, .. } = &mut self.state else { return false };
        let message = match cutter.next_message() {
            Ok(Some(message)) => message,
            Ok(None) => return false,
            Err(error) => panic!("the LAN sends no messages: {error}"),
        };
        match ServerMessage::decode(message) {
            Ok(ServerMessage::Attached { next_output, .. }) => {
                *is_attached = true;
                news.push(News::Attached(next_output));
            }
            Ok(ServerMessage::Packet { number, frame }) => {
                assert!(number > self.last_packet, "frame {number} comes after frame {}", self.last_packet);
                self.last_packet = number;
                self.packets.push_back((number, frame.to_vec()));
                env.packet_arrives(number);
            }
            Ok(ServerMessage::Heartbeat) => {}
            Ok(ServerMessage::Carried { next_output }) => news.push(News::Carried(next_output)),
            Ok(ServerMessage::Refused { .. } | ServerMessage::Fenced { .. }) => {
                env.saw(Sighting::FencedByLan);
                self.lose(env);
                self.state = State::Down(env.now_ns + RETRY_REFUSED_NS);
                news.push(News::Refused);
                return false;
            }
            Err(error) => panic!("the LAN sends a bad message: {error}"),
        }
        true
    }

    fn lose(&mut self, env: &mut Env) {
        if let State::Up { end, .. } = self.state {
            env.close(end);
            self.state = State::Down(env.now_ns + RETRY_NS);
        }
    }

    /// Sends frames, if the LAN is there; otherwise they are lost, until they are sent again.
    pub(super) fn send(&self, env: &mut Env, me: &Me, outputs: &[(OutputId, &OutputOperation)]) {
        let State::Up { end, is_attached: true, .. } = &self.state else { return };
        let mut bytes = Vec::new();
        for (id, operation) in outputs {
            if let OutputOperation::Frame(frame) = operation {
                ClientMessage::Output { id: *id, frame }.append(&mut bytes);
            }
        }
        if !bytes.is_empty() {
            env.send(me.host, *end, &bytes);
        }
    }
}
