//! Standard output of the real programs: the guest's console for a terminal, for a file and as
//! JSON, lists of entries, and errors of standard output.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use tests::programs;
use tests::qemu::assembler::{Assembler, addi, csr, elf};
use tests::terminal::{Terminal, contains};

const START: u64 = 0x8020_0000;
const A0: u32 = 10;
const A1: u32 = 11;
const A6: u32 = 16;
const A7: u32 = 17;
const ECALL: u32 = 0x0000_0073;
/// The bytes that a terminal sends for these keys.
const CTRL_C: u8 = 3;
const WFI: u32 = 0x1050_0073;
const TIME: u32 = 0xc01;
const SIE: u32 = 0x104;

const SBI_TIME: u64 = 0x5449_4d45;
const SBI_RESET: u64 = 0x5352_5354;
const SBI_CONSOLE: u64 = 0x4442_434e;
const CONSOLE_WRITE_BYTE: u64 = 2;

/// A guest that writes `parts` byte by byte, sleeps for a moment after each part, and powers off.
fn writer(parts: &[&[u8]]) -> Vec<u8> {
    let mut assembler = Assembler::new(START);
    for part in parts {
        assembler.constant(A7, SBI_CONSOLE);
        assembler.constant(A6, CONSOLE_WRITE_BYTE);
        for byte in *part {
            assembler.constant(A0, (*byte).into());
            assembler.word(ECALL);
        }
        assembler.words(&[csr(2, A0, TIME, 0), addi(A0, A0, 2000)]);
        assembler.constant(A7, SBI_TIME);
        assembler.constant(A6, 0);
        assembler.word(ECALL);
        assembler.constant(5, 0x20);
        assembler.words(&[csr(1, 0, SIE, 5), WFI]);
    }
    assembler.constant(A0, 0);
    assembler.constant(A1, 0);
    assembler.constant(A6, 0);
    assembler.constant(A7, SBI_RESET);
    assembler.word(ECALL);
    elf(&[(START, &assembler.finish())])
}

/// A recording of a guest that writes `parts`.
struct Recording {
    directory: TempDir,
    log: PathBuf,
    /// Standard output of `ft-record --json`.
    told: String,
}

impl Recording {
    fn of(parts: &[&[u8]]) -> Self {
        let directory = TempDir::new().unwrap();
        let (guest, log) = (directory.path().join("guest.elf"), directory.path().join("guest.ftlog"));
        fs::write(&guest, writer(parts)).unwrap();
        let mut record = programs!().command("ft-record");
        let output = run(record.arg("--json").args(["--guest".as_ref(), guest.as_path()]).arg("--output").arg(&log));
        assert_eq!(output.status.code(), Some(exit::OK.into()), "{}", text(&output.stderr));
        Self { directory, log, told: text(&output.stdout) }
    }

