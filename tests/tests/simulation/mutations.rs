//! Bugs on purpose, each found by the simulator within a few seeds: checks that nothing can fail
//! prove nothing.

#![cfg(feature = "mutations")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use ft::claim::{Claim, ClaimKind, Verdict};
use ft::event_source::EventSource;
use ft::mutation::{Mutation, activate};
use ft::output_gate::OutputGate;
use ft::record::{Intervals, LogSink, Recorder};
use ft::role::{ClaimAnswer, PrimaryAction, PrimaryRole, Timing};
use ft::start::{LogIdentity, ResumeConsent, judge_resume};
use hypervisor::arbiter::{Arbiter, FileArbiter};
use hypervisor::node::start::{claim_resume, latest};
use hypervisor::program::guest::Guest;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader, VmId};
use std::convert::Infallible;
use std::panic;
use tests::qemu::assembler::elf;
use tests::sim::{self, RunSpec, failures};
use vm::{Event, InstructionCount, Machine, MachineConfig, OutputId, OutputOperation, PAGE_BYTES};

/// Seeds within which each is found.
const SEEDS: u64 = 200;

/// The first seed that shows the bug, and what it breaks.
fn caught(mutation: Mutation) -> Option<Box<sim::Failure>> {
    (0..SEEDS).find_map(|seed| sim::run(&RunSpec { mutation: Some(mutation), ..RunSpec::of(seed) }).err())
}

#[test]
fn every_mutation_is_caught() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match caught(mutation) {
            Some(failure) => println!("{mutation:?}: seed {}: {}", failure.spec.seed, failure.reason),
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "no seed catches {missed:?}");
}

/// What a shrunk run is for: it breaks the same rule, with fewer faults or sooner, and whoever runs
/// the line that it prints sees the same.
#[test]
fn a_mutation_that_is_caught_is_shrunk() {
    let folder = tempfile::tempdir().unwrap();
    for mutation in [Mutation::SkipOutputRule, Mutation::ForgetUnsent, Mutation::CarryTwice] {
        let failure = caught(mutation).expect("caught");
        let shrunk = sim::shrink(&failure, &mut |_| true);
        let again = sim::shrink(&failure, &mut |_| true);
        let rerun = sim::run(&shrunk.failure.spec).unwrap_err();
        let file = failures::keep(folder.path(), &shrunk).unwrap();
        let smaller = &shrunk.failure;
        println!("{mutation:?}: {failure:?}, shrunk to {shrunk:?}");
        assert_eq!(smaller.rule, failure.rule, "{mutation:?}");
        assert!(smaller.struck.len() < failure.struck.len(), "{mutation:?} has as many faults as before");
        assert!(shrunk.runs <= sim::RUNS_MAX, "{} runs", shrunk.runs);
        assert_eq!(again.failure.spec, smaller.spec, "{mutation:?} is shrunk to another run");
        assert_eq!((&rerun.rule, &rerun.reason), (&smaller.rule, &smaller.reason), "{mutation:?}");
        let text = std::fs::read_to_string(file).unwrap();
        for part in [&smaller.spec.command(), &smaller.rule, &smaller.reason, "RULE BROKEN", "Faults that are left"] {
            assert!(text.contains(part), "{mutation:?}: the file doesn't have {part:?}:\n{text}");
        }
    }
}

/// A rule holds, and doesn't without the code that `mutation` takes away.
fn takes_away(mutation: Mutation, holds: fn() -> bool) {
    assert!(holds(), "{mutation:?}");
    activate(Some(mutation));
    let holds = holds();
    activate(None);
    assert!(!holds, "{mutation:?}");
}

/// A primary that a backup joins, and its guest's machine.
fn primary_that_is_joined() -> (PrimaryRole, Machine) {
    let guest = Guest::load("hello").unwrap();
    let config = MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() };
    let session = SessionHeader::new("vm0".parse().unwrap(), Generation(1), config.clone(), "hello", &guest.image);
    let machine = Machine::new(&config, &guest.image).unwrap();
    let mut role = PrimaryRole::alone(NodeId(1), session.unwrap(), Timing::default());
    role.handle_join(0, &"vm0".parse().unwrap()).unwrap();
    (role, machine)
}

