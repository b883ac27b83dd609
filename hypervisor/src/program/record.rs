//! `ft-record`: runs a guest and writes its log to a file.

use super::cli::exit;
use super::cli::limits::{FILES, require_descriptors};
use super::cli::options::{GuestOptions, NetworkOptions};
use super::cli::progress::Progress;
use super::recording_file;
use super::{Failure, begin, finish, interrupted};
use crate::lan::port::PortSender;
use crate::node::channel::lock;
use crate::node::io::console;
use crate::node::io::inbox::{HostEventSource, SLICE_STEPS};
use crate::node::io::lan::{AttachmentConfig, LanUser};
use crate::node::io::network::{self, NetworkAddress, TapAttachment};
use crate::node::io::sink::NetworkAndConsole;
use crate::node::process::ProcessHost;
use crate::node::reports::{NodeReport, Recorded, frames_dropped};
use crate::os::report::Reporter;
use crate::os::{clock, entropy, signals, writer};
use clap::Parser;
use ft::guest_clock::GuestClock;
use ft::output_gate::Released;
use ft::record::{Intervals, LogSink, Recorder, Slice};
use ft::trouble::{Trouble, Watch};
use logchannel::entry::{Generation, LogEntry};
use logchannel::file::LogWriter;
use logchannel::session::{SessionHeader, VmId};
use std::fs;
use std::io::{self, BufWriter, IsTerminal};
use std::net::TcpStream;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vm::{InstructionCount, Machine, OutputId, OutputOperation, StopReason};

/// The longest that the guest sleeps before the log is written out and the operator's Ctrl-C seen,
/// in nanoseconds.
const SLEEP_NS_MAX: u64 = 100_000_000;

/// How often a guest whose console is read slowly, or whose LAN takes nothing, looks whether it may
/// go on.
const OUTPUT_PAUSE: Duration = Duration::from_millis(1);

/// Runs a guest and records every input with its instruction count, so that ft-replay does it all
/// again.
///
/// Ctrl-C ends the recording in order; a recording that is killed replays to its last whole entry.
#[derive(Debug, Parser)]
#[command(
    name = "ft-record",
    version,
    after_help = exit::help("Example:\n  \
    ft-lan --forward 127.0.0.1:7007=10.0.2.15:7 &\n  \
    ft-record --guest echo --lan 127.0.0.1:7000 --output echo.ftlog\n  \
    ft-replay echo.ftlog\n\n\
    With a Linux kernel instead of --guest:\n  \
    ft-record --kernel Image --initrd initramfs.cpio --append console=ttyS0")
)]
struct Options {
    #[command(flatten)]
    guest: GuestOptions,
    /// The log to write; an existing file is not overwritten without --force
    #[arg(long, short, value_name = "FILE", default_value = "guest.ftlog")]
    output: PathBuf,
    /// Overwrite the log
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    network: NetworkOptions,
    /// The VM's name on the LAN and in the log
    #[arg(long, value_name = "NAME", default_value = "recording")]
    vm: VmId,
    /// End the recording at this instruction count, which doesn't advance while the guest sleeps
    #[arg(long, value_name = "STEPS")]
    limit: Option<u64>,
    /// Steps of the guest from one state digest to the next
    #[arg(long, value_name = "STEPS", default_value_t = Intervals::default().digest_steps,
          value_parser = clap::value_parser!(u64).range(1..))]
    digest_steps: u64,
    /// Tell what happens as JSON lines on standard output
    #[arg(long)]
    json: bool,
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    let reporter = begin("ft-record", options.json);
    finish(reporter, run(&options, reporter))
}

