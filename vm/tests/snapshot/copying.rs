//! Copies of a machine, made at any instruction or while it runs, go on like the original.

use crate::common::hostile::{self, Random};
use crate::common::{
    FINISHER, RAM_PAGES, UART, WFI, bare_config, drive, for_each_seed, li, machine, run_on, small_config, store,
};
use crate::guests::{Outcome, advance, busy_guest, play, privileged_guest};
use std::collections::BTreeSet;
use vm::{
    ApplyError, Event, Exit, Machine, MachineConfig, OutputOperation, PageCopy, Restoration, STATE_BYTES_MAX,
    StopReason,
};

/// A copy in progress: which of the machine's copies it is, and the restoration its pages go to.
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

    /// Takes up to `count` pages from page `from` on; returns how many it took.
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

    /// Takes the remaining pages and restores the machine as it is now.
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
fn a_snapshot_of_a_sleeping_or_stopped_machine_sleeps_or_is_stopped() {
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

/// How often the cases that this test is for occurred on restored machines.
#[derive(Debug, Default)]
struct Seen {
    snapshots: usize,
    pages_taken_again: usize,
    packets: usize,
    received: usize,
    disks_written: usize,
    asleep: usize,
}

/// Runs a guest, copies it meanwhile, and runs all copies along with it.
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
        // An event that stops the machine flushes an unfinished line of its console.
        let (_, rest) = drive(&mut machines[0], 0, u64::MAX);
        for other in &mut machines[1..] {
            assert_eq!(drive(other, 0, u64::MAX).1, rest, "at {at}");
        }
        // The newest copy is the one that is copied next, as in a chain of failovers.
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
    let mut seen = Seen::default();
    let all_seeds = for_each_seed("snapshot", SEEDS, |seed| {
        copy_while_running(&mut Random { state: seed, care: if seed % 3 == 0 { 1 } else { 30 } }, &mut seen);
    });
    println!("{seen:?}");
    if !all_seeds {
        return;
    }
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
