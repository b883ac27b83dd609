//! A VM that runs live, without its threads: the primary's role, its connection and its outputs, in
//! steps that never wait.

use super::pending::PendingLine;
use crate::lan::port::PortSender;
use crate::node::channel::{Arrived, Channel, ChannelReader, lock, serve};
use crate::node::host::{Host, Listener, Next, Observation, OutputSink, StepKind};
use crate::node::io::lan::{Given, LanUser};
use crate::node::reports::NodeReport;
use crate::os::rate_limit::RateLimits;
use ft::mutation::{Mutation, mutated};
use ft::role::{FULL_SHARE, PrimaryAction, PrimaryRole};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use vm::{OutputId, OutputOperation};

/// From one look at heartbeats, timeouts and waiting entries to the next, in nanoseconds.
const TICK_NS: u64 = 5_000_000;

/// The same while outputs are held: a vCPU thread that the host doesn't let run must not hold them
/// for long.
const TICK_WHILE_HOLDING_NS: u64 = 1_000_000;

/// Who this side is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Which VM it runs.
    pub vm: VmId,
    /// Which incarnation.
    pub node: NodeId,
    /// Where it accepts a backup, as told to others.
    pub address: String,
}

/// A VM that runs live.
pub struct PrimarySide<H: Host> {
    pub(super) host: H,
    pub(super) identity: Identity,
    pub(super) role: Mutex<PrimaryRole>,
    pub(super) channel: Channel<H::Connection>,
    /// How many backups wait for the place of the one that there is.
    pub(super) spares: AtomicUsize,
    /// For whoever takes a backup.
    pub(super) taking: Mutex<()>,
    /// How often lines about pending connections are told.
    pub(super) pending_lines: Mutex<RateLimits<PendingLine>>,
    pub(super) sink: Arc<Mutex<H::Sink>>,
    pub(super) may_run: AtomicBool,
    /// The guest's clock stands, because the VM is paused.
    pub(super) clock_stands: AtomicBool,
    /// Outputs wait for the backup.
    pub(super) holding: AtomicBool,
    /// As which this node owns the VM.
    pub(super) generation: AtomicU64,
    /// A backup that joins gets the guest's memory.
    pub(super) copying: AtomicBool,
    /// The pending connection that joins sends everything that goes to it: there may be much.
    pub(super) sending_memory: AtomicBool,
    /// The guest's part of the vCPU's time, of [`FULL_SHARE`].
    pub(super) share: AtomicU32,
    /// The LAN hasn't taken all that was put out: the rest is put out later.
    is_lan_full: AtomicBool,
    pub(super) over: Arc<AtomicBool>,
    /// What takes time, or ends this side.
    pub(super) actions: Mutex<VecDeque<PrimaryAction>>,
}

