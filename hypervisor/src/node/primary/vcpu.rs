//! The vCPU step: runs the guest, sends its log, reads acknowledgements, and copies the guest's
//! memory for a joining backup.

use super::join_figures::JoinFigures;
use super::side::PrimarySide;
use crate::node::channel::lock;
use crate::node::host::{GuestInput, Host, Observation};
use crate::node::log::{FinishingLog, SideDiskLog};
use crate::node::reports::NodeReport;
use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use ft::record::{Intervals, LogSink, Recorder, Slice};
use ft::role::FULL_SHARE;
use ft::trouble::Watch;
use logchannel::entry::{Generation, LogEntry};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm::{InstructionCount, Machine, OutputId, OutputOperation};

/// The guest's steps between two checks for acknowledgements while outputs are held: about 2
/// microseconds.
const SLICE_STEPS_WHILE_HOLDING: u64 = 300;

/// How long an idle vCPU spins for the acknowledgement of held outputs before it sleeps, in
/// nanoseconds. A prompt backup answers sooner, and other users of the core hardly notice it.
const SPIN_NS: u64 = 200_000;

/// How many sleeps without spinning follow a spin that brought no acknowledgement: on a crowded
/// host the backup needs the CPU.
const SPIN_REST: u32 = 32;

/// The longest sleep of the vCPU, in nanoseconds.
const SLEEP_NS_MAX: u64 = 100_000_000;

/// The longest sleep while memory is to be copied, in nanoseconds.
const SLEEP_NS_MAX_WHILE_COPYING: u64 = 200_000;

/// How long a guest that has written all the pages it may waits until it is checked again, in
/// nanoseconds.
const COPY_WAIT_NS: u64 = 50_000;

/// How often an ended side checks whether its log on disk is finished, in nanoseconds.
const LOG_END_NS: u64 = 1_000_000;

/// The length of a slowed guest's pauses, in nanoseconds. It owes two of them at most, so that a
/// very slow phase doesn't slow the guest after it is over.
const YIELD_NS: u64 = 1_000_000;

/// Why the vCPU sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleeper {
    /// The guest waits for an interrupt: an input or its timer ends the sleep.
    Waiting,
    /// The guest may not run, or has ended: no input ends the sleep.
    Stopped,
}

/// When to call the vCPU step again.
#[derive(Clone, Copy, Debug)]
pub enum VcpuNext {
    /// At once.
    Now,
    /// At once, but other threads may run before: perhaps the backup, on this very core.
    Spin,
    /// At a fixed time.
    Pause {
        /// In nanoseconds of [`Host::now_ns`].
        until_ns: u64,
    },
    /// At this time, or when something ends the sleep.
    Sleep {
        /// In nanoseconds of [`Host::now_ns`].
        until_ns: u64,
        /// Whether the guest's inputs and its timer end the sleep.
        sleeper: Sleeper,
        /// Whether a message of the backup ends the sleep.
        wakes_for_backup: bool,
    },
    /// Never: the side has ended.
    Done,
}

/// A live guest and its vCPU step's state.
pub struct Vcpu<H: Host> {
    recorder: Recorder<H::Source>,
    disk_log: Option<SideDiskLog<H>>,
    /// The log on disk, once the side has ended.
    ending_log: Option<FinishingLog<H::Storage>>,
    watch: Watch,
    figures: JoinFigures,
    /// The guest's steps in one slice while no outputs are held.
    slice_steps: u64,
    logged_generation: Option<u64>,
    reported_clock: GuestClock,
    /// How many sleeps without spinning are left.
    rest: u32,
    spins_until_ns: Option<u64>,
    /// The time that a slowed guest has still to pause.
    owed_ns: u64,
    pauses_since_ns: Option<u64>,
    /// The last call returned something else than [`VcpuNext::Now`].
    has_slept: bool,
    /// The role takes no more entries, so the machine is ahead of its log and must not be copied.
    has_ended: bool,
}

impl<H: Host> fmt::Debug for Vcpu<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("machine", self.recorder.machine()).finish_non_exhaustive()
    }
}

impl<H: Host> Vcpu<H> {
    /// The guest's machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        self.recorder.machine()
    }

    /// Where the guest's events come from.
    #[must_use]
    pub const fn source(&self) -> &H::Source {
        self.recorder.source()
    }

    /// Where the guest's events come from, to add some.
    pub const fn source_mut(&mut self) -> &mut H::Source {
        self.recorder.source_mut()
    }

    /// The machine of an ended side.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.recorder.into_machine()
    }

    fn is_log_full(&self) -> bool {
        self.disk_log.as_ref().is_some_and(SideDiskLog::is_full)
    }

    fn is_log_busy(&self) -> bool {
        self.disk_log.as_ref().is_some_and(|log| log.is_copying() || log.is_full())
    }

    /// `true` while the guest stands still because its log on disk can't be resumed yet. A
    /// predecessor may have logged only some of a step's outputs: the others are logged first,
    /// because a snapshot can't have them.
    fn is_log_beginning(&self) -> bool {
        self.disk_log.as_ref().is_some_and(SideDiskLog::is_beginning) && !self.machine().has_output()
    }
}