fn run(options: &Options, reporter: Reporter) -> Result<(u8, String), Failure> {
    require_descriptors(FILES)?;
    let over: Arc<AtomicBool> = Arc::default();
    let asked = over.clone();
    signals::on_termination(move |_| {
        if asked.swap(true, Ordering::AcqRel) {
            interrupted();
        }
    })?;
    let guest = options.guest.load()?;
    let config = options.guest.machine(&options.vm, &guest);
    let machine = Machine::new(&config, &guest.image)
        .map_err(|error| format!("guest {} can't be started: {error}", guest.name))?;
    let session = SessionHeader::new(options.vm.clone(), Generation(0), config.clone(), &guest.name, &guest.image)?;
    let (source, inbox) = HostEventSource::new(GuestClock::standing(0))?;
    let address = options.network.address();
    let outputs =
        Arc::new(Mutex::new(NetworkAndConsole::new(reporter, matches!(address, Some(NetworkAddress::Lan(_))))));
    let host = ProcessHost::with_guest(reporter, inbox.clone());
    let owner = Recording { started_us: clock::now_us(), host, outputs: outputs.clone(), over: over.clone() };
    attach(address, owner, &options.vm, config.mac)?;
    console::start(inbox, options.guest.keys(), reporter)?;
    let mut sink = FileSink {
        log: recording_file::create(&options.output, options.force, &session, &guest.image)?,
        outputs,
        released: Vec::new(),
        has_spoken: false,
    };
    let intervals = Intervals { digest_steps: options.digest_steps, ..Intervals::default() };
    let recorder = Recorder::new(machine, source, intervals);
    let started_ns = clock::now_ns();
    // Linux waits for ever after a panic unless it is told otherwise.
    let reboots_after_panic = reboots_after_panic(&config.bootargs);
    let (recorder, end) = record(recorder, &mut sink, options.limit, reboots_after_panic, &over, reporter)
        .map_err(|error| format!("writing {}: {error}; the log ends there", options.output.display()))?;
    let entries = sink.log.next_seq().0;
    sink.finish();
    over.store(true, Ordering::Release);
    sink.log.finish()?.into_inner()?.sync_all()?;
    reporter.tell(&NodeReport::Recorded(Recorded {
        log: options.output.display().to_string(),
        log_bytes: fs::metadata(&options.output)?.len(),
        entries,
        instruction_count: recorder.machine().instruction_count().0,
        outputs: recorder.machine().next_output_id().0,
        frames_dropped: frames_dropped(recorder.machine()),
        seconds: seconds_since(started_ns),
    }));
    Ok(outcome(&end, options.guest.bare.is_some(), recorder.machine().has_tohost()))
}

/// Whether a Linux kernel with these boot arguments starts anew after a panic: 0 waits for ever,
/// and the last one counts.
fn reboots_after_panic(bootargs: &str) -> bool {
    let mut values = bootargs.split_ascii_whitespace().filter_map(|argument| argument.strip_prefix("panic="));
    values.next_back().is_some_and(|value| value.parse() != Ok(0))
}

/// The exit code and the words for an end. Of a program that has `tohost`, only the result that it
/// tells there is a success.
fn outcome(end: &RecordingEnd, is_bare: bool, has_tohost: bool) -> (u8, String) {
    let words = match end {
        RecordingEnd::Guest(reason) => return (exit::of_guest(*reason), words(*reason, has_tohost)),
        RecordingEnd::Operator => "stopped by the operator".into(),
        RecordingEnd::Limit(limit) => format!("reached instruction {limit}"),
        RecordingEnd::Panicked(reason) => {
            return (exit::GUEST_FAILED, format!("the guest's kernel has panicked: {reason}"));
        }
        RecordingEnd::Asleep => "the guest sleeps, and it has enabled nothing that could wake it".into(),
    };
    match (is_bare, has_tohost) {
        (_, true) => (exit::GUEST_FAILED, format!("{words}; the program has written no result to `tohost`")),
        (true, false) => (exit::OK, format!("{words}; the program has no symbol `tohost` to tell a result through")),
        (false, false) => (exit::OK, words),
    }
}

