//! The platform-level interrupt controller, as QEMU's `virt` board lays it out.
//!
//! Context 0 is the hart's M-mode, context 1 its S-mode. Sources are level-triggered: one is
//! pending while its line is up and no context is handling it.

use crate::state::{RestoreError, StateReader, StateWriter};

/// Sources 1 to 95 exist, as on the board; 0 means none.
const SOURCES: u32 = 96;

/// The greatest priority; 0 never interrupts.
const PRIORITY_MAX: u8 = 7;

/// A bit per source that exists.
const SOURCES_MASK: u128 = ((1 << SOURCES) - 1) & !1;

const PENDING: u64 = 0x1000;
/// The enable bits of context 0, and the distance to those of the next context.
const ENABLE: u64 = 0x2000;
const ENABLE_STRIDE: u64 = 0x80;
/// The threshold of context 0, with CLAIM after it, and the distance to that of the next context.
const THRESHOLD: u64 = 0x20_0000;
const CONTEXT_STRIDE: u64 = 0x1000;
const CLAIM: u64 = 4;

/// The modes of the hart that sources can interrupt; the discriminant is the number of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    Machine,
    Supervisor,
}

impl Context {
    const ALL: [Self; 2] = [Self::Machine, Self::Supervisor];

    /// The context whose registers `stride` bytes apart from `base` on contain `offset`, and the
    /// offset in them.
    fn at(offset: u64, base: u64, stride: u64) -> Option<(Self, u64)> {
        let from_base = offset.checked_sub(base)?;
        let index = usize::try_from(from_base / stride).ok()?;
        Some((*Self::ALL.get(index)?, from_base % stride))
    }
}

/// What a context is interrupted by.
#[derive(Clone, Copy, Debug, Default)]
struct Target {
    /// A bit per source.
    enable: u128,
    threshold: u8,
}

/// Bytes of a bitmap with a bit per source.
const BITMAP_BYTES: u64 = (SOURCES / 8) as u64;

/// Interrupt sources of devices in, an external interrupt line per context out.
#[derive(Debug)]
pub(crate) struct Plic {
    priority: [u8; SOURCES as usize],
    /// A bit per source: the source's line is up.
    level: u128,
    /// A bit per source: the source is claimed and not yet completed.
    in_service: u128,
    /// By number of the context.
    targets: [Target; Context::ALL.len()],
}

impl Plic {
    /// As after reset.
    pub(crate) const fn new() -> Self {
        let target = Target { enable: 0, threshold: 0 };
        Self { priority: [0; SOURCES as usize], level: 0, in_service: 0, targets: [target; Context::ALL.len()] }
    }

    /// Sets the level of the line of `source`.
    pub(crate) const fn set_level(&mut self, source: u32, up: bool) {
        if up {
            self.level |= 1 << source;
        } else {
            self.level &= !(1 << source);
        }
    }

    /// The level of the external interrupt line of `context`.
    pub(crate) fn notifies(&self, context: Context) -> bool {
        self.best(context).is_some_and(|(_, priority)| priority > self.targets[context as usize].threshold)
    }

    /// Reads a register; reading CLAIM claims.
    pub(crate) fn load(&mut self, offset: u64, width: usize) -> Option<u32> {
        if width != 4 {
            return None;
        }
        if let Some(source) = priority_source(offset) {
            return Some(self.priority[source].into());
        }
        if let Some(shift) = bitmap_shift(offset, PENDING) {
            return Some(word(self.pending(), shift));
        }
        if let Some((context, shift)) = enable_shift(offset) {
            return Some(word(self.targets[context as usize].enable, shift));
        }
        Some(match Context::at(offset, THRESHOLD, CONTEXT_STRIDE) {
            Some((context, 0)) => self.targets[context as usize].threshold.into(),
            Some((context, CLAIM)) => self.claim(context),
            _ => 0,
        })
    }

