//! A VM's attachment to its LAN: attaches, passes packets on, and attaches again after a loss.

use crate::lan::Attachment;
use crate::lan::client::LanError;
use crate::lan::port::{FromLan, PortEvent, PortReader, PortSender, PortTiming, open};
use crate::lan::session::AttachAnswer;
use crate::node::host::{Connection, Destination, Host, Next};
use crate::node::reports::NodeReport;
use ft::mutation::{Mutation, mutated};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use vm::OutputId;

/// The attachment's intervals and timeouts.
#[derive(Clone, Copy, Debug)]
pub struct AttachmentTiming {
    /// The connection's.
    pub port: PortTiming,
    /// The time until the next try to attach to a network that is away, in nanoseconds.
    pub retry_ns: u64,
    /// The time until the next try with a LAN that refuses this side because it serves another
    /// owner of the VM, in nanoseconds.
    pub retry_refused_ns: u64,
    /// How often a full inbox is checked for room, in nanoseconds.
    pub full_ns: u64,
}

impl Default for AttachmentTiming {
    fn default() -> Self {
        Self { port: PortTiming::default(), retry_ns: 50_000_000, retry_refused_ns: 1_000_000_000, full_ns: 1_000_000 }
    }
}

/// What attaches, and where.
#[derive(Clone, Debug)]
pub struct AttachmentConfig {
    /// The VM.
    pub vm: VmId,
    /// The VM's owner.
    pub node: NodeId,
    /// The generation in which the guest was reset.
    pub booted: Generation,
    /// The MAC address of the guest's network device.
    pub mac: [u8; 6],
    /// The LAN's address.
    pub lan: SocketAddr,
}

/// The result of giving the guest a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestDelivery {
    /// The packet is in the inbox.
    Taken,
    /// The inbox is full; the packet is returned.
    Full(Vec<u8>),
    /// The guest has ended.
    Gone,
}

/// The owner of a VM on a LAN: what the attachment needs from it.
pub trait LanUser {
    /// What runs the owner.
    type Host: Host;

    /// The owner's host, which has its clock, its connections, its reports and the guest's inbox.
    fn host(&self) -> &Self::Host;

    /// `true` once the guest has ended.
    fn is_over(&self) -> bool;

    /// The generation under which the VM runs here, and the outputs that may be sent to a LAN that
    /// doesn't know the VM: from the first that hasn't left to one past the last produced.
    fn owner(&self) -> (Generation, Range<OutputId>);

    /// The LAN has accepted the attachment, and has carried all outputs before `next_output`. Those
    /// in flight that it hasn't carried must be sent by `sender` before any other.
    fn attached(&self, sender: PortSender<<Self::Host as Host>::Connection>, next_output: OutputId);

    /// The LAN is lost. Outputs stay in flight until it is attached again, and are sent then.
    fn detached(&self);

    /// A heartbeat to the LAN is due.
    fn send_heartbeat(&self);

    /// The LAN refuses this owner. Either the VM has another owner, which the arbiter knows, or the
    /// LAN's operator made a mistake.
    fn refused(&self);

    /// The LAN has carried all outputs before `next_output`.
    fn carried(&self, next_output: OutputId);
}

/// The sending end of a VM's attachment to its LAN.
#[derive(Debug)]
pub struct LanOutput<C> {
    sender: Option<PortSender<C>>,
}

impl<C> Default for LanOutput<C> {
    fn default() -> Self {
        Self { sender: None }
    }
}

impl<C: Connection> LanOutput<C> {
    /// Sets the connection's sender; `None` while the LAN is away.
    pub fn set(&mut self, sender: Option<PortSender<C>>) {
        self.sender = sender;
    }

    /// `true` if more packets may be sent: the connection has taken all earlier ones. A LAN that is
    /// away "takes" everything, because all of it is sent again when it is attached.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.sender.as_ref().is_none_or(PortSender::has_room)
    }

    /// Sends packets; `false` if the LAN is away.
    pub fn send(&mut self, now_ns: u64, packets: &[(OutputId, &[u8])]) -> bool {
        self.with_sender(|sender| sender.send(now_ns, packets))
    }

    /// Sends a heartbeat if one is due.
    pub fn send_heartbeat(&mut self, now_ns: u64) {
        self.with_sender(|sender| sender.send_heartbeat(now_ns));
    }

    /// Sends what the connection hadn't taken. Gives up a LAN that has taken nothing for too long.
    pub fn flush(&mut self, now_ns: u64) {
        self.with_sender(|sender| sender.flush(now_ns));
    }

    fn with_sender(&mut self, send: impl FnOnce(&mut PortSender<C>) -> io::Result<()>) -> bool {
        let Some(sender) = &mut self.sender else { return false };
        let Err(error) = send(sender) else { return true };
        tracing::warn!("the network took nothing: {error}");
        // The reader of the connection notices, and attaches again.
        sender.cut();
        self.sender = None;
        false
    }
}

