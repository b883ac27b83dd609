//! A machine restored from a snapshot is the machine it was taken of, wherever it was taken; what
//! isn't a snapshot is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::hostile::{self, Random};
use common::paged::{PAGED_SATP, Paged};
use common::{
    ECALL, FINISHER, LI, MCAUSE, MCOUNTEREN, MCOUNTINHIBIT, MCYCLE, MEDELEG, MIDELEG, MIE, MIP, MSCRATCH, MSTATUS,
    MTVEC, NOP, PMPADDR0, PMPCFG0, RAM, RAM_PAGES, SATP, SEED, SEPC, SIE, SRET, SSTATUS, STVAL, STVEC, SUPERVISOR,
    TIME, UART, WFI, addi, amo, bare_config, branch, csrrs, csrrw, drive, go, li, load, machine, run_on, small_config,
    store,
};
use std::collections::BTreeSet;
use vm::{
    ApplyError, BootMode, Event, Exit, InstructionCount, LoadError, Machine, MachineConfig, OutputId, OutputOperation,
    PAGE_BYTES, PageCopy, PageRange, Restoration, RestoreError, STATE_BYTES_MAX, StopReason,
};

const TIMER_EXTENSION: u64 = 0x5449_4d45;

/// A copy of RAM that is being made, and where it is made.
struct Copying {
    copy: PageCopy,
    pages: Restoration,
    taken: BTreeSet<u64>,
    taken_again: usize,
}

impl Copying {
    fn begin(copy: PageCopy, config: &MachineConfig, machine: &mut Machine) -> Self {
        machine.begin_copy(copy);
        let pages = Restoration::new(config).unwrap();
        Self { copy, pages, taken: BTreeSet::new(), taken_again: 0 }
    }

    /// Takes up to `count` pages from page `from` on; says how many there were.
    fn take(&mut self, machine: &mut Machine, mut from: u64, count: usize) -> usize {
        for taken in 0..count {
            let Some((index, page)) = machine.take_page(self.copy, from) else { return taken };
            assert!(index >= from);
            self.pages.put_pages(index, page).unwrap();
            self.taken_again += usize::from(!self.taken.insert(index));
            from = index + 1;
        }
        count
    }

    /// The machine as it is now.
    fn finish(mut self, machine: &mut Machine) -> Machine {
        let left = machine.pages_to_take(self.copy);
        assert_eq!(self.take(machine, 0, usize::MAX), left);
        assert_eq!(machine.pages_to_take(self.copy), 0);
        let state = machine.state();
        assert!(state.len() <= STATE_BYTES_MAX);
        let mut restored = self.pages.finish(&state).unwrap();
        assert_eq!(restored.state(), state);
        assert_eq!(restored.digest(), machine.digest());
        restored
    }
}

fn copied(machine: &mut Machine) -> Machine {
    Copying::begin(PageCopy::Backup, &small_config(), machine).finish(machine)
}

