//! The LAN without its sockets: ports, switch and gateway wired together.
//!
//! Packets and the time come in as arguments; what is to be written is fetched with
//! [`Fabric::take_pending`] by the connections that [`Fabric::settle`] names. Whoever drives it
//! keeps the bytes of a connection in order, and does this:
//!
//! - A connection to a VM port: give what its [`Attach`](super::wire::ClientMessage::Attach) holds
//!   to [`Fabric::attach`] and send the answer, then give its outputs to [`Fabric::output`].
//! - A connection to a QEMU port: [`Fabric::join_qemu`], then [`Fabric::qemu_packet`].
//! - When anything else has come from a connection to a VM port: [`Fabric::hear`].
//! - After each of these: [`Fabric::settle`]; then let the connections that it names fetch. And
//!   again when the deadline is reached that it tells.
//! - When a connection has ended, whoever ended it: [`Fabric::leave`].

mod gateway;
mod ports;
mod qemu_port;
mod switch;
mod vm_port;

pub(super) use gateway::{GATEWAY_IP, GUEST_TIMEOUT, PREFIX_BITS, UDP_PAYLOAD_BYTES_MAX};
pub(super) use qemu_port::STREAM_PACKET_BYTES_MAX;
pub use vm_port::{ConnectionId, Refusal};

use self::gateway::{GATEWAY_MAC, Gateway};
use self::qemu_port::QemuPort;
use self::switch::{DropReason, Forwarding, Port, Switch, is_group};
use self::vm_port::VmPort;
use super::attachment::Attachment;
use super::events::{Dropped, LanEvent};
use super::pulse;
use super::wire::{ServerMessage, is_packet_length};
use ft::mutation::{Mutation, mutated};
use logchannel::entry::Generation;
use std::collections::BTreeMap;
use vm::OutputId;

/// The most VMs that the LAN remembers.
pub const VMS_MAX: usize = 64;

/// How long a VM may wait for the word that its outputs were carried. Mostly it comes earlier, with
/// a packet, and costs no message of its own.
const WORD_DELAY_US: u64 = 5_000;

/// A connection has lost its VM's port to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLost {
    /// The newer generation; `None` if the same process attached again, or the connection was
    /// silent.
    pub fenced_by: Option<Generation>,
}

/// What a connection is to the LAN.
#[derive(Clone, Copy, Debug)]
enum Link {
    /// It has the port of the VM with this key.
    Vm(u64),
    /// It is a QEMU process.
    Qemu,
    /// It had a VM's port.
    Lost(PortLost),
}

/// What is to be done after an event.
#[derive(Debug, Default)]
pub struct Settled {
    /// Connections that have something to send, or are fenced.
    pub woken: Vec<ConnectionId>,
    /// What happened.
    pub events: Vec<LanEvent>,
    /// When [`Fabric::settle`] must be called at the latest.
    pub deadline_us: Option<u64>,
}

/// The whole LAN.
#[derive(Debug)]
pub struct Fabric {
    switch: Switch,
    vms: BTreeMap<u64, VmPort>,
    next_vm_key: u64,
    qemus: BTreeMap<u64, QemuPort>,
    links: BTreeMap<ConnectionId, Link>,
    /// VMs detached so far.
    departures: u64,
    gateway: Gateway,
    dropped: Dropped,
    woken: Vec<ConnectionId>,
    events: Vec<LanEvent>,
    /// VMs whose outputs were carried, and until when they are to be told; `None` until
    /// [`Fabric::settle`] knows.
    words_due_us: BTreeMap<u64, Option<u64>>,
    heartbeat_us: u64,
    /// When the attached VMs get their next heartbeat, and the silent ones are given up.
    heartbeat_due_us: Option<u64>,
    has_attached: bool,
}

impl Fabric {
    /// A LAN with nothing but the gateway on it, whose sequence numbers `seed` makes hard to guess.
    #[must_use]
    pub fn new(seed: u64, now_us: u64) -> Self {
        let gateway = Gateway::new(seed, now_us);
        let mut switch = Switch::default();
        switch.pin(GATEWAY_MAC, Port::Gateway);
        Self {
            switch,
            vms: BTreeMap::new(),
            next_vm_key: 0,
            qemus: BTreeMap::new(),
            links: BTreeMap::new(),
            departures: 0,
            gateway,
            dropped: Dropped::default(),
            woken: Vec::new(),
            events: Vec::new(),
            words_due_us: BTreeMap::new(),
            heartbeat_us: pulse::INTERVAL_US,
            heartbeat_due_us: None,
            has_attached: false,
        }
    }