impl<H: Host> PrimarySide<H> {
    /// The state of a vCPU that runs `machine` on the events of `source`, `slice_steps` steps at a
    /// time. `disk_log` is the log on disk, if there is one.
    pub fn vcpu(
        self: &Arc<Self>,
        machine: Machine,
        source: H::Source,
        intervals: Intervals,
        disk_log: Option<SideDiskLog<H>>,
        slice_steps: u64,
    ) -> Vcpu<H> {
        self.drive(|_, _| ());
        if let Some(log) = &disk_log {
            // The vCPU has the log, and what runs the vCPU has the side: a strong reference from
            // the log to the side would keep both for ever.
            let side = Arc::downgrade(self);
            log.listen(move |state| {
                if let Some(side) = side.upgrade() {
                    side.drive(|role, now_ns| role.handle_disk_log(now_ns, state));
                }
            });
        }
        let reported_clock = *source.clock();
        Vcpu {
            recorder: Recorder::new(machine, source, intervals),
            disk_log,
            ending_log: None,
            watch: Watch::live(self.host.now_ns()),
            figures: JoinFigures::default(),
            slice_steps,
            logged_generation: None,
            reported_clock,
            rest: 0,
            spins_until_ns: None,
            owed_ns: 0,
            pauses_since_ns: None,
            has_slept: false,
            has_ended: false,
        }
    }

    /// Runs the guest for one slice, if it may run.
    pub fn step_vcpu(&self, vcpu: &mut Vcpu<H>) -> VcpuNext {
        let next = self.run_vcpu(vcpu);
        vcpu.has_slept = !matches!(next, VcpuNext::Now);
        next
    }

    fn run_vcpu(&self, vcpu: &mut Vcpu<H>) -> VcpuNext {
        if self.is_over() {
            return self.end_log(vcpu);
        }
        if vcpu.has_slept {
            self.receive_messages();
        }
        // Every call reads the guest's clock, whatever else it does: a gap between two readings
        // counts as a pause, in which the host didn't run this thread.
        vcpu.recorder.source_mut().ticks();
        self.end_pause(vcpu);
        if self.spins(vcpu) {
            return VcpuNext::Spin;
        }
        // Neither the guest nor its clock runs until the log on disk can be resumed. The guest may
        // have to wait for its first backup after that.
        self.serve_log(vcpu);
        if vcpu.is_log_beginning() {
            return self.wait_for_copy(vcpu);
        }
        self.keep_time(vcpu);
        self.copy_for_join(vcpu);
        if !self.may_run.load(Ordering::Acquire) || vcpu.is_log_full() {
            vcpu.figures.guest_waits();
            return self.sleep(vcpu, Sleeper::Stopped);
        }
        self.run_slice(vcpu)
    }

    fn run_slice(&self, vcpu: &mut Vcpu<H>) -> VcpuNext {
        self.log_generation(vcpu);
        let holding = self.holding.load(Ordering::Acquire);
        let steps = if holding { SLICE_STEPS_WHILE_HOLDING } else { vcpu.slice_steps };
        let Some(steps) = self.steps_allowed(steps, vcpu) else { return self.wait_for_copy(vcpu) };
        vcpu.figures.guest_runs(|| self.host.now_ns());
        let share = self.share.load(Ordering::Relaxed);
        let began_ns = if share < FULL_SHARE { self.host.now_ns() } else { 0 };
        let began_at = vcpu.machine().instruction_count();
        let mut sink = RoleSink { side: self, disk_log: vcpu.disk_log.as_mut(), has_ended: &mut vcpu.has_ended };
        let Ok(slice) = vcpu.recorder.run_slice(&mut sink, steps);
        let sleeps = slice == Slice::Waiting;
        if let Some(trouble) = vcpu.watch.check(vcpu.recorder.machine_mut(), sleeps, || self.host.now_ns()) {
            self.host.report(&NodeReport::from(trouble));
        }
        if holding {
            self.receive_messages();
        }
        match slice {
            Slice::Ran if share < FULL_SHARE => self.slow(vcpu, share, began_ns, began_at),
            Slice::Ran => VcpuNext::Now,
            Slice::Waiting if self.begins_to_spin(vcpu) => VcpuNext::Spin,
            Slice::Waiting => {
                self.serve_log(vcpu);
                self.sleep(vcpu, Sleeper::Waiting)
            }
            Slice::Stopped(_) => {
                self.serve_log(vcpu);
                self.sleep(vcpu, Sleeper::Stopped)
            }
        }
    }