/// Copies a guest that writes pages as fast as it may while a backup joins; `false` if that has no
/// end.
fn copy_ends() -> bool {
    const PAGES: u64 = 2048;
    let (mut role, mut machine) = primary_that_is_joined();
    let mut next = 0;
    let mut write = |machine: &mut Machine, pages: u64| {
        for _ in 0..pages {
            assert!(machine.flip_ram_bit(0x8080_0000 + next * PAGE_BYTES as u64, 0));
            next = (next + 1) % PAGES;
        }
    };
    write(&mut machine, PAGES);
    let mut bytes = Vec::new();
    // All of the memory three times, in pieces of 16 pages.
    for _ in 0..3 * 4096 / 16 {
        role.copy_snapshot(0, &mut machine);
        if !role.is_copying() {
            return true;
        }
        bytes.clear();
        role.poll_outgoing(&mut bytes);
        let steps = role.steps_allowed(5000, &machine).unwrap_or(0);
        write(&mut machine, steps / 2);
    }
    false
}

/// The simulator's guest writes little memory. Here is one that no copy keeps up with.
#[test]
fn the_mutation_of_copies_copies_a_guest_that_is_not_slowed_without_end() {
    let [mutation] = Mutation::OF_COPIES;
    takes_away(mutation, copy_ends);
}

/// A host whose time of day is behind that of the owner before.
struct HostBehind;

impl EventSource for HostBehind {
    fn now_ns(&mut self) -> u64 {
        0
    }

    fn ticks(&mut self) -> u64 {
        0
    }

    fn wall_ns(&mut self) -> u64 {
        5
    }

    fn entropy(&mut self) -> u16 {
        0
    }

    fn poll(&mut self, _: &Machine) -> Option<Event> {
        None
    }
}

/// The times of day that a guest has got.
#[derive(Default)]
struct TimesOfDay(Vec<u64>);

