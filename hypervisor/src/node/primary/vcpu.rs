//! The vCPU thread of a VM that runs live: it runs the guest, sends its log, hears acknowledgements, and copies the guest's
//! memory for a backup that joins.

use super::Shared;
use super::join_figures::JoinFigures;
use crate::node::channel::{Arrived, ChannelReader, lock};
use crate::node::io::inbox::{HostEventSource, SLICE_STEPS};
use crate::node::log::kept_log::KeptLog;
use crate::node::reports::NodeReport;
use crate::os::clock;
use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use ft::record::{LogSink, Recorder, Slice};
use ft::role::{FULL_SHARE, PrimaryRole};
use ft::trouble::Watch;
use logchannel::entry::{Generation, LogEntry};
use std::convert::Infallible;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use vm::{Machine, OutputId, OutputOperation};

/// How many steps the guest runs from one look for acknowledgements to the next while outputs are held: some 2
/// microseconds.
const SLICE_STEPS_WHILE_HOLDING: u64 = 300;

/// How long a vCPU thread that has nothing to run spins for the acknowledgement of held outputs before it sleeps, in
/// nanoseconds: longer than a prompt backup takes, and not enough to matter to whoever else wants the core.
const SPIN_NS: u64 = 200_000;

/// After spinning for nothing, how many times the vCPU thread sleeps at once: on a crowded host the time is the backup's.
const SPIN_REST: u32 = 32;

/// The longest that the vCPU thread sleeps before it looks around, in nanoseconds.
const SLEEP_NS_MAX: u64 = 100_000_000;

/// The same while a backup waits for the guest's memory.
const SLEEP_NS_MAX_WHILE_COPYING: u64 = 200_000;

/// How long a guest that may not write more pages waits before it is looked whether more can be copied.
const COPY_WAIT: Duration = Duration::from_micros(50);

/// A slowed guest gives its time back in pieces of this, in nanoseconds. It never owes more than two: what a very slow time left
/// over would make the faster one after it slow.
const YIELD_NS: u64 = 1_000_000;

/// Why the vCPU thread sleeps.
#[derive(Clone, Copy, Debug)]
enum Sleeper {
    /// The guest waits for an interrupt, and takes what comes.
    Waiting,
    /// The guest may not run, or has ended: it takes nothing.
    Stopped,
}

impl Shared {
    /// Runs the guest until this node's part in it is over.
    pub(in crate::node) fn run_vcpu(
        &self,
        mut recorder: Recorder<HostEventSource>,
        kept: Option<KeptLog>,
    ) -> Recorder<HostEventSource> {
        self.drive(|_, _| ());
        let mut watch = Watch::live(clock::now_ns());
        let mut sink = RoleSink { shared: self, kept };
        let mut logged_generation = None;
        let mut rest = 0;
        let mut owed_ns = 0;
        let mut told_clock = *recorder.source().clock();
        // The log is one that can be resumed before the guest runs, though it may wait for its backup first.
        sink.serve(&mut recorder);
        let mut figures = JoinFigures::default();
        while !self.over.load(Ordering::Acquire) {
            self.keep_time(&mut recorder, &mut told_clock);
            self.copy_for_join(&mut recorder, &mut figures);
            if !self.may_run.load(Ordering::Acquire) || sink.is_full() {
                figures.guest_waits();
                self.sleep(&mut recorder, Sleeper::Stopped, sink.is_busy());
                self.hear_backup();
                continue;
            }
            let generation = self.generation.load(Ordering::Relaxed);
            if logged_generation.replace(generation) != Some(generation) {
                let Ok(()) = recorder.log_generation(&mut sink, Generation(generation));
            }
            sink.serve(&mut recorder);
            let holding = self.holding.load(Ordering::Acquire);
            let steps = if holding { SLICE_STEPS_WHILE_HOLDING } else { SLICE_STEPS };
            let Some(steps) = self.steps_allowed(steps, recorder.machine(), &sink) else { continue };
            figures.guest_runs();
            let share = self.share.load(Ordering::Relaxed);
            let started_ns = if share < FULL_SHARE { clock::now_ns() } else { 0 };
            let Ok(slice) = recorder.run_slice(&mut sink, steps);
            let sleeps = slice == Slice::Waiting;
            if let Some(trouble) = watch.look(recorder.machine_mut(), sleeps, clock::now_ns) {
                self.node.reporter.tell(&NodeReport::from(trouble));
            }
            if holding {
                self.hear_backup();
            }
            match slice {
                Slice::Ran if share < FULL_SHARE => {
                    let ran_ns = clock::now_ns() - started_ns;
                    owed_ns += ran_ns * u64::from(FULL_SHARE - share) / u64::from(share.max(1));
                    self.give_back(&mut owed_ns);
                }
                Slice::Ran => {}
                Slice::Waiting => {
                    self.spin_for_release(&recorder, &mut rest);
                    sink.serve(&mut recorder);
                    self.sleep(&mut recorder, Sleeper::Waiting, sink.is_busy());
                    self.hear_backup();
                }
                Slice::Stopped(_) => {
                    sink.serve(&mut recorder);
                    self.sleep(&mut recorder, Sleeper::Stopped, sink.is_busy());
                    self.hear_backup();
                }
            }
        }
        sink.finish();
        recorder
    }

