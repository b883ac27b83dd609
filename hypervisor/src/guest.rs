//! Guests: the ones that are built in, and any other ELF file.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use logchannel::session::IMAGE_BYTES_MAX;

/// A guest's image.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its built-in name, or its path.
    pub name: String,
    /// The ELF file.
    pub image: Vec<u8>,
}

const BUILT_IN: [(&str, &[u8]); 6] = [
    ("bench", include_bytes!(concat!(env!("OUT_DIR"), "/bench.elf"))),
    ("counter", include_bytes!(concat!(env!("OUT_DIR"), "/counter.elf"))),
    ("echo", include_bytes!(concat!(env!("OUT_DIR"), "/echo.elf"))),
    ("hello", include_bytes!(concat!(env!("OUT_DIR"), "/hello.elf"))),
    ("suite", include_bytes!(concat!(env!("OUT_DIR"), "/suite.elf"))),
    ("tally", include_bytes!(concat!(env!("OUT_DIR"), "/tally.elf"))),
];

/// Why there is no such guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Neither built in nor a file.
    #[error("guest {name}: not a built-in guest ({}), and as a file: {source}", built_in_names())]
    Unreadable {
        /// As asked for.
        name: String,
        /// Why the file can't be read.
        source: io::Error,
    },
    /// More than a log carries.
    #[error("guest {name} is larger than {IMAGE_BYTES_MAX} bytes")]
    TooLarge {
        /// As asked for.
        name: String,
    },
}

impl Guest {
    /// The built-in guest of that name, or else the file of that name.
    ///
    /// # Errors
    /// [`GuestError`] if there is neither, or it is too large.
    pub fn load(name: &str) -> Result<Self, GuestError> {
        if let Some((_, image)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Ok(Self { name: name.into(), image: image.to_vec() });
        }
        let unreadable = |source| GuestError::Unreadable { name: name.into(), source };
        let mut image = Vec::new();
        let file = File::open(PathBuf::from(name)).map_err(unreadable)?;
        file.take(IMAGE_BYTES_MAX as u64 + 1).read_to_end(&mut image).map_err(unreadable)?;
        if image.len() > IMAGE_BYTES_MAX {
            return Err(GuestError::TooLarge { name: name.into() });
        }
        Ok(Self { name: name.into(), image })
    }
}

/// The names of the built-in guests, for a person.
#[must_use]
pub fn built_in_names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}
