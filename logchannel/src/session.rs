//! The session header: the first part of a log file, and of the messages on a logging channel.

use crate::entry::Generation;
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use sha2::{Digest, Sha256};
use vm::{BehaviourVersion, MachineConfig};

/// The version of entries, frames and headers that this build reads and writes.
pub const FORMAT_VERSION: u32 = 4;

/// The longest VM name, in bytes.
pub const VM_ID_BYTES_MAX: usize = 64;

/// The largest image that a log or a channel carries, in bytes: the largest disk, and as much again
/// for a kernel and an initrd.
///
/// Memory for an image is only taken as its bytes arrive.
pub const IMAGE_BYTES_MAX: usize = 2 << 30;

const _: () =
    assert!(IMAGE_BYTES_MAX as u64 >= 2 * vm::DISK_BYTES_MAX, "an image has room for the largest disk and a kernel");

/// The longest image name, in bytes.
pub const IMAGE_NAME_BYTES_MAX: usize = 256;

/// The longest boot arguments, in bytes.
pub const BOOTARGS_BYTES_MAX: usize = 2048;

/// An image is stored in pieces of this many bytes; the last may be shorter, none is empty.
pub const IMAGE_CHUNK_BYTES: usize = 256 << 10;

/// A VM's name: 1 to [`VM_ID_BYTES_MAX`] characters of `a-z A-Z 0-9 - _ .`, not starting with a
/// dot.
///
/// Names are also file names (of the arbiter's claims), which is why no other characters are
/// allowed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(String);

/// SHA-256 of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageDigest(pub [u8; 32]);

/// One incarnation of a process: random at its start, so that a restarted process isn't taken for
/// its predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u128);

/// Describes the VM that a log or a channel is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionHeader {
    /// The VM.
    pub vm: VmId,
    /// The owner's generation when the log begins.
    pub generation: Generation,
    /// The owner's generation when the guest was reset: outputs and packets are counted from there.
    /// Two runs of a VM's guest have different ones.
    pub booted: Generation,
    /// The machine.
    pub config: MachineConfig,
    /// The version of the machine's behaviour: a log replays only on a machine with the same one.
    pub behaviour: BehaviourVersion,
    /// What kind of image, in a person's words (`echo`, or a path); at most
    /// [`IMAGE_NAME_BYTES_MAX`] bytes. Not compared.
    pub image_name: String,
    /// Digest of the image.
    pub image_digest: ImageDigest,
    /// Length of the image, in bytes; at most [`IMAGE_BYTES_MAX`].
    pub image_bytes: u64,
}

/// Why there can be no session header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The image is too large.
    #[error("the image has {bytes} bytes; a log carries at most {IMAGE_BYTES_MAX}")]
    ImageTooLarge {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// The boot arguments are too long.
    #[error("the boot arguments have {bytes} bytes; at most {BOOTARGS_BYTES_MAX} are allowed")]
    BootargsTooLong {
        /// Their length, in bytes.
        bytes: usize,
    },
}

/// A text is not a VM name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a VM name: 1 to {VM_ID_BYTES_MAX} letters, digits, '-', '_' or '.' of ASCII, not starting with a dot"
)]
pub struct VmIdError {
    /// The text, cut to the length of a name.
    name: String,
}

/// A text is not a node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node id: 32 hexadecimal digits in lower case")]
pub struct NodeIdError;

/// The pieces of an image don't make up the image that the header names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A piece is empty or longer than [`IMAGE_CHUNK_BYTES`].
    #[error("an image piece of {bytes} bytes; 1 to {IMAGE_CHUNK_BYTES} are allowed")]
    BadChunk {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// The image goes on after the length in the header.
    #[error("the image is longer than the {expected} bytes that the header says")]
    TooLong {
        /// The value in the header.
        expected: u64,
    },
    /// The image ends before the length in the header.
    #[error("the image ends after {found} of the {expected} bytes that the header says")]
    TooShort {
        /// The value in the header.
        expected: u64,
        /// How many bytes came.
        found: usize,
    },
    /// The host has no memory for more of it.
    #[error("the host doesn't give the memory for its {bytes} bytes")]
    NoMemory {
        /// The value in the header.
        bytes: u64,
    },
    /// The image has the right length, and other contents.
    #[error("the image has digest {found}, the header says {expected}")]
    WrongDigest {
        /// The value in the header.
        expected: ImageDigest,
        /// The digest of the bytes that came.
        found: ImageDigest,
    },
}