    /// Lets the guest's clock run or stand as the role says, and tells the role when the clock has changed its course.
    fn keep_time(&self, recorder: &mut Recorder<HostEventSource>, told: &mut GuestClock) {
        let source = recorder.source_mut();
        source.set_clock_running(!self.clock_stands.load(Ordering::Acquire));
        let clock = *source.clock();
        if std::mem::replace(told, clock) != clock {
            self.drive(|role, _| role.handle_clock(clock));
        }
    }

    /// Copies a piece of the guest's memory if a backup that joins has room for it. The role isn't locked meanwhile: heartbeats
    /// go on.
    fn copy_for_join(&self, recorder: &mut Recorder<HostEventSource>, figures: &mut JoinFigures) {
        if !self.copying.load(Ordering::Acquire) {
            if let Some(report) = figures.take_report() {
                self.node.reporter.tell(&report);
            }
            return;
        }
        figures.guest_stands();
        // Left over by a predecessor that had logged only some of a step's outputs: they are logged first.
        if recorder.machine().has_output() {
            return;
        }
        let Some(mut copy) = lock(&self.role).poll_copy() else { return };
        copy.copy_piece(recorder.machine_mut());
        figures.copied(&copy);
        // The bytes are written by the thread that the backup came to: the guest doesn't wait for the channel.
        let actions = self.give(|role, now_ns| role.handle_copy(now_ns, copy));
        self.pass_on(actions);
    }

    /// How many of `steps` the guest may run as far as copies of its memory are concerned. A guest that has written as many pages
    /// as it may waits here for the channel or the disk, if they are what the copying waits for.
    fn steps_allowed(&self, steps: u64, machine: &Machine, sink: &RoleSink<'_>) -> Option<u64> {
        let is_joining = self.copying.load(Ordering::Acquire);
        let allowed = if is_joining { lock(&self.role).steps_allowed(steps, machine) } else { Some(steps) };
        let allowed = allowed.and_then(|steps| sink.steps_allowed(steps, machine));
        if allowed.is_none() && !(is_joining && lock(&self.role).wants_copy()) && !sink.wants_copy() {
            thread::sleep(COPY_WAIT);
            self.hear_backup();
        }
        allowed
    }

    /// Time that a slowed guest doesn't get.
    fn give_back(&self, owed_ns: &mut u64) {
        if *owed_ns >= YIELD_NS {
            let began_ns = clock::now_ns();
            thread::sleep(Duration::from_nanos(YIELD_NS));
            *owed_ns = owed_ns.saturating_sub(clock::now_ns() - began_ns).min(YIELD_NS);
            self.hear_backup();
        }
    }