/// A guest that uses everything there is beside the network: traps, both interrupts, reservations,
/// clock, entropy, the console in every way, sleep.
fn busy_guest() -> Vec<u32> {
    const HANDLER: u64 = RAM + 0xa00;
    const PLIC_CLAIM: u64 = 0x0c20_1004;
    const CONSOLE_EXTENSION: u64 = 0x4442_434e;
    let write = |address, value, funct3| [li(5, address), li(6, value), vec![store(funct3, 6, 5, 0)]].concat();
    let print = |text: &[u8]| text.iter().flat_map(|byte| write(UART, u64::from(*byte), 0)).collect::<Vec<_>>();
    let call = |extension, a0, a1| {
        [li(10, a0), li(11, a1), vec![addi(12, 0, 0), addi(16, 0, 0)], li(17, extension), vec![ECALL]].concat()
    };
    let mut code = [
        [li(5, HANDLER), vec![csrrw(0, STVEC, 5)]].concat(),
        [write(0x0c00_0028, 1, 2), write(0x0c00_2080, 1 << 10, 2), write(UART + 1, 1, 0)].concat(),
        print(b"par"),
        [li(5, 0x220), vec![csrrw(0, SIE, 5), csrrs(0, SSTATUS, 0), addi(5, 0, 2), csrrs(0, SSTATUS, 5)]].concat(),
        [li(8, RAM + 0x1008), vec![amo(2, 3, 9, 8, 0), NOP, NOP, amo(3, 3, 9, 8, 8)]].concat(),
        vec![csrrs(18, TIME, 0), csrrw(19, SEED, 0), WFI, NOP],
        call(TIMER_EXTENSION, 1000, 0),
        print(b"tial"),
        vec![WFI, 0xffff_ffff, NOP],
        call(CONSOLE_EXTENSION, 5, RAM),
        print(b"line\nhalf"),
        write(FINISHER, 0x5555, 2),
    ]
    .concat();
    assert!(code.len() <= 0x280);
    code.resize(0x280, NOP);
    code.extend(
        [
            [li(20, PLIC_CLAIM), vec![load(2, 21, 20, 0)], li(22, UART), vec![load(4, 23, 22, 0), NOP]].concat(),
            vec![store(2, 21, 20, 0)],
            call(TIMER_EXTENSION, u64::MAX, 0),
            // After the illegal instruction it goes on behind it.
            [vec![csrrs(24, common::SCAUSE, 0), addi(25, 0, 2), branch(1, 24, 25, 16)]].concat(),
            vec![csrrs(26, SEPC, 0), addi(26, 26, 4), csrrw(0, SEPC, 26), SRET],
        ]
        .concat(),
    );
    code
}

/// Runs the busy guest until the count is `limit` or it has stopped, and wakes it whenever it
/// sleeps.
fn play(machine: &mut Machine, limit: u64) -> (Exit, Vec<(InstructionCount, OutputId, OutputOperation)>) {
    let mut outputs = Vec::new();
    loop {
        let (exit, more) = drive(machine, limit, u64::MAX);
        outputs.extend(more);
        if exit != Exit::WaitForInterrupt {
            return (exit, outputs);
        }
        let input = Event::ConsoleInput { bytes: b"in".to_vec() };
        let event = machine.timer_deadline().map_or(input, |_| Event::TimerInterrupt);
        machine.apply(&event).unwrap();
    }
}

#[test]
fn a_snapshot_at_any_instruction_goes_on_exactly_alike() {
    let mut original = machine(&busy_guest());
    let (end, outputs) = play(&mut original, u64::MAX);
    assert!(matches!(end, Exit::Stopped(_)), "{end:?}");
    assert_eq!(outputs.len(), 5, "{outputs:?}");
    let (last, digest) = (original.instruction_count().0, original.digest());
    for at in 0..=last {
        let mut snapshotted = machine(&busy_guest());
        let (_, before) = play(&mut snapshotted, at);
        let mut restored = copied(&mut snapshotted);
        for machine in [&mut snapshotted, &mut restored] {
            let (exit, after) = play(machine, u64::MAX);
            assert_eq!(exit, end, "at {at}");
            assert!(before.iter().chain(&after).eq(&outputs), "at {at}");
            assert_eq!(machine.digest(), digest, "at {at}");
        }
    }
}

