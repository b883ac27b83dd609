//! The floating-point unit: registers f0 to f31, `fcsr`, and what the F and D extensions compute.
//!
//! ```text
//! instruction ─► execute ─► native ─► soft (integers)
//!  (decoding)    (the hart)   └────► the host's arithmetic, where it is provably the same
//!                         └► compare, convert
//! ```
//!
//! Below `execute` everything is a function of bits, rounding mode and flags. Results and flags are
//! those of IEEE 754-2019 as RISC-V has it: canonical NaNs, tininess after rounding, singles boxed
//! in registers.

mod compare;
mod convert;
mod execute;
mod format;
mod native;
mod soft;

use crate::state::{RestoreError, StateReader, StateWriter};

/// `mstatus.FS`: the state of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum FloatStatus {
    /// Every floating-point instruction and CSR is illegal.
    Off,
    /// As after reset.
    Initial,
    /// As the operating system restored it.
    Clean,
    /// Changed since.
    Dirty,
}

impl FloatStatus {
    /// The value of the low two bits of `field`.
    pub(crate) const fn from_field(field: u64) -> Self {
        match field & 3 {
            0 => Self::Off,
            1 => Self::Initial,
            2 => Self::Clean,
            _ => Self::Dirty,
        }
    }
}

/// The state of the unit.
#[derive(Clone, Debug)]
pub(crate) struct FloatState {
    /// A single-precision value has all upper bits set (NaN boxing).
    pub(crate) f: [u64; 32],
    /// Flags NX, UF, OF, DZ, NV in bits 0 to 4, rounding mode in bits 5 to 7.
    pub(crate) fcsr: u8,
    pub(crate) status: FloatStatus,
}

impl FloatState {
    /// As after reset: off.
    pub(crate) const fn new() -> Self {
        Self { f: [0; 32], fcsr: 0, status: FloatStatus::Off }
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        let Self { f, fcsr, status } = self;
        for register in f {
            writer.u64(*register);
        }
        writer.u8(*fcsr);
        writer.u8(*status as u8);
    }

    pub(crate) fn read_from(reader: &mut StateReader<'_>) -> Result<Self, RestoreError> {
        let mut f = [0; 32];
        for register in &mut f {
            *register = reader.u64()?;
        }
        let (fcsr, status) = (reader.u8()?, reader.u8()?);
        reader.require(status <= FloatStatus::Dirty as u8, "the floating-point status doesn't exist")?;
        Ok(Self { f, fcsr, status: FloatStatus::from_field(status.into()) })
    }
}

/// Arithmetic is compared with the host, with another implementation, and with the standard's
/// rules.
#[cfg(test)]
mod tests {
    extern crate std;

    mod host;
    mod library;
    mod random;
    mod vectors;

    use random::{MODES, Random, computed};
    use std::println;
}
