//! The commands of `ft-replay` as a person runs them: what they show is what was recorded, and
//! what is no good log is refused by each, with a clear error.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::moments::{Recorded, packet_number};
use ft::replay::{Consumed, Replayer};
use hypervisor::program::cli::exit;
use logchannel::entry::LogSeq;
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use tests::random::{Random, seed};
use vm::{Machine, OutputOperation};

/// Runs `ft-replay`.
fn replay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ft-programs"));
    command.arg0("ft-replay").args(arguments).output().unwrap()
}

/// The standard output of a command that succeeds.
#[track_caller]
fn shown(arguments: &[&str]) -> Vec<u8> {
    let output = replay(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit::OK.into()), "{arguments:?}: {stderr}");
    output.stdout
}

/// Its lines as JSON.
#[track_caller]
fn told(arguments: &[&str]) -> Vec<Value> {
    let output = String::from_utf8(shown(&[arguments, &["--json"]].concat())).unwrap();
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The console of a recording, by a plain replay.
fn console(recorded: &Recorded) -> Vec<u8> {
    let machine = Machine::new(&super::scripted::config(), &recorded.image).unwrap();
    let mut replayer = Replayer::new(machine, LogSeq(0));
    let mut console = Vec::new();
    for entry in &recorded.scripted.entries {
        if let Consumed::Output(_, OutputOperation::Console(bytes)) = replayer.consume(entry).unwrap() {
            console.extend(bytes);
        }
    }
    console
}

fn as_u64(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn as_hex(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

#[test]
fn every_command_shows_what_was_recorded() {
    let recorded = Recorded::of("echo", seed(), 2_000_000);
    let path = recorded.path();
    let log = text(&path);
    let entries = &recorded.scripted.entries;
    let last = recorded.last_count();

    let info = &told(&["info", log])[0];
    assert_eq!((as_u64(&info["last_instruction"]), as_u64(&info["end_entry"])), (last, entries.len() as u64));
    assert!(as_u64(&info["longest_seek"]) > 1_900_000, "{info}");
    let indexed = &told(&["index", log, "--spacing", "100k"])[0];
    assert!(as_u64(&indexed["snapshots"]) > 10, "{indexed}");
    assert!(as_u64(&told(&["info", log])[0]["longest_seek"]) < 300_000);

    let listed = told(&["entries", log]);
    assert_eq!(listed.len(), entries.len());
    let some = told(&["entries", log, "entry:10..entry:20"]);
    assert_eq!(some, listed[10..20]);
    let kinds = told(&["stats", log]);
    let all = kinds.iter().find(|line| line["kind"] == "all").unwrap();
    assert_eq!(as_u64(&all["entries"]), entries.len() as u64);
    let rates: u64 = kinds.iter().filter(|line| line["event"] == "rate").map(|line| as_u64(&line["entries"])).sum();
    assert_eq!(rates, entries.len() as u64);

    assert_eq!(shown(&["console", log]), console(&recorded));
    let packets: Vec<u64> = entries.iter().filter_map(packet_number).collect();
    let found = told(&["search", log, "--packet", "in", "--limit", "100000"]);
    let positions: Vec<String> = packets.iter().map(|number| format!("packet:{number}")).collect();
    assert_eq!(found.iter().map(|hit| hit["position"].as_str().unwrap()).collect::<Vec<_>>(), positions);

    let third = format!("packet:{}", packets[3]);
    assert_eq!(told(&["mark", log, "add", "here", &third])[0]["name"], "here");
    let by_mark = &told(&["state", log, "--at", "here"])[0];
    assert_eq!(by_mark, &told(&["state", log, "--at", &third])[0]);
    let count = as_u64(&by_mark["instruction_count"]);
    let entry = usize::try_from(as_u64(&by_mark["entry"])).unwrap();
    assert_eq!(by_mark["state_digest"], recorded.digest_at(count, entry).to_string());
    assert_eq!(by_mark["registers"]["zero"], "0x0000000000000000");
    told(&["mark", log, "remove", "here"]);
    assert!(told(&["mark", log]).is_empty());
}

#[test]
fn who_wrote_a_byte_is_found_and_the_state_there_is_about_to_write_it() {
    let recorded = Recorded::of("echo", seed(), 2_000_000);
    let path = recorded.path();
    let log = text(&path);
    shown(&["index", log, "--spacing", "200k"]);
    // The stack pointer at the end is in memory that is written all the time.
    let end = &told(&["state", log])[0];
    let address = format!("{:#x}", as_hex(&end["registers"]["sp"]) & !7);
    let range = format!("{address},8");
    let all = told(&["search", log, "--write", &range, "--limit", "1000000"]);
    assert!(!all.is_empty(), "{address}");
    let last = told(&["search", log, "--write", &range, "--last"]);
    assert_eq!(last[0], *all.last().unwrap());
    assert_eq!(told(&["search", log, "--write", &range, "--first"])[0], all[0]);
    // Before the last write, the one before that is the last.
    if let [.., before, write] = all.as_slice() {
        let until = format!("..{}", write["instruction_count"]);
        let found = told(&["search", log, &until, "--write", &range, "--last"]);
        assert_eq!(found[0]["instruction_count"], before["instruction_count"]);
    }
    // Memory has the value from the step after it on.
    let write = all.iter().rev().find(|hit| hit["writer"] == "instruction" && hit["length"] == 8).unwrap();
    let count = as_u64(&write["instruction_count"]);
    let at = write["address"].as_str().unwrap();
    let memory = &told(&["memory", log, at, "8", "--at", &(count + 1).to_string()])[0];
    let bytes = memory["hex"].as_str().unwrap();
    let value = (0..8).rev().map(|byte| &bytes[2 * byte..2 * byte + 2]).collect::<String>();
    assert_eq!(u64::from_str_radix(&value, 16).unwrap(), as_hex(&write["value"]));
    let state = &told(&["state", log, "--at", &count.to_string()])[0];
    assert_eq!(as_hex(&state["pc"]), as_hex(&write["pc"]));
    let instruction = state["instruction"].as_str().unwrap();
    assert!(instruction.contains("sd "), "{instruction} writes 8 bytes");
    // The same instruction is found by its address.
    let hits = told(&["search", log, &format!("{count}..{}", count + 1), "--pc", write["pc"].as_str().unwrap()]);
    assert_eq!(as_u64(&hits[0]["instruction_count"]), count);
}

#[test]
fn a_core_file_has_the_registers_and_the_memory() {
    let recorded = Recorded::of("hello", seed(), 1_000_000);
    let path = recorded.path();
    let core = recorded.directory.path().join("core");
    let told_core = &told(&["core", text(&path), text(&core), "--at", "1000"])[0];
    let bytes = fs::read(&core).unwrap();
    assert_eq!(bytes.len() as u64, as_u64(&told_core["bytes"]));
    let double = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    assert!(bytes.starts_with(b"\x7fELF\x02\x01\x01") && bytes[16..20] == [4, 0, 243, 0]);
    let (note, ram) = (usize::try_from(double(64 + 8)).unwrap(), usize::try_from(double(64 + 56 + 8)).unwrap());
    let state = &told(&["state", text(&path), "--at", "1000"])[0];
    let registers = note + 20 + 112;
    assert_eq!(double(registers), as_hex(&state["pc"]));
    assert_eq!(double(registers + 16), as_hex(&state["registers"]["sp"]));
    let memory = shown(&["memory", text(&path), "0x80000000", "4096", "--at", "1000", "--physical", "--raw"]);
    assert_eq!(memory, &bytes[ram..ram + 4096]);
    let again = replay(&["core", text(&path), text(&core)]);
    assert_eq!(again.status.code(), Some(exit::FAILURE.into()), "a file is not overwritten");
}

/// Every command with the arguments that it needs.
const COMMANDS: [&[&str]; 11] = [
    &["info"],
    &["entries"],
    &["stats"],
    &["mark"],
    &["index"],
    &["state"],
    &["memory", "0x80000000"],
    &["console"],
    &["search", "--trap", "all"],
    &["search", "--write", "0x80000000", "--physical"],
    &["mark", "add", "x", "end"],
];

/// `command` on the log at `path`.
fn on(command: &[&'static str], path: &str) -> Vec<String> {
    let (name, rest) = command.split_first().unwrap();
    [&[*name, path], rest].concat().iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn each_command_refuses_what_is_no_log_and_takes_a_torn_one() {
    let mut random = Random::new(seed());
    let recorded = Recorded::of("hello", 1, 1_000_000);
    let whole = fs::read(recorded.path()).unwrap();
    let file = recorded.directory.path().join("bad");
    let begin = usize::try_from(recorded.open().parts()[0].begin().cursor.offset).unwrap();
    let run = |command: &[&'static str], json: bool| {
        let mut arguments = on(command, text(&file));
        arguments.extend(json.then(|| "--json".to_owned()));
        let output = replay(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        (output.status.code(), stderr, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for command in COMMANDS {
        let mut cases: Vec<(Vec<u8>, bool)> = vec![
            (Vec::new(), false),
            (b"no log\n".to_vec(), false),
            (whole[..11].to_vec(), false),
            (whole[..begin / 2].to_vec(), false),
            (whole[..whole.len() - 3].to_vec(), true),
            (whole[..begin + 1].to_vec(), true),
        ];
        let mut flipped = whole.clone();
        flipped[20 + random.index(200)] ^= 4;
        cases.push((flipped, false));
        for (bytes, is_good) in cases {
            let _ = fs::remove_file(file.with_extension("ftindex"));
            for beside in ["bad.ftindex", "bad.ftmarks"] {
                let _ = fs::remove_file(recorded.directory.path().join(beside));
            }
            fs::write(&file, &bytes).unwrap();
            let (code, stderr, _) = run(command, false);
            let expected = if is_good { exit::OK } else { exit::FAILURE };
            assert_eq!(code, Some(expected.into()), "{command:?}, {} bytes: {stderr}", bytes.len());
            if !is_good {
                assert!(stderr.contains("bad"), "{command:?}: the file isn't named: {stderr}");
                let (code, _, stdout) = run(command, true);
                assert_eq!(code, Some(exit::FAILURE.into()));
                let end: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
                assert_eq!(end["event"], "end", "{command:?}");
            }
        }
    }
    let directory = recorded.directory.path().join("empty");
    fs::create_dir(&directory).unwrap();
    for command in COMMANDS {
        let arguments = on(command, text(&directory));
        let output = replay(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(exit::FAILURE.into()), "{command:?}");
    }
}