/// How a guest ended. What a program with `tohost` tells if it fails is the number of its test that
/// did, as of riscv-tests.
fn words(reason: StopReason, has_tohost: bool) -> String {
    /// What riscv-tests put over the number of a test that ends in a trap without a handler, 1337,
    /// as a code.
    const UNEXPECTED_TRAP: u32 = 1337 >> 1;
    match reason {
        StopReason::PowerOff { code } if has_tohost && code & UNEXPECTED_TRAP == UNEXPECTED_TRAP => {
            format!("{reason} (a test ran into a trap that it did not expect)")
        }
        StopReason::PowerOff { code: code @ 1.. } if has_tohost => {
            format!("{reason} (of riscv-tests: test {code} failed)")
        }
        StopReason::PowerOff { .. } | StopReason::Reboot | StopReason::Halt(_) => reason.to_string(),
    }
}

/// Attaches a guest that has just been reset, and whose packets are not kept to be sent again,
/// before it runs, if its network answers.
fn attach(address: Option<NetworkAddress>, owner: Recording, vm: &VmId, mac: [u8; 6]) -> Result<(), Failure> {
    match address {
        None => Ok(()),
        Some(NetworkAddress::Lan(lan)) => {
            let booted = Generation(owner.started_us);
            let config = AttachmentConfig { vm: vm.clone(), node: entropy::node_id(), booted, mac, lan };
            let mut attachment = network::attachment(config, 0);
            if let Err(reason) = attachment.try_once(&owner) {
                return Err(format!("the LAN at {lan} refuses this guest: {reason}").into());
            }
            Ok(network::start_lan(&owner.host.clone(), attachment, Arc::new(owner))?)
        }
        Some(NetworkAddress::Tap(name)) => {
            let Recording { host, outputs: sink, over, .. } = owner;
            Ok(TapAttachment { name, mac, sink, over, host }.start(0, false)?)
        }
    }
}

/// The owner of a guest that is recorded: nothing that it sends is sent again.
struct Recording {
    started_us: u64,
    host: ProcessHost,
    outputs: Arc<Mutex<NetworkAndConsole>>,
    over: Arc<AtomicBool>,
}

impl LanUser for Recording {
    type Host = ProcessHost;