impl LogSink for TimesOfDay {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, _: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        if let EntryBody::Event(Event::WallClock { ns }) = entry.body {
            self.0.push(ns);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Whether a new owner whose host is behind gives the guest no time of day that it knows to be
/// past.
fn time_of_day_goes_on() -> bool {
    // lui t0, 0x101; lw t1, 0(t0); lw t1, 0(t0): the real-time clock's lower half, twice.
    let code = [0x0010_12b7_u32, 0x0002_a303, 0x0002_a303];
    let code: Vec<u8> = code.into_iter().flat_map(u32::to_le_bytes).collect();
    let image = elf(&[(0x8000_0000, &code)]);
    let mut machine = Machine::new(&MachineConfig::default(), &image).unwrap();
    assert_eq!(machine.run(InstructionCount(10)), vm::Exit::WallClockNeeded);
    machine.apply(&Event::WallClock { ns: 7 }).unwrap();
    let mut recorder = Recorder::new(machine, HostBehind, Intervals::default());
    let mut times = TimesOfDay::default();
    // The machine takes no time of day before the last, and the recorder takes that for its bug.
    let ran = panic::catch_unwind(panic::AssertUnwindSafe(|| recorder.run_slice(&mut times, 1)));
    ran.is_ok() && times.0 == [7]
}

#[test]
fn the_mutation_of_the_time_of_day_turns_it_back() {
    let [mutation] = Mutation::OF_TIME_OF_DAY;
    takes_away(mutation, time_of_day_goes_on);
}

/// Whether console output that waits to be written is sent again by a process that takes over from
/// one which dies now.
fn waiting_console_output_is_kept() -> bool {
    let mut gate = OutputGate::new(OutputId(0));
    gate.hold(0, LogSeq(0), OutputId(0), OutputOperation::Console(b"word".to_vec()));
    gate.release(0, LogSeq(1));
    assert!(gate.take_released().is_some());
    gate.left().console == OutputId(0)
}

#[test]
fn the_mutation_of_console_output_loses_what_waits_to_be_written() {
    let [mutation] = Mutation::OF_CONSOLE;
    takes_away(mutation, waiting_console_output_is_kept);
}

/// Whether a primary whose backup acknowledges everything and replays nothing runs its guest again
/// in the end.
fn guest_of_a_stuck_backup_runs_again() -> bool {
    const TICK_NS: u64 = 5_000_000;
    let (mut role, mut machine) = primary_that_is_joined();
    let mut sent = Vec::new();
    while role.is_copying() {
        role.copy_snapshot(0, &mut machine);
        role.poll_outgoing(&mut sent);
    }
    role.handle_message(0, Message::Accepted);
    let mut stopped = false;
    for now_ns in (TICK_NS..60_000_000_000).step_by(5_000_000) {
        if role.may_run() {
            if stopped {
                return true;
            }
            role.handle_entry(now_ns, &LogEntry { count: InstructionCount(now_ns), body: EntryBody::Progress }, None);
        }
        stopped |= !role.may_run();
        role.handle_flush(now_ns);
        let received = role.appended();
        role.handle_message(now_ns, Message::Ack { received });
        role.handle_tick(now_ns);
        while let Some(action) = role.poll_action() {
            if let PrimaryAction::Claim(_) = action {
                role.handle_claim(now_ns, ClaimAnswer::Decided(Verdict::Won));
            }
        }
    }
    false
}

#[test]
fn the_mutation_of_replay_stops_a_guest_for_ever() {
    let [mutation] = Mutation::OF_REPLAY;
    takes_away(mutation, guest_of_a_stuck_backup_runs_again);
}

/// Whether a resume goes on though a claim that the dead owner had sent arrives during its replay.
fn a_late_claim_of_the_dead_owner_is_no_other_node() -> bool {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = FileArbiter::open(directory.path().join("claims")).unwrap();
    let vm: VmId = "vm0".parse().unwrap();
    let owner = |node| Claim { node: NodeId(node), kind: ClaimKind::Owner, address: None };
    let nodes = [NodeId(1)];
    let judge = || {
        let log = LogIdentity { generation: Generation(1), nodes: &nodes, is_owners: true };
        Ok(judge_resume(&vm, latest(&arbiter, &vm)?, log, |_| Vec::new(), ResumeConsent::default())?)
    };
    let set = |flag, before| arbiter.test_and_set(&vm, Generation(flag), &owner(1), before).unwrap();
    assert_eq!(set(0, None), Verdict::Won);
    let judged = judge().unwrap();
    assert_eq!(set(1, Some(NodeId(1))), Verdict::Won, "it arrives");
    claim_resume(&arbiter, &vm, &owner(2), judged, &nodes, judge).is_ok()
}

/// Whether a backup that says it has consumed what it hasn't received is taken for a faulty one.
fn nobody_consumes_what_it_has_not_received() -> bool {
    let (mut role, mut machine) = primary_that_is_joined();
    let mut sent = Vec::new();
    while role.is_copying() {
        role.copy_snapshot(0, &mut machine);
        role.poll_outgoing(&mut sent);
    }
    role.handle_message(0, Message::Accepted);
    let consumed = LogSeq(role.appended().0 + 1000);
    role.handle_message(1, Message::Consumed { consumed, count: InstructionCount(0) });
    std::iter::from_fn(|| role.poll_action()).any(|action| matches!(action, PrimaryAction::CloseChannel { .. }))
}

#[test]
fn the_mutations_of_drivers_are_seen() {
    let rules: [fn() -> bool; 2] =
        [a_late_claim_of_the_dead_owner_is_no_other_node, nobody_consumes_what_it_has_not_received];
    for (mutation, rule) in Mutation::OF_DRIVERS.into_iter().zip(rules) {
        takes_away(mutation, rule);
    }
}
