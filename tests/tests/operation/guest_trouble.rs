//! Trouble inside a guest is reported by the program that runs it: a panic of its kernel, packets
//! that its network device drops.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;
use tests::programs;
use tests::qemu::assembler::{Assembler, addi, csr, elf, r_type, s_type};
use tests::stage::{Ended, Pair, Stage};

const START: u64 = 0x8020_0000;
const NETWORK_CARD: u64 = 0x1000_1000;
const A0: u32 = 10;
const A6: u32 = 16;
const A7: u32 = 17;
const T0: u32 = 5;
const ECALL: u32 = 0x0000_0073;
const WFI: u32 = 0x1050_0073;
const TIME: u32 = 0xc01;
const SIE: u32 = 0x104;
const SUPERVISOR_TIMER: u64 = 0x20;

const SBI_TIME: u64 = 0x5449_4d45;
const SBI_CONSOLE: u64 = 0x4442_434e;
const CONSOLE_WRITE_BYTE: u64 = 2;

/// A guest's file, in a directory of its own.
struct Guest {
    _directory: TempDir,
    path: PathBuf,
}

impl Guest {
    fn of(image: &[u8]) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("guest.elf");
        fs::write(&path, image).unwrap();
        Self { _directory: directory, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// A kernel that prints to its console, and then panics: it reads the clock in a loop, and each
    /// read is an entry.
    fn panicking() -> Self {
        let mut assembler = Assembler::new(START);
        write_byte(&mut assembler, b'p');
        let waiting = assembler.place_new();
        assembler.words(&[csr(2, A0, TIME, 0)]);
        assembler.jump(0, waiting);
        let words = b"---[ end Kernel panic - not syncing: VFS: no root ]---\n\0";
        Self::of(&elf(&[(START, &assembler.finish()), (START + 0x1000, words)]))
    }

    /// A guest whose network driver sends a packet of five bytes, which is too short, and prints a
    /// line. Then it sleeps for ever, for 100 ms at a time.
    fn with_a_short_packet() -> Self {
        const DESCRIPTORS: u64 = START + 0x1000;
        const AVAILABLE: u64 = START + 0x1100;
        const USED: u64 = START + 0x1200;
        let mut assembler = Assembler::new(START);
        // Virtio 1, and a transmit queue of eight descriptors.
        let set_up = [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 1), (0x38, 8)];
        let rings = [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED), (0x44, 1), (0x70, 15), (0x50, 1)];
        assembler.constant(A0, NETWORK_CARD);
        for (register, value) in set_up.into_iter().chain(rings) {
            assembler.constant(T0, value);
            assembler.word(s_type(2, A0, T0, register));
        }
        write_byte(&mut assembler, b's');
        assembler.constant(T0, SUPERVISOR_TIMER);
        assembler.word(csr(1, 0, SIE, T0));
        let sleeping = assembler.place_new();
        assembler.word(csr(2, A0, TIME, 0));
        assembler.constant(T0, 1_000_000);
        assembler.word(r_type(0x33, 0, 0, A0, A0, T0));
        assembler.constant(A7, SBI_TIME);
        assembler.words(&[addi(A6, 0, 0), ECALL, WFI]);
        assembler.jump(0, sleeping);
        // One available descriptor: a virtio header and the five bytes.
        let descriptor = [&(START + 0x2000).to_le_bytes()[..], &17_u32.to_le_bytes(), &[0; 4]].concat();
        let available = [0, 0, 1, 0, 0, 0];
        Self::of(&elf(&[(START, &assembler.finish()), (DESCRIPTORS, &descriptor), (AVAILABLE, &available)]))
    }
}

fn write_byte(assembler: &mut Assembler, byte: u8) {
    assembler.constant(A7, SBI_CONSOLE);
    assembler.constant(A6, CONSOLE_WRITE_BYTE);
    assembler.constant(A0, byte.into());
    assembler.word(ECALL);
}

#[test]
fn the_recording_of_a_kernel_that_panics_after_it_had_a_console_ends() {
    let (stage, guest) = (Stage::new(programs!()), Guest::panicking());
    let log = guest.path().replace("guest.elf", "guest.ftlog");
    let mut record = stage.program("ft-record", &["--guest", guest.path(), "--output", &log]);
    let panicked = record.told("guest_panicked");
    assert_eq!((&panicked["reason"], &panicked["has_console"]), (&"VFS: no root".into(), &true.into()));
    assert_eq!(record.end().code, Some(exit::GUEST_FAILED.into()));
}

#[test]
fn a_kernel_panic_in_a_live_vm_is_reported_before_and_after_a_failover() {
    let (stage, guest) = (Stage::new(programs!()), Guest::panicking());
    let Pair { mut primary, mut backup } = stage.pair(&["--guest", guest.path()], &[]);
    assert_eq!(primary.told_text("guest_panicked", "reason"), "VFS: no root");
    assert!(!backup.has_told("guest_panicked"), "it is for the one that runs the guest to tell");
    primary.kill();
    assert_eq!(backup.told("guest_panicked")["has_console"], true);
    // The backup owns the VM, so it may end it.
    let Ended { code, reason } = backup.interrupt();
    assert_eq!(code, Some(exit::OK.into()), "{reason}");
}

#[test]
fn packets_dropped_by_the_network_device_are_reported_for_a_live_vm() {
    let (stage, guest) = (Stage::new(programs!()), Guest::with_a_short_packet());
    let mut primary = stage.node("ft-primary", &["--unprotected", "--guest", guest.path()]);
    primary.told("console");
    assert_eq!(primary.interrupt().code, Some(exit::OK.into()));
    assert_eq!(primary.told_number("figures", "frames_dropped"), 1);
}

#[test]
fn packets_dropped_by_the_network_device_are_reported_for_a_recording_and_its_replay() {
    let (stage, guest) = (Stage::new(programs!()), Guest::with_a_short_packet());
    let log = guest.path().replace("guest.elf", "guest.ftlog");
    let mut record = stage.program("ft-record", &["--guest", guest.path(), "--output", &log]);
    record.told("console");
    assert_eq!(record.interrupt().code, Some(exit::OK.into()));
    assert_eq!(record.told_number("recorded", "frames_dropped"), 1);
    let mut replay = stage.program("ft-replay", &[&log]);
    assert_eq!(replay.end().code, Some(exit::OK.into()));
    assert_eq!(replay.told_number("replayed", "frames_dropped"), 1);
}
