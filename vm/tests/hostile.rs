//! Hostile guests: drivers that break the rules of their devices, with inputs at any time.
//!
//! What such a guest gets is left open. These tests check that the machine never panics (overflow
//! checks are on in tests), that every run ends in a documented way, that the same seed gives the
//! same state and outputs, and that neither depends on the slices in which the machine is run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::hostile::{self, Random, events, image};
use common::{elf_of_bytes, for_each_seed, small_config};
use std::collections::BTreeMap;
use vm::{ApplyError, CONSOLE_BYTES_MAX, Event, Exit, InstructionCount, LoadError, Machine};
use vm::{DeviceFault, OutputId, OutputOperation, StateDigest, StopReason, VirtioDevice};

/// The most outputs of one step: a packet for each chain of a full transmit queue, a line that
/// was unfinished, and the console's new one.
const OUTPUTS_PER_STEP_MAX: usize = 256 + 2;

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    count: InstructionCount,
    stopped: Option<StopReason>,
    outputs: Vec<(InstructionCount, OutputId, OutputOperation)>,
    digest: StateDigest,
    refused: usize,
    delivered: u64,
    disk_written: bool,
    /// Mistakes of drivers, by the instruction count at which each was reported.
    faults: BTreeMap<u64, DeviceFault>,
}

/// Applies `event` and checks that a refusal changes nothing. Returns whether it was taken.
fn give(machine: &mut Machine, event: &Event) -> bool {
    // Tries a packet whose number isn't greater than the last one's, too.
    if matches!(event, Event::ClockRead { .. } | Event::Entropy { .. } | Event::WallClock { .. }) {
        let before = machine.digest();
        let far = Event::Packet { number: machine.last_packet_number(), packet: vec![] };
        assert!(machine.apply(&far).is_err(), "a packet number twice");
        assert_eq!(machine.digest(), before, "a refused packet changes nothing");
    }
    let before = machine.digest();
    match machine.apply(event) {
        Ok(()) => true,
        Err(error) => {
            assert!(
                !matches!(error, ApplyError::PacketOutOfOrder { .. } | ApplyError::PacketTooLong { .. }),
                "{error}"
            );
            assert_eq!(machine.digest(), before, "refused: {error}");
            false
        }
    }
}

fn run(image: &[u8], events: &[(u64, Event)], slice: u64) -> Outcome {
    let mut machine = Machine::new(&hostile::config(), image).unwrap();
    let (mut outputs, mut refused, mut packets) = (Vec::new(), 0, 0);
    let mut stopped = None;
    let mut faults = BTreeMap::new();
    'run: for (at, event) in events {
        loop {
            let count = machine.instruction_count();
            let exit = machine.run(InstructionCount((*at).min(count.0.saturating_add(slice))));
            let now = machine.instruction_count();
            match exit {
                Exit::LimitReached if now.0 >= *at => break,
                Exit::LimitReached => assert!(now > count, "a slice without a step"),
                Exit::WaitForInterrupt => break,
                Exit::Output => {
                    let mut taken = 0;
                    while let Some((id, output)) = machine.take_output() {
                        assert!(output.bytes().len() <= CONSOLE_BYTES_MAX);
                        outputs.push((now, id, output));
                        taken += 1;
                    }
                    assert!((1..=OUTPUTS_PER_STEP_MAX).contains(&taken), "{taken} outputs of one step");
                }
                Exit::ClockRead => {
                    let ticks = now.0.max(machine.last_ticks());
                    machine.apply(&Event::ClockRead { ticks }).unwrap();
                }
                Exit::SeedRead => machine.apply(&Event::Entropy { bits: 0x5eed }).unwrap(),
                Exit::WallClockNeeded => {
                    machine.apply(&Event::WallClock { ns: now.0.max(machine.last_wall_ns()) }).unwrap();
                }
                Exit::RandomBytesNeeded => {
                    let bytes = vec![7; machine.random_bytes_needed()];
                    assert!(give(&mut machine, &Event::RandomBytes { bytes }), "the entropy device has asked for them");
                    faults.extend(machine.take_device_fault().map(|fault| (now.0, fault)));
                }
                Exit::Stopped(reason) => {
                    stopped = Some(reason);
                    break 'run;
                }
            }
        }
        let taken = give(&mut machine, event);
        faults.extend(machine.take_device_fault().map(|fault| (machine.instruction_count().0, fault)));
        refused += usize::from(!taken);
        packets += u64::from(taken && matches!(event, Event::Packet { .. }));
    }
    Outcome {
        count: machine.instruction_count(),
        stopped,
        outputs,
        refused,
        delivered: packets - machine.dropped_packets().received.min(packets),
        disk_written: machine.disk(0, hostile::DISK_BYTES).unwrap().iter().any(|byte| *byte != 0),
        digest: machine.digest(),
        faults,
    }
}

