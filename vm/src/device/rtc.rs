//! The goldfish real-time clock: the time of day, in nanoseconds of UTC since 1970.
//!
//! ```text
//!   0x00 TIME_LOW        read: the time's lower half, and latches the upper; write: sets that half
//!   0x04 TIME_HIGH       read: the latched upper half; write: sets that half
//!   0x08 ALARM_LOW       lower half of the alarm's time; writing it sets the alarm
//!   0x0c ALARM_HIGH      upper half
//!   0x10 IRQ_ENABLED     bit 0: the alarm interrupts
//!   0x14 CLEAR_ALARM     writing it clears the alarm
//!   0x18 ALARM_STATUS    1 while an alarm is set
//!   0x1c CLEAR_INTERRUPT writing it ends the interrupt
//! ```
//! The host's time of day isn't in here, only the latest one that the guest can know. An access
//! whose result depends on the present one ([`Rtc::needs_time`]) waits for it before it comes here,
//! like a read of CSR `time`.

use crate::state::{RestoreError, StateReader, StateWriter};

const TIME_LOW: u64 = 0x00;
const TIME_HIGH: u64 = 0x04;
const ALARM_LOW: u64 = 0x08;
const ALARM_HIGH: u64 = 0x0c;
const IRQ_ENABLED: u64 = 0x10;
const CLEAR_ALARM: u64 = 0x14;
const ALARM_STATUS: u64 = 0x18;
const CLEAR_INTERRUPT: u64 = 0x1c;
/// One past the last register; QEMU has another one there, which does nothing.
const END: u64 = 0x24;

/// The clock's registers.
#[derive(Debug)]
pub(crate) struct Rtc {
    /// The latest time of the host that the guest can know, in nanoseconds since 1970.
    host_ns: u64,
    /// The guest's time less the host's, modulo 2^64: not zero once the guest has set its clock.
    offset_ns: u64,
    /// What the last read of `TIME_LOW` has latched.
    time_high: u32,
    /// What the guest has written to `ALARM_LOW` and `ALARM_HIGH`.
    alarm_ns: u64,
    /// The host's time at which the alarm that is set is due, [`u64::MAX`] if that time never
    /// comes; `None` if no alarm is set. Invariant: it is later than `host_ns`.
    alarm_host_ns: Option<u64>,
    is_interrupt_enabled: bool,
    is_interrupt_pending: bool,
}

impl Rtc {
    /// As after reset.
    pub(crate) const fn new() -> Self {
        Self {
            host_ns: 0,
            offset_ns: 0,
            time_high: 0,
            alarm_ns: 0,
            alarm_host_ns: None,
            is_interrupt_enabled: false,
            is_interrupt_pending: false,
        }
    }

    /// The latest time of the host that the guest can know, in nanoseconds since 1970.
    pub(crate) const fn host_ns(&self) -> u64 {
        self.host_ns
    }

    /// The host's time has come to `host_ns`, and the guest can know it.
    pub(crate) const fn set_host_ns(&mut self, host_ns: u64) {
        self.host_ns = host_ns;
        self.ring_if_due();
    }

    /// The host's time at which the alarm is due; `None` if none is set, or that time never comes.
    pub(crate) fn alarm_host_ns(&self) -> Option<u64> {
        self.alarm_host_ns.filter(|due| *due != u64::MAX)
    }

    /// The level of its interrupt line.
    pub(crate) const fn interrupts(&self) -> bool {
        self.is_interrupt_pending && self.is_interrupt_enabled
    }

    /// `true` if the result of such an access depends on the present time.
    pub(crate) const fn needs_time(offset: u64, width: usize, is_store: bool) -> bool {
        width == 4 && (offset == TIME_LOW || is_store && offset == TIME_HIGH)
    }

    /// Reads a register. That of the time is as of the time that was set last.
    pub(crate) const fn load(&mut self, offset: u64, width: usize) -> Option<u32> {
        if width != 4 {
            return None;
        }
        Some(match offset {
            TIME_LOW => {
                let guest_ns = self.guest_ns();
                self.time_high = high(guest_ns);
                low(guest_ns)
            }
            TIME_HIGH => self.time_high,
            ALARM_LOW => low(self.alarm_ns),
            ALARM_HIGH => high(self.alarm_ns),
            IRQ_ENABLED => self.is_interrupt_enabled as u32,
            ALARM_STATUS => self.alarm_host_ns.is_some() as u32,
            END.. => return None,
            _ => 0,
        })
    }