    /// Writes a register; writing CLAIM completes.
    pub(crate) fn store(&mut self, offset: u64, value: u32, width: usize) -> Option<()> {
        if width != 4 {
            return None;
        }
        if let Some(source) = priority_source(offset) {
            self.priority[source] = priority_bits(value);
        } else if let Some((context, shift)) = enable_shift(offset) {
            let target = &mut self.targets[context as usize];
            let others = target.enable & !(u128::from(u32::MAX) << shift);
            target.enable = (others | u128::from(value) << shift) & SOURCES_MASK;
        } else {
            match Context::at(offset, THRESHOLD, CONTEXT_STRIDE) {
                Some((context, 0)) => self.targets[context as usize].threshold = priority_bits(value),
                Some((context, CLAIM)) => self.complete(context, value),
                _ => {}
            }
        }
        Some(())
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        // The levels are set anew from the devices' state.
        let Self { priority, level: _, in_service, targets } = self;
        writer.array(*priority);
        writer.u128(*in_service);
        for Target { enable, threshold } in targets {
            writer.u128(*enable);
            writer.u8(*threshold);
        }
    }

    /// With all lines down.
    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let priority: [u8; SOURCES as usize] = reader.array()?;
        let in_range = priority[0] == 0 && priority.iter().all(|priority| *priority <= PRIORITY_MAX);
        reader.require(in_range, "a priority at the PLIC is out of range")?;
        let in_service = reader.u128()?;
        reader.require(in_service & !SOURCES_MASK == 0, "an interrupt source at the PLIC doesn't exist")?;
        let mut targets = [Target::default(); Context::ALL.len()];
        for target in &mut targets {
            *target = Target { enable: reader.u128()?, threshold: reader.u8()? };
            reader.require(target.enable & !SOURCES_MASK == 0, "an interrupt source at the PLIC doesn't exist")?;
            reader.require(target.threshold <= PRIORITY_MAX, "the threshold of the PLIC is out of range")?;
        }
        Ok(Self { priority, level: 0, in_service, targets })
    }

    const fn pending(&self) -> u128 {
        self.level & !self.in_service
    }

    /// The source to handle first and its priority: the one of greatest priority, and among equals
    /// the one with the least number.
    fn best(&self, context: Context) -> Option<(u32, u8)> {
        let mut candidates = self.pending() & self.targets[context as usize].enable;
        let mut best = None;
        while candidates != 0 {
            let source = candidates.trailing_zeros();
            candidates &= candidates - 1;
            let priority = self.priority[source as usize];
            if priority > best.map_or(0, |(_, priority)| priority) {
                best = Some((source, priority));
            }
        }
        best
    }

    /// Claims the source to handle first; the threshold doesn't apply.
    fn claim(&mut self, context: Context) -> u32 {
        let Some((source, _)) = self.best(context) else { return 0 };
        self.in_service |= 1 << source;
        source
    }

    /// Completes a source; ignored if the source isn't enabled in this context.
    const fn complete(&mut self, context: Context, source: u32) {
        if source < SOURCES && self.targets[context as usize].enable >> source & 1 == 1 {
            self.in_service &= !(1 << source);
        }
    }
}

const fn priority_bits(value: u32) -> u8 {
    value.to_le_bytes()[0] & PRIORITY_MAX
}

/// The source whose priority register is at `offset`.
fn priority_source(offset: u64) -> Option<usize> {
    usize::try_from(offset / 4).ok().filter(|source| (1..SOURCES as usize).contains(source))
}

/// By how many bits to shift a bitmap at `base` to get its 32-bit word at `offset`.
const fn bitmap_shift(offset: u64, base: u64) -> Option<u64> {
    if offset >= base && offset < base + BITMAP_BYTES { Some((offset - base) * 8) } else { None }
}

/// The context whose enable bits are at `offset`, and by how many bits to shift them.
fn enable_shift(offset: u64) -> Option<(Context, u64)> {
    let (context, from_base) = Context::at(offset, ENABLE, ENABLE_STRIDE)?;
    Some((context, bitmap_shift(from_base, 0)?))
}

#[expect(clippy::cast_possible_truncation, reason = "one word of the bitmap is what is asked for")]
const fn word(bitmap: u128, shift: u64) -> u32 {
    (bitmap >> shift) as u32
}

#[cfg(test)]
mod tests {
    use super::{Context, PENDING, Plic};

    const ENABLE: u64 = 0x2080;
    const THRESHOLD: u64 = 0x20_1000;
    const CLAIM: u64 = 0x20_1004;
    const MACHINE_ENABLE: u64 = 0x2000;
    const MACHINE_CLAIM: u64 = 0x20_0004;