/// A guest that uses what a machine without firmware has besides: every register of M-mode,
/// counters set and stopped, locked protection entries, and paging, with faults on pages that it
/// then maps.
fn privileged_guest() -> Machine {
    const MACHINE_HANDLER: u64 = RAM + 0x800;
    let write = |number, value| [li(5, value), vec![csrrw(0, number, 5)]].concat();
    let put = |address, value| [li(5, address), li(6, value), vec![store(3, 6, 5, 0)]].concat();
    let paged = Paged::new();
    let code = [
        [write(MTVEC, MACHINE_HANDLER), write(MSCRATCH, 0x1234), write(MEDELEG, 1 << 15), write(MIDELEG, 2)].concat(),
        [write(STVEC, RAM + 0x900), write(MCYCLE, 77), write(MCOUNTINHIBIT, 4), write(MCOUNTEREN, 3)].concat(),
        [write(PMPADDR0, 0x55), write(PMPCFG0, 0x8f), write(SATP, PAGED_SATP), write(MSTATUS, 3 << 13)].concat(),
        [write(MIE, 0x22), write(MIP, 0x22), go(SUPERVISOR)].concat(),
        vec![csrrs(18, TIME, 0), csrrs(19, common::CYCLE, 0)],
        put(0x5ffc, u64::MAX), // faults twice, and is done in the end
        vec![ECALL, NOP, NOP],
    ];
    let mut all = code.concat();
    assert!(all.len() <= 0x200, "{}", all.len());
    all.resize(0x200, NOP);
    // M-mode: whatever it was, it doesn't come again, and a call ends the guest.
    all.extend([
        csrrw(0, MIP, 0),
        csrrs(8, MCAUSE, 0),
        addi(9, 0, 9),
        branch(1, 8, 9, 4 * (2 * i32::try_from(LI).unwrap() + 2)),
    ]);
    all.extend([li(5, FINISHER), li(6, 0x5555), vec![store(2, 6, 5, 0)]].concat());
    all.push(common::MRET);
    all.resize(0x240, NOP);
    // S-mode: maps the page of the fault.
    let entry = [li(10, Paged::entry(0)), vec![csrrs(11, STVAL, 0), common::i_type(0x13, 5, 11, 11, 12)]].concat();
    let place = vec![common::i_type(0x13, 1, 11, 11, 3), common::r_type(0x33, 0, 0, 11, 11, 10)];
    all.extend([entry, place, li(12, (RAM + 0x10_0000) >> 2 | 7), vec![store(3, 12, 11, 0), SRET]].concat());
    paged.plain_machine(&bare_config(), &all)
}

#[test]
fn a_snapshot_without_firmware_and_with_paging_goes_on_exactly_alike() {
    const LIMIT: u64 = 10_000;
    let mut original = privileged_guest();
    let (end, _) = play(&mut original, LIMIT);
    assert_eq!(end, Exit::Stopped(StopReason::PowerOff { code: 0 }));
    let (last, digest) = (original.instruction_count().0, original.digest());
    for at in 0..=last {
        let mut snapshotted = privileged_guest();
        play(&mut snapshotted, at);
        let copying = Copying::begin(PageCopy::Backup, &bare_config(), &mut snapshotted);
        let mut restored = copying.finish(&mut snapshotted);
        for machine in [&mut snapshotted, &mut restored] {
            assert_eq!(play(machine, LIMIT).0, end, "at {at}");
            assert_eq!(machine.digest(), digest, "at {at}");
        }
    }
}

#[test]
fn a_snapshot_of_a_sleeping_or_ended_machine_sleeps_or_has_ended() {
    let mut sleeping = machine(&[WFI]);
    assert_eq!(run_on(&mut sleeping), Exit::WaitForInterrupt);
    let mut restored = copied(&mut sleeping);
    assert_eq!(run_on(&mut restored), Exit::WaitForInterrupt);

    let code = [li(5, FINISHER), li(6, 0x0017_3333), vec![store(2, 6, 5, 0)]].concat();
    let mut ended = machine(&code);
    let Exit::Stopped(reason) = run_on(&mut ended) else { unreachable!() };
    let mut restored = copied(&mut ended);
    assert_eq!(run_on(&mut restored), Exit::Stopped(reason));
    assert_eq!(restored.apply(&Event::TimerInterrupt), Err(ApplyError::Stopped(reason)));
}

/// What one event came to.
type Outcome = (Exit, Vec<(InstructionCount, OutputId, OutputOperation)>, Result<(), ApplyError>);

fn advance(machine: &mut Machine, at: u64, event: &Event) -> Outcome {
    let (exit, outputs) = drive(machine, at, u64::MAX);
    (exit, outputs, machine.apply(event))
}

/// How often what is interesting happened to a machine that had been restored.
#[derive(Debug, Default)]
struct Seen {
    snapshots: usize,
    pages_taken_again: usize,
    packets: usize,
    received: usize,
    disks_written: usize,
    asleep: usize,
}