    /// Writes a register. That of the time is as of the time that was set last.
    pub(crate) const fn store(&mut self, offset: u64, value: u32, width: usize) -> Option<()> {
        if width != 4 {
            return None;
        }
        match offset {
            TIME_LOW => self.set_guest_ns(with_low(self.guest_ns(), value)),
            TIME_HIGH => self.set_guest_ns(with_high(self.guest_ns(), value)),
            ALARM_LOW => {
                self.alarm_ns = with_low(self.alarm_ns, value);
                let ahead_ns = self.alarm_ns.saturating_sub(self.guest_ns());
                self.alarm_host_ns = Some(self.host_ns.saturating_add(ahead_ns));
                self.ring_if_due();
            }
            ALARM_HIGH => self.alarm_ns = with_high(self.alarm_ns, value),
            IRQ_ENABLED => self.is_interrupt_enabled = value & 1 == 1,
            CLEAR_ALARM => self.alarm_host_ns = None,
            CLEAR_INTERRUPT => self.is_interrupt_pending = false,
            END.. => return None,
            _ => {}
        }
        Some(())
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { host_ns, offset_ns, time_high, alarm_ns, alarm_host_ns, is_interrupt_enabled, is_interrupt_pending } =
            self;
        for time in [host_ns, offset_ns, alarm_ns] {
            writer.u64(*time);
        }
        writer.optional_u64(*alarm_host_ns);
        writer.u32(*time_high);
        for flag in [is_interrupt_enabled, is_interrupt_pending] {
            writer.bool(*flag);
        }
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let (host_ns, offset_ns, alarm_ns) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let alarm_host_ns = reader.optional_u64()?;
        reader.require(alarm_host_ns.is_none_or(|due| due > host_ns), "an alarm is set that is overdue")?;
        Ok(Self {
            host_ns,
            offset_ns,
            time_high: reader.u32()?,
            alarm_ns,
            alarm_host_ns,
            is_interrupt_enabled: reader.bool()?,
            is_interrupt_pending: reader.bool()?,
        })
    }

    const fn guest_ns(&self) -> u64 {
        self.host_ns.wrapping_add(self.offset_ns)
    }

    const fn set_guest_ns(&mut self, guest_ns: u64) {
        self.offset_ns = guest_ns.wrapping_sub(self.host_ns);
    }

