//! A primary's connection to the LAN: what `hypervisor::node::io::network` and its client do with
//! sockets.

use super::env::Env;
use super::lan::HEARTBEAT_US;
use super::process::Me;
use super::sightings::Sighting;
use super::wires::{End, Place};
use hypervisor::lan::Attachment;
use hypervisor::lan::client::LanError;
use hypervisor::lan::session::{AttachAnswer, FromLan, PortSession};
use hypervisor::lan::wire::ClientMessage;
use logchannel::entry::Generation;
use std::collections::VecDeque;
use std::ops::Range;
use vm::{OutputId, OutputOperation};

/// From one try to attach to the next.
const RETRY_NS: u64 = 20_000_000;

/// The same with a LAN that refuses this side.
const RETRY_REFUSED_NS: u64 = 200_000_000;

/// Packets that wait for the guest before no more are read.
const PACKETS_MAX: usize = 64;

/// What the LAN says that the role has to know.
#[derive(Debug)]
pub(super) enum AttachmentEvent {
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
        session: PortSession,
        is_attached: bool,
    },
}

/// The connection, and what has come over it.
pub(super) struct LanAttachment {
    state: State,
    last_packet: u64,
    /// In which generation the guest was reset.
    booted: Generation,
    pub(super) packets: VecDeque<(u64, Vec<u8>)>,
}

impl LanAttachment {
    pub(super) const fn new(last_packet: u64, booted: Generation) -> Self {
        Self { state: State::Down(0), last_packet, booted, packets: VecDeque::new() }
    }

    /// When this has something to do that no arrival announces.
    pub(super) const fn due_ns(&self) -> u64 {
        match self.state {
            State::Down(retry_ns) => retry_ns,
            State::Up { ref session, .. } => session.heartbeat_due_us() * 1000,
        }
    }

    /// Keeps attached, and reads what has come. `owner` is whose attachment it is, and its first
    /// output.
    pub(super) fn step(
        &mut self,
        env: &mut Env,
        me: &Me,
        owner: (Generation, Range<OutputId>),
    ) -> Vec<AttachmentEvent> {
        let mut events = Vec::new();
        match &mut self.state {
            State::Down(retry_ns) if *retry_ns <= env.now_ns => self.attach(env, me, owner),
            State::Down(_) => {}
            State::Up { end, .. } if self.packets.len() < PACKETS_MAX => {
                let end = *end;
                let received = env.receive(end);
                self.take_bytes(env, &received.bytes, &mut events);
                if received.has_ended && matches!(self.state, State::Up { .. }) {
                    self.lose(env);
                }
            }
            State::Up { session, .. } => session.excuse(),
        }
        self.beat(env, me);
        events
    }

    /// Sends the heartbeat that is due, or gives up a LAN that sends none.
    fn beat(&mut self, env: &mut Env, me: &Me) {
        let State::Up { end, session, is_attached } = &mut self.state else { return };
        match session.look(env.now_ns / 1000) {
            Ok(true) if *is_attached => {
                let mut bytes = Vec::new();
                ClientMessage::Heartbeat.append(&mut bytes);
                env.send(me.host, *end, &bytes);
            }
            Ok(_) => {}
            Err(_) => {
                env.saw(Sighting::LanSilent);
                self.lose(env);
            }
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
        let session = PortSession::new(&attachment, env.now_ns / 1000, HEARTBEAT_US);
        let mut bytes = Vec::new();
        ClientMessage::Attach(attachment).append(&mut bytes);
        env.send(me.host, end, &bytes);
        self.state = State::Up { end, session, is_attached: false };
    }

    fn take_bytes(&mut self, env: &mut Env, mut bytes: &[u8], events: &mut Vec<AttachmentEvent>) {
        while !bytes.is_empty()
            && let State::Up { session, .. } = &mut self.state
        {
            let space = session.space();
            let (now, later) = bytes.split_at(bytes.len().min(space.len()));
            space[..now.len()].copy_from_slice(now);
            session.filled(now.len());
            bytes = later;
            while self.take_message(env, events) {}
        }
    }

    /// Takes the next message; `false` if there is none.
    fn take_message(&mut self, env: &mut Env, events: &mut Vec<AttachmentEvent>) -> bool {
        let State::Up { session, is_attached, .. } = &mut self.state else { return false };
        let received = if *is_attached {
            session.received()
        } else {
            match session.answer() {
                Ok(None) => return false,
                Ok(Some(AttachAnswer { next_output, .. })) => {
                    *is_attached = true;
                    events.push(AttachmentEvent::Attached(next_output));
                    return true;
                }
                Err(error) => Err(error),
            }
        };
        match received {
            Ok(Some(FromLan::Packet { number, packet })) => {
                self.last_packet = number;
                self.packets.push_back((number, packet));
                env.packet_arrives(number);
                true
            }
            Ok(Some(FromLan::Carried { next_output })) => {
                events.push(AttachmentEvent::Carried(next_output));
                true
            }
            Ok(Some(FromLan::HeartbeatDue)) => unreachable!("only a receiver with a clock says so"),
            Ok(None) => false,
            Err(LanError::Refused { .. } | LanError::Fenced { .. }) => {
                env.saw(Sighting::FencedByLan);
                self.lose(env);
                self.state = State::Down(env.now_ns + RETRY_REFUSED_NS);
                events.push(AttachmentEvent::Refused);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn lose(&mut self, env: &mut Env) {
        if let State::Up { end, .. } = self.state {
            env.close(end);
            self.state = State::Down(env.now_ns + RETRY_NS);
        }
    }

    /// Sends packets, if the LAN is there; otherwise they are lost, until they are sent again.
    pub(super) fn send(&self, env: &mut Env, me: &Me, outputs: &[(OutputId, &OutputOperation)]) {
        let State::Up { end, is_attached: true, .. } = &self.state else { return };
        let mut bytes = Vec::new();
        for (id, operation) in outputs {
            if let OutputOperation::Packet(packet) = operation {
                ClientMessage::Output { id: *id, packet }.append(&mut bytes);
            }
        }
        if !bytes.is_empty() {
            env.send(me.host, *end, &bytes);
        }
    }
}
