//! The vCPU of a VM that runs live: it runs the guest, sends its log, hears acknowledgements, and
//! copies the guest's memory for a backup that joins.

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
use std::sync::atomic::Ordering;
use vm::{InstructionCount, Machine, OutputId, OutputOperation};

/// How many steps the guest runs from one look for acknowledgements to the next while outputs are
/// held: some 2 microseconds.
const SLICE_STEPS_WHILE_HOLDING: u64 = 300;

/// How long a vCPU that has nothing to run spins for the acknowledgement of held outputs before it
/// sleeps, in nanoseconds: longer than a prompt backup takes, and not enough to matter to whoever
/// else wants the core.
const SPIN_NS: u64 = 200_000;

/// After spinning for nothing, how many times the vCPU sleeps at once: on a crowded host the time
/// is the backup's.
const SPIN_REST: u32 = 32;

/// The longest that the vCPU sleeps before it looks around, in nanoseconds.
const SLEEP_NS_MAX: u64 = 100_000_000;

/// The same while a backup waits for the guest's memory.
const SLEEP_NS_MAX_WHILE_COPYING: u64 = 200_000;

/// How long a guest that may not write more pages waits before it is looked whether more can be
/// copied, in nanoseconds.
const COPY_WAIT_NS: u64 = 50_000;

/// From one look whether the log on disk has ended to the next, in nanoseconds.
const LOG_END_NS: u64 = 1_000_000;

/// A slowed guest gives its time back in pieces of this, in nanoseconds. It never owes more than
/// two: what a very slow time left over would make the faster one after it slow.
const YIELD_NS: u64 = 1_000_000;

/// Why the vCPU sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleeper {
    /// The guest waits for an interrupt, and takes what comes.
    Waiting,
    /// The guest may not run, or has ended: it takes nothing.
    Stopped,
}

/// When the vCPU's step is to be called again.
#[derive(Clone, Copy, Debug)]
pub enum VcpuNext {
    /// At once.
    Now,
    /// Very soon: the backup that is waited for may be about to answer, perhaps on this very core.
    Spin,
    /// At this time, in nanoseconds.
    Pause {
        /// When.
        until_ns: u64,
    },
    /// At this time, in nanoseconds, or before if something ends the sleep.
    Sleep {
        /// When.
        until_ns: u64,
        /// Who sleeps. An input and the due timer of a guest that waits end its sleep.
        sleeper: Sleeper,
        /// A word of the backup's ends the sleep.
        hears_backup: bool,
    },
    /// Never: this side is over.
    Done,
}

/// A guest that runs live.
pub struct Vcpu<H: Host> {
    recorder: Recorder<H::Source>,
    disk_log: Option<SideDiskLog<H>>,
    /// The log on disk, once this side is over.
    ending_log: Option<FinishingLog<H::Storage>>,
    watch: Watch,
    figures: JoinFigures,
    /// How many steps the guest runs at once while nothing is held.
    slice_steps: u64,
    logged_generation: Option<u64>,
    told_clock: GuestClock,
    /// Sleeps without spinning that are left after a time when spinning didn't help.
    rest: u32,
    spins_until_ns: Option<u64>,
    /// Time that a slowed guest still has to give back, and since when it does.
    owed_ns: u64,
    pauses_since_ns: Option<u64>,
    /// The last step said that it was to be called later.
    has_slept: bool,
    /// The role takes no entries any more: the machine is no longer where the log ends.
    has_ended: bool,
}

impl<H: Host> fmt::Debug for Vcpu<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu").field("machine", self.recorder.machine()).finish_non_exhaustive()
    }
}

impl<H: Host> Vcpu<H> {
    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        self.recorder.machine()
    }

    /// The source of the guest's events.
    #[must_use]
    pub const fn source(&self) -> &H::Source {
        self.recorder.source()
    }

    /// The same, to give it something.
    pub const fn source_mut(&mut self) -> &mut H::Source {
        self.recorder.source_mut()
    }

    /// The machine, of a side that is over.
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

    /// Whether the guest stands because its log on disk isn't one yet from which it could be
    /// resumed. Outputs left over by a predecessor that had logged only some of a step's are logged
    /// first, as a snapshot can't have them.
    fn is_log_beginning(&self) -> bool {
        self.disk_log.as_ref().is_some_and(SideDiskLog::is_beginning) && !self.machine().has_output()
    }
}

impl<H: Host> PrimarySide<H> {
    /// Begins to run `machine` on the events of `source`; `disk_log` is its log on disk, if one is
    /// kept.
    pub fn vcpu(
        &self,
        machine: Machine,
        source: H::Source,
        intervals: Intervals,
        disk_log: Option<SideDiskLog<H>>,
        slice_steps: u64,
    ) -> Vcpu<H> {
        self.drive(|_, _| ());
        let told_clock = *source.clock();
        Vcpu {
            recorder: Recorder::new(machine, source, intervals),
            disk_log,
            ending_log: None,
            watch: Watch::live(self.host.now_ns()),
            figures: JoinFigures::default(),
            slice_steps,
            logged_generation: None,
            told_clock,
            rest: 0,
            spins_until_ns: None,
            owed_ns: 0,
            pauses_since_ns: None,
            has_slept: false,
            has_ended: false,
        }
    }

