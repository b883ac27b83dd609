//! A TAP interface of the host's kernel: a network that neither retains nor numbers packets.
//!
//! The interface must exist, so that running a VM needs no privilege:
//! `ip tuntap add dev NAME mode tap user USER`. It can be opened by one process at a time, so a
//! primary and a backup on one host have one each, on a bridge.
//!
//! Packets from it get numbers like those of a LAN, from this side alone. What the interface
//! doesn't take is lost, as on an unplugged cable, and what is sent again arrives twice.

use crate::lan::client::FromLan;
use crate::os::clock;
use crate::os::rate_limit::RateLimit;
use nix::errno::Errno;
use nix::libc::c_int;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;
use std::sync::Arc;
use vm::PACKET_BYTES_MAX;

/// The device that opens TAP interfaces.
const DEVICE: &str = "/dev/net/tun";

/// The longest interface name, in bytes, without the terminating zero.
const NAME_BYTES_MAX: usize = 15;

/// Longer than the longest packet that an interface can be configured for, in bytes.
const READ_BYTES: usize = 66 << 10;

/// Ethernet frames (`IFF_TAP`) without a header before them (`IFF_NO_PI`).
const FLAGS: i16 = 0x1002;

/// Why a TAP interface can't be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// This host has no TAP interfaces.
    #[error("{DEVICE} can't be opened: {0}; load the kernel module (modprobe tun), or give this container the device")]
    Device(io::Error),
    /// No interface has this name.
    #[error("there is no interface {0}; make it: ip tuntap add dev {0} mode tap user USER && ip link set {0} up")]
    Missing(TapName),
    /// The interface belongs to another user.
    #[error("interface {0} may not be used by this user; give it to them (ip tuntap add dev {0} mode tap user USER)")]
    Permission(TapName),
    /// Another process has the interface.
    #[error("interface {0} is in use by another process; each side of a VM needs a TAP interface of its own")]
    Busy(TapName),
    /// The interface is of another kind.
    #[error("interface {0} is no TAP interface with one queue: {1}")]
    Kind(TapName, Errno),
    /// The interface has stopped working.
    #[error("interface {0} was lost: {1}")]
    Lost(TapName, io::Error),
}

/// The name of an interface, as the kernel allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapName(String);

impl FromStr for TapName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let is_plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if is_plain && (1..=NAME_BYTES_MAX).contains(&name.len()) && name != "." && name != ".." {
            Ok(Self(name.into()))
        } else {
            Err(format!("`{name}` can't be an interface's name, which has 1 to {NAME_BYTES_MAX} characters"))
        }
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kernel's `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES_MAX + 1],
    flags: i16,
    padding: [u8; 22],
}

mod request {
    use super::{InterfaceRequest, c_int};

    // TUNSETIFF's number is that of an ioctl on an int, but it reads a `struct ifreq`.
    nix::ioctl_write_ptr_bad!(set_interface, nix::request_code_write!(b'T', 202, size_of::<c_int>()), InterfaceRequest);
}

/// Opens the interface; returns its sending and its receiving end. `last_packet` is the number of
/// the last packet that the guest got.
///
/// # Errors
/// [`TapError`]
pub fn open(name: &TapName, last_packet: u64) -> Result<(TapSender, TapReceiver), TapError> {
    // TUNSETIFF would create a missing interface for a privileged user, but not connect it to a
    // bridge.
    if_nametoindex(name.0.as_str()).map_err(|_| TapError::Missing(name.clone()))?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(DEVICE);
    let file = Arc::new(file.map_err(TapError::Device)?);
    attach(&file, name)?;
    let buffer = vec![0; READ_BYTES].into_boxed_slice();
    let receiver = TapReceiver {
        file: file.clone(),
        name: name.clone(),
        last: last_packet,
        buffer,
        too_long: RateLimit::default(),
    };
    Ok((TapSender { file }, receiver))
}