/// Runs a guest, copies it while it runs, and runs all of its copies along with it.
fn copy_while_running(random: &mut Random, seen: &mut Seen) {
    const STEPS: u64 = 15_000;
    const COPIES_MAX: usize = 5;
    let image = hostile::image(random);
    let events = hostile::events(random, STEPS);
    let config = hostile::config();
    let mut machines = vec![Machine::new(&config, &image).unwrap()];
    let mut copying = Copying::begin(PageCopy::Backup, &config, &mut machines[0]);
    for (at, event) in &events {
        let outcomes: Vec<Outcome> = machines.iter_mut().map(|machine| advance(machine, *at, event)).collect();
        let (exit, outputs, applied) = &outcomes[0];
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "at {at}: {outcomes:?}");
        if outcomes.len() > 1 {
            let is_packet = |(_, _, output): &&(_, _, OutputOperation)| matches!(output, OutputOperation::Packet(_));
            seen.packets += outputs.iter().filter(is_packet).count();
            seen.received += usize::from(applied.is_ok() && matches!(event, Event::Packet { .. }));
        }
        // An event may have stopped the machine, and with that sent the rest of a line.
        let (_, rest) = drive(&mut machines[0], 0, u64::MAX);
        for other in &mut machines[1..] {
            assert_eq!(drive(other, 0, u64::MAX).1, rest, "at {at}");
        }
        // The newest copy is the one that is copied on, as in a chain of failovers.
        let newest = machines.last_mut().unwrap();
        match random.below(40) {
            0..20 => {
                let (from, count) = (random.below(RAM_PAGES + 8), usize::try_from(random.below(30)).unwrap());
                copying.take(newest, from, count);
            }
            20..25 => {
                copying.take(newest, 0, usize::MAX);
            }
            25..30 if outcomes.len() < COPIES_MAX => {
                seen.snapshots += 1;
                seen.asleep += usize::from(*exit == Exit::WaitForInterrupt);
                seen.pages_taken_again += copying.taken_again;
                let mut restored = copying.finish(newest);
                copying = Copying::begin(PageCopy::Backup, &config, &mut restored);
                machines.push(restored);
            }
            _ => {}
        }
    }
    let written = machines[0].disk(0, hostile::DISK_BYTES).unwrap().iter().any(|byte| *byte != 0);
    seen.disks_written += usize::from(machines.len() > 1 && written);
    let digests: BTreeSet<u128> = machines.iter_mut().map(|machine| machine.digest().0).collect();
    assert_eq!(digests.len(), 1, "{} machines have gone apart", machines.len());
}