    fn plic_with(priorities: &[(u32, u32)]) -> Plic {
        let mut plic = Plic::new();
        for (source, priority) in priorities {
            plic.store(u64::from(*source) * 4, *priority, 4).unwrap();
            plic.set_level(*source, true);
        }
        for word in 0..3 {
            plic.store(ENABLE + 4 * word, u32::MAX, 4).unwrap();
        }
        plic
    }

    #[test]
    fn claims_by_priority_then_by_number() {
        let mut plic = plic_with(&[(10, 1), (1, 1), (40, 3), (95, 0)]);
        assert!(plic.notifies(Context::Supervisor));
        let claims: [u32; 4] = core::array::from_fn(|_| plic.load(CLAIM, 4).unwrap());
        assert_eq!(claims, [40, 1, 10, 0], "priority 0 never interrupts");
        assert!(!plic.notifies(Context::Supervisor));
        assert_eq!(plic.load(PENDING + 8, 4), Some(1 << 31), "95 is pending, 40 in service");
    }

    #[test]
    fn completion_lets_a_line_that_is_still_up_interrupt_again() {
        let mut plic = plic_with(&[(10, 1)]);
        assert_eq!(plic.load(CLAIM, 4), Some(10));
        assert!(!plic.notifies(Context::Supervisor));
        plic.store(CLAIM, 10, 4).unwrap();
        assert!(plic.notifies(Context::Supervisor));
        plic.set_level(10, false);
        assert!(!plic.notifies(Context::Supervisor));
        assert_eq!(plic.load(CLAIM, 4), Some(0));
    }

    #[test]
    fn threshold_masks_the_line_but_not_the_claim() {
        let mut plic = plic_with(&[(10, 3)]);
        plic.store(THRESHOLD, 3, 4).unwrap();
        assert!(!plic.notifies(Context::Supervisor));
        assert_eq!(plic.load(CLAIM, 4), Some(10));
        plic.store(CLAIM, 10, 4).unwrap();
        plic.store(THRESHOLD, 2, 4).unwrap();
        assert!(plic.notifies(Context::Supervisor));
    }

    #[test]
    fn completion_of_a_source_not_enabled_is_ignored() {
        let mut plic = plic_with(&[(10, 1)]);
        assert_eq!(plic.load(CLAIM, 4), Some(10));
        plic.store(ENABLE, 0, 4).unwrap();
        plic.store(CLAIM, 10, 4).unwrap();
        plic.store(CLAIM, u32::MAX, 4).unwrap();
        plic.store(ENABLE, 1 << 10, 4).unwrap();
        assert!(!plic.notifies(Context::Supervisor), "still in service");
    }

    #[test]
    fn each_context_has_its_own_enables_and_threshold_and_shares_what_is_in_service() {
        let mut plic = plic_with(&[(10, 1)]);
        assert!(!plic.notifies(Context::Machine), "not enabled there");
        plic.store(MACHINE_ENABLE, 1 << 10, 4).unwrap();
        assert!(plic.notifies(Context::Machine) && plic.notifies(Context::Supervisor));
        plic.store(THRESHOLD, 1, 4).unwrap();
        assert!(plic.notifies(Context::Machine) && !plic.notifies(Context::Supervisor));
        assert_eq!(plic.load(MACHINE_CLAIM, 4), Some(10));
        assert_eq!(plic.load(CLAIM, 4), Some(0), "claimed by the other");
        plic.store(MACHINE_CLAIM, 10, 4).unwrap();
        assert!(plic.notifies(Context::Machine));
    }

    #[test]
    fn registers_hold_what_exists() {
        let mut plic = Plic::new();
        for offset in
            [0, 4, 95 * 4, 96 * 4, PENDING, ENABLE, ENABLE + 8, ENABLE + 12, ENABLE + 0x80, THRESHOLD, 0x5f_fffc]
        {
            plic.store(offset, u32::MAX, 4).unwrap();
        }
        assert_eq!([0, 4, 95 * 4, 96 * 4].map(|offset| plic.load(offset, 4).unwrap()), [0, 7, 7, 0]);
        assert_eq!(plic.load(ENABLE, 4), Some(!1));
        assert_eq!([ENABLE + 8, ENABLE + 12, ENABLE + 0x80].map(|offset| plic.load(offset, 4).unwrap()), [!0, 0, 0]);
        assert_eq!(plic.load(THRESHOLD, 4), Some(7));
        assert_eq!(plic.load(PENDING, 8), None);
    }
}
