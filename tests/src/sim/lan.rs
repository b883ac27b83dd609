//! The LAN: the production fabric, with simulated connections to the hosts and stations of its own.

use super::client::Station;
use super::env::{Env, Event};
use super::sightings::Sighting;
use super::trace::{Kind, Lane, Note};
use super::wires::{End, Place};
use hypervisor::lan::LanEvent;
use hypervisor::lan::cutter::{Cutter, Prefix};
use hypervisor::lan::fabric::{ConnectionId, Fabric, PortLost};
use hypervisor::lan::wire::{ClientMessage, MESSAGE_BYTES_MAX, ServerMessage};
use logchannel::entry::Generation;
use std::collections::BTreeMap;
use vm::OutputId;

/// Connection numbers of stations begin here.
const STATIONS: u64 = 1 << 32;

/// From one heartbeat of a LAN port to the next.
pub(super) const HEARTBEAT_US: u64 = 20_000;

/// Bytes written to a connection at once.
const WRITE_BYTES: usize = 64 << 10;

/// A host's connection.
struct HostConnection {
    end: End,
    from: Option<Place>,
    cutter: Cutter,
    /// Which VM's port it serves, and as which generation's, once it does.
    attached: Option<(usize, Generation)>,
}

impl HostConnection {
    fn id(&self) -> ConnectionId {
        ConnectionId(self.end.wire.0)
    }

    /// Notes what the LAN does with something that has come over this connection.
    fn note(&self, env: &mut Env, kind: Kind, what: &'static str, numbers: &[u64], words: &str) {
        note(env, self.from, Note::new(Lane::Lan, kind, what, numbers).words(words));
    }
}

/// The LAN and its stations.
pub(super) struct Lan {
    fabric: Fabric,
    connections: BTreeMap<ConnectionId, HostConnection>,
    pub(super) stations: Vec<Station>,
}

/// Why a connection ends.
enum Ended {
    Closed,
    Refused(String),
    Lost(PortLost),
}

impl Lan {
    pub(super) fn new(seed: u64, stations: Vec<Station>) -> Self {
        let mut fabric = Fabric::new(seed, 0).with_heartbeat_us(HEARTBEAT_US);
        for index in 0..stations.len() as u64 {
            fabric.join_qemu(ConnectionId(STATIONS + index));
        }
        fabric.settle(0);
        Self { fabric, connections: BTreeMap::new(), stations }
    }

    /// A station sends a packet.
    pub(super) fn station_sends(&mut self, env: &mut Env, station: usize, packet: &[u8]) {
        self.fabric.qemu_packet(ConnectionId(STATIONS + station as u64), packet);
        self.settle(env);
    }

