//! A log directory's notes on its writer: what a restart must know beside the log itself.
//!
//! ```text
//!   DIR/node    the nodes known to have sent no outputs that the directory lacks, one a line
//!   DIR/kept    the newest segment's writer: its kind, what outputs waited for, the host's boot
//! ```

use super::side_log::LogWait;
use super::storage::{Storage, remove_if_there, replace, replace_durably, write_synced};
use super::{LogDirectory, LogDirectoryError, STOPPED, failed, read_note};
use clap::ValueEnum;
use ft::mutation::{Mutation, mutated};
use ft::start::LogIdentity;
pub use ft::start::LogWriterKind;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use std::fmt;

const NODES: &str = "node";
const WRITER: &str = "kept";

/// The most nodes in a directory's list. Each is a `--resume` that was killed before its log began.
const NODES_MAX: usize = 1000;

/// The names of the writers' kinds in a directory.
const KINDS: [(LogWriterKind, &str); 3] =
    [(LogWriterKind::Owner, "owner"), (LogWriterKind::Joining, "joining"), (LogWriterKind::Backup, "backup")];

/// Why a log may lack outputs that clients have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PossibleLoss {
    /// It is a backup's.
    OfBackup,
    /// It is a backup's that was never told that it protects the VM.
    OfJoiningBackup,
    /// Outputs didn't wait for the log.
    NothingWaited,
    /// Outputs waited for the page cache only, and the host has been restarted.
    HostStartedAgain,
    /// The newest segment can't be read.
    NewestUnreadable,
    /// Logging had failed, and the VM went on without it.
    HadFailed,
    /// The note on its writer is damaged.
    WriterUnknown,
}

impl fmt::Display for PossibleLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfBackup => "it is a backup's, which acknowledges entries before its own disk has them",
            Self::OfJoiningBackup => {
                "it is of a backup that joined and, as far as this directory knows, was never told that it protects the VM: \
                 all that came after its last entry may be missing"
            }
            Self::NothingWaited => "it was kept with --log-wait no, so that outputs left before it had their entries",
            Self::HostStartedAgain => {
                "its host has been started again since, and with --log-wait written a loss of power takes the last entries"
            }
            Self::HadFailed => "it had failed, and its VM went on without it",
            Self::WriterUnknown => {
                "the file `kept` in it, which says what outputs waited for, is damaged, as by a loss of power"
            }
            Self::NewestUnreadable => "its newest segment can't be read, and what it held is lost",
        })
    }
}

/// The provenance of a directory's newest whole segment: whose log it is, and what it may lack.
#[derive(Clone, Debug)]
pub struct LogProvenance {
    /// The generation under which the VM last ran in this log. If the arbiter knows a later one,
    /// another node has run the VM since, unless it is one of [`LogProvenance::nodes`].
    pub generation: Generation,
    /// The nodes that have sent no outputs that this log lacks, oldest first: the segment's writer,
    /// and those that resumed from it and died before they had a segment of their own.
    pub nodes: Vec<NodeId>,
    pub(super) newest_is_unreadable: bool,
    pub(super) writer: StoredWriterNote,
    /// The host's current boot.
    pub(super) boot: String,
}

impl LogProvenance {
    /// Whose log this is.
    #[must_use]
    pub fn identity(&self) -> LogIdentity<'_> {
        let is_owners = matches!(&self.writer, StoredWriterNote::Note(writer) if writer.kind == LogWriterKind::Owner);
        LogIdentity { generation: self.generation, nodes: &self.nodes, is_owners }
    }

    /// Why this log may lack outputs that clients have seen. `owner`, the VM's last owner, matters
    /// only for a directory of an earlier release, which has no note on its writer.
    #[must_use]
    pub fn possible_losses(&self, owner: NodeId) -> Vec<PossibleLoss> {
        let writer = match &self.writer {
            _ if mutated(Mutation::LossesNotAsked) => return Vec::new(),
            StoredWriterNote::Note(writer) => writer,
            StoredWriterNote::Damaged => return vec![PossibleLoss::WriterUnknown],
            // An earlier release listed only the segment's writer.
            StoredWriterNote::Nothing if self.nodes.contains(&owner) => return Vec::new(),
            StoredWriterNote::Nothing => return vec![PossibleLoss::OfBackup],
        };
        if self.nodes.is_empty() {
            return vec![PossibleLoss::HadFailed];
        }
        let of_kind = writer.kind.may_lack_outputs().then_some(match writer.kind {
            LogWriterKind::Joining => PossibleLoss::OfJoiningBackup,
            LogWriterKind::Owner | LogWriterKind::Backup => PossibleLoss::OfBackup,
        });
        let of_waiting = match writer.wait {
            LogWait::No => Some(PossibleLoss::NothingWaited),
            LogWait::Written if writer.boot != self.boot => Some(PossibleLoss::HostStartedAgain),
            LogWait::Written | LogWait::Durable => None,
        };
        let of_reading = self.newest_is_unreadable.then_some(PossibleLoss::NewestUnreadable);
        [of_kind, of_waiting, of_reading].into_iter().flatten().collect()
    }
}