    /// Finishes the log on disk of an ended side.
    fn end_log(&self, vcpu: &mut Vcpu<H>) -> VcpuNext {
        if let Some(log) = vcpu.disk_log.take() {
            vcpu.ending_log = log.finish();
        }
        let Some(ending) = &mut vcpu.ending_log else { return VcpuNext::Done };
        let now_ns = self.host.now_ns();
        match ending.step(now_ns) {
            None => return VcpuNext::Pause { until_ns: now_ns + LOG_END_NS },
            Some(Ok(_)) => {}
            Some(Err(error)) => self.host.report(&NodeReport::LogLost { reason: error.to_string() }),
        }
        vcpu.ending_log = None;
        VcpuNext::Done
    }

    fn log_generation(&self, vcpu: &mut Vcpu<H>) {
        let generation = self.generation.load(Ordering::Relaxed);
        if vcpu.logged_generation.replace(generation) != Some(generation) {
            let mut sink = RoleSink { side: self, disk_log: vcpu.disk_log.as_mut(), has_ended: &mut vcpu.has_ended };
            let Ok(()) = vcpu.recorder.log_generation(&mut sink, Generation(generation));
        }
    }

    /// Starts or stops the guest's clock as the role says, and tells the role what the clock's
    /// state is now.
    fn keep_time(&self, vcpu: &mut Vcpu<H>) {
        let source = vcpu.recorder.source_mut();
        source.set_clock_running(!self.clock_stands.load(Ordering::Acquire));
        let clock = *source.clock();
        if std::mem::replace(&mut vcpu.reported_clock, clock) != clock {
            self.drive(|role, _| role.handle_clock(clock));
        }
    }

    /// Copies a piece of the guest's memory if the channel to a joining backup has room. The role
    /// isn't locked during the copy, so that heartbeats go on.
    fn copy_for_join(&self, vcpu: &mut Vcpu<H>) {
        if !self.copying.load(Ordering::Acquire) {
            if let Some(report) = vcpu.figures.take_report(|| self.host.now_ns()) {
                self.host.report(&report);
            }
            return;
        }
        vcpu.figures.guest_stands(self.host.now_ns());
        // Outputs that a predecessor hadn't logged are logged first.
        if vcpu.machine().has_output() {
            return;
        }
        let Some(mut copy) = lock(&self.role).poll_copy() else { return };
        copy.copy_piece(vcpu.recorder.machine_mut());
        vcpu.figures.copied(&copy);
        // The pending step sends the bytes: the guest doesn't wait for the channel.
        self.give(|role, now_ns| role.handle_copy(now_ns, copy));
    }

    /// Gives the log on disk its turn: it copies memory for a snapshot, and hands entries to its
    /// writer.
    fn serve_log(&self, vcpu: &mut Vcpu<H>) {
        let Some(log) = vcpu.disk_log.as_mut().filter(|_| !vcpu.has_ended) else { return };
        // Outputs that a predecessor hadn't logged come first: a snapshot can't have them.
        if vcpu.recorder.machine().has_output() {
            return;
        }
        let next = lock(&self.role).appended();
        let unsent = || lock(&self.role).gate().not_left();
        log.serve(vcpu.recorder.machine_mut(), next, unsent);
    }

    /// How many of `steps` the guest may run while its memory is copied; `None` if it must stand
    /// still.
    fn steps_allowed(&self, steps: u64, vcpu: &Vcpu<H>) -> Option<u64> {
        let is_joining = self.copying.load(Ordering::Acquire);
        let machine = vcpu.machine();
        // Outputs that a predecessor hadn't logged come first: until then no copy advances.
        if machine.has_output() {
            return Some(1);
        }
        let allowed = if is_joining { lock(&self.role).steps_allowed(steps, machine)? } else { steps };
        vcpu.disk_log.as_ref().map_or(Some(allowed), |log| log.steps_allowed(allowed, machine))
    }

