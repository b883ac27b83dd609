//! Why the machine stopped running.

use crate::state::{RestoreError, StateReader, StateWriter};
use core::fmt;

/// Why [`Machine::run`](crate::Machine::run) returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// The instruction count has reached the limit. Nothing at the limit has been executed.
    LimitReached,
    /// The hart stands at an instruction that reads the clock; apply
    /// [`Event::ClockRead`](crate::Event::ClockRead).
    ClockRead,
    /// The hart stands at an instruction that reads entropy; apply
    /// [`Event::Entropy`](crate::Event::Entropy).
    SeedRead,
    /// The hart stands at an instruction that reads or sets the real-time clock; apply
    /// [`Event::WallClock`](crate::Event::WallClock).
    WallClockNeeded,
    /// The entropy device has a buffer to fill; apply
    /// [`Event::RandomBytes`](crate::Event::RandomBytes).
    RandomBytesNeeded,
    /// The hart waits in WFI and nothing that would wake it is pending; the count stands still
    /// until an event is applied.
    WaitForInterrupt,
    /// The last step produced output; take it with
    /// [`Machine::take_output`](crate::Machine::take_output).
    Output,
    /// The guest has stopped; every further run returns the same.
    Stopped(StopReason),
}

/// Why a guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The guest powered itself off (SBI SRST, test finisher).
    PowerOff {
        /// 0 if the guest reported success.
        code: u32,
    },
    /// The guest asked for a reboot.
    Reboot,
    /// The guest did something after which the machine can't go on.
    Halt(HaltReason),
}

/// Why the machine gave up on a guest. No guest can make the machine panic: it halts instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HaltReason {
    /// The trap handler can't be fetched: every trap would trap again.
    DoubleTrap {
        /// The address of the trap handler, which the second trap has as its `epc`.
        pc: u64,
        /// Its cause, as in `scause` and `mcause`.
        cause: u64,
        /// The trap that the handler was to deal with; `None` if the guest came there without one.
        /// Logs of a machine of behaviour 1 don't have it.
        first: Option<FirstTrap>,
    },
    /// A virtqueue descriptor, ring or index of the network device is outside RAM, loops, or is too
    /// long.
    ///
    /// Only logs of machines of behaviour 1 and before have it: now it is a
    /// [`DeviceFault`](crate::DeviceFault).
    BadDescriptorRing {
        /// The queue's index: 0 receive, 1 transmit.
        queue: u16,
        /// The descriptor's index; [`HaltReason::RING_ITSELF`] if a ring or its index is at fault.
        descriptor: u16,
    },
    /// As [`Self::BadDescriptorRing`], in the queue of the disk; or its chain of descriptors isn't
    /// a request.
    BadDiskRing {
        /// The descriptor's index, or that of the chain's head; [`HaltReason::RING_ITSELF`] if a
        /// ring or its index is at fault.
        descriptor: u16,
    },
}

/// A trap whose handler can't be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstTrap {
    /// Its cause, as in `scause` and `mcause`.
    pub cause: u64,
    /// The instruction that trapped, or before which an interrupt was taken.
    pub epc: u64,
    /// As in `stval` and `mtval`.
    pub tval: u64,
    /// The bits of the instruction; 0 if they aren't known.
    pub instruction: u32,
    /// What the instruction used that the machine doesn't have, if that is known.
    pub lacks: Option<Lack>,
}

/// Something that the machine doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lack {
    /// A CSR with this number.
    Csr(u16),
    /// Anything at the address of the access.
    Address,
}

impl Lack {
    /// Its number in logs and snapshots; 0 for `None`.
    #[must_use]
    pub const fn code(lacks: Option<Self>) -> u32 {
        match lacks {
            None => 0,
            Some(Self::Address) => 1,
            Some(Self::Csr(csr)) => 1 << 16 | csr as u32,
        }
    }

    /// The reverse of [`Self::code`]; the outer `None` if no value has this number.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the CSR is the lower half")]
    pub const fn from_code(code: u32) -> Option<Option<Self>> {
        match (code >> 16, code) {
            (_, 0) => Some(None),
            (_, 1) => Some(Some(Self::Address)),
            (1, _) => Some(Some(Self::Csr(code as u16))),
            _ => None,
        }
    }
}

impl HaltReason {
    /// The `descriptor` of a [`Self::BadDescriptorRing`] or [`Self::BadDiskRing`] whose ring,
    /// rather than a descriptor, is bad. No descriptor has this index.
    pub const RING_ITSELF: u16 = u16::MAX;
}