    /// While outputs are held and the guest has nothing to do, nothing is faster than to ask again and again, as long as
    /// the backup answers soon. `rest` counts the sleeps without it after a time when it didn't.
    fn spin_for_release(&self, recorder: &Recorder<HostEventSource>, rest: &mut u32) {
        if !self.holding.load(Ordering::Acquire) {
            return;
        }
        if *rest > 0 {
            *rest -= 1;
            return;
        }
        let end_ns = clock::now_ns() + SPIN_NS;
        while self.holding.load(Ordering::Acquire)
            && !recorder.source().has_input(recorder.machine())
            && clock::now_ns() < end_ns
        {
            self.hear_backup();
            // The backup's own thread may be waiting for this very core.
            thread::yield_now();
        }
        if clock::now_ns() >= end_ns {
            *rest = SPIN_REST;
        }
    }

    /// Sleeps until a guest that waits has something to do or the backup something to say that matters now; not for long while there is
    /// memory to be copied for the log on disk, or the disk is waited for.
    fn sleep(&self, recorder: &mut Recorder<HostEventSource>, sleeper: Sleeper, log_is_busy: bool) {
        let backup_matters = self.holding.load(Ordering::Acquire) || !self.may_run.load(Ordering::Acquire);
        let channel = if backup_matters { self.channel.connection() } else { None };
        let socket = channel.as_ref().map(|stream| stream.as_fd());
        let is_joining = self.copying.load(Ordering::Acquire);
        if is_joining && lock(&self.role).wants_copy() {
            // Nothing is faster than to copy while the guest has nothing to do.
            return;
        }
        let is_copying = is_joining || log_is_busy;
        let sleep_ns = if is_copying { SLEEP_NS_MAX_WHILE_COPYING } else { SLEEP_NS_MAX };
        // The time spent stopped passes in sleeps that are short enough to be no pause.
        let until_ns = recorder.source_mut().now_ns() + sleep_ns;
        let machine = match sleeper {
            Sleeper::Waiting => Some(recorder.machine()),
            Sleeper::Stopped => None,
        };
        recorder.source().sleep(machine, socket, until_ns);
    }

    /// Gives the role what the backup has said, unless another thread is doing it. Messages reach the role in their
    /// order because the reader is kept until they have.
    pub(in crate::node) fn hear_backup(&self) {
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

/// The recorder's entries go to the role.
struct RoleSink<'a> {
    shared: &'a Shared,
    /// The log on disk, if one is kept.
    kept: Option<KeptLog>,
}

impl RoleSink<'_> {
    /// Lets the log on disk copy memory and hand over what has come.
    fn serve(&mut self, recorder: &mut Recorder<HostEventSource>) {
        let Some(kept) = &mut self.kept else { return };
        // Left over by a predecessor that had logged only some of a step's outputs: a snapshot can't have them.
        if recorder.machine().has_output() {
            return;
        }
        let next = lock(&self.shared.role).appended();
        let is_over = || self.shared.over.load(Ordering::Acquire);
        kept.serve(recorder.machine_mut(), next, || lock(&self.shared.role).gate().not_left(), is_over);
    }

    fn is_full(&self) -> bool {
        self.kept.as_ref().is_some_and(KeptLog::is_full)
    }

    fn is_busy(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.is_copying() || kept.is_full())
    }

    fn steps_allowed(&self, steps: u64, machine: &Machine) -> Option<u64> {
        self.kept.as_ref().map_or(Some(steps), |kept| kept.steps_allowed(steps, machine))
    }

    fn wants_copy(&self) -> bool {
        self.kept.as_ref().is_some_and(KeptLog::wants_copy)
    }

    fn finish(self) {
        if let Some(Err(error)) = self.kept.map(KeptLog::finish) {
            self.shared.node.reporter.tell(&NodeReport::LogLost { reason: error.to_string() });
        }
    }
}

impl LogSink for RoleSink<'_> {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        let may_leave = {
            let mut role = lock(&self.shared.role);
            role.handle_entry(clock::now_ns(), entry, output);
            role.has_outgoing()
        };
        if let Some(kept) = &mut self.kept {
            kept.append(entry);
        }
        if may_leave {
            self.shared.send_outgoing();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        if let Some(kept) = &mut self.kept {
            kept.flush();
        }
        self.shared.drive(|role, now_ns| role.handle_flush(now_ns));
        Ok(())
    }
}