    fn host(&self) -> &ProcessHost {
        &self.host
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn owner(&self) -> (Generation, Range<OutputId>) {
        // No arbiter numbers recordings; for the LAN, a later one takes the port of an earlier one
        // over.
        (Generation(self.started_us), OutputId(0)..OutputId(u64::MAX))
    }

    fn attached(&self, sender: PortSender<TcpStream>, _: OutputId) {
        lock(&self.outputs).lan().set(Some(sender));
    }

    fn detached(&self) {
        lock(&self.outputs).lan().set(None);
    }

    fn send_heartbeat(&self) {
        if let Ok(mut outputs) = self.outputs.try_lock() {
            outputs.lan().send_heartbeat(clock::now_ns());
        }
    }

    /// Told with the others' words; nobody else runs a recording.
    fn refused(&self) {}

    fn carried(&self, _: OutputId) {}
}

/// Why a recording ends.
enum RecordingEnd {
    Operator,
    Limit(InstructionCount),
    /// Nothing can happen any more.
    Asleep,
    /// The kernel has panicked without a console, and waits for ever.
    Panicked(String),
    Guest(StopReason),
}

/// Runs the guest until it ends, sleeps for good or reaches `limit`, or the operator ends it.
fn record(
    mut recorder: Recorder<HostEventSource>,
    sink: &mut FileSink,
    limit: Option<u64>,
    reboots_after_panic: bool,
    over: &AtomicBool,
    reporter: Reporter,
) -> io::Result<(Recorder<HostEventSource>, RecordingEnd)> {
    recorder.source_mut().set_clock_running(true);
    let limit = limit.map_or(InstructionCount(u64::MAX), InstructionCount);
    let mut watch = Watch::live(clock::now_ns());
    let mut progress = Progress::new(clock::now_ns(), recorder.machine().instruction_count().0);
    // Between the lines of a console that somebody looks at there is no place for others, and they
    // show the progress themselves.
    let is_watched = !reporter.is_json() && io::stdout().is_terminal();
    let end = loop {
        if over.load(Ordering::Acquire) {
            break RecordingEnd::Operator;
        }
        if recorder.machine().instruction_count() >= limit {
            break RecordingEnd::Limit(limit);
        }
        if writer::stdout().is_console_full() || !sink.write() {
            // A slow reader makes the guest slow, and a slow LAN.
            thread::sleep(OUTPUT_PAUSE);
            continue;
        }
        let now_ns = clock::now_ns();
        let instruction_count = recorder.machine().instruction_count().0;
        if let Some(mips) = progress.due(now_ns, instruction_count)
            && !(is_watched && sink.has_spoken)
        {
            let (entries, is_booting) = (sink.log.next_seq().0, !sink.has_spoken);
            reporter.tell(&NodeReport::Recording { instruction_count, mips, entries, is_booting });
        }
        let slice = recorder.run_slice(sink, SLICE_STEPS)?;
        if let Some(trouble) = watch.check(recorder.machine_mut(), slice == Slice::Waiting, clock::now_ns) {
            reporter.tell(&NodeReport::from(trouble.clone()));
            if let Trouble::Panic { reason, .. } = trouble
                && !reboots_after_panic
            {
                break RecordingEnd::Panicked(reason);
            }
        }
        match slice {
            Slice::Ran => {}
            Slice::Waiting if recorder.machine().sleeps_for_good() => break RecordingEnd::Asleep,
            Slice::Waiting => {
                sink.log.flush()?;
                recorder.source().sleep(Some(recorder.machine()), None, now_ns + SLEEP_NS_MAX);
            }
            Slice::Stopped(reason) => return Ok((recorder, RecordingEnd::Guest(reason))),
        }
    };
    recorder.digest(sink)?;
    Ok((recorder, end))
}

fn seconds_since(started_ns: u64) -> f64 {
    Duration::from_nanos(clock::now_ns() - started_ns).as_secs_f64()
}

/// The recorder's entries go to a file. There is no backup, so outputs leave as soon as their
/// entries are written.
struct FileSink {
    log: LogWriter<BufWriter<fs::File>>,
    outputs: Arc<Mutex<NetworkAndConsole>>,
    released: Vec<Released>,
    /// The guest has written to its console.
    has_spoken: bool,
}

impl FileSink {
    /// Puts out what is released, unless the LAN has not taken yet what was put out before; `false`
    /// then.
    fn write(&mut self) -> bool {
        let mut outputs = lock(&self.outputs);
        outputs.lan().flush(clock::now_ns());
        if outputs.lan().has_room() {
            outputs.write(&self.released);
            self.released.clear();
        }
        outputs.lan().has_room()
    }

    /// Writes the guest's last outputs. Ends, because a LAN that takes nothing is given up.
    fn finish(&mut self) {
        while !self.write() {
            thread::sleep(OUTPUT_PAUSE);
        }
        lock(&self.outputs).finish_console();
    }
}

impl LogSink for FileSink {
    type Error = io::Error;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> io::Result<()> {
        self.log.append(entry)?;
        self.has_spoken |= matches!(output, Some((_, OutputOperation::Console(_))));
        self.released.extend(output.map(|(id, operation)| Released::at_once(id, operation)));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()?;
        self.write();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::reboots_after_panic;

    #[test]
    fn a_kernel_reboots_after_a_panic_if_its_last_word_on_it_is_not_zero() {
        for (bootargs, reboots) in [
            ("", false),
            ("console=ttyS0", false),
            ("panic=0", false),
            ("console=ttyS0 panic=5", true),
            ("panic=-1", true),
            ("panic=5 panic=0", false),
            ("init=/panic=5", false),
        ] {
            assert_eq!(reboots_after_panic(bootargs), reboots, "{bootargs}");
        }
    }
}
