//! Mistakes of the guest's drivers, to be reported to people. The machine goes on.

use core::fmt;

/// A device with virtqueues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VirtioDevice {
    /// The network device; its queue 0 receives, its queue 1 transmits.
    Net,
    /// The disk.
    Disk,
    /// The entropy device.
    Rng,
}

/// A driver's mistake: its device has set DEVICE_NEEDS_RESET, and does nothing until the driver has
/// reset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceFault {
    /// The device whose driver made the mistake.
    pub device: VirtioDevice,
    /// The queue's index.
    pub queue: u16,
    /// The descriptor at fault, or that of the head of a chain that makes no sense; `None` if the
    /// ring itself is at fault.
    ///
    /// A descriptor is at fault if it or what it describes is outside RAM, or in the wrong
    /// direction, if it is indirect, which no device offers, or if its chain comes back to it.
    pub descriptor: Option<u16>,
}

impl fmt::Display for VirtioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Net => "virtio-net",
            Self::Disk => "virtio-blk",
            Self::Rng => "virtio-rng",
        })
    }
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, queue, descriptor } = self;
        match descriptor {
            Some(descriptor) => write!(f, "{device} queue {queue}: bad descriptor {descriptor}"),
            None => write!(f, "{device} queue {queue}: bad ring"),
        }
    }
}
