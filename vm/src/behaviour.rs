//! The version of the machine's behaviour, which a log has to name.

use core::fmt;

/// The version of what the machine does with an image and events, and of the state that it has.
///
/// A log replays only on a machine of the behaviour that it was recorded on. Every change that
/// makes a guest see something else, or gives the state another form, is a new version: corrected
/// instructions and devices too.
///
/// | version | the machine |
/// |---|---|
/// | 0 | RV64IMAC with S- and U-mode; not kept by any release |
/// | 1 | RV64GC with M-mode, Sv39 and a disk |
/// | 2 | `minstret` counts what retires; a driver's mistake stops its device and not the machine; HTIF system calls |
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BehaviourVersion(pub u32);

impl BehaviourVersion {
    /// The only one that this build has.
    pub const CURRENT: Self = Self(2);

    /// That this build's machine behaves so.
    ///
    /// # Errors
    /// [`OtherBehaviour`] if it doesn't.
    pub fn check(self) -> Result<(), OtherBehaviour> {
        if self == Self::CURRENT { Ok(()) } else { Err(OtherBehaviour(self)) }
    }

    /// Which releases have a machine of this behaviour.
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
    /// Which releases have a machine of that behaviour, in words.
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