/// Decides which losses of a network are reported.
#[derive(Debug, Default)]
pub struct LossReports {
    reported: Option<String>,
}

impl LossReports {
    /// The report of a lost network or a failed attempt to attach. Of successive failed attempts
    /// only the first is reported, and each new refusal.
    pub fn report(&mut self, reason: String, was_attached: bool, is_refusal: bool) -> Option<NodeReport> {
        let is_new = was_attached || self.reported.is_none() || (is_refusal && self.reported.as_ref() != Some(&reason));
        is_new.then(|| {
            self.reported = Some(reason.clone());
            NodeReport::LanLost { reason }
        })
    }
}

#[derive(Debug)]
enum AttachmentState<C> {
    /// No connection; the next attempt is at this time.
    Away { until_ns: u64 },
    /// The LAN has been sent Attach.
    Asking { reader: PortReader<C>, sender: PortSender<C> },
    /// The port is open; `waiting` is a packet that the inbox had no room for.
    Attached { reader: PortReader<C>, waiting: Option<(u64, Vec<u8>)> },
}

/// A VM's attachment to a LAN.
#[derive(Debug)]
pub struct LanAttachment<C> {
    config: AttachmentConfig,
    timing: AttachmentTiming,
    state: AttachmentState<C>,
    /// The number of the last packet that the guest got.
    last_packet: u64,
    losses: LossReports,
}

/// Why an attachment can't go on.
enum AttachmentLoss {
    Guest,
    Lan(LanError),
}

impl From<LanError> for AttachmentLoss {
    fn from(error: LanError) -> Self {
        Self::Lan(error)
    }
}

impl<C: Connection> LanAttachment<C> {
    /// An attachment that hasn't been tried yet. `last_packet` is the number of the last packet
    /// that the guest got.
    #[must_use]
    pub fn new(config: AttachmentConfig, timing: AttachmentTiming, last_packet: u64) -> Self {
        Self {
            config,
            timing,
            state: AttachmentState::Away { until_ns: 0 },
            last_packet,
            losses: LossReports::default(),
        }
    }

    /// `true` while the port is open.
    #[must_use]
    pub const fn is_attached(&self) -> bool {
        matches!(self.state, AttachmentState::Attached { .. })
    }

    /// Attaches when an attempt is due, passes on what has arrived, and gives up a LAN that is
    /// silent.
    pub fn step(&mut self, user: &impl LanUser<Host: Host<Connection = C>>) -> Next {
        match self.try_step(user) {
            Ok(next) => next,
            Err(AttachmentLoss::Guest) => self.leave(),
            Err(AttachmentLoss::Lan(_)) if user.is_over() => self.leave(),
            Err(AttachmentLoss::Lan(error)) => self.lose(user, &error),
        }
    }

