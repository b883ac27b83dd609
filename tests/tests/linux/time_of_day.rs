//! `date` in a stock Debian Linux: right at boot, after a failover, after `--resume`, and after a
//! pause, in which the guest's own clock stands and its real-time clock goes on.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use ft::event_source::EventSource;
use ft::record::{Intervals, LogSink, Recorder, Slice};
use ft::replay::Replayer;
use hypervisor::program::guest::Guest;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, PipeWriter, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::linux::{GREETING, LinuxGuest, PATIENCE, REDIS_SERVICE, wait_for_console};
use tests::programs;
use tests::stage::{Node, Stage, wait_until};
use vm::{Event, Machine, MachineConfig, OutputId, OutputOperation, TIMEBASE_HZ};

/// By how much the guest's time may be off, in seconds: a busy host runs it slowly.
const OFF_MAX: u64 = 20;

/// How long both sides are dead in the test of `--resume`: longer than a guest may be off.
const DEAD: Duration = Duration::from_secs(2 * OFF_MAX);

/// What the shell says when it takes a command.
const PROMPT: &str = "/ # ";

fn host_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Seconds since 1970 that the guest's `date` says behind the last `mark` on its console.
fn said(console: &str, mark: &str) -> Option<u64> {
    let (_, after) = console.rsplit_once(mark)?;
    let (digits, _) = after.split_once('.')?;
    digits.parse().ok()
}

/// A command that makes the guest say `mark` and its time. The shell's echo of it doesn't have the
/// mark in one piece.
fn question(mark: &str) -> String {
    let (first, rest) = mark.split_at(1);
    format!("echo {first}''{rest}$(date +%s).\n")
}

/// Has the guest say its time, and asserts that it is the host's.
#[track_caller]
fn assert_date(node: &mut Node, keyboard: &mut PipeWriter, mark: &str) -> u64 {
    let before = host_seconds();
    keyboard.write_all(question(mark).as_bytes()).unwrap();
    wait_for_console(node, mark);
    let mut date = None;
    wait_until("the guest's date", || {
        date = said(&node.console(), mark);
        date.is_some()
    });
    let (date, after) = (date.unwrap(), host_seconds());
    assert!(date + OFF_MAX >= before && date <= after + 1, "{mark}: {date}, asked from {before} to {after}");
    date
}

#[test]
fn date_is_right_at_boot_after_a_failover_and_after_a_resume() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let stage = Stage::serving(programs!(), REDIS_SERVICE);
    let logs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [log, next_log] = logs.each_ref().map(|directory| directory.path().to_str().unwrap());
    let (input, mut keyboard) = io::pipe().unwrap();
    let mut primary = stage.node_with_input("ft-primary", &guest.options(&["--log", log]), input.into());
    let channel = primary.told_text("listening", "channel");
    let (input, mut next_keyboard) = io::pipe().unwrap();
    let mut backup = stage.node_with_input("ft-backup", &["--primary", &channel, "--log", next_log], input.into());
    backup.told("protected");
    wait_for_console(&mut primary, GREETING);
    wait_for_console(&mut primary, PROMPT);
    let at_boot = assert_date(&mut primary, &mut keyboard, "boot");

    primary.kill();
    backup.told("live");
    let after_failover = assert_date(&mut backup, &mut next_keyboard, "live");
    assert!(after_failover >= at_boot);

    backup.kill();
    thread::sleep(DEAD);
    let (input, mut last_keyboard) = io::pipe().unwrap();
    let mut again = stage.node_with_input("ft-primary", &["--resume", next_log], input.into());
    again.wait_for("resumed", PATIENCE).unwrap();
    // The guest's own clock knows nothing of the time in between; the guest sets it every ten
    // seconds.
    thread::sleep(Duration::from_secs(15));
    let after_resume = assert_date(&mut again, &mut last_keyboard, "again");
    assert!(after_resume >= after_failover + DEAD.as_secs());
    again.assert_no_panic();
}

const NS_PER_TICK: u64 = 1_000_000_000 / TIMEBASE_HZ;
const S: u64 = 1_000_000_000;

/// 2026-11-29, in nanoseconds since 1970.
const START_NS: u64 = 1_795_914_000_000_000_000;
const DAY_NS: u64 = 24 * 3600 * S;

/// A host without time to lose: a step takes it 10 ns, and a guest that sleeps none at all.
struct HostThatPauses {
    now_ns: u64,
    /// How long the VM was paused: the guest's clock stood.
    paused_ns: u64,
    typed: VecDeque<u8>,
}

impl EventSource for HostThatPauses {
    fn now_ns(&mut self) -> u64 {
        self.now_ns
    }

    fn ticks(&mut self) -> u64 {
        self.now_ns / NS_PER_TICK
    }

    fn wall_ns(&mut self) -> u64 {
        START_NS + self.now_ns + self.paused_ns
    }

    fn entropy(&mut self) -> u16 {
        0x5eed
    }

