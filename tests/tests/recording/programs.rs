//! The real `ft-record` and `ft-replay`: recordings replay exactly, and files that can't be
//! replayed are refused with the reason.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use hypervisor::program::client::echo;
use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::{EntryBody, LogEntry};
use logchannel::file::{LogHead, LogReader, LogStart, LogWriter};
use logchannel::frame::FRAME_HEADER_BYTES;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::programs;
use tests::random::{Random, seed};
use tests::stage::{Ended, Node};
use vm::Event;

const OK: Option<i32> = Some(exit::OK as i32);
const FAILURE: Option<i32> = Some(exit::FAILURE as i32);
const DIVERGED: Option<i32> = Some(exit::DIVERGED as i32);

/// Steps between digests: few enough that each log of these tests has some.
const DIGEST_STEPS: &str = "500000";

/// A directory for logs, and the programs that use them.
struct Bench {
    directory: TempDir,
}

/// Results of a replay: its end, its summary (null if there is none), and the guest's console.
struct Replay {
    end: Ended,
    summary: Value,
    console: String,
}

impl Bench {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, program: &str, arguments: &[&str]) -> Node {
        Node::start(&programs!(), self.directory.path(), program, arguments)
    }

    fn recorder(&self, log: &Path, options: &[&str]) -> Node {
        let arguments = [&["--output", text(log), "--digest-steps", DIGEST_STEPS], options].concat();
        self.start("ft-record", &arguments)
    }

    /// Records a guest that ends by itself or at a limit; returns its console.
    fn record(&self, log: &Path, options: &[&str]) -> String {
        let mut recorder = self.recorder(log, options);
        let end = recorder.end();
        assert_eq!(end.code, OK, "{end:?} {}", recorder.stderr());
        recorder.told("recorded");
        recorder.console()
    }

    fn replay(&self, log: &Path, options: &[&str]) -> Replay {
        let arguments = [&[text(log)], options].concat();
        let mut replayer = self.start("ft-replay", &arguments);
        let end = replayer.end();
        let summary = replayer.reports().iter().find(|report| report["event"] == "replayed").cloned();
        Replay { end, summary: summary.unwrap_or_default(), console: replayer.console() }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A log of the `counter` guest, which reads the clock all the time, up to an instruction
    /// count.
    fn counter_log(&self) -> PathBuf {
        let log = self.path("counter.ftlog");
        self.record(&log, &["--guest", "counter", "--limit", "5000000"]);
        log
    }

    /// Checks that replaying `log`, which is no valid log, is refused with the reason `because`.
    #[track_caller]
    fn refused(&self, log: &Path, options: &[&str], because: &str) {
        let replay = self.replay(log, options);
        assert_eq!(replay.end.code, FAILURE, "{:?}", replay.end);
        assert!(replay.end.reason.contains(because), "{because:?} is not in {:?}", replay.end.reason);
        assert_eq!(replay.summary, Value::Null, "a log that is refused has no result");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {report}"))
}

/// Writes the log at `from` to `to` with changed entries: frames are whole and checksums right.
fn rewrite(from: &Path, to: &Path, change: impl FnOnce(&mut Vec<LogEntry>)) {
    let (start, mut log) = LogHead::read(fs::File::open(from).unwrap()).unwrap().into_log().unwrap();
    let LogStart::Image(image) = start else { panic!("ft-record begins with the image") };
    let mut entries: Vec<LogEntry> = std::iter::from_fn(|| log.next_entry().unwrap()).collect();
    change(&mut entries);
    let mut writer = LogWriter::create(Vec::new(), log.header(), &image).unwrap();
    for entry in &entries {
        writer.append(entry).unwrap();
    }
    fs::write(to, writer.finish().unwrap()).unwrap();
}

/// (offset in the file, sequence number of the first entry) of each frame of entries.
fn frames(log: &Path) -> Vec<(usize, u64)> {
    let mut log = LogReader::open(fs::File::open(log).unwrap()).unwrap();
    let mut frames = Vec::new();
    loop {
        let seq = log.next_seq().0;
        if log.next_entry().unwrap().is_none() {
            return frames;
        }
        let offset = usize::try_from(log.frame_offset()).unwrap();
        if frames.last().is_none_or(|(last, _)| *last != offset) {
            frames.push((offset, seq));
        }
    }
}

#[test]
fn echo_under_clients_replays_to_the_same_console_outputs_and_digests() {
    let bench = Bench::new();
    let mut lan = bench.start("ft-lan", &["--listen", "127.0.0.1:0", "--forward", "127.0.0.1:0=10.0.2.15:7"]);
    let listening = lan.told("listening");
    // TCP and UDP have the same port.
    let service: SocketAddr = listening["forwards"][0]["listen"].as_str().unwrap().parse().unwrap();
    let log = bench.path("echo.ftlog");
    let mut recorder = bench.recorder(&log, &["--guest", "echo", "--lan", listening["listen"].as_str().unwrap()]);
    recorder.told("lan_attached");
    recorder.told("console");
    let (stream, datagrams) = (echo::tcp(service).unwrap(), echo::udp(service).unwrap());
    for client in [&stream, &datagrams] {
        assert!(client.wait_for_replies(300, PATIENCE));
    }
    let (stream, datagrams) = (stream.finish(), datagrams.finish());
    assert!(stream.is_perfect(), "{stream:?}");
    let end = recorder.interrupt();
    assert_eq!(end.code, OK, "{end:?}");
    let recorded = recorder.told("recorded");

    let replay = bench.replay(&log, &["--guest", "echo"]);
    assert_eq!(replay.end.code, OK, "{:?}", replay.end);
    assert_eq!(replay.summary["ending"], "complete");
    assert_eq!(replay.console, recorder.console());
    assert!(replay.console.contains("echo: listening on"), "{}", replay.console);
    for field in ["entries", "instruction_count", "outputs"] {
        assert_eq!(number(&replay.summary, field), number(&recorded, field), "{field}");
    }
    // At least one output for each reply on UDP; TCP may put several replies into one.
    assert!(number(&replay.summary, "outputs") >= datagrams.received);
    // A digest at each interval, and one at the end.
    assert!(number(&replay.summary, "digests_checked") >= 2, "{}", replay.summary);
    let guest_seconds = replay.summary["guest_seconds"].as_f64().unwrap();
    assert!(guest_seconds > 0.0);
    println!(
        "recorded in {} s (guest clock {guest_seconds:.3} s), replayed in {} s: {} entries, {} outputs, {} digests",
        recorded["seconds"],
        replay.summary["seconds"],
        replay.summary["entries"],
        replay.summary["outputs"],
        replay.summary["digests_checked"]
    );
    bench.refused(&log, &["--guest", "hello"], "the log is of guest echo");
}

/// The guests have one IP address in turn, first with the same Ethernet address and then with
/// another.
#[test]
fn guests_that_are_recorded_one_after_the_other_on_one_lan_are_all_reachable() {
    let bench = Bench::new();
    let mut lan = bench.start("ft-lan", &["--listen", "127.0.0.1:0", "--forward", "127.0.0.1:0=10.0.2.15:7"]);
    let listening = lan.told("listening");
    let service: SocketAddr = listening["forwards"][0]["listen"].as_str().unwrap().parse().unwrap();
    for (number, vm) in ["recording", "recording", "another", "recording"].into_iter().enumerate() {
        let log = bench.path(&format!("{number}.ftlog"));
        let lan = listening["listen"].as_str().unwrap();
        let mut recorder = bench.recorder(&log, &["--guest", "echo", "--vm", vm, "--lan", lan]);
        recorder.told("console");
        let client = echo::tcp(service).unwrap();
        assert!(client.wait_for_replies(20, PATIENCE), "recording {number} of {vm} is not reachable");
        let result = client.finish();
        assert!(result.is_perfect(), "{result:?}");
        assert_eq!(recorder.interrupt().code, OK);
        assert_eq!(bench.replay(&log, &[]).end.code, OK);
    }
}

#[test]
fn guests_without_a_network_replay_to_the_same_console_and_state_twice() {
    let bench = Bench::new();
    for (guest, options) in [("hello", &[][..]), ("counter", &["--limit", "30000000"])] {
        let log = bench.path(guest);
        let console = bench.record(&log, &[&["--guest", guest], options].concat());
        assert!(console.contains(guest), "{console:?}");
        let replays = [0, 1].map(|_| bench.replay(&log, &[]));
        for replay in &replays {
            assert_eq!(replay.end.code, OK, "{:?}", replay.end);
            assert_eq!(replay.console, console);
            assert_eq!(replay.summary["ending"], "complete");
            assert!(number(&replay.summary, "digests_checked") > 0);
        }
        let [one, other] = replays.map(|replay| replay.summary["state_digest"].as_str().unwrap().to_owned());
        assert_eq!(one, other, "{guest}");
        assert_eq!(one.len(), 32, "a digest has 128 bits");
    }
}

#[test]
fn a_recording_that_is_killed_replays_to_its_last_whole_entry() {
    let bench = Bench::new();
    let log = bench.path("killed.ftlog");
    let mut recorder = bench.recorder(&log, &["--guest", "counter"]);
    recorder.told("console");
    recorder.told_again("console", 1);
    recorder.kill();
    let told_before = recorder.console();
    let replay = bench.replay(&log, &[]);
    assert_eq!(replay.end.code, OK, "{:?}", replay.end);
    // The log was written frame by frame, and has all of them.
    assert!(replay.end.reason.contains("the log is whole up to its end"), "{}", replay.end.reason);
    assert!(number(&replay.summary, "digests_checked") > 0, "{}", replay.summary);
    // An output's entry was written to the log before the output was released.
    assert!(replay.console.starts_with(&told_before), "{told_before:?} is not how {:?} begins", replay.console);
}

#[test]
fn a_log_that_is_cut_or_damaged_replays_as_far_as_it_is_whole_or_says_where() {
    let seed = seed();
    let mut random = Random::new(seed);
    let bench = Bench::new();
    let log = bench.counter_log();
    let whole = fs::read(&log).unwrap();
    let frames = frames(&log);
    let head = frames[0].0;
    for _ in 0..5 {
        let cut = head + random.index(whole.len() - head);
        let replay = bench.replay(&bench.write("cut.ftlog", &whole[..cut]), &[]);
        assert_eq!(replay.end.code, OK, "cut at {cut}: {:?}", replay.end);
        let ending = replay.summary["ending"].as_str().unwrap();
        if frames.iter().any(|(offset, _)| *offset == cut) {
            assert!(ending.starts_with(&format!("whole up to its end at byte {cut}; ")), "cut at {cut}: {ending}");
            continue;
        }
        let offset: usize = ending.strip_prefix("torn at byte ").unwrap().split(',').next().unwrap().parse().unwrap();
        assert!((head..cut).contains(&offset), "cut at {cut}: {ending}");
        assert!(ending.contains(&format!(" {} bytes dropped", cut - offset)), "cut at {cut}: {ending}");
    }
    for (cut, because) in [(4, "format version"), (20, "session header"), (head / 2, "image"), (head - 1, "image")] {
        let log = bench.write("cut.ftlog", &whole[..cut]);
        bench.refused(&log, &[], &format!("the log ends at byte {cut}, inside its {because}"));
    }
    for _ in 0..5 {
        // The end mark follows the last frame, so that each of them can be damaged.
        let (offset, seq) = random.pick(&frames);
        let mut damaged = whole.clone();
        damaged[offset + FRAME_HEADER_BYTES] ^= 1 << random.below(8);
        let because = format!("the log is corrupt at byte {offset}, after entry {seq}: whole frames follow from byte");
        bench.refused(&bench.write("damaged.ftlog", &damaged), &[], &because);
    }
}

#[test]
fn files_that_are_no_logs_of_this_version_are_refused_by_name() {
    let bench = Bench::new();
    let log = bench.path("hello.ftlog");
    bench.record(&log, &["--guest", "hello"]);
    let mut other_version = fs::read(&log).unwrap();
    other_version[8..12].copy_from_slice(&77_u32.to_le_bytes());
    bench.refused(&bench.write("version.ftlog", &other_version), &[], "the log has format version 77");
    bench.refused(&bench.write("text", b"dear diary"), &[], "not a log");
    bench.refused(&bench.write("empty", b""), &[], "not a log");
    bench.refused(&bench.path("absent"), &[], "can't read the log");
}

#[test]
fn a_log_with_a_changed_clock_or_a_dropped_entry_diverges_and_names_the_instruction() {
    let bench = Bench::new();
    let log = bench.counter_log();
    let is_clock_read = |entry: &LogEntry| matches!(entry.body, EntryBody::Event(Event::ClockRead { .. }));

    let changed = bench.path("changed.ftlog");
    let mut digest_count = 0;
    rewrite(&log, &changed, |entries| {
        // The last clock read is changed by one tick: even if the guest ignores it, the machine
        // keeps the value. A larger change could make the guest print a second earlier, which
        // diverges at that output, before the next digest.
        let last = entries.iter().rposition(is_clock_read).unwrap();
        let EntryBody::Event(Event::ClockRead { ticks }) = &mut entries[last].body else { unreachable!() };
        *ticks += 1;
        let digest = entries[last..].iter().find(|entry| matches!(entry.body, EntryBody::Digest(_)));
        digest_count = digest.unwrap().count.0;
    });
    let replay = bench.replay(&changed, &[]);
    assert_eq!(replay.end.code, DIVERGED, "{:?}", replay.end);
    let named = format!("divergence at instruction {}, entry ", vm::InstructionCount(digest_count));
    assert!(replay.end.reason.contains(&named), "{named:?} is not in {:?}", replay.end.reason);
    assert!(replay.end.reason.contains("state digest is"), "{:?}", replay.end.reason);

    let dropped = bench.path("dropped.ftlog");
    let mut place = (0, 0);
    rewrite(&log, &dropped, |entries| {
        let reads: Vec<usize> = (0..entries.len()).filter(|index| is_clock_read(&entries[*index])).collect();
        let index = reads[reads.len() / 2];
        place = (index, entries.remove(index).count.0);
    });
    let replay = bench.replay(&dropped, &[]);
    assert_eq!(replay.end.code, DIVERGED, "{:?}", replay.end);
    let named = format!("divergence at instruction {}, entry {}: ", vm::InstructionCount(place.1), place.0);
    assert!(replay.end.reason.contains(&named), "{named:?} is not in {:?}", replay.end.reason);
    assert!(replay.end.reason.contains("machine read the clock"), "{:?}", replay.end.reason);

    // The two checks above need this: a log that is rewritten unchanged must replay.
    let same = bench.path("same.ftlog");
    rewrite(&log, &same, |_| {});
    assert_eq!(bench.replay(&same, &[]).end.code, OK);
}

#[test]
fn a_log_is_overwritten_only_by_force() {
    let bench = Bench::new();
    let log = bench.write("precious.ftlog", b"precious");
    let mut refused = bench.recorder(&log, &["--guest", "hello"]);
    let end = refused.end();
    assert_eq!(end.code, FAILURE, "{end:?}");
    assert!(end.reason.contains("exists; --force overwrites it"), "{end:?}");
    assert_eq!(fs::read(&log).unwrap(), b"precious");
    bench.record(&log, &["--guest", "hello", "--force"]);
    assert_eq!(bench.replay(&log, &[]).end.code, OK);
}