    /// Does what is due: connections that come, bytes that have arrived, deadlines.
    pub(super) fn step(&mut self, env: &mut Env) {
        while let Some(end) = env.accept(Place::Lan) {
            let cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
            self.connections.insert(
                ConnectionId(end.wire.0),
                HostConnection { end, from: env.wires.peer(end), cutter, attached: None },
            );
        }
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            self.serve(env, id);
        }
        self.settle(env);
    }

    /// Takes what a host has sent.
    fn serve(&mut self, env: &mut Env, id: ConnectionId) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        let received = env.receive(connection.end);
        match self.take_bytes(env, &mut connection, &received.bytes) {
            Ok(()) if !received.has_ended => _ = self.connections.insert(id, connection),
            Ok(()) => self.end(env, &connection, &Ended::Closed),
            Err(ended) => self.end(env, &connection, &ended),
        }
    }

    fn take_bytes(&mut self, env: &mut Env, connection: &mut HostConnection, mut bytes: &[u8]) -> Result<(), Ended> {
        while !bytes.is_empty() {
            let space = connection.cutter.space();
            let (now, later) = bytes.split_at(bytes.len().min(space.len()));
            space[..now.len()].copy_from_slice(now);
            connection.cutter.filled(now.len());
            bytes = later;
            self.take_messages(env, connection)?;
        }
        Ok(())
    }

    fn take_messages(&mut self, env: &mut Env, connection: &mut HostConnection) -> Result<(), Ended> {
        let id = connection.id();
        loop {
            let message = match connection.cutter.next_message() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(error) => panic!("a host sends no messages to the LAN: {error}"),
            };
            match ClientMessage::decode(message) {
                Ok(ClientMessage::Attach(attachment)) => {
                    let generation = attachment.generation;
                    let answer =
                        self.fabric.attach(id, &attachment).map_err(|error| Ended::Refused(error.to_string()))?;
                    connection.note(env, Kind::Message, "attaches as generation {}", &[generation.0], "");
                    let vm = env.index_of(&attachment.vm);
                    env.vms[vm].judge.attaches(generation);
                    connection.attached = Some((vm, generation));
                    let mut bytes = Vec::new();
                    said_less(env, answer).append(&mut bytes);
                    env.send_from_lan(connection.end, &bytes);
                }
                Ok(ClientMessage::Output { id: output, packet }) => {
                    let duplicates = self.fabric.dropped().duplicates;
                    self.fabric.output(id, output, packet).map_err(Ended::Lost)?;
                    if self.fabric.dropped().duplicates > duplicates {
                        env.saw(Sighting::OutputDroppedByLan);
                        let what = "output {}: dropped, it was carried before";
                        note(env, connection.from, Note::new(Lane::Lan, Kind::Detail, what, &[output.0]));
                    } else {
                        note(
                            env,
                            connection.from,
                            Note::new(Lane::Lan, Kind::Detail, "output {}: carried", &[output.0]),
                        );
                        let Some((vm, owner)) = connection.attached else { panic!("an output without a port") };
                        env.vms[vm].judge.carries(owner, output, packet);
                    }
                    // Packets for several stations come to them in the order in which they were
                    // carried.
                    self.settle(env);
                }
                Ok(ClientMessage::Heartbeat) => self.fabric.hear(id).map_err(Ended::Lost)?,
                Err(error) => panic!("a host sends a bad message to the LAN: {error}"),
            }
        }
    }

    fn end(&mut self, env: &mut Env, connection: &HostConnection, ended: &Ended) {
        let mut bytes = Vec::new();
        match ended {
            Ended::Closed => {}
            Ended::Lost(PortLost { fenced_by: None }) => {
                connection.note(env, Kind::Message, "its earlier port is closed", &[], "");
            }
            Ended::Refused(reason) => {
                connection.note(env, Kind::Message, "attaches, and is refused: ", &[], reason);
                ServerMessage::Refused { reason }.append(&mut bytes);
            }
            Ended::Lost(PortLost { fenced_by: Some(by) }) => {
                connection.note(env, Kind::Message, "is fenced by generation {}", &[by.0], "");
                ServerMessage::Fenced { by: *by }.append(&mut bytes);
            }
        }
        env.send_from_lan(connection.end, &bytes);
        env.close(connection.end);
        if connection.attached.is_some() {
            self.fabric.leave(connection.id());
        }
    }

    /// Lets the fabric work, and brings out what it has for hosts and stations.
    fn settle(&mut self, env: &mut Env) {
        loop {
            let settled = self.fabric.settle(env.now_ns / 1000);
            if settled.events.iter().any(|event| matches!(event, LanEvent::Silent { .. })) {
                env.saw(Sighting::PortSilent);
            }
            if let Some(deadline_us) = settled.deadline_us {
                env.at(deadline_us * 1000, Event::Lan);
            }
            if settled.woken.is_empty() {
                break;
            }
            for id in settled.woken {
                if id.0 >= STATIONS {
                    self.bring_to_station(env, id);
                } else {
                    self.send_pending(env, id);
                }
            }
        }
        self.retry_blocked(env);
    }

    /// Connections whose buffers were full may have room now.
    fn retry_blocked(&mut self, env: &mut Env) {
        let attached: Vec<_> = self
            .connections
            .values()
            .filter(|connection| connection.attached.is_some())
            .map(HostConnection::id)
            .collect();
        for id in attached {
            self.send_pending(env, id);
        }
    }

    fn send_pending(&mut self, env: &mut Env, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id).filter(|connection| connection.attached.is_some()) else {
            return;
        };
        let mut bytes = Vec::new();
        while env.wires.has_room(connection.end) {
            bytes.clear();
            match self.fabric.take_pending(id, &mut bytes, WRITE_BYTES) {
                Ok(()) if bytes.is_empty() => return,
                Ok(()) => env.send_from_lan(connection.end, &bytes),
                Err(lost) => {
                    let Some(connection) = self.connections.remove(&id) else { return };
                    return self.end(env, &connection, &Ended::Lost(lost));
                }
            }
        }
    }

    fn bring_to_station(&mut self, env: &mut Env, id: ConnectionId) {
        let mut bytes = Vec::new();
        self.fabric
            .take_pending(id, &mut bytes, usize::MAX)
            .unwrap_or_else(|lost| panic!("a station lost its port: {lost:?}"));
        let index = usize::try_from(id.0 - STATIONS).expect("stations are few");
        let mut rest = &bytes[..];
        while let Some((length, tail)) = rest.split_first_chunk::<4>() {
            let (packet, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
            rest = tail;
            if let Some(reply) = self.stations[index].receive(packet) {
                if reply.parts > 1 {
                    env.saw(Sighting::Burst);
                }
                env.vms[self.stations[index].vm()].judge.replies(&reply);
            }
        }
    }
}

/// Notes what the LAN does with something that has come from there.
fn note(env: &mut Env, from: Option<Place>, note: Note<'_>) {
    env.tell(from.map_or(note, |from| note.from(from)));
}

/// Now and then the answer of a LAN that doesn't say how far it has got: it drops what comes twice.
fn said_less<'a>(env: &mut Env, mut answer: ServerMessage<'a>) -> ServerMessage<'a> {
    if let ServerMessage::Attached { next_output, .. } = &mut answer
        && env.is_faulty
        && env.random.one_in(4)
    {
        *next_output = OutputId(0);
    }
    answer
}