impl<H: Host> fmt::Debug for PrimarySide<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimarySide").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl<H: Host> PrimarySide<H> {
    /// A side that runs the VM as `role` says.
    pub fn new(host: H, identity: Identity, role: PrimaryRole, sink: H::Sink) -> Self {
        Self {
            sink: Arc::new(Mutex::new(sink)),
            generation: AtomicU64::new(role.generation().0),
            clock_stands: AtomicBool::new(!role.clock().is_running()),
            role: Mutex::new(role),
            channel: Channel::default(),
            may_run: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            copying: AtomicBool::new(false),
            sending_memory: AtomicBool::new(false),
            share: AtomicU32::new(FULL_SHARE),
            spares: AtomicUsize::new(0),
            taking: Mutex::default(),
            pending_lines: Mutex::default(),
            is_lan_full: AtomicBool::new(false),
            over: Arc::default(),
            actions: Mutex::default(),
            identity,
            host,
        }
    }

    /// The role, to look at it.
    pub fn role(&self) -> MutexGuard<'_, PrimaryRole> {
        lock(&self.role)
    }

    /// The output sink.
    pub fn sink(&self) -> MutexGuard<'_, H::Sink> {
        lock(&self.sink)
    }

    /// Whether this side is over: its steps are done.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends this side's steps.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.host.wake(StepKind::Vcpu);
    }

    /// Tells the role that time has passed.
    pub fn step_timers(&self) -> Next {
        if self.is_over() {
            return Next::Done;
        }
        self.hear_backup();
        self.drive(PrimaryRole::handle_tick);
        let tick_ns = if self.holding.load(Ordering::Acquire) { TICK_WHILE_HOLDING_NS } else { TICK_NS };
        Next::Wait { until_ns: self.host.now_ns() + tick_ns }
    }

    /// Gives the role an input, and does what it says: what it has for the backup first, and
    /// outputs last, so that who waits for an answer doesn't wait for them.
    pub fn drive(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        self.give(input);
        self.send_outgoing();
        self.write_released();
    }

    /// Gives the role an input. What it has to be sent and put out is for the caller.
    ///
    /// What it wants done is handed on before another thread can give it the next input: things are
    /// done and reported in the order in which the role says them. A connection is cut at once,
    /// before the role can take the next backup, whose connection it would be.
    pub(super) fn give(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        let mut role = lock(&self.role);
        let now_ns = self.host.now_ns();
        input(&mut role, now_ns);
        let may_run = role.may_run();
        if !self.may_run.swap(may_run, Ordering::AcqRel) && may_run {
            self.host.wake(StepKind::Vcpu);
        }
        self.clock_stands.store(role.clock_stands(now_ns), Ordering::Release);
        self.holding.store(role.gate().held() > 0, Ordering::Release);
        self.generation.store(role.generation().0, Ordering::Relaxed);
        self.copying.store(role.is_copying(), Ordering::Release);
        self.share.store(role.share(), Ordering::Relaxed);
        while let Some(action) = role.poll_action() {
            match &action {
                PrimaryAction::CloseChannel { .. } => self.channel.cut(),
                // Before anything leaves in the new generation.
                PrimaryAction::Owner(generation) => self.host.observe(Observation::Owns(*generation)),
                PrimaryAction::Claim(_)
                | PrimaryAction::Look
                | PrimaryAction::Refill(_)
                | PrimaryAction::ClaimsLost { .. }
                | PrimaryAction::ClaimsRestored(_)
                | PrimaryAction::Confirmed(_)
                | PrimaryAction::Stranded(_)
                | PrimaryAction::Protected(_)
                | PrimaryAction::HandOver
                | PrimaryAction::End(_) => {}
            }
            lock(&self.actions).push_back(action);
            self.host.wake(StepKind::Control);
        }
    }

    /// Sends what the role has for the backup, unless the pending connection that joins does: the
    /// guest doesn't wait for the channel while a backup joins.
    pub(super) fn send_outgoing(&self) {
        if !self.sending_memory.load(Ordering::SeqCst) {
            self.write_outgoing();
        }
    }

    /// The same, whoever sends.
    pub(super) fn write_outgoing(&self) {
        self.channel.send(|| lock(&self.role).has_outgoing(), |buffer| lock(&self.role).poll_outgoing(buffer));
    }

    /// Puts out what is released, unless another thread does, or the LAN has not taken yet what was
    /// put out before.
    pub fn write_released(&self) {
        let is_full = || self.is_lan_full.load(Ordering::SeqCst);
        let mut tries_rest = is_full();
        let is_pending = || std::mem::take(&mut tries_rest) || (!is_full() && lock(&self.role).gate().has_released());
        serve(&self.sink, is_pending, |sink| {
            sink.lan().flush(self.host.now_ns());
            if sink.lan().has_room() {
                self.write_outputs(sink);
            }
            self.is_lan_full.store(!sink.lan().has_room(), Ordering::SeqCst);
        });
    }

    pub(super) fn write_outputs(&self, sink: &mut H::Sink) {
        let batch: Vec<_> = {
            let mut role = lock(&self.role);
            std::iter::from_fn(|| role.poll_released()).collect()
        };
        let Some(last) = batch.last() else { return };
        let next = last.id.next();
        if sink.write(&batch) {
            lock(&self.role).handle_carried(next);
        }
        if batch.iter().any(|released| matches!(*released.operation, OutputOperation::Console(_))) {
            // Some may have been written or dropped at once; of the rest the host tells.
            let left = self.host.console_left();
            lock(&self.role).handle_console_left(left);
        }
    }

    /// All console output below `next` is written, or dropped because nobody reads it: what had to
    /// stop the guest may not any more.
    pub fn console_left(&self, next: OutputId) {
        // Whoever writes to the console must not wait for the network.
        self.give(|role, _| role.handle_console_left(next));
    }

    /// Gives the role what the backup has said, unless another thread is doing it. Messages reach
    /// the role in their order because the reader is kept until they have.
    pub fn hear_backup(&self) {
        let Ok(mut reader) = self.channel.reader.try_lock() else { return };
        let Some(arrived) = reader.as_mut().map(ChannelReader::take) else { return };
        let (messages, end) = match arrived {
            Arrived::Messages(messages) if messages.is_empty() => return,
            Arrived::Messages(messages) => (messages, None),
            Arrived::Last { messages, reason } => (messages, Some(reason)),
        };
        let input = |role: &mut PrimaryRole, now_ns| {
            for message in messages {
                role.handle_message(now_ns, message);
            }
            if let Some(reason) = &end {
                role.handle_disconnect(reason);
            }
        };
        self.give(input);
        if end.is_some() {
            *reader = None;
            // Whoever waits for this connection would wake up at once, for ever.
            self.channel.cut();
        }
        drop(reader);
        self.send_outgoing();
        self.write_released();
    }
}

impl<H: Host> LanUser for PrimarySide<H> {
    type Connection = H::Connection;

    fn connect(&self, lan: SocketAddr) -> io::Result<Arc<H::Connection>> {
        self.host.connect(Listener::Lan(lan))
    }

    fn now_ns(&self) -> u64 {
        self.host.now_ns()
    }

    fn report(&self, report: &NodeReport) {
        self.host.report(report);
    }

    fn is_over(&self) -> bool {
        self.is_over()
    }

    fn owner(&self) -> (Generation, Range<OutputId>) {
        let role = lock(&self.role);
        (role.generation(), role.gate().next_to_leave()..role.gate().end())
    }

    fn attached(&self, sender: PortSender<H::Connection>, next_output: OutputId) {
        {
            // Locked until the role knows, so that nothing overtakes what is to be sent again.
            let mut sink = lock(&self.sink);
            let mut role = lock(&self.role);
            self.host.observe(Observation::Attached(next_output, role.gate()));
            if !mutated(Mutation::NothingSentAgain) {
                role.handle_attachment(next_output);
            }
            drop(role);
            sink.lan().set(Some(sender));
            self.is_lan_full.store(false, Ordering::SeqCst);
        }
        self.write_released();
    }

    fn detached(&self) {
        lock(&self.sink).lan().set(None);
        self.write_released();
    }

    fn send_heartbeat(&self) {
        // If another thread holds the output sink, it is sending packets, which say as much.
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.lan().send_heartbeat(self.host.now_ns());
        }
        // What was released meanwhile found the output sink taken.
        self.write_released();
    }

    fn refused(&self) {
        self.drive(|role, _| role.handle_refusal());
    }

    fn carried(&self, next_output: OutputId) {
        lock(&self.role).handle_carried(next_output);
    }

    fn give_packet(&self, number: u64, packet: Vec<u8>) -> Given {
        self.host.give_packet(number, packet)
    }
}