/// A directory's note on its newest segment's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoredWriterNote {
    /// No note: the directory is of an earlier release.
    Nothing,
    /// The note can't be read, as a loss of power may leave it.
    Damaged,
    /// The note.
    Note(WriterNote),
}

/// What a directory records of its newest segment's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WriterNote {
    pub(super) kind: LogWriterKind,
    /// What outputs waited for.
    pub(super) wait: LogWait,
    /// The host's boot when it was written; empty if the host doesn't name its boots.
    pub(super) boot: String,
}

impl WriterNote {
    fn text(&self) -> String {
        let (_, kind) = KINDS.iter().find(|(kind, _)| *kind == self.kind).expect("all are there");
        let wait = self.wait.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        format!("{kind} {wait} {}", self.boot)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let kind = words.next()?;
        let (kind, _) = KINDS.iter().find(|(_, name)| *name == kind)?;
        let wait = LogWait::from_str(words.next()?, false).ok()?;
        Some(Self { kind: *kind, wait, boot: words.next().unwrap_or_default().into() })
    }
}

impl<S: Storage> LogDirectory<S> {
    /// Adds `node` to the list, durably. Call it before that node claims the VM, so that the list
    /// has the claim's node if it dies before its log begins.
    ///
    /// # Errors
    /// If the list can't be written, or is too long.
    pub fn add_node(&self, node: NodeId) -> Result<(), LogDirectoryError> {
        let mut nodes = read_nodes(&self.storage)?;
        if nodes.len() >= NODES_MAX {
            let error = std::io::Error::other("--resume was killed too often before its log had begun");
            return Err(failed("adding this node to", &self.storage.path_of(NODES))(error));
        }
        nodes.push(node);
        write_nodes(&self.storage, &nodes)
    }
}

/// The nodes in the list, oldest first.
pub(super) fn read_nodes(storage: &impl Storage) -> Result<Vec<NodeId>, LogDirectoryError> {
    let text = read_note(storage, NODES)?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Makes `node` the only one in the list.
pub(super) fn replace_nodes(storage: &impl Storage, node: NodeId) -> Result<(), LogDirectoryError> {
    write_nodes(storage, &[node])
}

/// Marks the directory's log as failed and empties its list of nodes, if the disk allows it: from
/// now on outputs leave that the directory lacks.
pub(super) fn mark_failed(storage: &impl Storage, error: &LogDirectoryError) {
    let _ = write_synced(storage, STOPPED, &error.to_string());
    // A full disk still removes files.
    let _ = remove_if_there(storage, NODES);
    let _ = storage.sync_directory();
}

fn write_nodes(storage: &impl Storage, nodes: &[NodeId]) -> Result<(), LogDirectoryError> {
    let text: String = nodes.iter().map(|node| format!("{node}\n")).collect();
    replace_durably(storage, NODES, &text).map_err(failed("writing", &storage.path_of(NODES)))
}

/// Reads the note on the newest segment's writer.
pub(super) fn read_writer(storage: &impl Storage) -> Result<StoredWriterNote, LogDirectoryError> {
    let note = read_note(storage, WRITER)?;
    Ok(note.map_or(StoredWriterNote::Nothing, |text| {
        WriterNote::parse(&text).map_or(StoredWriterNote::Damaged, StoredWriterNote::Note)
    }))
}

/// Writes the note on the newest segment's writer. The name isn't made durable, because outputs
/// wait for the step that writes it: a loss of power may leave the previous note, which promises
/// less. The content is made durable if outputs wait for the disk; otherwise a loss of power may
/// leave a damaged note, which promises nothing.
pub(super) fn write_writer(storage: &impl Storage, writer: &WriterNote) -> Result<(), LogDirectoryError> {
    let is_synced = writer.wait == LogWait::Durable;
    replace(storage, WRITER, &writer.text(), is_synced).map_err(failed("writing", &storage.path_of(WRITER)))
}
