//! Runs of our machine, in this process.

use super::{Run, Took};
use crate::node::io::inbox::{HostEventSource, SLICE_STEPS};
use crate::node::log::restore::restore;
use crate::os::clock;
use crate::program::Failure;
use crate::program::cli::interrupt;
use ft::guest_clock::GuestClock;
use ft::record::{Intervals, LogSink, Recorder, Slice};
use ft::replay::{Consumed, Replayer};
use logchannel::entry::{Generation, LogEntry};
use logchannel::file::{LogHead, LogWriter};
use logchannel::session::{SessionHeader, VmId};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;
use vm::{Event, Exit, InstructionCount, Machine, MachineConfig, OutputId, OutputOperation, StopReason};

/// A plain run's clock is its instruction count: one tick of 100 ns is a hundred steps.
const STEPS_PER_TICK: u64 = 100;

/// Runs the guest without a log, `steps` at a time.
pub(super) fn alone(config: &MachineConfig, image: &[u8], steps: u64) -> Result<Run, Failure> {
    let mut machine = Machine::new(config, image)?;
    let mut console = Vec::new();
    let stopwatch = Stopwatch::start();
    let mut limit = InstructionCount(steps);
    let reason = loop {
        let ticks = machine.instruction_count().0 / STEPS_PER_TICK;
        match machine.run(limit) {
            Exit::LimitReached => {
                interrupt::check()?;
                if machine.timer_deadline().is_some_and(|deadline| deadline <= ticks) {
                    machine.apply(&Event::TimerInterrupt)?;
                }
                limit = limit.plus(steps);
            }
            Exit::ClockRead => {
                let ticks = ticks.max(machine.last_ticks());
                machine.apply(&Event::ClockRead { ticks })?;
            }
            Exit::WallClockNeeded => machine.apply(&Event::WallClock { ns: machine.last_wall_ns() })?,
            Exit::RandomBytesNeeded => {
                let bytes = vec![0; machine.random_bytes_needed()];
                machine.apply(&Event::RandomBytes { bytes })?;
            }
            Exit::SeedRead => machine.apply(&Event::Entropy { bits: 0 })?,
            Exit::Output => {
                while let Some((_, output)) = machine.take_output() {
                    console.extend_from_slice(output.bytes());
                }
            }
            Exit::WaitForInterrupt => return Err("the guest sleeps instead of working".into()),
            Exit::Stopped(reason) => break reason,
        }
    };
    ended(&machine, stopwatch, &console, reason)
}

/// Runs the guest on the host's events and writes its log, as `ft-record` does.
pub(super) fn recorded(config: &MachineConfig, image: &[u8], log: &Path) -> Result<Run, Failure> {
    let machine = Machine::new(config, image)?;
    let session = SessionHeader::new(VmId::new("bench")?, Generation(0), config.clone(), "bench", image)?;
    let writer = LogWriter::create(BufWriter::new(File::create(log)?), &session, image)?;
    let mut sink = Sink { log: writer, console: Vec::new() };
    let (source, _inbox) = HostEventSource::new(GuestClock::standing(0))?;
    let mut recorder = Recorder::new(machine, source, Intervals::default());
    let stopwatch = Stopwatch::start();
    recorder.source_mut().set_clock_running(true);
    let reason = loop {
        interrupt::check()?;
        match recorder.run_slice(&mut sink, SLICE_STEPS)? {
            Slice::Ran => {}
            Slice::Waiting => return Err("the guest sleeps instead of working".into()),
            Slice::Stopped(reason) => break reason,
        }
    };
    sink.log.finish()?.into_inner()?;
    ended(recorder.machine(), stopwatch, &sink.console, reason)
}

/// Replays the log, as `ft-replay` does: every output and every state digest is compared.
pub(super) fn replayed(log: &Path) -> Result<Run, Failure> {
    let mut restored = restore(LogHead::read(BufReader::new(File::open(log)?))?)?;
    let mut replayer = Replayer::new(restored.machine, restored.log.next_seq());
    let mut console = Vec::new();
    let mut stopped = None;
    let stopwatch = Stopwatch::start();
    while let Some(entry) = restored.log.next_entry()? {
        interrupt::check()?;
        match replayer.consume(&entry)? {
            Consumed::Nothing => {}
            Consumed::Output(_, output) => console.extend_from_slice(output.bytes()),
            Consumed::Stopped(reason) => stopped = Some(reason),
        }
    }
    let reason = stopped.ok_or("the log ends before the guest does")?;
    ended(replayer.machine(), stopwatch, &console, reason)
}

fn ended(machine: &Machine, stopwatch: Stopwatch, console: &[u8], reason: StopReason) -> Result<Run, Failure> {
    let took = stopwatch.stop();
    let console = String::from_utf8_lossy(console).trim_end().to_owned();
    if reason != (StopReason::PowerOff { code: 0 }) {
        return Err(format!("{reason}; it printed {console:?}").into());
    }
    Ok(Run { instructions: machine.instruction_count().0, took, console })
}

/// Measures this thread's time.
#[derive(Clone, Copy)]
struct Stopwatch {
    cpu_ns: u64,
    wall_ns: u64,
}

impl Stopwatch {
    fn start() -> Self {
        Self { cpu_ns: clock::thread_cpu_ns(), wall_ns: clock::now_ns() }
    }

    fn stop(self) -> Took {
        Took { cpu_ns: clock::thread_cpu_ns() - self.cpu_ns, wall_ns: clock::now_ns() - self.wall_ns }
    }
}

/// Writes the recorder's entries to a file, and keeps the guest's console output for the end of the
/// run.
struct Sink {
    log: LogWriter<BufWriter<File>>,
    console: Vec<u8>,
}

impl LogSink for Sink {
    type Error = io::Error;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> io::Result<()> {
        self.log.append(entry)?;
        if let Some((_, output)) = output {
            self.console.extend_from_slice(output.bytes());
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}
