//! The primary without its threads: the role, its channel and its outputs, and steps that never
//! wait.

use super::pending::PendingLine;
use crate::lan::port::PortSender;
use crate::node::channel::{Arrived, Channel, ChannelReader, lock, serve};
use crate::node::host::{Host, Next, Observation, OutputSink, StepKind};
use crate::node::io::lan::LanUser;
use crate::os::rate_limit::RateLimits;
use ft::mutation::{Mutation, mutated};
use ft::role::{FULL_SHARE, PrimaryAction, PrimaryRole};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use vm::{OutputId, OutputOperation};

/// How often the role's timers are checked, in nanoseconds.
const TICK_NS: u64 = 5_000_000;

/// How often they are checked while outputs are held, in nanoseconds. The timer step also reads
/// acknowledgements, so this bounds the delay of outputs if the host doesn't schedule the vCPU
/// thread.
const TICK_WHILE_HOLDING_NS: u64 = 1_000_000;

/// Which VM this side runs, and as which node.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The VM.
    pub vm: VmId,
    /// The node: this incarnation of the side.
    pub node: NodeId,
    /// `HOST:PORT` where this side accepts a backup, as its claims tell others.
    pub address: String,
}

/// A VM that runs live. The atomics are copies of what the role says, readable without its lock.
pub struct PrimarySide<H: Host> {
    pub(super) host: H,
    pub(super) identity: Identity,
    pub(super) role: Mutex<PrimaryRole>,
    pub(super) channel: Channel<H::Connection>,
    /// The number of spares.
    pub(super) spares: AtomicUsize,
    /// Held while a backup is admitted, so that the channel is connected before the role speaks to
    /// it.
    pub(super) admission: Mutex<()>,
    /// Rate limits of the lines about pending connections.
    pub(super) pending_lines: Mutex<RateLimits<PendingLine>>,
    pub(super) sink: Arc<Mutex<H::Sink>>,
    pub(super) may_run: AtomicBool,
    /// The guest's clock stands still because the VM is paused.
    pub(super) clock_stands: AtomicBool,
    /// Outputs are held until the backup acknowledges them or the log is on disk.
    pub(super) holding: AtomicBool,
    /// The generation under which this node owns the VM.
    pub(super) generation: AtomicU64,
    /// A backup is joining and doesn't have the guest's memory yet.
    pub(super) copying: AtomicBool,
    /// The pending step sends everything for the joining backup, so that a full channel doesn't
    /// stop the vCPU thread.
    pub(super) sending_memory: AtomicBool,
    /// The guest's share of the vCPU's time, in parts of [`FULL_SHARE`].
    pub(super) share: AtomicU32,
    /// The LAN's connection was full: a rest of earlier outputs is still to be written.
    is_lan_full: AtomicBool,
    pub(super) over: Arc<AtomicBool>,
    /// The role's actions that the control step has yet to do.
    pub(super) actions: Mutex<VecDeque<PrimaryAction>>,
}

impl<H: Host> fmt::Debug for PrimarySide<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimarySide").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl<H: Host> PrimarySide<H> {
    /// A side that runs `role` and writes its outputs to `sink`.
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
            admission: Mutex::default(),
            pending_lines: Mutex::default(),
            is_lan_full: AtomicBool::new(false),
            over: Arc::default(),
            actions: Mutex::default(),
            identity,
            host,
        }
    }

    /// Locks the role.
    pub fn role(&self) -> MutexGuard<'_, PrimaryRole> {
        lock(&self.role)
    }

    /// Locks the output sink.
    pub fn sink(&self) -> MutexGuard<'_, H::Sink> {
        lock(&self.sink)
    }

    /// `true` once the side has ended: all its steps return [`Next::Done`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Ends the side: each step finishes at its next call.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.host.wake(StepKind::Vcpu);
    }

    /// Reads the backup's messages and checks the role's timers.
    pub fn step_timers(&self) -> Next {
        if self.is_over() {
            return Next::Done;
        }
        self.receive_messages();
        self.drive(PrimaryRole::handle_tick);
        let tick_ns = if self.holding.load(Ordering::Acquire) { TICK_WHILE_HOLDING_NS } else { TICK_NS };
        Next::Wait { until_ns: self.host.now_ns() + tick_ns }
    }

    /// Gives the role an input and sends what follows from it: first the messages to the backup,
    /// which an acknowledgement depends on, and then the released outputs.
    pub fn drive(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        self.give(input);
        self.send_outgoing();
        self.write_released();
    }

    /// Gives the role an input; the caller sends messages and outputs.
    ///
    /// The role's actions are queued under its lock, so they are done and reported in the order in
    /// which the role decided them. A lost backup's connection is cut at once, before the role can
    /// admit the next backup, whose connection would be cut instead.
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
                // Must be observed before any output leaves in the new generation.
                PrimaryAction::Owner(generation) => self.host.observe(Observation::Owns(*generation)),
                PrimaryAction::Claim(_)
                | PrimaryAction::CheckClaim
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

    /// Sends what the role has for the backup, unless the pending step does that for a joining one:
    /// the guest must not wait for a full channel then.
    pub(super) fn send_outgoing(&self) {
        if !self.sending_memory.load(Ordering::SeqCst) {
            self.write_outgoing();
        }
    }

    /// Sends what the role has for the backup.
    pub(super) fn write_outgoing(&self) {
        self.channel.send(|| lock(&self.role).has_outgoing(), |buffer| lock(&self.role).poll_outgoing(buffer));
    }

    /// Writes the released outputs, unless another thread is writing, or the LAN hasn't taken the
    /// rest of earlier ones.
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
            // Some lines may have been written or dropped at once; the host reports the others
            // later.
            let left = self.host.console_left();
            lock(&self.role).handle_console_left(left);
        }
    }

    /// All console output below `next` has been written, or dropped because its reader stalls. The
    /// guest may run again if it was stopped for that output.
    pub fn console_left(&self, next: OutputId) {
        // This is the console writer's thread, which must not wait for the network.
        self.give(|role, _| role.handle_console_left(next));
    }

    /// Gives the role the backup's messages, unless another thread is doing it. The reader stays
    /// locked until the role has them, which keeps them in order.
    pub fn receive_messages(&self) {
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
            // Threads that wait for this connection would otherwise wake up again and again.
            self.channel.cut();
        }
        drop(reader);
        self.send_outgoing();
        self.write_released();
    }
}

impl<H: Host> LanUser for PrimarySide<H> {
    type Host = H;

    fn host(&self) -> &H {
        &self.host
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
            // Both stay locked until the role has taken back what was in flight: no newer output
            // may overtake it.
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
        // If another thread holds the output sink, it is sending packets, which count as
        // heartbeats.
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.lan().send_heartbeat(self.host.now_ns());
        }
        // A thread that had outputs to write meanwhile found the sink locked and went on.
        self.write_released();
    }

    fn refused(&self) {
        self.drive(|role, _| role.handle_refusal());
    }

    fn carried(&self, next_output: OutputId) {
        lock(&self.role).handle_carried(next_output);
    }
}
