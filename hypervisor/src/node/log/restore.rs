//! Restores the machine at the start of a log.

use logchannel::file::{LogFileError, LogHead, LogReader, LogStart};
use logchannel::snapshot::UnsentOutput;
use std::io::Read;
use vm::{LoadError, Machine, OtherBehaviour, Restoration, StateDigest};

/// Why a log can't be replayed from its start.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogFileError),
    /// The log is of a machine that this build doesn't have.
    #[error(
        "the log (format version {format}) was recorded on another machine: {source}. Replay it with {}, or list it with \
         ft-replay --entries", .source.releases()
    )]
    OtherMachine {
        /// The version of the log's format.
        format: u32,
        /// The log's machine, and which releases have it.
        source: OtherBehaviour,
    },
    /// The log's image or configuration doesn't fit this machine.
    #[error("its guest {image} can't be started: {source}")]
    Load {
        /// The image's name.
        image: String,
        /// The machine's error.
        source: LoadError,
    },
    /// The snapshot doesn't fit this machine.
    #[error("its snapshot can't be restored: {0}")]
    Snapshot(#[from] vm::RestoreError),
    /// The restored state isn't the one of which the snapshot was made.
    #[error("its snapshot has state {found}, and was made of {expected}: its writer was faulty")]
    Digest {
        /// The digest in the snapshot.
        expected: StateDigest,
        /// The restored machine's digest.
        found: StateDigest,
    },
}

/// A machine at a log's start, and the log from there on.
#[derive(Debug)]
pub struct Restored<R: Read> {
    /// The machine.
    pub machine: Machine,
    /// Earlier outputs that may not have left, oldest first.
    pub unsent: Vec<UnsentOutput>,
    /// The log, at its first entry.
    pub log: LogReader<R>,
}

/// Restores the machine at a log's start.
///
/// # Errors
/// [`RestoreError`] if the log's start isn't whole, or this build has no such machine.
pub fn restore<R: Read>(mut head: LogHead<R>) -> Result<Restored<R>, RestoreError> {
    let format = head.version();
    head.header().behaviour.check().map_err(|source| RestoreError::OtherMachine { format, source })?;
    let config = head.header().config.clone();
    let image = head.header().image_name.clone();
    let unloadable = |source| RestoreError::Load { image: image.clone(), source };
    // Costs nothing if the log begins with an image: memory is taken from the host when it is
    // written.
    let mut restoration = Restoration::new(&config).map_err(unloadable)?;
    while let Some(pages) = head.next_pages()? {
        restoration.put_pages(pages.first, &pages.bytes)?;
    }
    let (start, log) = head.into_log()?;
    let (snapshot, unsent) = match start {
        LogStart::Image(elf) => {
            let machine = Machine::new(&config, &elf).map_err(unloadable)?;
            return Ok(Restored { machine, unsent: Vec::new(), log });
        }
        LogStart::Snapshot { snapshot, unsent } => (snapshot, unsent),
    };
    let mut machine = restoration.finish(&snapshot.state)?;
    let found = machine.digest();
    if found != snapshot.digest {
        return Err(RestoreError::Digest { expected: snapshot.digest, found });
    }
    Ok(Restored { machine, unsent, log })
}
