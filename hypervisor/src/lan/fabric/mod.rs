//! The LAN without its sockets: ports, switch and gateway wired together.
//!
//! Packets and the time come in as arguments; the connections that [`Fabric::settle`] names fetch
//! their bytes with [`Fabric::take_pending`]. The caller (the server or the simulator) keeps the
//! bytes of each connection in order, and does this:
//!
//! - A connection to a VM port: pass the attachment of its
//!   [`Attach`](super::wire::ClientMessage::Attach) to [`Fabric::attach`] and send the answer, then
//!   pass its outputs to [`Fabric::output`].
//! - A connection to a QEMU port: [`Fabric::join_qemu`], then [`Fabric::qemu_packet`].
//! - When any other message comes from a connection to a VM port: [`Fabric::hear`].
//! - After each of these: [`Fabric::settle`]; then the connections that it names fetch. The same
//!   when the deadline that it returns is reached.
//! - When a connection has ended, by either side: [`Fabric::leave`].

mod gateway;
mod packet_queues;
mod ports;
mod qemu_port;
mod switch;
mod vm_port;

pub(super) use gateway::{GATEWAY_IP, GUEST_TIMEOUT, PREFIX_BITS, UDP_PAYLOAD_BYTES_MAX};
pub use packet_queues::PacketQueues;
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

/// How long a VM may wait to hear that its outputs were carried. Usually it hears so earlier,
/// together with a packet, which costs no message of its own.
const CARRIED_DELAY_US: u64 = 5_000;

/// A connection has lost its VM's port to a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLost {
    /// The newer generation; `None` if the same process attached again, or the connection was
    /// silent.
    pub fenced_by: Option<Generation>,
}

/// The role of a connection on the LAN.
#[derive(Clone, Copy, Debug)]
enum ConnectionRole {
    /// It has the port of the VM with this key.
    Vm(u64),
    /// It is a QEMU process.
    Qemu,
    /// It had a VM's port, and lost it.
    Lost(PortLost),
}