    fn replay(&self, options: &[&str]) -> Command {
        let mut replay = programs!().command("ft-replay");
        replay.arg(&self.log).args(options);
        replay
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn objects(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The console events in lines of JSON.
fn console(lines: &str) -> Vec<Value> {
    objects(lines).into_iter().filter(|object| object["event"] == "console").collect()
}

/// The console bytes of these events.
fn bytes(events: &[Value]) -> Vec<u8> {
    let one = |event: &Value| match event["hex"].as_str() {
        None => event["text"].as_str().unwrap().as_bytes().to_vec(),
        Some(hex) => (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect(),
    };
    events.iter().flat_map(one).collect()
}

#[test]
fn json_has_whole_characters_however_long_the_line_and_wherever_the_guest_sleeps() {
    let line = format!("x{}\n", "é".repeat(200));
    let recording = Recording::of(&[line.as_bytes(), b"\xc3", b"\xa9\n", b"\xf0\x9f", b"\x98\x80!"]);
    let replayed = text(&run(&mut recording.replay(&["--json"])).stdout);
    for told in [&recording.told, &replayed] {
        let events = console(told);
        let whole: String = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
        assert_eq!(whole, format!("{line}é\n😀!"));
        assert!(events.iter().all(|event| event.get("hex").is_none()), "{events:?}");
    }
}

#[test]
fn json_keeps_bytes_that_are_not_utf_8() {
    let parts: [&[u8]; 3] = [b"latin \xe9\n\xff\xfe", b"\xc3", b"half \xe2\x86"];
    let recording = Recording::of(&parts);
    let replayed = text(&run(&mut recording.replay(&["--json"])).stdout);
    for told in [&recording.told, &replayed] {
        assert_eq!(bytes(&console(told)), parts.concat(), "{told}");
    }
}

#[test]
fn an_option_chooses_where_the_console_goes() {
    // Queries as vi sends them: the terminal's version, its colours, the cursor's position.
    let output = b"\x1b[?1049h\x1b[>c\x1b]11;?\x07\x1b[6nhello\r\n\x05";
    let recording = Recording::of(&[output]);
    let stdout = |options: &[&str]| {
        let output = run(&mut recording.replay(options));
        assert_eq!(output.status.code(), Some(exit::OK.into()), "{}", text(&output.stderr));
        output.stdout
    };
    assert_eq!(stdout(&[]), output, "it isn't a terminal");
    assert_eq!(stdout(&["--console", "raw"]), output);
    assert_eq!(stdout(&["--console", "none"]), b"");
    let filtered = text(&stdout(&["--console", "filtered"]));
    assert!(filtered.starts_with("\x1b[?1049hhello\r\n\x1b[?1049l"), "{filtered:?}");
    let file = recording.path("console");
    assert_eq!(stdout(&["--console", file.to_str().unwrap()]), b"");
    assert_eq!(fs::read(&file).unwrap(), output);
    // Writing the console over the log would destroy the recording.
    let before = fs::read(&recording.log).unwrap();
    let refused = run(&mut recording.replay(&["--console", recording.log.to_str().unwrap()]));
    assert_eq!(refused.status.code(), Some(exit::FAILURE.into()));
    assert!(text(&refused.stderr).contains("is the log that is replayed"), "{}", text(&refused.stderr));
    assert_eq!(fs::read(&recording.log).unwrap(), before);
}

#[test]
fn entries_are_a_table_with_a_head_or_json() {
    let recording = Recording::of(&[b"one\n", b"two\n"]);
    let table = text(&run(&mut recording.replay(&["--entries"])).stdout);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["seq", "instruction", "entry", "detail"]);
    let listed = objects(&text(&run(&mut recording.replay(&["--entries", "--json"])).stdout));
    let (end, entries) = listed.split_last().unwrap();
    assert_eq!(end["event"], "end");
    assert_eq!(entries.len(), table.lines().count() - 1);
    let mut last = 0;
    for (seq, (entry, line)) in entries.iter().zip(table.lines().skip(1)).enumerate() {
        assert_eq!((&entry["event"], entry["seq"].as_u64()), (&Value::from("entry"), Some(seq as u64)));
        let count = entry["instruction_count"].as_u64().unwrap();
        assert!(count >= last);
        last = count;
        // The table has `ClockRead` where JSON has `clock_read`.
        let kind = entry["entry"].as_str().unwrap().replace('_', "");
        assert_eq!(line.split_whitespace().nth(2).unwrap().to_lowercase(), kind, "{line} {entry}");
    }
    let outputs: Vec<_> = entries.iter().filter(|entry| entry["entry"] == "output").collect();
    assert_eq!(outputs.len(), 2);
    assert!(outputs.iter().all(|output| output["digest"].as_str().unwrap().len() == 16), "{outputs:?}");
}

/// Runs `command` with a closed pipe as standard output.
fn into_closed_pipe(command: &mut Command) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

fn into(path: &Path, command: &mut Command) -> Output {
    let file = File::options().write(true).open(path).unwrap();
    let child = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn an_error_of_standard_output_is_reported_and_a_closed_pipe_is_not() {
    let recording = Recording::of(&[b"one\n", b"two\n"]);
    for options in [&[][..], &["--json"], &["--entries"], &["--entries", "--json"]] {
        let full = into(Path::new("/dev/full"), &mut recording.replay(options));
        assert_eq!(full.status.code(), Some(exit::FAILURE.into()), "{options:?}");
        let told = text(&full.stderr);
        assert!(told.contains("can't write to standard output: No space left on device"), "{options:?}: {told}");
        let closed = into_closed_pipe(&mut recording.replay(options));
        assert_eq!(closed.status.code(), Some(exit::PIPE_CLOSED.into()), "{options:?}");
        assert_eq!(text(&closed.stderr), "", "{options:?}");
    }
    // Without console output there is nothing that can fail.
    let none = into_closed_pipe(&mut recording.replay(&["--console", "none"]));
    assert_eq!(none.status.code(), Some(exit::OK.into()));
}

/// A log in a pipe can be read only once, and without seeking.
#[test]
fn a_log_from_a_pipe_replays() {
    let recording = Recording::of(&[b"piped\n"]);
    let mut replay = programs!().command("ft-replay");
    let mut child =
        replay.arg("/dev/stdin").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::copy(&mut File::open(&recording.log).unwrap(), &mut child.stdin.take().unwrap()).unwrap();
    let mut shown = String::new();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(exit::OK.into()));
    assert_eq!(shown, "piped\n");
}

/// A replay restores the terminal's state however it ends.
#[test]
fn an_interrupted_replay_restores_the_terminal() {
    let begin = b"\x1b[?1049h\x1b[31mred";
    // More than a pipe holds, so that the replay goes on only while it is read.
    let rest = [b'x'; 2000];
    let parts: Vec<&[u8]> = [&begin[..]].into_iter().chain([&rest[..]; 60]).collect();
    let recording = Recording::of(&parts);
    let mut command = recording.replay(&["--console", "filtered"]);
    let mut replay = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut output = replay.stdout.take().unwrap();
    let mut shown = vec![0; begin.len()];
    output.read_exact(&mut shown).unwrap();
    assert_eq!(shown, begin);
    let pid = nix::unistd::Pid::from_raw(replay.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).unwrap();
    assert_eq!(replay.wait().unwrap().code(), Some(exit::INTERRUPTED.into()));
    let end = text(&rest[rest.len().saturating_sub(40)..]);
    assert!(end.contains("\x1b[?1049l") && end.contains("\x1b[m"), "{end:?}");
    assert!(rest.len() < 110_000, "it was replayed to its end: {}", rest.len());
}

/// The same on a real terminal. The kernel drops output that the terminal hasn't read when Ctrl-C
/// is typed; a second Ctrl-C ends the program without waiting for the replay.
#[test]
fn ctrl_c_on_a_terminal_restores_it() {
    let begin = b"\x1b[?1049h\x1b[31mred";
    let rest = [b'x'; 2000];
    let parts: Vec<&[u8]> = [&begin[..]].into_iter().chain([&rest[..]; 60]).collect();
    let recording = Recording::of(&parts);
    let log = recording.log.to_str().unwrap();
    let interrupt = |times| {
        // On a terminal the console is filtered, unless an option asks for raw output.
        let mut terminal = Terminal::start(&programs!(), "ft-replay", &[log]).unwrap();
        terminal.read_until(begin).unwrap();
        terminal.type_keys(&[CTRL_C]).unwrap();
        if times == 2 {
            // The program has handled the first Ctrl-C.
            terminal.read_until(b"^C").unwrap();
            terminal.type_keys(&[CTRL_C]).unwrap();
        }
        terminal.read_to_end().unwrap()
    };
    // A program that has ended when the second Ctrl-C is typed can't repeat what the kernel drops
    // then: another try.
    let restores = |(shown, _): &(Vec<u8>, _)| contains(shown, b"\x1b[?1049l");
    let twice = (0..20).map(|_| interrupt(2)).find(restores);
    for (times, outcome) in [(1, Some(interrupt(1))), (2, twice)] {
        let (shown, code) = outcome.expect("the second Ctrl-C restores the terminal in one of many tries");
        assert_eq!(code, Some(exit::INTERRUPTED.into()), "Ctrl-C {times} times");
        let end = text(&shown[shown.len().saturating_sub(120)..]);
        assert!(end.contains("\x1b[?1049l") && end.contains("\x1b[m"), "Ctrl-C {times} times: {end:?}");
        assert!(shown.len() < 110_000, "it was replayed to its end: {}", shown.len());
    }
}

/// A report begins on a line of its own on a terminal, also after a prompt of the guest and after
/// the terminal's `^C`.
#[test]
fn reports_begin_at_the_margin_of_a_terminal() {
    let recording = Recording::of(&[b"login: "]);
    let log = recording.log.to_str().unwrap();
    let (shown, code) = Terminal::start(&programs!(), "ft-replay", &[log]).unwrap().read_to_end().unwrap();
    let shown = text(&shown);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!((code, lines[0]), (Some(exit::OK.into()), "login: "), "{shown:?}");
    assert!(lines[1].contains(" replay: ") && lines[1].starts_with(|first: char| first.is_ascii_digit()), "{shown:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{shown:?}");

    let claims = recording.path("claims");
    let arguments = ["--dir", claims.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let mut arbiter = Terminal::start(&programs!(), "ft-arbiter", &arguments).unwrap();
    arbiter.read_until(b"listening").unwrap();
    arbiter.type_keys(&[CTRL_C]).unwrap();
    let (shown, code) = arbiter.read_to_end().unwrap();
    assert_eq!(code, Some(exit::OK.into()));
    let shown = text(&shown);
    assert!(shown.lines().any(|line| line.ends_with("^C")), "{shown:?}");
}