    /// Runs the guest for a slice, as far as it may run.
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
            self.hear_backup();
        }
        // Each step reads the guest's clock, whatever else it does: a gap between two readings is a
        // pause, in which the host didn't run this thread.
        vcpu.recorder.source_mut().ticks();
        self.end_pause(vcpu);
        if self.spins(vcpu) {
            return VcpuNext::Spin;
        }
        // The log is one that can be resumed before the guest runs, and before its clock does,
        // though it may wait for its backup first.
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
        if let Some(trouble) = vcpu.watch.look(vcpu.recorder.machine_mut(), sleeps, || self.host.now_ns()) {
            self.host.report(&NodeReport::from(trouble));
        }
        if holding {
            self.hear_backup();
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

    /// Ends the log on disk of a side that is over.
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

    /// Lets the guest's clock run or stand as the role says, and tells the role when the clock has
    /// changed its course.
    fn keep_time(&self, vcpu: &mut Vcpu<H>) {
        let source = vcpu.recorder.source_mut();
        source.set_clock_running(!self.clock_stands.load(Ordering::Acquire));
        let clock = *source.clock();
        if std::mem::replace(&mut vcpu.told_clock, clock) != clock {
            self.drive(|role, _| role.handle_clock(clock));
        }
    }

    /// Copies a piece of the guest's memory if a backup that joins has room for it. The role isn't
    /// locked meanwhile: heartbeats go on.
    fn copy_for_join(&self, vcpu: &mut Vcpu<H>) {
        if !self.copying.load(Ordering::Acquire) {
            if let Some(report) = vcpu.figures.take_report(|| self.host.now_ns()) {
                self.host.report(&report);
            }
            return;
        }
        vcpu.figures.guest_stands(self.host.now_ns());
        // Left over by a predecessor that had logged only some of a step's outputs: they are logged
        // first.
        if vcpu.machine().has_output() {
            return;
        }
        let Some(mut copy) = lock(&self.role).poll_copy() else { return };
        copy.copy_piece(vcpu.recorder.machine_mut());
        vcpu.figures.copied(&copy);
        // The bytes are sent by the pending connection that joins: the guest doesn't wait for the
        // channel.
        self.give(|role, now_ns| role.handle_copy(now_ns, copy));
    }

    /// Lets the log on disk copy memory and hand over what has come.
    fn serve_log(&self, vcpu: &mut Vcpu<H>) {
        let Some(log) = vcpu.disk_log.as_mut().filter(|_| !vcpu.has_ended) else { return };
        // Left over by a predecessor that had logged only some of a step's outputs: a snapshot
        // can't have them.
        if vcpu.recorder.machine().has_output() {
            return;
        }
        let next = lock(&self.role).appended();
        let unsent = || lock(&self.role).gate().not_left();
        log.serve(vcpu.recorder.machine_mut(), next, unsent);
    }

    /// How many of `steps` the guest may run as far as copies of its memory are concerned.
    fn steps_allowed(&self, steps: u64, vcpu: &Vcpu<H>) -> Option<u64> {
        let is_joining = self.copying.load(Ordering::Acquire);
        let machine = vcpu.machine();
        // Outputs that its predecessor had not logged come first: no copy gets on before.
        if machine.has_output() {
            return Some(1);
        }
        let allowed = if is_joining { lock(&self.role).steps_allowed(steps, machine)? } else { steps };
        vcpu.disk_log.as_ref().map_or(Some(allowed), |log| log.steps_allowed(allowed, machine))
    }

    /// A guest that has written as many pages as it may waits for the channel or the disk, if they
    /// are what the copying waits for.
    fn wait_for_copy(&self, vcpu: &Vcpu<H>) -> VcpuNext {
        let wants_copy = self.copying.load(Ordering::Acquire) && lock(&self.role).wants_copy();
        if wants_copy || vcpu.disk_log.as_ref().is_some_and(SideDiskLog::wants_copy) {
            VcpuNext::Now
        } else {
            VcpuNext::Pause { until_ns: self.host.now_ns() + COPY_WAIT_NS }
        }
    }

    /// A slowed guest owes time for what it has run.
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

    /// While outputs are held and the guest has nothing to do, nothing is faster than to ask again
    /// and again, as long as the backup answers soon.
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

    /// Whether the vCPU goes on spinning.
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

    /// Sleeps until a guest that waits has something to do or the backup something to say that
    /// matters now; not for long while there is memory to be copied for the log on disk, or the
    /// disk is waited for.
    fn sleep(&self, vcpu: &mut Vcpu<H>, sleeper: Sleeper) -> VcpuNext {
        let hears_backup = self.holding.load(Ordering::Acquire) || !self.may_run.load(Ordering::Acquire);
        let is_joining = self.copying.load(Ordering::Acquire);
        if is_joining && !vcpu.machine().has_output() && lock(&self.role).wants_copy() {
            // Nothing is faster than to copy while the guest has nothing to do.
            return VcpuNext::Pause { until_ns: 0 };
        }
        let is_copying = is_joining || vcpu.is_log_busy();
        let sleep_ns = if is_copying { SLEEP_NS_MAX_WHILE_COPYING } else { SLEEP_NS_MAX };
        // The time spent stopped passes in sleeps that are short enough to be no pause.
        let until_ns = vcpu.recorder.source_mut().now_ns() + sleep_ns;
        VcpuNext::Sleep { until_ns, sleeper, hears_backup }
    }
}

/// The recorder's entries go to the role, and to the log on disk.
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
            let place = role.appended();
            role.handle_entry(side.host.now_ns(), entry, output);
            if role.appended() == place {
                *self.has_ended = true;
                return Ok(());
            }
            side.host.observe(Observation::Appended(place, entry));
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
