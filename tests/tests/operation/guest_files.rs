//! The real `ft-record` and `ft-replay` with guests from files: kernels, initrds, disks, and files
//! that are no guests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use hypervisor::program::guest::Guest;
use logchannel::file::LogHead;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;
use tests::programs;
use tests::qemu::assembler::{Assembler, csr, elf};
use tests::stage::{Ended, Node};
use vm::BootMode;

const BAD_USAGE: Option<i32> = Some(2);
const VERSION_2: &[u8] = include_bytes!("../../../logchannel/testdata/version-2-image.ftlog.bin");
const VERSION_3: &[u8] = include_bytes!("../../../logchannel/testdata/version-3-image.ftlog.bin");

struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Node {
        Node::start(&programs!(), self.directory.path(), program, arguments)
    }

    fn record(&self, arguments: &[&str]) -> (Ended, Node) {
        let mut recorder = self.run("ft-record", &[&["--force", "--output", &self.path("log")], arguments].concat());
        (recorder.end(), recorder)
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], because: &[&str]) {
        let (end, _) = self.record(arguments);
        assert_eq!(end.code, Some(exit::FAILURE.into()), "{end:?}");
        for words in because {
            assert!(end.reason.contains(words), "{words:?} is not in {:?}", end.reason);
        }
        assert!(!PathBuf::from(self.path("log")).exists(), "a guest that can't start leaves no log behind");
    }
}

fn hello() -> Vec<u8> {
    Guest::load("hello").unwrap().image
}

#[test]
fn a_kernel_with_initrd_and_disk_is_recorded_and_replays_from_the_log_alone() {
    let files = Files::new();
    let (kernel, initrd) = (files.write("kernel", &hello()), files.write("initrd", &[7; 5000]));
    let (end, mut recorder) = files.record(&["--kernel", &kernel, "--initrd", &initrd]);
    assert_eq!(end.code, Some(exit::OK.into()), "{end:?} {}", recorder.stderr());
    let log = fs::read(files.path("log")).unwrap();
    let config = LogHead::read(&log[..]).unwrap().header().config.clone();
    assert_eq!((config.ram_bytes, config.boot), (128 << 20, BootMode::Firmware), "an operating system gets more");
    fs::remove_file(kernel).unwrap();
    fs::remove_file(initrd).unwrap();
    let mut replayer = files.run("ft-replay", &[&files.path("log")]);
    let end = replayer.end();
    assert_eq!(end.code, Some(exit::OK.into()), "{end:?}");
    assert_eq!(replayer.console(), recorder.console());
    assert!(recorder.console().contains("hello"));
}

#[test]
fn files_that_are_no_guest_are_refused_with_what_to_do() {
    let files = Files::new();
    let kernel = files.write("kernel", &hello());
    let absent = files.path("absent");
    let directory = files.directory.path().to_str().unwrap().to_owned();
    files.refused(&["--kernel", &absent], &["can't read the kernel", &absent, "No such file"]);
    files.refused(&["--kernel", &directory], &["can't read the kernel", "Is a directory"]);
    files.refused(&["--kernel", &kernel, "--initrd", &absent], &["can't read the initrd", "No such file"]);
    files.refused(&["--kernel", &kernel, "--disk", &directory], &["can't read the disk", "Is a directory"]);
    files.refused(&["--kernel", &files.write("empty", b"")], &["is empty"]);
    files.refused(&["--bare", &absent], &["can't read the bare program"]);
    files.refused(&["--guest", &absent], &["not a built-in guest", "No such file"]);
    files.refused(&["--kernel", &files.write("gz", b"\x1f\x8b\x08 and so on")], &["gzip", "gunzip"]);
    files.refused(&["--kernel", &files.write("text", b"dear diary")], &["neither a RISC-V Linux Image nor a 64-bit"]);
    let initrd = files.write("large", &vec![1; 5 << 20]);
    let small = ["--kernel", &kernel, "--initrd", &initrd, "--memory", "4"];
    files.refused(&small, &["the initrd takes 0x500000 bytes", "--memory"]);
}

#[test]
fn a_guest_is_named_in_one_way() {
    let files = Files::new();
    let kernel = files.write("kernel", &hello());
    for arguments in [
        &["--guest", "echo", "--kernel", &kernel][..],
        &["--guest", "echo", "--bare", &kernel],
        &["--kernel", &kernel, "--bare", &kernel],
        &["--initrd", &kernel],
        &["--kernel", &kernel, "--memory", "3"],
    ] {
        assert_eq!(files.record(arguments).0.code, BAD_USAGE, "{arguments:?}");
        assert_eq!(files.run("ft-primary", arguments).end().code, BAD_USAGE, "{arguments:?}");
    }
    for option in [&["--kernel", kernel.as_str()][..], &["--bare", &kernel], &["--disk", &kernel]] {
        let resumed = [&["--resume", "logs"], option].concat();
        assert_eq!(files.run("ft-primary", &resumed).end().code, BAD_USAGE, "{resumed:?}");
    }
}

#[test]
fn a_log_of_an_earlier_machine_is_listed_and_not_replayed() {
    let files = Files::new();
    for (log, format, release, entries) in [
        (VERSION_2, "format version 2", "builds before release 0.1.0", 15),
        (VERSION_3, "format version 3", "Replay it with release 0.1.0", 16),
    ] {
        let log = files.write("old.ftlog", log);
        let mut replayer = files.run("ft-replay", &[&log]);
        let end = replayer.end();
        assert_eq!(end.code, Some(exit::FAILURE.into()), "{end:?}");
        for words in [format, "another machine", release, "--entries"] {
            assert!(end.reason.contains(words), "{words:?} is not in {:?}", end.reason);
        }
        let listed = programs!().command("ft-replay").args([&log, "--entries"]).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let has_head = 1;
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), has_head + entries);
    }
}

/// A kernel that panics without a console, as Linux does: its message is in memory, and it reads
/// the clock for ever.
fn panicked() -> Vec<u8> {
    const START: u64 = 0x8020_0000;
    const TIME: u32 = 0xc01;
    let mut assembler = Assembler::new(START);
    let waits = assembler.place_new();
    assembler.word(csr(2, 6, TIME, 0));
    assembler.jump(0, waits);
    let log = b"Kernel panic - not syncing: %s\0Kernel panic - not syncing: Failed to allocate 33554432 bytes\n";
    elf(&[(START, &assembler.finish()), (START + 0x1000, log)])
}

#[test]
fn a_kernel_that_panics_without_a_console_is_told_and_ends_the_recording() {
    let files = Files::new();
    let kernel = files.write("kernel", &panicked());
    let (end, mut recorder) = files.record(&["--kernel", &kernel]);
    assert_eq!(end.code, Some(exit::GUEST_FAILED.into()), "{end:?}");
    assert!(end.reason.contains("has panicked: Failed to allocate 33554432 bytes"), "{end:?}");
    assert_eq!(recorder.told_text("guest_panicked", "reason"), "Failed to allocate 33554432 bytes");
    // A kernel that reboots after a panic isn't ended.
    let mut recorder = files
        .run("ft-record", &["--force", "--output", &files.path("log"), "--kernel", &kernel, "--append", "panic=9"]);
    recorder.told("guest_panicked");
    assert_eq!(recorder.interrupt().code, Some(exit::OK.into()));
}
