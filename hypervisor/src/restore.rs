//! A machine that stands where a log begins.

use logchannel::file::{LogFileError, LogHead, LogReader, LogStart};
use logchannel::session::FIRST_REPLAYABLE_VERSION;
use logchannel::snapshot::TailOutput;
use std::io::Read;
use vm::{LoadError, Machine, Restoration, StateDigest};

/// Why a log can't be replayed from its start.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogFileError),
    /// The log is of an earlier machine.
    #[error(
        "the log has format version {found}: it was recorded on an earlier machine, whose instructions and state were others; \
         replay it with the release that recorded it (ft-replay --entries lists it)"
    )]
    EarlierMachine {
        /// Its version.
        found: u32,
    },
    /// The log's image or configuration is none of this machine.
    #[error("its guest {image} can't be started: {source}")]
    Load {
        /// The image's name.
        image: String,
        /// Why.
        source: LoadError,
    },
    /// The snapshot is none of this machine.
    #[error("its snapshot can't be restored: {0}")]
    Snapshot(#[from] vm::RestoreError),
    /// The snapshot's parts don't make up the machine that it was made of.
    #[error("its snapshot has state {found}, and was made of {expected}: its writer was faulty")]
    Digest {
        /// As the snapshot says.
        expected: StateDigest,
        /// As the machine has.
        found: StateDigest,
    },
}

/// A machine, and the log that goes on from where it stands.
#[derive(Debug)]
pub struct Restored<R: Read> {
    /// The machine.
    pub machine: Machine,
    /// Outputs from before that may not have left, oldest first.
    pub tail: Vec<TailOutput>,
    /// The log, at its first entry.
    pub log: LogReader<R>,
}

/// Builds the machine from which a log goes on.
///
/// # Errors
/// [`RestoreError`] if the log has no whole start, or one of which this build makes no machine.
pub fn restore<R: Read>(mut head: LogHead<R>) -> Result<Restored<R>, RestoreError> {
    if head.version() < FIRST_REPLAYABLE_VERSION {
        return Err(RestoreError::EarlierMachine { found: head.version() });
    }
    let config = head.header().config.clone();
    let image = head.header().image_name.clone();
    let unloadable = |source| RestoreError::Load { image: image.clone(), source };
    // Memory that is never written is never taken from the host: this costs nothing if the log begins with an image.
    let mut restoration = Restoration::new(&config).map_err(unloadable)?;
    while let Some(pages) = head.next_pages()? {
        restoration.put_pages(pages.first, &pages.bytes)?;
    }
    let (start, log) = head.into_log()?;
    let (snapshot, tail) = match start {
        LogStart::Image(elf) => {
            let machine = Machine::new(&config, &elf).map_err(unloadable)?;
            return Ok(Restored { machine, tail: Vec::new(), log });
        }
        LogStart::Snapshot { snapshot, tail } => (snapshot, tail),
    };
    let mut machine = restoration.finish(&snapshot.state)?;
    let found = machine.digest();
    if found != snapshot.digest {
        return Err(RestoreError::Digest { expected: snapshot.digest, found });
    }
    Ok(Restored { machine, tail, log })
}
