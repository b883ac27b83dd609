//! Execution with a probe.

use crate::fast::Left;
use crate::hart::Pause;
use crate::isa::address::GuestPhysAddr;
use crate::machine::{Engine, Machine};
use crate::probe::{ActiveProbe, Hit, HitKind, Probe, Writer};
use crate::ram::RAM_BASE;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

impl Machine {
    /// Begins to look for what `probe` says, instead of what was looked for before; hits that
    /// weren't taken are dropped.
    pub fn set_probe(&mut self, probe: Option<Probe>) {
        self.bus.ram.watches_mut().watch_writes(None);
        self.probe = probe.map(|probe| Box::new(ActiveProbe { probe, ..ActiveProbe::default() }));
        let writes = self.probe.as_ref().and_then(|active| active.probe.writes.clone());
        let Some(Range { start, end }) = writes else { return };
        let (base, ram_end) = (RAM_BASE, self.bus.ram.end());
        let offset = |address: u64| usize::try_from(address.clamp(base, ram_end) - base).unwrap_or(usize::MAX);
        self.bus.ram.watches_mut().watch_writes(Some(offset(start)..offset(end)));
    }

    /// Takes what was found since the last call, in order, and how many hits were dropped because
    /// they weren't taken early enough.
    pub fn take_hits(&mut self) -> (Vec<Hit>, u64) {
        let Some(active) = &mut self.probe else { return (Vec::new(), 0) };
        (core::mem::take(&mut active.hits), core::mem::take(&mut active.lost))
    }

    /// `true` if hits wait to be taken.
    #[must_use]
    pub fn has_hits(&self) -> bool {
        self.probe.as_ref().is_some_and(|active| !active.hits.is_empty())
    }

    /// As [`Self::execute`], and notes what the probe looks for.
    pub(crate) fn execute_probed(&mut self, engine: Engine, until: u64) -> Option<Pause> {
        let is_plain = self.probe.as_ref().is_none_or(|active| !active.probe.pcs.is_empty());
        while self.hart.count() < until {
            if engine != Engine::Plain && !is_plain {
                let left = self.fast.run(&mut self.hart, &mut self.bus, until);
                if self.hart.count() == until || left == Left::Budget && engine == Engine::FastAndEarly {
                    break;
                }
            }
            if let Some(pause) = self.step_probed() {
                return Some(pause);
            }
        }
        None
    }

    fn step_probed(&mut self) -> Option<Pause> {
        let (count, pc) = (self.hart.count(), self.hart.pc());
        let interrupt = self.hart.deliverable_interrupt();
        let traps = self.hart.traps_taken();
        let pause = self.hart.step(&mut self.bus);
        if self.hart.count() == count {
            // It waits for a value from outside; it will be executed when that has come.
            return pause;
        }
        let Some(active) = &mut self.probe else { return pause };
        if interrupt.is_none() && active.probe.pcs.contains(&pc) {
            active.note(Hit { count, pc, what: HitKind::Pc });
        }
        if active.probe.traps && self.hart.traps_taken() != traps {
            let (cause, value) = self.hart.last_trap();
            active.note(Hit { count, pc, what: HitKind::Trap { cause, value } });
        }
        // A store to a device's register writes no RAM itself, but may make the device do so.
        let by_device = pause == Some(Pause::DeviceTouched);
        self.note_writes(if by_device { Writer::Device } else { Writer::Instruction }, count, pc);
        pause
    }

    /// Notes what an event has done to a machine that stood at this count and pc before.
    pub(crate) fn note_event(&mut self, (count, pc): (u64, u64)) {
        // An answer completes the instruction that asked.
        let is_answer = self.hart.count() > count;
        if is_answer
            && let Some(active) = &mut self.probe
            && active.probe.pcs.contains(&pc)
        {
            active.note(Hit { count, pc, what: HitKind::Pc });
        }
        self.note_writes(if is_answer { Writer::Instruction } else { Writer::Event }, count, pc);
    }

    /// Notes the writes to probed memory since the last call.
    pub(crate) fn note_writes(&mut self, writer: Writer, count: u64, pc: u64) {
        let Some(active) = &mut self.probe else { return };
        for write in self.bus.ram.watches_mut().take_writes() {
            let writer = if write.is_mark { Writer::PageTableMark } else { writer };
            let (address, length) = (RAM_BASE + write.offset as u64, write.bytes as u64);
            let known = self.bus.ram.slice(GuestPhysAddr(address), length.min(8)).unwrap_or_default();
            let value = known.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            active.note(Hit { count, pc, what: HitKind::Write { writer, address, length, value } });
        }
    }
}