/// What the caller has to do after an event.
#[derive(Debug, Default)]
pub struct Settled {
    /// Connections that have something to send, or are fenced.
    pub woken: Vec<ConnectionId>,
    /// Events to report.
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
    roles: BTreeMap<ConnectionId, ConnectionRole>,
    /// How often a VM was detached so far; orders the detached VMs by time.
    departures: u64,
    gateway: Gateway,
    dropped: Dropped,
    woken: Vec<ConnectionId>,
    events: Vec<LanEvent>,
    /// VMs that are to be told that outputs were carried, and when at the latest; `None` until
    /// [`Fabric::settle`] knows the time.
    carried_due_us: BTreeMap<u64, Option<u64>>,
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
            roles: BTreeMap::new(),
            departures: 0,
            gateway,
            dropped: Dropped::default(),
            woken: Vec::new(),
            events: Vec::new(),
            carried_due_us: BTreeMap::new(),
            heartbeat_us: pulse::INTERVAL_US,
            heartbeat_due_us: None,
            has_attached: false,
        }
    }

    /// Sets the interval between heartbeats.
    #[must_use]
    pub fn with_heartbeat_us(self, heartbeat_us: u64) -> Self {
        Self { heartbeat_us, ..self }
    }

    /// Opens a VM's port for `connection`. Returns the answer, to be sent before anything else.
    ///
    /// # Errors
    /// [`Refusal`], also reported as an event. The caller sends the reason and closes the
    /// connection.
    pub fn attach(
        &mut self,
        connection: ConnectionId,
        attachment: &Attachment,
    ) -> Result<ServerMessage<'static>, Refusal> {
        let is_known_run = self.vms.values().any(|port| *port.vm() == attachment.vm && !port.is_other_run(attachment));
        let attached = self.try_attach(connection, attachment);
        if attached.is_ok() && !is_known_run && self.vms.values().any(|port| port.connection().is_none()) {
            // The guest may have the IP address of an earlier guest with another Ethernet address.
            // While all guests stay attached, the first one keeps its address.
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

    /// Notes that the host of the VM whose port `connection` has is alive.
    ///
    /// # Errors
    /// [`PortLost`]
    pub fn hear(&mut self, connection: ConnectionId) -> Result<(), PortLost> {
        match self.roles.get(&connection) {
            Some(&ConnectionRole::Vm(key)) => self.vm(key).hear(),
            Some(&ConnectionRole::Lost(lost)) => return Err(lost),
            Some(ConnectionRole::Qemu) | None => {}
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
        match self.roles.get(&connection) {
            Some(&ConnectionRole::Vm(key)) => {
                let port = self.vm(key);
                port.hear();
                if port.accept_output(id) {
                    self.carried_due_us.entry(key).or_insert(None);
                    self.carry(Port::Vm(key), packet);
                } else {
                    self.dropped.duplicates += 1;
                }
                Ok(())
            }
            Some(&ConnectionRole::Lost(lost)) => Err(lost),
            Some(ConnectionRole::Qemu) | None => panic!("output of connection {connection:?}, which is no VM's"),
        }
    }

    /// Adds a QEMU port.
    pub fn join_qemu(&mut self, connection: ConnectionId) {
        self.qemus.insert(connection.0, QemuPort::default());
        self.roles.insert(connection, ConnectionRole::Qemu);
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

    /// Removes a connection, whatever its role.
    pub fn leave(&mut self, connection: ConnectionId) {
        match self.roles.remove(&connection) {
            Some(ConnectionRole::Vm(key)) => {
                let (vm, generation) = self.detach(key);
                self.events.push(LanEvent::Detached { vm, generation });
            }
            Some(ConnectionRole::Qemu) => {
                self.qemus.remove(&connection.0);
                self.switch.forget_port(Port::Qemu(connection.0));
                self.events.push(LanEvent::QemuLeft { port: connection.0 });
            }
            Some(ConnectionRole::Lost(_)) | None => {}
        }
    }

    /// Takes a VM's port from its connection. Returns the VM and its owner's generation.
    fn detach(&mut self, key: u64) -> (String, u64) {
        self.departures += 1;
        let at = self.departures;
        let port = self.vm(key);
        port.detach(at);
        (port.vm().to_string(), port.generation().0)
    }

    /// Appends the bytes for `connection`, until `out` holds about `bytes`.
    ///
    /// # Errors
    /// [`PortLost`]: the connection is to be closed; if a newer generation has the port, after
    /// being told so.
    ///
    /// # Panics
    /// If the connection has not attached or joined, or has left.
    pub fn take_pending(&mut self, connection: ConnectionId, out: &mut Vec<u8>, bytes: usize) -> Result<(), PortLost> {
        match self.roles.get(&connection) {
            Some(&ConnectionRole::Vm(key)) => self.vm(key).take_pending(out, bytes),
            Some(ConnectionRole::Qemu) => self.qemu(connection.0).take_pending(out, bytes),
            Some(&ConnectionRole::Lost(lost)) => return Err(lost),
            None => panic!("connection {connection:?} fetches without having joined"),
        }
        Ok(())
    }

    /// The gateway, for the tasks of forwards.
    pub(super) fn gateway(&mut self) -> &mut Gateway {
        &mut self.gateway
    }

    /// Counts a client that was refused because of a limit.
    pub(super) fn count_refused_client(&mut self) {
        self.dropped.refused_clients += 1;
    }

    /// Counts clients' connections that were closed because nothing passed over them.
    pub(super) fn count_idle_clients(&mut self, clients: u64) {
        self.dropped.idle_clients += clients;
    }

    /// Counts UDP flows that were evicted for others.
    pub(super) fn count_replaced_flows(&mut self, flows: u64) {
        self.dropped.replaced_flows += flows;
    }

    /// `true` if a VM is attached.
    pub(super) fn has_vm(&self) -> bool {
        self.vms.values().any(|port| port.connection().is_some())
    }

    /// The counters of what was dropped since the start.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Lets the gateway process what came in, and returns what the caller has to do.
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
        let word_due_us = self.settle_carried(now_us);
        let gateway_due_us = self.gateway.deadline_us(now_us);
        Settled {
            woken: std::mem::take(&mut self.woken),
            events: std::mem::take(&mut self.events),
            deadline_us: [heartbeat_due_us, word_due_us, gateway_due_us].into_iter().flatten().min(),
        }
    }

    /// Sends each attached VM a heartbeat once per interval, and gives up those whose host is
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
            self.roles.insert(connection, ConnectionRole::Lost(PortLost { fenced_by: None }));
            self.events.push(LanEvent::Silent { vm, generation });
        }
        self.heartbeat_due_us = self.has_attached.then_some(now_us + self.heartbeat_us);
        self.heartbeat_due_us
    }

    /// Wakes the connections of VMs that have waited long enough to hear that outputs were carried.
    /// Returns when the next one is due.
    fn settle_carried(&mut self, now_us: u64) -> Option<u64> {
        let Self { vms, carried_due_us, woken, .. } = self;
        carried_due_us.retain(|key, due_us| {
            let Some(port) = vms.get(key).filter(|port| port.owes_carried()) else { return false };
            let due_us = *due_us.get_or_insert(now_us + CARRIED_DELAY_US);
            if due_us <= now_us {
                woken.extend(port.connection());
            }
            due_us > now_us
        });
        carried_due_us.values().flatten().min().copied()
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
            self.evict(replaced, old_generation, attachment);
        }
        self.roles.insert(connection, ConnectionRole::Vm(key));
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
    fn evict(&mut self, connection: ConnectionId, generation: Generation, by: &Attachment) {
        let fenced_by = (by.generation > generation).then_some(by.generation);
        self.roles.insert(connection, ConnectionRole::Lost(PortLost { fenced_by }));
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
mod tests;