/// Puts the pieces of an image together. It never holds more bytes than have arrived and the header
/// allows.
#[derive(Debug)]
pub struct ImageAssembler {
    bytes: Vec<u8>,
    expected_bytes: u64,
    expected_digest: ImageDigest,
}

impl VmId {
    /// A VM's name.
    ///
    /// # Errors
    /// [`VmIdError`] if `name` is not one.
    pub fn new(name: &str) -> Result<Self, VmIdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > VM_ID_BYTES_MAX || name.starts_with('.') || !name.bytes().all(allowed) {
            return Err(VmIdError { name: cut(name, VM_ID_BYTES_MAX).to_owned() });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmId {
    type Err = VmIdError;

    fn from_str(name: &str) -> Result<Self, VmIdError> {
        Self::new(name)
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ImageDigest {
    /// The digest of `image`.
    #[must_use]
    pub fn of(image: &[u8]) -> Self {
        Self(Sha256::digest(image).into())
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(digit) {
            return Err(NodeIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NodeIdError)
    }
}

impl SessionHeader {
    /// The header of a session that runs `image` on the machine of this build, reset in
    /// `generation`. A long `image_name` is cut, because it is for people only.
    ///
    /// # Errors
    /// [`SessionError`] if the image or the boot arguments are beyond what a log carries.
    pub fn new(
        vm: VmId,
        generation: Generation,
        config: MachineConfig,
        image_name: &str,
        image: &[u8],
    ) -> Result<Self, SessionError> {
        if image.len() > IMAGE_BYTES_MAX {
            return Err(SessionError::ImageTooLarge { bytes: image.len() });
        }
        if config.bootargs.len() > BOOTARGS_BYTES_MAX {
            return Err(SessionError::BootargsTooLong { bytes: config.bootargs.len() });
        }
        Ok(Self {
            vm,
            generation,
            booted: generation,
            config,
            behaviour: BehaviourVersion::CURRENT,
            image_name: cut(image_name, IMAGE_NAME_BYTES_MAX).to_owned(),
            image_digest: ImageDigest::of(image),
            image_bytes: image.len() as u64,
        })
    }
}

/// The pieces in which `image` is stored.
pub fn image_chunks(image: &[u8]) -> impl Iterator<Item = &[u8]> {
    image.chunks(IMAGE_CHUNK_BYTES)
}

impl ImageAssembler {
    /// Begins the image that `header` names.
    #[must_use]
    pub const fn new(header: &SessionHeader) -> Self {
        Self { bytes: Vec::new(), expected_bytes: header.image_bytes, expected_digest: header.image_digest }
    }

    /// `true` if all bytes have arrived; [`ImageAssembler::finish`] then checks that they are the
    /// right ones.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.bytes.len() as u64 >= self.expected_bytes
    }

    /// Adds the next piece.
    ///
    /// # Errors
    /// [`ImageError::BadChunk`] or [`ImageError::TooLong`]: the peer or file is faulty.
    /// [`ImageError::NoMemory`].
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), ImageError> {
        if chunk.is_empty() || chunk.len() > IMAGE_CHUNK_BYTES {
            return Err(ImageError::BadChunk { bytes: chunk.len() });
        }
        if (self.bytes.len() + chunk.len()) as u64 > self.expected_bytes {
            return Err(ImageError::TooLong { expected: self.expected_bytes });
        }
        self.bytes.try_reserve(chunk.len()).map_err(|_| ImageError::NoMemory { bytes: self.expected_bytes })?;
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The image, checked.
    ///
    /// # Errors
    /// [`ImageError::TooShort`] or [`ImageError::WrongDigest`].
    pub fn finish(self) -> Result<Vec<u8>, ImageError> {
        if !self.is_complete() {
            return Err(ImageError::TooShort { expected: self.expected_bytes, found: self.bytes.len() });
        }
        let found = ImageDigest::of(&self.bytes);
        if found != self.expected_digest {
            return Err(ImageError::WrongDigest { expected: self.expected_digest, found });
        }
        Ok(self.bytes)
    }
}

/// The longest beginning of `text` that is at most `bytes_max` long and doesn't cut a character.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
