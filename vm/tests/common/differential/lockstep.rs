//! Three machines with the same guest and the same inputs, which must stay equal.

use super::super::restored;
use super::choices::Choices;
use super::code::{ACROSS_COUNTER, CodeWriter};
use super::program::{CODE, CODE_BYTES, COUNTERS, Program, TABLES, TABLES_BYTES};
use vm::{ApplyError, Event, Exit, InstructionCount, Machine, OutputId, OutputOperation};

/// How often the cases this test is for occurred: a run without them proves nothing.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    pub(crate) steps: u64,
    pub(crate) page_faults: u64,
    pub(crate) other_exceptions: u64,
    /// Slices in which code was written.
    pub(crate) code_writes: u64,
    /// Lines that were executed, then written, then executed again.
    pub(crate) modified_code_executed: u64,
    pub(crate) tables_changed: u64,
    /// Slices in which tables changed in their A and D bits only.
    pub(crate) tables_marked: u64,
    pub(crate) accesses_across_pages: u64,
    pub(crate) instructions_across_pages: u64,
    pub(crate) packets_into_code_or_tables: u64,
    pub(crate) snapshots: u64,
    pub(crate) outputs: u64,
    pub(crate) reads_answered: u64,
    pub(crate) sleeps: u64,
    pub(crate) ends: u64,
}

/// The machines, and which code they have executed.
struct Lockstep<'p> {
    program: &'p Program,
    fast: Machine,
    plain: Machine,
    /// A fast machine whose caches differ in age: it is replaced by a snapshot of `fast` at times.
    cold: Machine,
    packets: u64,
    /// A bit for each line of code that was executed.
    executed: u64,
    /// A bit for each executed line that was written since.
    modified: u64,
}

/// The bytes of code for which one bit is kept.
const LINE: usize = 256;

/// The A and D bits of a page-table entry.
const MARKS: [u8; 8] = [0xc0, 0, 0, 0, 0, 0, 0, 0];

/// Runs the guest about `steps` steps, and fails if the machines differ.
pub(crate) fn run(program: &Program, choices: &mut Choices<'_>, steps: u64, seen: &mut Sightings) {
    let machine = || Machine::new(&program.config, &program.image).unwrap();
    let mut machines =
        Lockstep { program, fast: machine(), plain: machine(), cold: machine(), packets: 0, executed: 0, modified: 0 };
    let mut sleeps = 0;
    while machines.fast.instruction_count().0 < steps {
        match machines.run(choices, seen) {
            Exit::LimitReached => machines.disturb(choices, seen),
            Exit::Output => machines.take_outputs(seen),
            Exit::ClockRead => {
                let ticks = machines.fast.last_ticks() + choices.below(100);
                machines.apply(&Event::ClockRead { ticks }).unwrap();
                seen.reads_answered += 1;
            }
            Exit::SeedRead => {
                machines.apply(&Event::Entropy { bits: 0x5eed }).unwrap();
                seen.reads_answered += 1;
            }
            Exit::WallClockNeeded => {
                let ns = machines.fast.last_wall_ns() + choices.below(100);
                machines.apply(&Event::WallClock { ns }).unwrap();
                seen.reads_answered += 1;
            }
            Exit::RandomBytesNeeded => {
                let bytes = vec![0x5e; machines.fast.random_bytes_needed()];
                machines.apply(&Event::RandomBytes { bytes }).unwrap();
            }
            Exit::WaitForInterrupt => {
                seen.sleeps += 1;
                sleeps += 1;
                if sleeps > 8 {
                    break;
                }
                machines.disturb(choices, seen);
            }
            Exit::Stopped(_) => {
                seen.ends += 1;
                break;
            }
        }
    }
    machines.compare_states();
    seen.steps += machines.fast.instruction_count().0;
    machines.count_traps(seen);
}

