//! The version of the machine's behaviour, which every log and every connection names.

use core::fmt;

/// The version of what the machine does with an image and events, and of the form of its state.
///
/// A log replays only on a machine of the behaviour that it was recorded on. Every change that
/// makes a guest see something else, or gives the state another form, is a new version; so are
/// corrections of instructions and devices.
///
/// | version | the machine |
/// |---|---|
/// | 0 | RV64IMAC with S- and U-mode; not in any release |
/// | 1 | RV64GC with M-mode, Sv39 and a disk |
/// | 2 | `minstret` counts what retires; a driver's mistake stops its device and not the machine; HTIF system calls; CLINT, Sstc, the PLIC's context of M-mode, eight virtio slots, legacy SBI calls; goldfish RTC, virtio-rng; Zba, Zbb, Zbs |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BehaviourVersion(pub u32);

impl BehaviourVersion {
    /// The version that this build's machine has.
    pub const CURRENT: Self = Self(2);

    /// Checks that this build's machine has this behaviour.
    ///
    /// # Errors
    /// [`OtherBehaviour`] if it has another.
    pub fn check(self) -> Result<(), OtherBehaviour> {
        if self == Self::CURRENT { Ok(()) } else { Err(OtherBehaviour(self)) }
    }

    /// The releases whose machine has this behaviour, in words.
    const fn releases(self) -> &'static str {
        match self.0 {
            0 => "builds before release 0.1.0",
            1 => "release 0.1.0",
            2 => "release 0.2.0",
            _ => "a later release",
        }
    }
}

/// A machine of another behaviour than this build's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine's behaviour has version {0}, as in {releases}; this build has version {current}", releases = .0.releases(),
    current = BehaviourVersion::CURRENT)]
pub struct OtherBehaviour(BehaviourVersion);

impl OtherBehaviour {
    /// The releases whose machine has that behaviour, in words.
    #[must_use]
    pub const fn releases(self) -> &'static str {
        self.0.releases()
    }
}

impl fmt::Display for BehaviourVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