    fn poll(&mut self, machine: &Machine) -> Option<Event> {
        if machine.timer_deadline().is_some_and(|deadline| deadline <= self.ticks()) {
            return Some(Event::TimerInterrupt);
        }
        let room = machine.console_room().min(self.typed.len());
        (room > 0).then(|| Event::ConsoleInput { bytes: self.typed.drain(..room).collect() })
    }
}

/// The log and what is on the console.
#[derive(Default)]
struct Kept {
    entries: Vec<LogEntry>,
    console: String,
}

impl LogSink for Kept {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        self.entries.push(entry.clone());
        if let Some((_, OutputOperation::Console(bytes))) = output {
            self.console += &String::from_utf8_lossy(&bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Runs the guest until `done`, at most for `seconds` of its time.
#[track_caller]
fn run(recorder: &mut Recorder<HostThatPauses>, kept: &mut Kept, seconds: u64, done: impl Fn(&Kept, &Machine) -> bool) {
    const SLICE_STEPS: u64 = 20_000;
    const NS_PER_STEP: u64 = 10;
    let end_ns = recorder.source().now_ns + seconds * S;
    while !done(kept, recorder.machine()) {
        assert!(recorder.source().now_ns < end_ns, "{}", kept.console);
        let count = recorder.machine().instruction_count();
        let Ok(slice) = recorder.run_slice(kept, SLICE_STEPS);
        let ran_ns = recorder.machine().instruction_count().since(count) * NS_PER_STEP;
        let deadline = recorder.machine().timer_deadline().filter(|_| slice == Slice::Waiting);
        let source = recorder.source_mut();
        source.now_ns = (source.now_ns + ran_ns).max(deadline.unwrap_or(0) * NS_PER_TICK);
    }
}

/// Seconds since 1970 that the guest's `date` says, and by how much they are behind the host's.
#[track_caller]
fn date(recorder: &mut Recorder<HostThatPauses>, kept: &mut Kept, mark: &str) -> (u64, u64) {
    recorder.source_mut().typed.extend(question(mark).bytes());
    run(recorder, kept, 10, |kept, _| said(&kept.console, mark).is_some());
    let date = said(&kept.console, mark).unwrap();
    let host = recorder.source_mut().wall_ns() / S;
    (date, host.checked_sub(date).unwrap_or_else(|| panic!("{mark}: {date} is ahead of {host}")))
}

#[test]
fn date_is_right_after_a_day_in_which_the_guest_was_paused_and_replays() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let kernel = Guest::from_kernel("kernel", Path::new(guest.kernel())).unwrap();
    let image = kernel.with_files(Some(&Path::new(guest.kernel()).with_file_name("initramfs-base.cpio")), None);
    let image = image.unwrap().image;
    let config = MachineConfig { ram_bytes: 96 << 20, bootargs: guest.append().into(), ..MachineConfig::default() };
    let machine = Machine::new(&config, &image).unwrap();
    let source = HostThatPauses { now_ns: 0, paused_ns: 0, typed: VecDeque::new() };
    let (mut recorder, mut kept) = (Recorder::new(machine, source, Intervals::default()), Kept::default());
    run(&mut recorder, &mut kept, 120, |kept, _| kept.console.contains(PROMPT));
    let (at_boot, behind) = date(&mut recorder, &mut kept, "boot");
    assert!(behind <= 1, "{behind} s behind at boot");

    recorder.source_mut().paused_ns = DAY_NS;
    let woken_ns = recorder.source().now_ns;
    let (_, behind) = date(&mut recorder, &mut kept, "woken");
    assert!(behind >= DAY_NS / S - 1, "the kernel's own clock has stood, or this test shows nothing");
    // The guest looks at its real-time clock every ten seconds.
    let is_later = |_: &Kept, machine: &Machine| machine.last_ticks() * NS_PER_TICK > woken_ns + 12 * S;
    run(&mut recorder, &mut kept, 60, is_later);
    let (later, behind) = date(&mut recorder, &mut kept, "later");
    assert!(behind <= 2, "{behind} s behind after a day");
    assert!(later >= at_boot + DAY_NS / S);
    recorder.source_mut().typed.extend(b"cat /sys/class/misc/hw_random/rng_current; head -c 8 /dev/hwrng | od -x\n");
    run(&mut recorder, &mut kept, 60, |kept, _| kept.console.contains("5eed 5eed 5eed 5eed"));
    assert!(kept.console.contains("virtio_rng.0"), "{}", kept.console);
    let Ok(()) = recorder.digest(&mut kept);

    let is_time = |entry: &&LogEntry| matches!(entry.body, EntryBody::Event(Event::WallClock { .. }));
    assert!(kept.entries.iter().filter(is_time).count() >= 3);
    let mut replayer = Replayer::new(Machine::new(&config, &image).unwrap(), LogSeq(0));
    for entry in &kept.entries {
        replayer.consume(entry).unwrap_or_else(|divergence| panic!("{divergence}"));
    }
    assert!(replayer.digests_checked() > 5);
}