impl StopReason {
    pub(crate) fn write_to(self, writer: &mut StateWriter) {
        let (kind, detail) = match self {
            Self::PowerOff { code } => (0, [code.into(), 0]),
            Self::Reboot => (1, [0, 0]),
            Self::Halt(HaltReason::DoubleTrap { pc, cause, first: _ }) => (2, [pc, cause]),
            Self::Halt(HaltReason::BadDescriptorRing { queue, descriptor }) => (3, [queue.into(), descriptor.into()]),
            Self::Halt(HaltReason::BadDiskRing { descriptor }) => (4, [descriptor.into(), 0]),
        };
        writer.u8(kind);
        for word in detail {
            writer.u64(word);
        }
        if let Self::Halt(HaltReason::DoubleTrap { first, .. }) = self {
            writer.bool(first.is_some());
            if let Some(FirstTrap { cause, epc, tval, instruction, lacks }) = first {
                for word in [cause, epc, tval] {
                    writer.u64(word);
                }
                writer.u32(instruction);
                writer.u32(Lack::code(lacks));
            }
        }
    }

    /// Reads the reason of a machine of this behaviour.
    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let kind = reader.u8()?;
        let detail = [reader.u64()?, reader.u64()?];
        let unknown = reader.impossible("the guest has come to an end that doesn't exist");
        Ok(match (kind, detail) {
            (0, [code, 0]) => Self::PowerOff { code: u32::try_from(code).map_err(|_| unknown)? },
            (1, [0, 0]) => Self::Reboot,
            (2, [pc, cause]) => {
                let first = if reader.bool()? { Some(FirstTrap::read_from(reader)?) } else { None };
                Self::Halt(HaltReason::DoubleTrap { pc, cause, first })
            }
            _ => return Err(unknown),
        })
    }
}

impl FirstTrap {
    fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let (cause, epc, tval) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (instruction, lacks) = (reader.u32()?, Lack::from_code(reader.u32()?));
        let lacks = lacks.ok_or_else(|| reader.impossible("a trap for the want of something that doesn't exist"))?;
        Ok(Self { cause, epc, tval, instruction, lacks })
    }
}

/// The name of a cause.
struct Cause(u64);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const INTERRUPT: u64 = 1 << 63;
        let name = match self.0 {
            1 => "instruction access fault",
            2 => "illegal instruction",
            3 => "breakpoint",
            4 => "misaligned load",
            5 => "load access fault",
            6 => "misaligned store",
            7 => "store access fault",
            8 => "environment call from U-mode",
            9 => "environment call from S-mode",
            11 => "environment call from M-mode",
            12 => "instruction page fault",
            13 => "load page fault",
            15 => "store page fault",
            cause if cause & INTERRUPT != 0 => return write!(f, "interrupt {}", cause & !INTERRUPT),
            cause => return write!(f, "cause {cause}"),
        };
        write!(f, "{name}")
    }
}

impl fmt::Display for FirstTrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, epc, tval, instruction, lacks } = *self;
        write!(f, "{} at {epc:#x} (tval {tval:#x}", Cause(cause))?;
        if instruction != 0 {
            write!(f, ", instruction {instruction:#010x}")?;
        }
        f.write_str(")")?;
        match lacks {
            Some(Lack::Csr(csr)) => write!(f, "; this machine has no CSR {csr:#x}"),
            Some(Lack::Address) => write!(f, "; this machine has nothing at {tval:#x}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for HaltReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoubleTrap { pc, cause, first } => {
                write!(f, "double trap: the trap vector at {pc:#x} can't be fetched ({})", Cause(*cause))?;
                first.map_or(Ok(()), |first| write!(f, "; the trap was: {first}"))
            }
            Self::BadDescriptorRing { queue, descriptor: Self::RING_ITSELF } => {
                write!(f, "virtio-net queue {queue}: bad ring")
            }
            Self::BadDescriptorRing { queue, descriptor } => {
                write!(f, "virtio-net queue {queue}: bad descriptor {descriptor}")
            }
            Self::BadDiskRing { descriptor: Self::RING_ITSELF } => write!(f, "virtio-blk: bad ring"),
            Self::BadDiskRing { descriptor } => write!(f, "virtio-blk: bad descriptor {descriptor}"),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff { code } => write!(f, "guest powered off with code {code}"),
            Self::Reboot => write!(f, "guest asked for a reboot"),
            Self::Halt(reason) => write!(f, "guest halted: {reason}"),
        }
    }
}