    const fn ring_if_due(&mut self) {
        if let Some(due) = self.alarm_host_ns
            && due <= self.host_ns
        {
            self.alarm_host_ns = None;
            self.is_interrupt_pending = true;
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "half of it is what is asked for")]
const fn low(ns: u64) -> u32 {
    ns as u32
}

const fn high(ns: u64) -> u32 {
    low(ns >> 32)
}

const fn with_low(ns: u64, half: u32) -> u64 {
    ns & !0xffff_ffff | half as u64
}

const fn with_high(ns: u64, half: u32) -> u64 {
    ns & 0xffff_ffff | (half as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::{
        ALARM_HIGH, ALARM_LOW, ALARM_STATUS, CLEAR_ALARM, CLEAR_INTERRUPT, END, IRQ_ENABLED, Rtc, TIME_HIGH, TIME_LOW,
    };

    const NS: u64 = 0x18ec_1234_9abc_def0;

    fn at(host_ns: u64) -> Rtc {
        let mut rtc = Rtc::new();
        rtc.set_host_ns(host_ns);
        rtc
    }

    fn time(rtc: &mut Rtc) -> u64 {
        let low = rtc.load(TIME_LOW, 4).unwrap();
        u64::from(rtc.load(TIME_HIGH, 4).unwrap()) << 32 | u64::from(low)
    }

    #[test]
    fn the_upper_half_belongs_to_the_lower_one_that_was_read() {
        let mut rtc = at(NS);
        assert_eq!(rtc.load(TIME_HIGH, 4), Some(0), "nothing is latched yet");
        assert_eq!(rtc.load(TIME_LOW, 4), Some(0x9abc_def0));
        rtc.set_host_ns(NS + (1 << 32));
        assert_eq!(rtc.load(TIME_HIGH, 4), Some(0x18ec_1234));
        assert_eq!(time(&mut rtc), NS + (1 << 32));
    }

    #[test]
    fn a_clock_that_was_set_goes_on_from_there() {
        let mut rtc = at(NS);
        // As Linux does it: the upper half first.
        rtc.store(TIME_HIGH, 0x1000_0000, 4).unwrap();
        rtc.set_host_ns(NS + 7);
        rtc.store(TIME_LOW, 5, 4).unwrap();
        assert_eq!(time(&mut rtc), 0x1000_0000_0000_0005);
        rtc.set_host_ns(NS + 1007);
        assert_eq!(time(&mut rtc), 0x1000_0000_0000_0005 + 1000);
        assert_eq!(rtc.host_ns(), NS + 1007, "the host's time is another matter");
    }

    #[test]
    fn an_alarm_interrupts_once_its_time_has_come() {
        let mut rtc = at(NS);
        let alarm = NS + 1_000_000;
        rtc.store(IRQ_ENABLED, 3, 4).unwrap();
        rtc.store(ALARM_HIGH, super::high(alarm), 4).unwrap();
        rtc.store(ALARM_LOW, super::low(alarm), 4).unwrap();
        assert_eq!((rtc.load(ALARM_STATUS, 4), rtc.alarm_host_ns(), rtc.interrupts()), (Some(1), Some(alarm), false));
        rtc.set_host_ns(alarm - 1);
        assert!(!rtc.interrupts());
        rtc.set_host_ns(alarm);
        assert_eq!((rtc.load(ALARM_STATUS, 4), rtc.alarm_host_ns(), rtc.interrupts()), (Some(0), None, true));
        rtc.store(IRQ_ENABLED, 0, 4).unwrap();
        assert!(!rtc.interrupts());
        rtc.store(IRQ_ENABLED, 1, 4).unwrap();
        rtc.store(CLEAR_INTERRUPT, 1, 4).unwrap();
        assert!(!rtc.interrupts());
        // A time in the past is due at once; a cleared alarm never.
        rtc.store(ALARM_LOW, super::low(alarm), 4).unwrap();
        assert!(rtc.interrupts());
        rtc.store(CLEAR_INTERRUPT, 1, 4).unwrap();
        rtc.store(ALARM_HIGH, u32::MAX, 4).unwrap();
        rtc.store(ALARM_LOW, 0, 4).unwrap();
        rtc.store(CLEAR_ALARM, 1, 4).unwrap();
        rtc.set_host_ns(u64::MAX);
        assert_eq!((rtc.alarm_host_ns(), rtc.interrupts()), (None, false));
    }

    #[test]
    fn an_alarm_is_by_the_clock_as_the_guest_has_set_it() {
        let mut rtc = at(NS);
        rtc.store(TIME_HIGH, 0, 4).unwrap();
        rtc.store(TIME_LOW, 100, 4).unwrap();
        rtc.store(ALARM_LOW, 600, 4).unwrap();
        assert_eq!(rtc.alarm_host_ns(), Some(NS + 500));
        rtc.store(ALARM_HIGH, u32::MAX, 4).unwrap();
        assert_eq!(rtc.alarm_host_ns(), Some(NS + 500), "only the lower half sets an alarm");
        rtc.store(ALARM_LOW, 0, 4).unwrap();
        let never = (rtc.load(ALARM_STATUS, 4), rtc.alarm_host_ns());
        assert_eq!(never, (Some(1), None), "beyond what the host's clock can tell");
    }

    #[test]
    fn registers_are_words() {
        let mut rtc = at(NS);
        for (offset, width) in [(TIME_LOW, 8), (TIME_LOW, 2), (ALARM_LOW, 1), (END, 4), (END + 4, 4)] {
            assert_eq!((rtc.load(offset, width), rtc.store(offset, 0, width)), (None, None), "{offset:#x} {width}");
        }
        assert_eq!((rtc.load(END - 4, 4), rtc.store(END - 4, 9, 4), time(&mut rtc)), (Some(0), Some(()), NS));
        for (offset, width, is_store, needs) in [
            (TIME_LOW, 4, false, true),
            (TIME_HIGH, 4, false, false),
            (TIME_LOW, 4, true, true),
            (TIME_HIGH, 4, true, true),
            (ALARM_LOW, 4, true, false),
            (TIME_LOW, 8, false, false),
        ] {
            assert_eq!(Rtc::needs_time(offset, width, is_store), needs, "{offset:#x} {width} {is_store}");
        }
    }
}