    /// Holds a guest that has written as many pages as it may. If a copy can go on, the step is
    /// called at once; otherwise it waits for the channel or the disk.
    fn wait_for_copy(&self, vcpu: &Vcpu<H>) -> VcpuNext {
        let wants_copy = self.copying.load(Ordering::Acquire) && lock(&self.role).wants_copy();
        if wants_copy || vcpu.disk_log.as_ref().is_some_and(SideDiskLog::wants_copy) {
            VcpuNext::Now
        } else {
            VcpuNext::Pause { until_ns: self.host.now_ns() + COPY_WAIT_NS }
        }
    }

    /// Makes a slowed guest pause in proportion to the time it has run.
    fn slow(&self, vcpu: &mut Vcpu<H>, share: u32, began_ns: u64, began_at: InstructionCount) -> VcpuNext {
        let steps = vcpu.machine().instruction_count().since(began_at);
        let ran_ns = self.host.guest_time_ns(began_ns, steps);
        vcpu.owed_ns += ran_ns * u64::from(FULL_SHARE - share) / u64::from(share.max(1));
        if vcpu.owed_ns < YIELD_NS {
            return VcpuNext::Now;
        }
        let now_ns = self.host.now_ns();
        vcpu.pauses_since_ns = Some(now_ns);
        VcpuNext::Pause { until_ns: now_ns + YIELD_NS }
    }

    fn end_pause(&self, vcpu: &mut Vcpu<H>) {
        if let Some(since_ns) = vcpu.pauses_since_ns.take() {
            vcpu.owed_ns = vcpu.owed_ns.saturating_sub(self.host.now_ns() - since_ns).min(YIELD_NS);
        }
    }

    /// Begins to spin if outputs are held and the last spin wasn't in vain. A prompt
    /// acknowledgement is noticed sooner by polling than by a wake-up.
    fn begins_to_spin(&self, vcpu: &mut Vcpu<H>) -> bool {
        if !self.holding.load(Ordering::Acquire) {
            return false;
        }
        if vcpu.rest > 0 {
            vcpu.rest -= 1;
            return false;
        }
        vcpu.spins_until_ns = Some(self.host.now_ns() + SPIN_NS);
        self.spins(vcpu)
    }

    /// `true` while the vCPU is to go on spinning.
    fn spins(&self, vcpu: &mut Vcpu<H>) -> bool {
        let Some(until_ns) = vcpu.spins_until_ns else { return false };
        let is_late = self.host.now_ns() >= until_ns;
        let goes_on = self.holding.load(Ordering::Acquire) && !vcpu.source().has_input(vcpu.machine()) && !is_late;
        if !goes_on {
            vcpu.spins_until_ns = None;
            vcpu.rest = if is_late { SPIN_REST } else { 0 };
        }
        goes_on
    }

    /// Sleeps until the guest has something to do, or until the backup's next message if that can
    /// release outputs or let the guest run. The sleep is short while memory is to be copied, or
    /// while the disk is full.
    fn sleep(&self, vcpu: &mut Vcpu<H>, sleeper: Sleeper) -> VcpuNext {
        let wakes_for_backup = self.holding.load(Ordering::Acquire) || !self.may_run.load(Ordering::Acquire);
        let is_joining = self.copying.load(Ordering::Acquire);
        if is_joining && !vcpu.machine().has_output() && lock(&self.role).wants_copy() {
            // While the guest is idle, the step copies at full speed.
            return VcpuNext::Pause { until_ns: 0 };
        }
        let is_copying = is_joining || vcpu.is_log_busy();
        let sleep_ns = if is_copying { SLEEP_NS_MAX_WHILE_COPYING } else { SLEEP_NS_MAX };
        // A stopped guest's sleeps must be short enough not to count as pauses of the host.
        let until_ns = vcpu.recorder.source_mut().now_ns() + sleep_ns;
        VcpuNext::Sleep { until_ns, sleeper, wakes_for_backup }
    }
}

/// Where the recorder's entries go: to the role, and to the log on disk.
struct RoleSink<'a, H: Host> {
    side: &'a PrimarySide<H>,
    disk_log: Option<&'a mut SideDiskLog<H>>,
    has_ended: &'a mut bool,
}

impl<H: Host> LogSink for RoleSink<'_, H> {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        let side = self.side;
        let may_leave = {
            let mut role = lock(&side.role);
            let position = role.appended();
            role.handle_entry(side.host.now_ns(), entry, output);
            if role.appended() == position {
                *self.has_ended = true;
                return Ok(());
            }
            side.host.observe(Observation::Appended(position, entry));
            role.has_outgoing()
        };
        if let Some(log) = &mut self.disk_log {
            log.append(entry);
        }
        if may_leave {
            side.send_outgoing();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        if let Some(log) = &mut self.disk_log {
            log.flush();
        }
        self.side.drive(|role, now_ns| role.handle_flush(now_ns));
        Ok(())
    }
}