impl Lockstep<'_> {
    /// Runs all three machines to the same count and compares them.
    fn run(&mut self, choices: &mut Choices<'_>, seen: &mut Sightings) -> Exit {
        let length = match choices.below(8) {
            0 => 1,
            1 => 2,
            2 | 3 => 1 + choices.below(20),
            4..=6 => 1 + choices.below(200),
            _ => 1 + choices.below(2000),
        };
        let limit = self.fast.instruction_count().plus(length);
        let (code, tables) = self.watched();
        let exit = self.fast.run(limit);
        let expected = self.walk(limit, seen);
        assert_eq!(exit, expected, "fast against plain at {:?}", self.plain.instruction_count());
        let slice = choices.pick(&[1, 3, 100, u64::MAX]);
        let cold = loop {
            let next = self.cold.instruction_count().0.saturating_add(slice);
            let exit = self.cold.run(InstructionCount(next.min(limit.0)));
            if exit != Exit::LimitReached || self.cold.instruction_count() >= limit {
                break exit;
            }
        };
        assert_eq!(cold, expected, "in slices of {slice} against plain at {:?}", self.plain.instruction_count());
        self.compare();
        self.notice_changes(&code, &tables, seen);
        if choices.one_in(6) {
            self.compare_states();
        }
        // Digests and snapshots must not change how a machine goes on.
        match choices.below(24) {
            0 => _ = self.fast.digest(),
            1 => _ = self.cold.digest(),
            2 if exit != Exit::Output => self.thaw(seen),
            _ => {}
        }
        exit
    }

    fn all(&mut self) -> [&mut Machine; 3] {
        [&mut self.plain, &mut self.fast, &mut self.cold]
    }

    fn compare(&mut self) {
        let plain = (self.plain.instruction_count(), self.plain.pc(), *self.plain.registers());
        for (name, machine) in [("fast", &self.fast), ("cold", &self.cold)] {
            let other = (machine.instruction_count(), machine.pc(), *machine.registers());
            assert!(other == plain, "{name}: {other:x?}\nplain: {plain:x?}");
        }
    }

    fn compare_states(&mut self) {
        let count = self.plain.instruction_count();
        let [plain, fast, cold] = self.all().map(Machine::digest);
        assert_eq!(fast, plain, "the fast machine at {count:?}");
        assert_eq!(cold, plain, "the machine in slices at {count:?}");
    }

    fn apply(&mut self, event: &Event) -> Result<(), ApplyError> {
        let [plain, fast, cold] = self.all().map(|machine| machine.apply(event));
        assert_eq!(fast, plain);
        assert_eq!(cold, plain);
        plain
    }

    fn take_outputs(&mut self, seen: &mut Sightings) {
        let taken = |machine: &mut Machine| -> Vec<(OutputId, OutputOperation)> {
            core::iter::from_fn(|| machine.take_output()).collect()
        };
        let [plain, fast, cold] = self.all().map(taken);
        assert_eq!(fast, plain);
        assert_eq!(cold, plain);
        seen.outputs += plain.len() as u64;
    }

    /// Replaces the cold machine by a snapshot of the fast one.
    fn thaw(&mut self, seen: &mut Sightings) {
        self.cold = restored(&self.program.config, &mut self.fast);
        seen.snapshots += 1;
    }

    /// Applies a random event, or none.
    fn disturb(&mut self, choices: &mut Choices<'_>, seen: &mut Sightings) {
        let event = match choices.below(12) {
            0..=2 => {
                self.packets += 1;
                let length = usize::try_from(1 + choices.below(80)).unwrap();
                let mut packet = if choices.one_in(3) {
                    (0..length as u64).flat_map(|page| ((0x8_0000 + page % 16) << 10 | 0xcf).to_le_bytes()).collect()
                } else {
                    CodeWriter::code(choices, self.program.config.boot, 2 * length)
                };
                packet.truncate(1500);
                Event::Packet { number: self.packets, packet }
            }
            3 => Event::TimerInterrupt,
            4 => Event::ConsoleInput { bytes: vec![b'x'; usize::try_from(choices.below(20)).unwrap()] },
            5 => Event::Entropy { bits: 7 },
            6 => Event::Alarm,
            _ => return,
        };
        let before = self.watched();
        // An event that isn't possible now is refused by all three.
        let _ = self.apply(&event);
        seen.packets_into_code_or_tables += u64::from(self.watched() != before);
        self.compare_states();
    }

    /// The guest's code and page tables.
    fn watched(&self) -> (Vec<u8>, Vec<u8>) {
        let memory = |from, bytes| self.plain.memory(from, bytes).unwrap().to_vec();
        (memory(CODE, CODE_BYTES), memory(TABLES, TABLES_BYTES))
    }

    /// Runs the plain machine step by step and notes which code it executes.
    fn walk(&mut self, limit: InstructionCount, seen: &mut Sightings) -> Exit {
        loop {
            self.note_executed(seen);
            let exit = self.plain.run_plain(self.plain.instruction_count().plus(1).min(limit));
            if exit != Exit::LimitReached || self.plain.instruction_count() == limit {
                return exit;
            }
        }
    }

    fn note_executed(&mut self, seen: &mut Sightings) {
        let pc = self.plain.pc();
        let offset = (pc % (1 << 16)).wrapping_sub(CODE % (1 << 16));
        if offset < CODE_BYTES {
            let line = offset / LINE as u64;
            self.executed |= 1 << line;
            seen.modified_code_executed += self.modified >> line & 1;
            self.modified &= !(1 << line);
            let across =
                pc % 0x1000 == 0xffe && self.plain.memory(CODE + offset, 1).is_some_and(|bits| bits[0] & 3 == 3);
            seen.instructions_across_pages += u64::from(across);
        }
    }

    fn notice_changes(&mut self, code: &[u8], tables: &[u8], seen: &mut Sightings) {
        let (code_now, tables_now) = self.watched();
        seen.code_writes += u64::from(code_now != code);
        let lines = (0_u64..).zip(code.chunks(LINE).zip(code_now.chunks(LINE)));
        for (line, _) in lines.filter(|(_, (before, after))| before != after) {
            self.modified |= self.executed & 1 << line;
        }
        if tables_now != tables {
            let without_marks = |bytes: &[u8]| -> Vec<u8> {
                bytes.iter().zip(MARKS.into_iter().cycle()).map(|(byte, mark)| byte & !mark).collect()
            };
            let marked = without_marks(tables) == without_marks(&tables_now);
            seen.tables_marked += u64::from(marked);
            seen.tables_changed += u64::from(!marked);
        }
    }

    fn count_traps(&self, seen: &mut Sightings) {
        let counters = self.plain.memory(COUNTERS, 8 * 32).unwrap();
        let counters: Vec<u64> =
            counters.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes).min(10_000)).collect();
        for (cause, count) in counters.iter().enumerate() {
            match cause {
                12 | 13 | 15 => seen.page_faults += count,
                _ => seen.other_exceptions += count,
            }
        }
        seen.accesses_across_pages += self.plain.registers()[ACROSS_COUNTER as usize].min(100);
    }
}
