//! Inputs and outputs of the machine.

use alloc::vec::Vec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The longest packet that the network device carries, in bytes: an Ethernet frame without its
/// frame check sequence.
pub const PACKET_BYTES_MAX: usize = 1514;

/// The shortest packet: addresses and type.
pub const PACKET_BYTES_MIN: usize = 14;

/// The longest console output, in bytes.
pub const CONSOLE_BYTES_MAX: usize = 4096;

/// The most random bytes that the entropy device takes at once.
pub const RANDOM_BYTES_MAX: usize = 256;

/// One nondeterministic input: the only way in.
///
/// `ClockRead`, `Entropy` and `WallClock` answer an instruction that the machine stands at
/// ([`Exit::ClockRead`], [`Exit::SeedRead`], [`Exit::WallClockNeeded`]), and `RandomBytes` a device
/// without which the machine doesn't go on ([`Exit::RandomBytesNeeded`]); the others arrive between
/// two instructions.
///
/// [`Exit::ClockRead`]: crate::Exit::ClockRead
/// [`Exit::SeedRead`]: crate::Exit::SeedRead
/// [`Exit::WallClockNeeded`]: crate::Exit::WallClockNeeded
/// [`Exit::RandomBytesNeeded`]: crate::Exit::RandomBytesNeeded
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The value that a read of CSR `time` gets, in ticks of [`TIMEBASE_HZ`](crate::TIMEBASE_HZ)
    /// since the guest's start.
    ClockRead {
        /// Never less than that of the read before.
        ticks: u64,
    },
    /// The 16 bits that a read of CSR `seed` gets.
    Entropy {
        /// Host entropy.
        bits: u16,
    },
    /// The timer deadline that the guest set has been reached: the supervisor timer interrupt
    /// becomes pending.
    TimerInterrupt,
    /// A packet arrives at the network device.
    Packet {
        /// The packet's number on the network, greater than that of the packet before. The machine
        /// only remembers it, so that a backup that takes the guest over knows which packets it has
        /// had.
        number: u64,
        /// Ethernet frame without frame check sequence, at most [`PACKET_BYTES_MAX`] bytes.
        packet: Vec<u8>,
    },
    /// Bytes arrive at the console.
    ConsoleInput {
        /// At most [`Machine::console_room`](crate::Machine::console_room) bytes.
        bytes: Vec<u8>,
    },
    /// The host's time of day, which the guest's access to the real-time clock needs.
    WallClock {
        /// Nanoseconds of UTC since 1970; never less than before
        /// ([`Machine::last_wall_ns`](crate::Machine::last_wall_ns)).
        ns: u64,
    },
    /// The host's time of day has come to the alarm that the guest has set at the real-time clock
    /// ([`Machine::alarm_wall_ns`](crate::Machine::alarm_wall_ns)).
    Alarm,
    /// Random bytes for the entropy device.
    RandomBytes {
        /// As many as [`Machine::random_bytes_needed`](crate::Machine::random_bytes_needed), at
        /// most [`RANDOM_BYTES_MAX`].
        bytes: Vec<u8>,
    },
}

/// Something that leaves the machine: the only way out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OutputOperation {
    /// A packet that the guest sent through its network device.
    Packet(Vec<u8>),
    /// Bytes that the guest wrote to its console, at most [`CONSOLE_BYTES_MAX`].
    Console(Vec<u8>),
}

impl OutputOperation {
    /// The bytes that leave.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Packet(bytes) | Self::Console(bytes) => bytes,
        }
    }

    /// A digest of kind and bytes, for the log: the replay must produce the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let kind = match self {
            Self::Packet(_) => 1,
            Self::Console(_) => 2,
        };
        xxh3_64_with_seed(self.bytes(), kind)
    }
}

/// The position of an output in the sequence of everything the guest has sent since reset; the
/// first is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputId(pub u64);

impl OutputId {
    /// The id of the next output.
    ///
    /// # Panics
    /// At the last number, which no guest reaches; decoders and roles refuse a peer's numbers near
    /// it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.strict_add(1))
    }
}