#[test]
fn hostile_guests_never_panic_and_end_alike_in_any_slices() {
    const SEEDS: u64 = 150;
    const STEPS: u64 = 25_000;
    let (mut packets, mut delivered, mut bad_rings, mut to_the_end, mut refused) = (0, 0, 0, 0, 0);
    let (mut disks_written, mut bad_disk_rings, mut bad_entropy_rings) = (0, 0, 0);
    let all_seeds = for_each_seed("hostile", SEEDS, |seed| {
        let mut random = Random { state: seed, care: if seed % 3 == 0 { 1 } else { 30 } };
        let image = image(&mut random);
        let events = events(&mut random, STEPS);
        let whole = run(&image, &events, u64::MAX);
        for slice in [u64::MAX, 1 + random.below(5), 997] {
            let again = run(&image, &events, slice);
            assert!(again == whole, "slices of {slice}: {:?} against {:?}", again.count, whole.count);
        }
        packets += whole.outputs.iter().filter(|(_, _, output)| matches!(output, OutputOperation::Packet(_))).count();
        delivered += whole.delivered;
        refused += whole.refused;
        disks_written += usize::from(whole.disk_written);
        bad_rings += u32::from(whole.faults.values().any(|fault| fault.device == VirtioDevice::Net));
        bad_entropy_rings += u32::from(whole.faults.values().any(|fault| fault.device == VirtioDevice::Rng));
        bad_disk_rings += u32::from(whole.faults.values().any(|fault| fault.device == VirtioDevice::Disk));
        to_the_end += u32::from(whole.stopped.is_none());
    });
    println!(
        "{packets} packets, {delivered} delivered, {bad_rings} bad rings, {to_the_end} to the end, {refused} refused, \
         {disks_written} disks written, {bad_disk_rings} bad rings of a disk, {bad_entropy_rings} of an entropy device"
    );
    if !all_seeds {
        return;
    }
    assert!(disks_written > 20 && bad_disk_rings > 5, "too tame a run for the disk");
    assert!(bad_entropy_rings > 5, "too tame a run for the entropy device");
    assert!(packets > 100 && delivered > 100 && bad_rings > 5 && to_the_end > 5 && refused > 100, "too tame a run");
}

/// 65 535 segments, each as large as RAM, would be copied over each other for minutes.
#[test]
fn segments_that_together_are_longer_than_ram_are_refused() {
    const SEGMENTS: u16 = 3;
    let one = elf_of_bytes(&vec![1; 3 << 20]);
    let (header, rest) = one.split_at(64);
    let (segment, contents) = rest.split_at(56);
    let mut image = header.to_vec();
    image[56..58].copy_from_slice(&SEGMENTS.to_le_bytes());
    let mut segment = segment.to_vec();
    segment[8..16].copy_from_slice(&(64 + 56 * u64::from(SEGMENTS)).to_le_bytes());
    (0..SEGMENTS).for_each(|_| image.extend_from_slice(&segment));
    image.extend_from_slice(contents);
    assert!(Machine::new(&small_config(), &one).is_ok());
    let refused = Machine::new(&small_config(), &image).unwrap_err();
    assert!(matches!(refused, LoadError::SegmentOutsideRam { segment: 1, .. }), "{refused}");
}