    /// Makes one attempt to attach and returns when it has succeeded or failed, for a guest that
    /// must not run before.
    ///
    /// # Errors
    /// The LAN's reason, if it refuses.
    pub fn try_once(&mut self, user: &impl LanUser<Host: Host<Connection = C>>) -> Result<(), String> {
        loop {
            match self.try_step(user) {
                Ok(_) if matches!(self.state, AttachmentState::Asking { .. }) => {}
                Ok(_) | Err(AttachmentLoss::Guest) => return Ok(()),
                Err(AttachmentLoss::Lan(error)) => {
                    let refusal = error.is_refusal().then(|| error.to_string());
                    self.lose(user, &error);
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn try_step(&mut self, user: &impl LanUser<Host: Host<Connection = C>>) -> Result<Next, AttachmentLoss> {
        if user.is_over() {
            return Err(AttachmentLoss::Guest);
        }
        let now_ns = user.host().now_ns();
        match &mut self.state {
            AttachmentState::Away { until_ns } if now_ns < *until_ns => Ok(Next::Wait { until_ns: *until_ns }),
            AttachmentState::Away { .. } => self.attach(user),
            AttachmentState::Asking { reader, sender } => {
                let event = reader.receive(now_ns)?;
                sender.flush(now_ns).map_err(LanError::from)?;
                match event {
                    PortEvent::Attached(answer) => self.become_attached(user, answer),
                    PortEvent::Nothing => return Ok(Next::Arrival { until_ns: reader.due_ns() }),
                    PortEvent::Part | PortEvent::FromLan(_) => {}
                }
                Ok(Next::Now)
            }
            AttachmentState::Attached { reader, waiting } => {
                if let Some((number, packet)) = waiting.take() {
                    return self.give(user, number, packet);
                }
                match reader.receive(now_ns)? {
                    PortEvent::FromLan(FromLan::Packet { number, packet }) => return self.give(user, number, packet),
                    PortEvent::FromLan(FromLan::Carried { next_output }) => user.carried(next_output),
                    PortEvent::FromLan(FromLan::HeartbeatDue) => user.send_heartbeat(),
                    PortEvent::Attached(_) | PortEvent::Part => {}
                    PortEvent::Nothing => return Ok(Next::Arrival { until_ns: reader.due_ns() }),
                }
                Ok(Next::Now)
            }
        }
    }

    fn attach(&mut self, user: &impl LanUser<Host: Host<Connection = C>>) -> Result<Next, AttachmentLoss> {
        let (generation, outputs) = user.owner();
        let AttachmentConfig { vm, node, booted, mac, .. } = self.config.clone();
        let attachment = Attachment {
            vm,
            node,
            generation,
            mac,
            next_output: outputs.start,
            output_end: outputs.end,
            last_packet: self.last_packet,
            booted,
        };
        let connection = user.host().connect(Destination::Lan(self.config.lan)).map_err(LanError::from)?;
        let (reader, sender) =
            open(connection, &attachment, &self.timing.port, user.host().now_ns()).map_err(LanError::from)?;
        let until_ns = reader.due_ns();
        self.state = AttachmentState::Asking { reader, sender };
        Ok(Next::Arrival { until_ns })
    }

    fn become_attached(&mut self, user: &impl LanUser<Host: Host<Connection = C>>, answer: AttachAnswer) {
        let AttachAnswer { first_packet, next_output } = answer;
        if first_packet > self.last_packet.saturating_add(1) {
            tracing::warn!(first_packet, last_packet = self.last_packet, "the LAN no longer keeps all missing packets");
        }
        let state = std::mem::replace(&mut self.state, AttachmentState::Away { until_ns: 0 });
        if let AttachmentState::Asking { reader, sender } = state {
            self.state = AttachmentState::Attached { reader, waiting: None };
            user.host().report(&NodeReport::LanAttached { lan: self.config.lan.to_string() });
            user.attached(sender, next_output);
        }
    }

    /// Gives the guest a packet. While the inbox is full, heartbeats to the LAN go on.
    fn give(
        &mut self,
        user: &impl LanUser<Host: Host<Connection = C>>,
        number: u64,
        packet: Vec<u8>,
    ) -> Result<Next, AttachmentLoss> {
        let AttachmentState::Attached { reader, waiting } = &mut self.state else { return Ok(Next::Now) };
        match user.host().deliver_packet(number, packet) {
            GuestDelivery::Taken => {
                self.last_packet = number;
                Ok(Next::Now)
            }
            GuestDelivery::Gone => Err(AttachmentLoss::Guest),
            GuestDelivery::Full(_) if mutated(Mutation::PacketForgotten) => Ok(Next::Now),
            GuestDelivery::Full(packet) => {
                *waiting = Some((number, packet));
                let now_ns = user.host().now_ns();
                if reader.excuse(now_ns)? {
                    user.send_heartbeat();
                }
                Ok(Next::Room { until_ns: now_ns + self.timing.full_ns })
            }
        }
    }

    fn leave(&mut self) -> Next {
        self.state = AttachmentState::Away { until_ns: u64::MAX };
        Next::Done
    }

    fn lose(&mut self, user: &impl LanUser<Host: Host<Connection = C>>, error: &LanError) -> Next {
        let was_attached = self.is_attached();
        if was_attached {
            user.detached();
        }
        let is_refusal = error.is_refusal();
        let reason = match is_refusal {
            true => format!("{error}; the arbiter is asked who owns the VM, and the LAN again every second"),
            false => error.to_string(),
        };
        if let Some(report) = self.losses.report(reason, was_attached, is_refusal) {
            user.host().report(&report);
        }
        let now_ns = user.host().now_ns();
        let until_ns = match (is_refusal, was_attached) {
            (true, _) => now_ns + self.timing.retry_refused_ns,
            // A LAN that was attached is most probably still there.
            (false, true) => now_ns,
            (false, false) => now_ns + self.timing.retry_ns,
        };
        if let AttachmentState::Asking { reader, .. } | AttachmentState::Attached { reader, .. } =
            std::mem::replace(&mut self.state, AttachmentState::Away { until_ns })
        {
            reader.cut();
        }
        if mutated(Mutation::NeverAttachAgain) {
            self.state = AttachmentState::Away { until_ns: u64::MAX };
        }
        if is_refusal {
            user.refused();
        }
        Next::Wait { until_ns }
    }
}
