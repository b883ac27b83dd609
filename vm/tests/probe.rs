//! Probes against a machine that is looked at after every step: everything that is looked for is
//! found, where it happens, and the probe changes nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::differential::choices::Choices;
use common::differential::program::Program;
use common::{MCAUSE, MEPC, MTVEC, RAM, SCAUSE, SEPC, STVEC, for_each_seed};
use vm::{Event, Exit, Hit, HitKind, InstructionCount, Machine, Probe, Writer};

const STEPS: u64 = 3_000;

/// Pages that the random guests use: code, data, tables, rings.
const PAGES: u64 = 16;

/// The first of those with page tables.
const LEAVES: u64 = 7;

/// That with the rings of the network device.
const RINGS: u64 = 14;

/// Runs to `limit` and answers what the guest asks; `false` if it came to an end or sleeps.
fn run(machine: &mut Machine, limit: u64, is_plain: bool) -> bool {
    loop {
        let limit = InstructionCount(limit);
        match if is_plain { machine.run_plain(limit) } else { machine.run(limit) } {
            Exit::LimitReached => return true,
            Exit::Output => while machine.take_output().is_some() {},
            Exit::ClockRead => machine.apply(&Event::ClockRead { ticks: machine.last_ticks() + 7 }).unwrap(),
            Exit::SeedRead => machine.apply(&Event::Entropy { bits: 0x5eed }).unwrap(),
            Exit::WallClockNeeded => machine.apply(&Event::WallClock { ns: machine.last_wall_ns() + 7 }).unwrap(),
            Exit::RandomBytesNeeded => common::give_random_bytes(machine),
            Exit::WaitForInterrupt | Exit::Stopped(_) => return false,
        }
        if machine.instruction_count() >= limit {
            return true;
        }
    }
}

/// A packet comes at every count that is a multiple of this.
const PACKET_STEPS: u64 = 400;

/// Gives the machine the packet of this count, if there is one and it takes it.
fn give_packet(machine: &mut Machine) {
    let count = machine.instruction_count().0;
    if count.is_multiple_of(PACKET_STEPS) && machine.can_receive_packet() {
        let number = machine.last_packet_number() + 1;
        let packet = [u8::try_from(number).unwrap(); 60].to_vec();
        // A guest that has stopped takes none.
        let _ = machine.apply(&Event::Packet { number, packet });
    }
}

/// What happened in a step of the machine that is looked at.
struct Seen {
    count: u64,
    pc: u64,
    /// The probed memory changed.
    changed: bool,
    /// The cause, if a handler was entered.
    trap: Option<u64>,
}

/// Executes step by step, and looks at the machine after each.
fn walk(machine: &mut Machine, range: &std::ops::Range<u64>) -> Vec<Seen> {
    let mut seen = Vec::new();
    loop {
        give_packet(machine);
        let (count, pc) = (machine.instruction_count().0, machine.pc());
        let memory = |machine: &Machine| machine.memory(range.start, range.end - range.start).unwrap().to_vec();
        let before = memory(machine);
        let goes_on = count < STEPS && run(machine, count + 1, true);
        let csr = |number: u32| machine.csr(u16::try_from(number).unwrap()).unwrap();
        let entered = |tvec, epc, cause| {
            let is_vectored = csr(tvec) & 1 == 1 && csr(cause) >> 63 == 1;
            let offset = if is_vectored { 4 * (csr(cause) & 0xff) } else { 0 };
            csr(epc) == pc && (csr(tvec) & !3) + offset == machine.pc() && machine.pc() != pc
        };
        let trap = if machine.privilege_level() == 3 && entered(MTVEC, MEPC, MCAUSE) {
            Some(csr(MCAUSE))
        } else {
            (machine.privilege_level() == 1 && entered(STVEC, SEPC, SCAUSE)).then(|| csr(SCAUSE))
        };
        if machine.instruction_count().0 > count {
            seen.push(Seen { count, pc, changed: memory(machine) != before, trap });
        }
        if !goes_on {
            return seen;
        }
    }
}