    /// The same with another interval between heartbeats.
    #[must_use]
    pub fn with_heartbeat_us(self, heartbeat_us: u64) -> Self {
        Self { heartbeat_us, ..self }
    }

    /// Opens a VM's port for `connection`. Returns the answer, to be sent before anything else.
    ///
    /// # Errors
    /// [`Refusal`], also told as an event. The reason is to be sent, and the connection closed.
    pub fn attach(
        &mut self,
        connection: ConnectionId,
        attachment: &Attachment,
    ) -> Result<ServerMessage<'static>, Refusal> {
        let is_known_run = self.vms.values().any(|port| *port.vm() == attachment.vm && !port.is_other_run(attachment));
        let attached = self.try_attach(connection, attachment);
        if attached.is_ok() && !is_known_run && self.vms.values().any(|port| port.connection().is_none()) {
            // It may have the IP address of a guest that was here before, under another Ethernet
            // address. As long as all guests are here, the one that was first keeps its address.
            self.gateway.forget_neighbors();
        }
        if attached.is_ok() {
            self.gateway.guest_attached();
        }
        if let Err(refusal) = &attached {
            self.events.push(LanEvent::Refused {
                vm: attachment.vm.to_string(),
                generation: attachment.generation.0,
                reason: refusal.to_string(),
                left_out: 0,
            });
        }
        attached
    }

    /// Hears that the host of the VM whose port `connection` has is alive.
    ///
    /// # Errors
    /// [`PortLost`]
    pub fn hear(&mut self, connection: ConnectionId) -> Result<(), PortLost> {
        match self.links.get(&connection) {
            Some(&Link::Vm(key)) => self.vm(key).hear(),
            Some(&Link::Lost(lost)) => return Err(lost),
            Some(Link::Qemu) | None => {}
        }
        Ok(())
    }

    /// Takes an output of the VM that `connection` has the port of.
    ///
    /// # Errors
    /// [`PortLost`]: nothing of what this connection sends is carried any more.
    ///
    /// # Panics
    /// If the connection was not given a VM's port.
    pub fn output(&mut self, connection: ConnectionId, id: OutputId, packet: &[u8]) -> Result<(), PortLost> {
        match self.links.get(&connection) {
            Some(&Link::Vm(key)) => {
                let port = self.vm(key);
                port.hear();
                if port.accept_output(id) {
                    self.words_due_us.entry(key).or_insert(None);
                    self.carry(Port::Vm(key), packet);
                } else {
                    self.dropped.duplicates += 1;
                }
                Ok(())
            }
            Some(&Link::Lost(lost)) => Err(lost),
            Some(Link::Qemu) | None => panic!("output of connection {connection:?}, which is no VM's"),
        }
    }

    /// Adds a QEMU port.
    pub fn join_qemu(&mut self, connection: ConnectionId) {
        self.qemus.insert(connection.0, QemuPort::default());
        self.links.insert(connection, Link::Qemu);
        self.events.push(LanEvent::QemuJoined { port: connection.0 });
    }

    /// Takes a packet from a QEMU port.
    pub fn qemu_packet(&mut self, connection: ConnectionId, packet: &[u8]) {
        if is_packet_length(packet.len()) {
            self.carry(Port::Qemu(connection.0), packet);
        } else {
            self.dropped.malformed += 1;
        }
    }

    /// Takes leave of a connection, whatever it is.
    pub fn leave(&mut self, connection: ConnectionId) {
        match self.links.remove(&connection) {
            Some(Link::Vm(key)) => {
                let (vm, generation) = self.detach(key);
                self.events.push(LanEvent::Detached { vm, generation });
            }
            Some(Link::Qemu) => {
                self.qemus.remove(&connection.0);
                self.switch.forget_port(Port::Qemu(connection.0));
                self.events.push(LanEvent::QemuLeft { port: connection.0 });
            }
            Some(Link::Lost(_)) | None => {}
        }
    }

    /// Takes the port from its connection. Returns whose it was.
    fn detach(&mut self, key: u64) -> (String, u64) {
        self.departures += 1;
        let at = self.departures;
        let port = self.vm(key);
        port.detach(at);
        (port.vm().to_string(), port.generation().0)
    }

    /// Appends what is to be sent to `connection`, until `out` holds about `bytes`.
    ///
    /// # Errors
    /// [`PortLost`]: the connection is to be closed; if a newer generation has the port, after
    /// being told so.
    ///
    /// # Panics
    /// If the connection has not attached or joined, or has left.
    pub fn take_pending(&mut self, connection: ConnectionId, out: &mut Vec<u8>, bytes: usize) -> Result<(), PortLost> {
        match self.links.get(&connection) {
            Some(&Link::Vm(key)) => self.vm(key).take_pending(out, bytes),
            Some(Link::Qemu) => self.qemu(connection.0).take_pending(out, bytes),
            Some(&Link::Lost(lost)) => return Err(lost),
            None => panic!("connection {connection:?} fetches without having joined"),
        }
        Ok(())
    }

    /// The gateway, for those who forward to it. [`Fabric::settle`] must follow.
    pub(super) fn gateway(&mut self) -> &mut Gateway {
        &mut self.gateway
    }

    /// Counts a client that there is no room for.
    pub(super) fn count_refused_client(&mut self) {
        self.dropped.refused_clients += 1;
    }

    /// Counts clients' connections that were closed because nothing passed over them.
    pub(super) fn count_idle_clients(&mut self, clients: u64) {
        self.dropped.idle_clients += clients;
    }

    /// Counts UDP flows that have lost their places to others.
    pub(super) fn count_replaced_flows(&mut self, flows: u64) {
        self.dropped.replaced_flows += flows;
    }

    /// Whether a VM is attached.
    pub(super) fn has_vm(&self) -> bool {
        self.vms.values().any(|port| port.connection().is_some())
    }

    /// What was dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Lets the gateway work off what came in, and tells what is to be done. Must follow every
    /// other call.
    pub fn settle(&mut self, now_us: u64) -> Settled {
        loop {
            let packets = self.gateway.poll(now_us);
            if packets.is_empty() {
                break;
            }
            for packet in packets {
                self.carry(Port::Gateway, &packet);
            }
        }
        let heartbeat_due_us = self.settle_heartbeats(now_us);
        let word_due_us = self.settle_words(now_us);
        let gateway_due_us = self.gateway.deadline_us(now_us);
        Settled {
            woken: std::mem::take(&mut self.woken),
            events: std::mem::take(&mut self.events),
            deadline_us: [heartbeat_due_us, word_due_us, gateway_due_us].into_iter().flatten().min(),
        }
    }

    /// Once in an interval, sends each attached VM a heartbeat, and gives up those whose host is
    /// silent. Returns when that is due next.
    fn settle_heartbeats(&mut self, now_us: u64) -> Option<u64> {
        if !self.has_attached {
            return None;
        }
        let due_us = *self.heartbeat_due_us.get_or_insert(now_us + self.heartbeat_us);
        if now_us < due_us {
            return Some(due_us);
        }
        let mut silent = Vec::new();
        self.has_attached = false;
        for (&key, port) in &mut self.vms {
            let Some(connection) = port.connection() else { continue };
            self.has_attached = true;
            self.woken.push(connection);
            if port.is_silent() {
                silent.push((key, connection));
            }
        }
        for (key, connection) in silent {
            let (vm, generation) = self.detach(key);
            self.links.insert(connection, Link::Lost(PortLost { fenced_by: None }));
            self.events.push(LanEvent::Silent { vm, generation });
        }
        self.heartbeat_due_us = self.has_attached.then_some(now_us + self.heartbeat_us);
        self.heartbeat_due_us
    }

    /// Wakes the VMs that have waited long enough to be told of outputs carried. Returns when the
    /// next one will have.
    fn settle_words(&mut self, now_us: u64) -> Option<u64> {
        let Self { vms, words_due_us, woken, .. } = self;
        words_due_us.retain(|key, due_us| {
            let Some(port) = vms.get(key).filter(|port| port.owes_word()) else { return false };
            let due_us = *due_us.get_or_insert(now_us + WORD_DELAY_US);
            if due_us <= now_us {
                woken.extend(port.connection());
            }
            due_us > now_us
        });
        words_due_us.values().flatten().min().copied()
    }

    fn try_attach(
        &mut self,
        connection: ConnectionId,
        attachment: &Attachment,
    ) -> Result<ServerMessage<'static>, Refusal> {
        if is_group(attachment.mac) || attachment.mac == [0; 6] {
            return Err(Refusal::InvalidMac);
        }
        let known = self.vms.iter().find(|(_, port)| *port.vm() == attachment.vm).map(|(&key, _)| key);
        if self.switch.pinned(attachment.mac).is_some_and(|owner| known.map(Port::Vm) != Some(owner)) {
            return Err(Refusal::MacTaken);
        }
        let key = match known {
            Some(key) => key,
            None => self.adopt(attachment)?,
        };
        let port = self.vm(key);
        let (old_generation, old_mac) = (port.generation(), port.mac());
        let attached = port.attach(connection, attachment)?;
        if old_mac != attachment.mac {
            self.switch.forget_port(Port::Vm(key));
        }
        self.switch.pin(attachment.mac, Port::Vm(key));
        if let Some(replaced) = attached.replaced.filter(|_| !mutated(Mutation::ServeOlderGeneration)) {
            self.oust(replaced, old_generation, attachment);
        }
        self.links.insert(connection, Link::Vm(key));
        self.has_attached = true;
        self.woken.push(connection);
        self.events.push(LanEvent::Attached {
            vm: attachment.vm.to_string(),
            generation: attachment.generation.0,
            first_packet: attached.first_packet,
            lost: attached.lost,
        });
        Ok(ServerMessage::Attached { first_packet: attached.first_packet, next_output: attached.next_output })
    }

    /// Adds a port for a VM that is not known. Returns its key.
    fn adopt(&mut self, attachment: &Attachment) -> Result<u64, Refusal> {
        let port = VmPort::adopt(attachment)?;
        if self.vms.len() >= VMS_MAX {
            let (&key, _) = self
                .vms
                .iter()
                .filter(|(_, port)| port.connection().is_none())
                .min_by_key(|(_, port)| port.detached_at())
                .ok_or(Refusal::Full(VMS_MAX))?;
            let forgotten = self.vms.remove(&key).expect("found just now");
            self.switch.forget_port(Port::Vm(key));
            self.events.push(LanEvent::Forgotten { vm: forgotten.vm().to_string() });
        }
        let key = self.next_vm_key;
        self.next_vm_key += 1;
        self.vms.insert(key, port);
        Ok(key)
    }

    /// Takes the port away from the connection that had it as `generation`.
    fn oust(&mut self, connection: ConnectionId, generation: Generation, by: &Attachment) {
        let fenced_by = (by.generation > generation).then_some(by.generation);
        self.links.insert(connection, Link::Lost(PortLost { fenced_by }));
        self.woken.push(connection);
        if let Some(by_generation) = fenced_by {
            self.events.push(LanEvent::Fenced { vm: by.vm.to_string(), generation: generation.0, by: by_generation.0 });
        }
    }

    fn carry(&mut self, from: Port, packet: &[u8]) {
        match self.switch.forward(from, packet) {
            Forwarding::To(port) => self.deliver(port, packet),
            Forwarding::Flood => {
                let vms = self.vms.keys().copied().map(Port::Vm);
                let qemus = self.qemus.keys().copied().map(Port::Qemu);
                let ports: Vec<_> = vms.chain(qemus).chain([Port::Gateway]).filter(|&port| port != from).collect();
                for port in ports {
                    self.deliver(port, packet);
                }
            }
            Forwarding::Drop(DropReason::Local) => {}
            Forwarding::Drop(DropReason::Forged) => self.dropped.forged += 1,
            Forwarding::Drop(DropReason::Malformed) => self.dropped.malformed += 1,
        }
    }

    fn deliver(&mut self, port: Port, packet: &[u8]) {
        match port {
            Port::Gateway => self.dropped.gateway_overflow += u64::from(!self.gateway.receive(packet)),
            Port::Vm(key) => {
                let vm = self.vm(key);
                let delivery = vm.deliver(packet);
                let connection = vm.connection();
                self.dropped.vm_overflow += delivery.overflowed;
                self.woken.extend(connection.filter(|_| delivery.wake));
            }
            Port::Qemu(id) => {
                let delivery = self.qemu(id).deliver(packet);
                self.dropped.qemu_overflow += delivery.overflowed;
                self.woken.extend(delivery.wake.then_some(ConnectionId(id)));
            }
        }
    }

    fn vm(&mut self, key: u64) -> &mut VmPort {
        self.vms.get_mut(&key).expect("links and stations name VMs that the LAN remembers")
    }

    fn qemu(&mut self, id: u64) -> &mut QemuPort {
        self.qemus.get_mut(&id).expect("links and stations name connections that are there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use logchannel::session::NodeId;

    const ONE: ConnectionId = ConnectionId(1);
    const TWO: ConnectionId = ConnectionId(2);
    const QEMU: ConnectionId = ConnectionId(3);
    const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const QEMU_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn fabric() -> Fabric {
        Fabric::new(7, 0)
    }

    fn attachment(vm: &str, generation: u64) -> Attachment {
        Attachment {
            vm: vm.parse().unwrap(),
            node: NodeId(u128::from(generation)),
            generation: Generation(generation),
            mac: GUEST_MAC,
            next_output: OutputId(0),
            output_end: OutputId(u64::MAX),
            last_packet: 0,
            booted: Generation(0),
        }
    }

    fn packet(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        [&to[..], &from[..], &[0x88, 0xb5], &[0; 46]].concat()
    }

    fn arp_request(from_mac: [u8; 6], from_ip: [u8; 4], for_ip: [u8; 4]) -> Vec<u8> {
        let header = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
        [&[0xff; 6][..], &from_mac, &header, &from_mac, &from_ip, &[0; 6], &for_ip].concat()
    }

    fn pending(fabric: &mut Fabric, connection: ConnectionId) -> Vec<u8> {
        let mut out = Vec::new();
        fabric.take_pending(connection, &mut out, usize::MAX).unwrap();
        out
    }

    #[test]
    fn a_newer_generation_takes_the_port_and_the_older_one_is_fenced() {
        let mut fabric = fabric();
        fabric.join_qemu(QEMU);
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.attach(TWO, &attachment("vm", 1)).unwrap();
        let settled = fabric.settle(0);
        assert!(settled.woken.contains(&ONE), "the fenced connection must learn of it at once");
        assert!(settled.events.contains(&LanEvent::Fenced { vm: "vm".into(), generation: 0, by: 1 }));

        let lost = PortLost { fenced_by: Some(Generation(1)) };
        assert_eq!(fabric.output(ONE, OutputId(0), &packet(QEMU_MAC, GUEST_MAC)), Err(lost));
        assert_eq!(fabric.take_pending(ONE, &mut Vec::new(), 1), Err(lost));
        assert!(pending(&mut fabric, QEMU).is_empty(), "nothing of the fenced generation is carried");
        fabric.output(TWO, OutputId(0), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
        assert!(!pending(&mut fabric, QEMU).is_empty());

        fabric.leave(ONE);
        fabric.output(TWO, OutputId(1), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
        assert!(!pending(&mut fabric, QEMU).is_empty(), "the fenced connection's end leaves the port alone");
    }

    #[test]
    fn the_same_process_attaching_again_is_not_told_that_it_is_fenced() {
        let mut fabric = fabric();
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.attach(TWO, &attachment("vm", 0)).unwrap();
        assert_eq!(fabric.take_pending(ONE, &mut Vec::new(), 1), Err(PortLost { fenced_by: None }));
        assert!(pending(&mut fabric, TWO).is_empty());
    }

    #[test]
    fn outputs_already_carried_are_dropped_and_counted() {
        let mut fabric = fabric();
        fabric.join_qemu(QEMU);
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        for id in [0, 1, 1, 0] {
            fabric.output(ONE, OutputId(id), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
        }
        assert_eq!(pending(&mut fabric, QEMU).len(), 2 * (4 + 60));
        assert_eq!(fabric.dropped(), Dropped { duplicates: 2, ..Dropped::default() });
    }

    #[test]
    fn the_gateway_answers_arp_through_the_switch() {
        let mut fabric = fabric();
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.output(ONE, OutputId(0), &arp_request(GUEST_MAC, [10, 0, 2, 15], [10, 0, 2, 2])).unwrap();
        let settled = fabric.settle(1_000);
        assert!(settled.woken.contains(&ONE));
        let answer = pending(&mut fabric, ONE);
        assert_eq!(answer[13..19], GUEST_MAC);
        assert_eq!(answer[19..25], GATEWAY_MAC);
        assert_eq!(fabric.settle(1_000).deadline_us, Some(1_000 + pulse::INTERVAL_US), "only heartbeats are due");
    }

    #[test]
    fn a_silent_vm_is_detached_and_may_come_back() {
        let mut fabric = fabric();
        assert_eq!(fabric.settle(0).deadline_us, None, "a LAN without VMs has no timer");
        let other = Attachment { mac: [2, 0, 0, 0, 0, 2], ..attachment("other", 0) };
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.attach(TWO, &other).unwrap();
        let mut heartbeat = Vec::new();
        ServerMessage::Heartbeat.append(&mut heartbeat);
        let mut now_us = fabric.settle(0).deadline_us.unwrap();
        // The one speaks for a while, and the other all the time.
        for interval in 0..4 {
            if interval < 2 {
                fabric.hear(ONE).unwrap();
            }
            fabric.hear(TWO).unwrap();
            let settled = fabric.settle(now_us);
            assert_eq!(settled.events, [], "interval {interval}");
            assert_eq!(settled.woken, [ONE, TWO]);
            assert_eq!(pending(&mut fabric, ONE), heartbeat);
            now_us = settled.deadline_us.unwrap();
        }
        fabric.hear(TWO).unwrap();
        let settled = fabric.settle(now_us);
        assert_eq!(settled.events, [LanEvent::Silent { vm: "vm".into(), generation: 0 }]);
        assert!(settled.woken.contains(&ONE), "its connection is to be closed");
        let lost = Err(PortLost { fenced_by: None });
        assert_eq!(fabric.take_pending(ONE, &mut Vec::new(), 0), lost);
        assert_eq!(fabric.hear(ONE), lost);
        fabric.leave(ONE);
        fabric.attach(ConnectionId(9), &attachment("vm", 0)).unwrap();
        assert_eq!(fabric.settle(now_us).events.len(), 1, "nothing but the attachment");
        fabric.leave(ConnectionId(9));
        fabric.leave(TWO);
        fabric.settle(now_us + pulse::INTERVAL_US);
        assert_eq!(fabric.settle(now_us + pulse::INTERVAL_US).deadline_us, None);
    }

    #[test]
    fn outputs_carried_are_told_with_the_next_packet_or_after_a_while() {
        let mut fabric = fabric();
        fabric.join_qemu(QEMU);
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        let mut word = Vec::new();
        ServerMessage::Carried { next_output: OutputId(1) }.append(&mut word);
        fabric.settle(0);

        fabric.output(ONE, OutputId(0), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
        let settled = fabric.settle(1_000);
        assert!(!settled.woken.contains(&ONE), "a message of its own would double the cost of an echo");
        assert_eq!(settled.deadline_us, Some(1_000 + WORD_DELAY_US));
        fabric.qemu_packet(QEMU, &packet(GUEST_MAC, QEMU_MAC));
        assert_eq!(fabric.settle(2_000).woken, [QEMU, ONE][1..]);
        assert!(pending(&mut fabric, ONE).ends_with(&word));
        assert_eq!(fabric.settle(1_000 + WORD_DELAY_US).woken, [], "it has been told");

        fabric.output(ONE, OutputId(6), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
        assert_eq!(fabric.settle(10_000).deadline_us, Some(10_000 + WORD_DELAY_US));
        fabric.output(ONE, OutputId(7), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
        let due_us = 10_000 + WORD_DELAY_US;
        assert_eq!(fabric.settle(12_000).deadline_us, Some(due_us), "later outputs don't put it off");
        let settled = fabric.settle(due_us);
        assert_eq!((settled.woken, settled.deadline_us), (vec![ONE], Some(pulse::INTERVAL_US)));
        word.clear();
        ServerMessage::Carried { next_output: OutputId(8) }.append(&mut word);
        assert_eq!(pending(&mut fabric, ONE), word);
    }

    #[test]
    fn nobody_is_woken_for_the_outputs_of_a_connection_that_is_gone() {
        let mut fabric = fabric();
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.output(ONE, OutputId(0), &packet([0xff; 6], GUEST_MAC)).unwrap();
        fabric.settle(0);
        fabric.leave(ONE);
        assert_eq!(fabric.settle(1).deadline_us, Some(pulse::INTERVAL_US), "for heartbeats, if there is somebody");
        let answer = ServerMessage::Attached { first_packet: 1, next_output: OutputId(1) };
        assert_eq!(fabric.attach(TWO, &attachment("vm", 1)), Ok(answer));
        assert_eq!(fabric.settle(WORD_DELAY_US).woken, [TWO], "for the answer");
        assert!(pending(&mut fabric, TWO).is_empty());
    }

    #[test]
    fn packets_for_a_vm_without_a_connection_wait_for_the_next() {
        let mut fabric = fabric();
        fabric.join_qemu(QEMU);
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.leave(ONE);
        fabric.qemu_packet(QEMU, &packet(GUEST_MAC, QEMU_MAC));
        let answer = ServerMessage::Attached { first_packet: 1, next_output: OutputId(0) };
        assert_eq!(fabric.attach(TWO, &attachment("vm", 1)), Ok(answer));
        assert_eq!(pending(&mut fabric, TWO).len(), 4 + 9 + 60);
    }

    #[test]
    fn addresses_of_others_can_be_neither_used_nor_claimed() {
        let mut fabric = fabric();
        fabric.join_qemu(QEMU);
        fabric.attach(ONE, &attachment("vm", 0)).unwrap();
        fabric.qemu_packet(QEMU, &packet([0xff; 6], GUEST_MAC));
        fabric.qemu_packet(QEMU, &packet([0xff; 6], GATEWAY_MAC));
        assert_eq!(fabric.dropped().forged, 2);
        assert_eq!(fabric.attach(TWO, &attachment("other", 0)), Err(Refusal::MacTaken));
        let group = Attachment { mac: [1, 0, 0, 0, 0, 0], ..attachment("other", 0) };
        assert_eq!(fabric.attach(TWO, &group), Err(Refusal::InvalidMac));
        let gateway = Attachment { mac: GATEWAY_MAC, ..attachment("other", 0) };
        assert_eq!(fabric.attach(TWO, &gateway), Err(Refusal::MacTaken));
        let events = fabric.settle(0).events;
        assert_eq!(events.iter().filter(|event| matches!(event, LanEvent::Refused { .. })).count(), 3);
    }

    #[test]
    fn the_vm_that_was_away_longest_makes_room_and_attached_ones_never_do() {
        let mut fabric = fabric();
        let vm = |n: u64| {
            let [a, b, ..] = n.to_le_bytes();
            Attachment { mac: [2, 7, 0, 0, a, b], ..attachment(&format!("vm{n}"), 0) }
        };
        let full = VMS_MAX as u64;
        for n in 0..full {
            fabric.attach(ConnectionId(100 + n), &vm(n)).unwrap();
        }
        assert_eq!(fabric.attach(ONE, &vm(full)), Err(Refusal::Full(VMS_MAX)));
        fabric.leave(ConnectionId(107));
        fabric.leave(ConnectionId(105));
        fabric.attach(ONE, &vm(full)).unwrap();
        let events = fabric.settle(0).events;
        assert!(events.contains(&LanEvent::Forgotten { vm: "vm7".into() }), "{events:?}");
        assert_eq!(fabric.vms.len(), VMS_MAX);
    }

    #[test]
    fn packets_that_are_too_short_or_too_long_for_the_lan_are_counted() {
        let mut fabric = fabric();
        fabric.join_qemu(QEMU);
        fabric.qemu_packet(QEMU, &[0; 13]);
        fabric.qemu_packet(QEMU, &[0; 1515]);
        assert_eq!(fabric.dropped().malformed, 2);
    }
}
