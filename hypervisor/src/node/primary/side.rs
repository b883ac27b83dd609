//! A VM that runs live, without its threads: the primary's role, its connection and its outputs, in
//! steps that never wait.

use super::pending::PendingLine;
use crate::node::channel::{Arrived, Channel, ChannelReader, lock, serve};
use crate::node::host::{Host, Next, Observation, OutputSink, StepKind};
use crate::node::io::network::NetworkEvents;
use crate::os::rate_limit::RateLimits;
use ft::role::{FULL_SHARE, PrimaryAction, PrimaryRole};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::collections::VecDeque;
use std::fmt;
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

    /// Gives the role an input, and does what it says.
    pub fn drive(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        let actions = self.give(input);
        self.carry_out(actions);
    }

    /// Gives the role an input; what it wants done has to be carried out next.
    ///
    /// A connection is cut at once, before the role can take the next backup, whose connection it
    /// would be.
    pub(super) fn give(&self, input: impl FnOnce(&mut PrimaryRole, u64)) -> Vec<PrimaryAction> {
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
        let actions: Vec<_> = std::iter::from_fn(|| role.poll_action()).collect();
        for action in &actions {
            match action {
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
        }
        actions
    }

    /// Gives the role an input, and does what it says but for its outputs: for those who must not
    /// wait for the network, which takes a batch as fast as it can.
    pub fn drive_without_outputs(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        let actions = self.give(input);
        self.send_outgoing();
        self.pass_on(actions);
    }

    /// A question to the arbiter doesn't wait for the network either.
    fn carry_out(&self, actions: Vec<PrimaryAction>) {
        self.send_outgoing();
        self.pass_on(actions);
        self.write_released();
    }

    pub(super) fn pass_on(&self, actions: Vec<PrimaryAction>) {
        if !actions.is_empty() {
            lock(&self.actions).extend(actions);
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

    /// Puts out what is released, unless another thread does.
    pub fn write_released(&self) {
        serve(&self.sink, || lock(&self.role).gate().has_released(), |sink| self.write_outputs(sink));
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
        self.pass_on(self.give(|role, _| role.handle_console_left(next)));
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
        let actions = self.give(input);
        if end.is_some() {
            *reader = None;
            // Whoever waits for this connection would wake up at once, for ever.
            self.channel.cut();
        }
        drop(reader);
        self.carry_out(actions);
    }
}

impl<H: Host> NetworkEvents for PrimarySide<H> {
    fn owner(&self) -> (Generation, Range<OutputId>) {
        let role = lock(&self.role);
        (role.generation(), role.gate().next_to_leave()..role.gate().end())
    }

    fn attached(&self, next_output: OutputId) {
        lock(&self.role).handle_attachment(next_output);
    }

    fn ready(&self) {
        self.write_released();
    }

    fn refused(&self) {
        self.drive(|role, _| role.handle_refusal());
    }

    fn carried(&self, next_output: OutputId) {
        lock(&self.role).handle_carried(next_output);
    }
}
