//! Why the machine stopped running.

use crate::state::{RestoreError, StateReader, StateWriter};
use core::fmt;

/// Why [`Machine::run`](crate::Machine::run) returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// The instruction count has reached the limit. Nothing at the limit has been executed.
    LimitReached,
    /// The hart stands at an instruction that reads the clock; apply [`Event::ClockRead`](crate::Event::ClockRead).
    ClockRead,
    /// The hart stands at an instruction that reads entropy; apply [`Event::Entropy`](crate::Event::Entropy).
    SeedRead,
    /// The hart waits in WFI and nothing that would wake it is pending; the count stands still until an event is applied.
    WaitForInterrupt,
    /// The last step produced output; take it with [`Machine::take_output`](crate::Machine::take_output).
    Output,
    /// The guest has come to its end; every further run gives the same answer.
    Stopped(StopReason),
}

/// How a guest came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The guest powered itself off (SBI SRST, test finisher).
    PowerOff {
        /// 0 if the guest reported success.
        code: u32,
    },
    /// The guest asked for a reboot.
    Reboot,
    /// The guest did something that the machine can't go on from.
    Halt(HaltReason),
}

/// Why the machine gave up on a guest. No guest is able to make the machine panic: this is what it gets instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HaltReason {
    /// The trap vector itself can't be fetched: every trap would trap again.
    DoubleTrap {
        /// Where the second trap arose.
        pc: u64,
        /// Its cause, as in `scause` and `mcause`.
        cause: u64,
    },
    /// A virtqueue descriptor, ring or index of the network device is outside RAM, loops, or is too long.
    ///
    /// Only logs of machines of behaviour 1 and before have it: now it is a [`DeviceFault`](crate::DeviceFault).
    BadDescriptorRing {
        /// Which queue of the network device: 0 receive, 1 transmit.
        queue: u16,
        /// The descriptor's index; [`HaltReason::RING_ITSELF`] if a ring or its index is at fault.
        descriptor: u16,
    },
    /// As [`Self::BadDescriptorRing`], in the queue of the disk; or its chain of descriptors is no request.
    BadDiskRing {
        /// The descriptor's index, or that of the chain's head; [`HaltReason::RING_ITSELF`] if a ring or its index is at
        /// fault.
        descriptor: u16,
    },
}

impl HaltReason {
    /// The `descriptor` of a [`Self::BadDescriptorRing`] or [`Self::BadDiskRing`] whose ring, rather than a descriptor, is
    /// bad. No descriptor has this index.
    pub const RING_ITSELF: u16 = u16::MAX;
}

impl StopReason {
    pub(crate) fn write_to(self, writer: &mut StateWriter) {
        let (kind, detail) = match self {
            Self::PowerOff { code } => (0, [code.into(), 0]),
            Self::Reboot => (1, [0, 0]),
            Self::Halt(HaltReason::DoubleTrap { pc, cause }) => (2, [pc, cause]),
            Self::Halt(HaltReason::BadDescriptorRing { queue, descriptor }) => (3, [queue.into(), descriptor.into()]),
            Self::Halt(HaltReason::BadDiskRing { descriptor }) => (4, [descriptor.into(), 0]),
        };
        writer.u8(kind);
        for word in detail {
            writer.u64(word);
        }
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let kind = reader.u8()?;
        let detail = [reader.u64()?, reader.u64()?];
        let unknown = reader.impossible("the guest has come to an end that doesn't exist");
        Ok(match (kind, detail) {
            (0, [code, 0]) => Self::PowerOff { code: u32::try_from(code).map_err(|_| unknown)? },
            (1, [0, 0]) => Self::Reboot,
            (2, [pc, cause]) => Self::Halt(HaltReason::DoubleTrap { pc, cause }),
            _ => return Err(unknown),
        })
    }
}

impl fmt::Display for HaltReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DoubleTrap { pc, cause } => {
                write!(f, "double trap: the trap vector at {pc:#x} can't be fetched (cause {cause})")
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