#[test]
fn hostile_guests_copied_while_they_run_go_on_exactly_alike() {
    const SEEDS: u64 = 150;
    let first = std::env::var("FT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut seen = Seen::default();
    for seed in first..first + SEEDS {
        println!("seed {seed}; again with FT_SEED={seed} cargo test -p vm --test snapshot");
        copy_while_running(&mut Random { state: seed, care: if seed % 3 == 0 { 1 } else { 30 } }, &mut seen);
    }
    println!("{seen:?}");
    let Seen { snapshots, pages_taken_again, packets, received, disks_written, asleep } = seen;
    let least = [snapshots, pages_taken_again, packets, received, disks_written, asleep].into_iter().min().unwrap();
    assert!(least > 10, "too tame a run: {seen:?}");
}

#[test]
#[should_panic(expected = "outputs are taken before the state is")]
fn a_state_without_the_outputs_would_lose_them() {
    let mut machine = machine(&[li(5, UART), li(6, 10), vec![store(0, 6, 5, 0)]].concat());
    assert_eq!(run_on(&mut machine), Exit::Output);
    let _ = machine.state();
}

/// The pages there are to take, in order.
fn taken(machine: &mut Machine, copy: PageCopy) -> Vec<u64> {
    let mut from = 0;
    core::iter::from_fn(|| {
        let (index, _) = machine.take_page(copy, from)?;
        from = index + 1;
        Some(index)
    })
    .collect()
}

#[test]
fn a_copy_begins_with_the_pages_that_are_not_zero() {
    let mut machine = machine(&[NOP]);
    let tree = RAM_PAGES - 1;
    for _ in 0..2 {
        machine.begin_copy(PageCopy::Backup);
        assert_eq!(machine.pages_to_take(PageCopy::Backup), 2);
        assert_eq!(taken(&mut machine, PageCopy::Backup), [0, tree], "code and device tree");
        assert_eq!(taken(&mut machine, PageCopy::Backup), []);
    }
    // A page that was written and is zero again needn't be copied to where it is zero, unless it
    // was copied before.
    assert!(machine.flip_ram_bit(RAM + 0x5000, 3));
    machine.begin_copy(PageCopy::Backup);
    assert_eq!(taken(&mut machine, PageCopy::Backup), [0, 5, tree]);
    assert!(machine.flip_ram_bit(RAM + 0x5000, 3));
    assert_eq!(machine.pages_to_take(PageCopy::Backup), 1);
    let (index, page) = machine.take_page(PageCopy::Backup, 0).unwrap();
    assert_eq!((index, page), (5, &[0; PAGE_BYTES][..]));
    // Only the digest tells without looking that a page is zero, and the guest doesn't stand still
    // for looking.
    for (digest_looks, expected) in [(false, &[0, 5, tree][..]), (true, &[0, tree])] {
        for _ in 0..2 {
            assert!(machine.flip_ram_bit(RAM + 0x5000, 3));
        }
        if digest_looks {
            machine.digest();
        }
        machine.begin_copy(PageCopy::Backup);
        assert_eq!(machine.pages_to_take(PageCopy::Backup), expected.len());
        assert_eq!(taken(&mut machine, PageCopy::Backup), expected);
    }
}

#[test]
fn digests_of_parts_see_what_is_in_them_and_end_after_so_many_written_pages() {
    let mut machine = machine(&[NOP]);
    let (whole, digest) = machine.digest_some(0, usize::MAX);
    assert_eq!((whole, digest), (PageRange { first: 0, end: RAM_PAGES }, machine.digest()));
    let write = |machine: &mut Machine, page: u64| assert!(machine.flip_ram_bit(RAM + page * PAGE_BYTES as u64, 0));
    for page in [3, 4, 5, 700] {
        write(&mut machine, page);
    }
    let (first, _) = machine.digest_some(2, 2);
    assert_eq!(first, PageRange { first: 2, end: 5 });
    let (second, digest) = machine.digest_some(first.end, 2);
    assert_eq!(second, PageRange { first: 5, end: 701 });
    assert_eq!(machine.digest_of(second), Some(digest));
    let (third, _) = machine.digest_some(second.end, 2);
    assert_eq!(third, PageRange { first: 701, end: RAM_PAGES });
    assert_eq!(machine.digest_some(third.end, 1).0, whole, "from the beginning again");
    for (page, changes) in [(4, false), (5, true), (700, true), (701, false)] {
        write(&mut machine, page);
        assert_eq!(machine.digest_of(second) != Some(digest), changes, "page {page}");
        write(&mut machine, page);
        assert_eq!(machine.digest_of(second), Some(digest), "page {page}");
    }
    for (first, end) in [(0, 0), (5, 4), (0, RAM_PAGES + 1), (u64::MAX, u64::MAX)] {
        assert_eq!(machine.digest_of(PageRange { first, end }), None, "{first}..{end}");
    }
}

#[test]
fn a_page_that_is_taken_is_digested_too() {
    let mut machine = machine(&[NOP]);
    for page in [3, 4, 5, 700] {
        assert!(machine.flip_ram_bit(RAM + page * PAGE_BYTES as u64, 0));
    }
    machine.begin_copy(PageCopy::Log);
    taken(&mut machine, PageCopy::Log);
    // Nothing is left for the digest to look at, so that it takes no time where the guest stands
    // still for it.
    let (range, digest) = machine.digest_some(0, 1);
    assert_eq!((range, digest), (PageRange { first: 0, end: RAM_PAGES }, machine.digest()));
    assert!(machine.flip_ram_bit(RAM + 3 * PAGE_BYTES as u64, 0));
    assert_eq!(machine.digest_some(0, 1).0, PageRange { first: 0, end: 4 });
}

#[test]
fn pages_are_taken_from_where_one_asks_and_again_when_written() {
    let mut machine = machine(&[NOP]);
    machine.begin_copy(PageCopy::Log);
    taken(&mut machine, PageCopy::Log);
    for page in [3, 64, 65, 700] {
        assert!(machine.flip_ram_bit(RAM + page * PAGE_BYTES as u64, 0));
    }
    let mut take = |from| machine.take_page(PageCopy::Log, from).map(|(index, _)| index);
    assert_eq!([take(65), take(4), take(701), take(RAM_PAGES), take(u64::MAX)], [Some(65), Some(64), None, None, None]);
    assert_eq!([take(4), take(4), take(3), take(0)], [Some(700), None, Some(3), None]);
}

#[test]
fn copies_and_digests_do_not_take_each_others_pages() {
    let mut machine = machine(&[NOP]);
    machine.begin_copy(PageCopy::Backup);
    machine.begin_copy(PageCopy::Log);
    assert_eq!(taken(&mut machine, PageCopy::Backup).len(), 2);
    assert_eq!(machine.pages_to_take(PageCopy::Log), 2);
    assert_eq!(taken(&mut machine, PageCopy::Log).len(), 2);
    let before = machine.digest();
    assert!(machine.flip_ram_bit(RAM + 0x9000, 0));
    assert_eq!(taken(&mut machine, PageCopy::Log), [9]);
    machine.begin_copy(PageCopy::Log);
    assert_eq!(machine.pages_to_take(PageCopy::Backup), 1);
    assert_ne!(machine.digest(), before);
    assert_eq!(taken(&mut machine, PageCopy::Backup), [9]);
}

#[test]
fn pages_that_do_not_fit_and_configurations_out_of_range_are_refused() {
    let mut restoration = Restoration::new(&small_config()).unwrap();
    let page = [1; PAGE_BYTES];
    for bytes in [1, PAGE_BYTES - 1, PAGE_BYTES + 1] {
        let refused = restoration.put_pages(0, &vec![1; bytes]);
        assert_eq!(refused, Err(RestoreError::NotWholePages { bytes }));
    }
    for first in [RAM_PAGES, RAM_PAGES + 1, u64::MAX, u64::MAX / PAGE_BYTES as u64] {
        let refused = restoration.put_pages(first, &page);
        assert_eq!(refused, Err(RestoreError::NoSuchPages { first, pages: 1, machine_pages: RAM_PAGES }));
    }
    let first = RAM_PAGES - 1;
    let refused = restoration.put_pages(first, &[page, page].concat());
    assert_eq!(refused, Err(RestoreError::NoSuchPages { first, pages: 2, machine_pages: RAM_PAGES }));
    restoration.put_pages(first, &page).unwrap();

    for config in [
        MachineConfig { ram_bytes: (4 << 20) + 1, ..small_config() },
        MachineConfig { ram_bytes: 8 << 30, ..small_config() },
        MachineConfig { bootargs: "x".repeat(2049), ..small_config() },
        MachineConfig { bootargs: "a\0b".into(), ..small_config() },
    ] {
        assert!(matches!(Restoration::new(&config), Err(LoadError::Config(_))), "{config:?}");
        assert!(matches!(Machine::new(&config, &common::elf(&[NOP])), Err(LoadError::Config(_))), "{config:?}");
    }
}

#[test]
fn the_last_contents_of_a_page_count_and_a_missing_page_shows_in_the_digest() {
    let mut original = machine(&[NOP]);
    original.begin_copy(PageCopy::Backup);
    let (index, page) = original.take_page(PageCopy::Backup, 0).unwrap();
    let mut restoration = Restoration::new(&small_config()).unwrap();
    restoration.put_pages(index, &[7; PAGE_BYTES]).unwrap();
    restoration.put_pages(index, page).unwrap();
    let mut restored = restoration.finish(&original.state()).unwrap();
    assert_ne!(restored.digest(), original.digest(), "the device tree is missing");
    assert_eq!(restored.memory(RAM, 4096), original.memory(RAM, 4096));
}

/// So much RAM that an allocator gets it from its host, who has it zeroed already: a hundred
/// thousand machines are made.
fn roomy_config() -> MachineConfig {
    MachineConfig { ram_bytes: 40 << 20, ..hostile::config() }
}

/// A machine whose network device is at work, unless this seed's guest has brought itself to an end
/// before that.
fn networked_machine(seed: u64) -> Option<Machine> {
    let mut random = Random { state: seed, care: 1000 };
    let mut machine = Machine::new(&roomy_config(), &hostile::image(&mut random)).unwrap();
    let mut packets = 0;
    for (at, event) in hostile::events(&mut random, 3000) {
        let (exit, _, applied) = advance(&mut machine, at, &event);
        packets += u64::from(applied.is_ok() && matches!(event, Event::Packet { .. }));
        if matches!(exit, Exit::Stopped(_)) {
            return None;
        }
    }
    drive(&mut machine, 0, u64::MAX);
    (machine.dropped_packets().received < packets).then_some(machine)
}

/// States with something in every part: the busy guest in its middle, with input pending; a machine
/// with a timer set, a line begun and a reservation; one whose network device is at work; one that
/// has ended, and one that has halted.
fn eventful_machines() -> Vec<Machine> {
    let roomy = |code: &[u32]| Machine::new(&roomy_config(), &common::elf(code)).unwrap();
    let mut busy = roomy(&busy_guest());
    play(&mut busy, 250);
    busy.apply(&Event::ConsoleInput { bytes: b"more".to_vec() }).unwrap();
    let timer = [li(10, 1000), li(17, TIMER_EXTENSION), vec![ECALL]].concat();
    let line = [li(5, UART), li(6, 0x4a), vec![store(0, 6, 5, 0)]].concat();
    let code = [timer, line, li(8, RAM), vec![amo(2, 3, 9, 8, 0)]].concat();
    let mut expectant = roomy(&code);
    assert_eq!(common::run_by(&mut expectant, code.len() as u64), Exit::LimitReached);
    let networked = (0..).find_map(networked_machine).unwrap();
    let mut ended = roomy(&[li(5, FINISHER), li(6, 0x5555), vec![store(2, 6, 5, 0)]].concat());
    run_on(&mut ended);
    assert!(expectant.take_output().is_none() && expectant.timer_deadline().is_some());
    let mut halted = roomy(&[0]);
    run_on(&mut halted);
    vec![busy, expectant, networked, ended, halted]
}

/// A machine with this state and RAM that is zero, or what is wrong with the state.
fn hollow(state: &[u8]) -> Result<Machine, RestoreError> {
    Restoration::new(&roomy_config()).unwrap().finish(state)
}

/// The pages that aren't zero.
fn contents(machine: &mut Machine) -> Vec<(u64, Vec<u8>)> {
    machine.begin_copy(PageCopy::Log);
    core::iter::from_fn(|| machine.take_page(PageCopy::Log, 0).map(|(index, page)| (index, page.to_vec()))).collect()
}

/// Does everything to a machine that can be done to one from outside, for a while.
fn use_up(machine: &mut Machine) {
    for round in 1..6 {
        drive(machine, machine.instruction_count().0 + 60, u64::MAX);
        let number = machine.last_packet_number().saturating_add(round);
        let bytes = vec![b'x'; machine.console_room().min(3)];
        for event in [
            Event::Packet { number, packet: vec![0; 100] },
            Event::ConsoleInput { bytes },
            Event::TimerInterrupt,
            Event::ClockRead { ticks: u64::MAX },
            Event::Entropy { bits: 1 },
        ] {
            // Whether it is taken depends on the state; that it comes to an end is what counts.
            let _ = machine.apply(&event);
        }
        let _ = machine.can_receive_packet();
    }
    machine.digest();
}

/// States that differ from `state` in one place: a byte, or a field of two, four, eight or sixteen.
fn corrupted(state: &[u8], random: &mut Random) -> Vec<Vec<u8>> {
    let with = |offset: usize, bytes: &[u8]| {
        let mut state = state.to_vec();
        let end = state.len().min(offset + bytes.len());
        state[offset..end].copy_from_slice(&bytes[..end - offset]);
        state
    };
    let mut corrupted = Vec::new();
    for (offset, byte) in state.iter().enumerate() {
        let another = u8::try_from(random.below(256)).unwrap();
        corrupted.extend((0..8).map(|bit| with(offset, &[byte ^ 1 << bit])));
        corrupted.push(with(offset, &[another]));
        for width in [2, 4, 8, 16] {
            corrupted.push(with(offset, &vec![0xff; width]));
        }
        corrupted.push(with(offset, &[0; 8]));
    }
    corrupted.retain(|corrupted| corrupted != state);
    corrupted
}

#[test]
fn a_corrupted_state_is_refused_or_gives_a_machine_that_runs() {
    let seed = std::env::var("FT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("seed {seed}; again with FT_SEED={seed} cargo test -p vm --test snapshot");
    let mut random = Random { state: seed, care: 1 };
    let (mut taken, mut contradictory, mut impossible) = (0, 0, BTreeSet::new());
    for mut original in eventful_machines() {
        let (state, contents) = (original.state(), contents(&mut original));
        for corrupted in corrupted(&state, &mut random) {
            match hollow(&corrupted) {
                Ok(machine) => {
                    assert_eq!(machine.state(), corrupted, "what was taken is what was given");
                    let mut pages = Restoration::new(&roomy_config()).unwrap();
                    for (first, page) in &contents {
                        pages.put_pages(*first, page).unwrap();
                    }
                    use_up(&mut pages.finish(&corrupted).unwrap());
                    taken += 1;
                }
                Err(RestoreError::Impossible { what, offset }) => {
                    assert!(offset <= corrupted.len());
                    impossible.insert(what);
                }
                Err(RestoreError::NotAtRest) => contradictory += 1,
                Err(RestoreError::Cut { .. } | RestoreError::TooLong { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    println!("{taken} taken, {contradictory} contradictory, {impossible:#?}");
    assert!(taken > 1000 && contradictory > 0, "{taken} taken, {contradictory} contradictory");
    // One for every check there is.
    assert_eq!(impossible.len(), 36, "{impossible:#?}");
}

#[test]
fn a_count_that_would_overflow_is_refused() {
    /// Behind 32 registers and the pc.
    const OFFSET: usize = 33 * 8;
    const END: u64 = 1 << 62;
    let with_count = |count: u64| {
        let mut state = Machine::new(&roomy_config(), &common::elf(&[NOP])).unwrap().state();
        state[OFFSET..OFFSET + 8].copy_from_slice(&count.to_le_bytes());
        hollow(&state)
    };
    assert_eq!(with_count(END - 1).unwrap().instruction_count(), InstructionCount(END - 1));
    let refused = with_count(END).unwrap_err();
    assert!(matches!(refused, RestoreError::Impossible { offset, .. } if offset == OFFSET + 8), "{refused}");
}

#[test]
fn a_state_cut_anywhere_or_continued_is_refused() {
    for original in eventful_machines() {
        let state = original.state();
        for length in 0..state.len() {
            let refused = hollow(&state[..length]).unwrap_err();
            assert_eq!(refused, RestoreError::Cut { offset: length });
        }
        let refused = hollow(&[&state[..], &[0, 0]].concat()).unwrap_err();
        assert_eq!(refused, RestoreError::TooLong { bytes: 2 });
    }
}

#[test]
fn a_state_of_a_machine_of_another_configuration_is_refused() {
    let state = Machine::new(&roomy_config(), &common::elf(&[NOP])).unwrap().state();
    for config in [
        MachineConfig { ram_bytes: 8 << 20, ..roomy_config() },
        MachineConfig { mac: [2, 0, 0, 0, 0, 1], ..roomy_config() },
        MachineConfig { boot: BootMode::Bare, ..roomy_config() },
    ] {
        let refused = Restoration::new(&config).unwrap().finish(&state).unwrap_err();
        assert!(matches!(refused, RestoreError::Impossible { .. }), "{refused}");
    }
    assert!(hollow(&state).is_ok());
}
