//! Privilege modes.

/// A privilege mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    User,
    Supervisor,
    Machine,
}

impl Privilege {
    /// Its number, as in CSR addresses and `mstatus.MPP`.
    pub(crate) const fn level(self) -> u8 {
        match self {
            Self::User => 0,
            Self::Supervisor => 1,
            Self::Machine => 3,
        }
    }

    /// The mode with this number.
    pub(crate) const fn from_level(level: u64) -> Option<Self> {
        match level {
            0 => Some(Self::User),
            1 => Some(Self::Supervisor),
            3 => Some(Self::Machine),
            _ => None,
        }
    }
}