#[test]
fn a_probe_finds_what_a_look_after_every_step_sees_and_changes_nothing() {
    const SEEDS: u64 = 2_000;
    let mut found = [0_u64; 5];
    let all_seeds = for_each_seed("probe", SEEDS, |seed| {
        let mut choices = Choices::seeded(seed);
        let program = Program::random(&mut choices);
        let machine = || Machine::new(&program.config, &program.image).unwrap();
        let any = choices.below(PAGES);
        let page = choices.pick(&[any, RINGS, LEAVES, LEAVES + 4]);
        let start = RAM + page * 4096 + choices.below(4095);
        let range = start..(start + choices.pick(&[1, 8, 64, 4096])).min(RAM + PAGES * 4096);
        let mut plain = machine();
        let seen = walk(&mut plain, &range);
        let pcs: Vec<u64> =
            (0..2).map(|_| seen[usize::try_from(choices.below(seen.len() as u64)).unwrap()].pc).collect();
        for pcs in [Vec::new(), pcs] {
            let mut probed = machine();
            probed.set_probe(Some(Probe { pcs: pcs.clone(), writes: Some(range.clone()), traps: true }));
            let mut limit = 0;
            loop {
                if probed.instruction_count().0 == limit {
                    give_packet(&mut probed);
                }
                if limit == STEPS {
                    break;
                }
                let next_packet = (limit / PACKET_STEPS + 1) * PACKET_STEPS;
                limit = (limit + 1 + choices.below(500)).min(STEPS).min(next_packet);
                if !run(&mut probed, limit, false) {
                    break;
                }
            }
            let (hits, lost) = probed.take_hits();
            assert_eq!((probed.digest(), lost), (plain.digest(), 0), "seed {seed}: a probe changes nothing");
            compare(&seen, &hits, &pcs, &range, &mut found);
        }
    });
    println!("found {found:?}");
    if all_seeds {
        assert!(found.iter().all(|found| *found > 5), "too tame a run: {found:?}");
    }
}

fn compare(seen: &[Seen], hits: &[Hit], pcs: &[u64], range: &std::ops::Range<u64>, found: &mut [u64; 5]) {
    let at = |count| hits.iter().filter(move |hit| hit.count == count);
    for step in seen {
        let is_written = at(step.count).any(|hit| matches!(hit.what, HitKind::Write { .. }));
        assert!(is_written || !step.changed, "a write at {} was not found", step.count);
        if let Some(cause) = step.trap {
            let is_found = at(step.count).any(|hit| {
                matches!(hit.what, HitKind::Trap { cause: found, .. } if found == cause) && hit.pc == step.pc
            });
            assert!(is_found, "a trap at {} was not found", step.count);
        }
        let is_interrupt = step.trap.is_some_and(|cause| cause >> 63 == 1);
        let comes_by = pcs.contains(&step.pc) && !is_interrupt;
        let is_found = at(step.count).any(|hit| hit.what == HitKind::Pc);
        assert_eq!(is_found, comes_by, "pc at {}", step.count);
    }
    for hit in hits {
        let step = seen.iter().find(|step| step.count == hit.count).unwrap();
        match hit.what {
            HitKind::Pc => found[0] += 1,
            HitKind::Trap { .. } => {
                found[1] += 1;
                assert_eq!(hit.pc, step.pc);
            }
            HitKind::Write { writer, address, length, .. } => {
                assert!(address < range.end && range.start < address + length, "{hit:?} is outside");
                match writer {
                    Writer::Instruction => {
                        found[2] += 1;
                        assert_eq!(hit.pc, step.pc);
                    }
                    Writer::PageTableMark => found[3] += 1,
                    Writer::Firmware | Writer::Device | Writer::Event => found[4] += 1,
                }
            }
        }
    }
}