fn attach(file: &File, name: &TapName) -> Result<(), TapError> {
    let mut request = InterfaceRequest { name: [0; NAME_BYTES_MAX + 1], flags: FLAGS, padding: [0; 22] };
    request.name[..name.0.len()].copy_from_slice(name.0.as_bytes());
    // SAFETY: the kernel reads the 40 bytes of a `struct ifreq`, which is how long and how laid out
    // `request` is; it lives until the call returns, and the descriptor is open.
    match unsafe { request::set_interface(file.as_raw_fd(), &raw const request) } {
        Ok(_) => Ok(()),
        Err(Errno::EBUSY) => Err(TapError::Busy(name.clone())),
        Err(Errno::EPERM | Errno::EACCES) => Err(TapError::Permission(name.clone())),
        Err(error) => Err(TapError::Kind(name.clone(), error)),
    }
}

/// Sends the guest's packets to the interface.
#[derive(Debug)]
pub struct TapSender {
    file: Arc<File>,
}

impl TapSender {
    /// Sends packets, in order. Returns how many were lost because the interface is down or its
    /// queue is full.
    ///
    /// # Errors
    /// If the interface is gone; [`TapReceiver::receive`] fails then too.
    pub fn send<'a>(&self, packets: impl IntoIterator<Item = &'a [u8]>) -> io::Result<u64> {
        let mut lost = 0;
        for packet in packets {
            match (&*self.file).write(packet) {
                Ok(_) => {}
                Err(error) if error.raw_os_error().map(Errno::from_raw).is_some_and(is_unplugged) => lost += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(lost)
    }
}

/// `true` if the error only means that this packet was lost.
fn is_unplugged(error: Errno) -> bool {
    // EIO: the interface is down.
    matches!(error, Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR | Errno::EIO | Errno::EINVAL)
}

/// Receives the packets for the guest from the interface.
#[derive(Debug)]
pub struct TapReceiver {
    file: Arc<File>,
    name: TapName,
    /// The number of the last packet.
    last: u64,
    buffer: Box<[u8]>,
    too_long: RateLimit,
}

impl TapReceiver {
    /// Waits for the next packet that isn't too long for the guest's network device.
    ///
    /// # Errors
    /// [`TapError::Lost`] if the interface is gone.
    pub fn receive(&mut self) -> Result<FromLan, TapError> {
        loop {
            match (&*self.file).read(&mut self.buffer) {
                Ok(length) if length <= PACKET_BYTES_MAX => {
                    self.last = self.last.saturating_add(1);
                    return Ok(FromLan::Packet { number: self.last, packet: self.buffer[..length].to_vec() });
                }
                Ok(length) => {
                    if let Some(left_out) = self.too_long.admit(clock::now_ns()) {
                        tracing::warn!(
                            length,
                            interface = %self.name,
                            "a frame longer than {PACKET_BYTES_MAX} bytes was dropped; is the interface's MTU 1500?{left_out}"
                        );
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TapError::Lost(self.name.clone(), error)),
            }
        }
    }

    /// Waits until there is something to read, or an error.
    fn wait(&self) {
        // Fails only by a signal; then the caller reads again.
        let _ = poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["t", "tap0", "vm-1.tap_0", "123456789012345"] {
            assert_eq!(good.parse::<TapName>().map(|name| name.to_string()), Ok(good.into()));
        }
        for bad in ["", ".", "..", "a b", "a/b", "a:1", "ü", "1234567890123456", "a\0"] {
            assert!(bad.parse::<TapName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<InterfaceRequest>(), size_of::<nix::libc::ifreq>());
    }

    #[test]
    fn an_interface_that_is_missing_is_not_made() {
        let name: TapName = "ft-no-such-tap".parse().unwrap();
        let error = open(&name, 0).unwrap_err();
        assert!(error.to_string().contains("ip tuntap add dev ft-no-such-tap"), "{error}");
        assert!(if_nametoindex("ft-no-such-tap").is_err(), "it must not have been made either");
    }

    #[test]
    fn an_interface_of_another_kind_is_refused() {
        let error = open(&"lo".parse().unwrap(), 0).unwrap_err();
        assert!(matches!(error, TapError::Kind(..) | TapError::Device(_) | TapError::Permission(_)), "{error}");
    }
}
