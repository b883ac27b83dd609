//! Whose log a directory is: what a restart from it must know beside the log itself.
//!
//! ```text
//!   DIR/node    the incarnations that are known to have let out nothing that the directory lacks, one a line
//!   DIR/kept    what kind of writer the newest segment is of, what outputs waited for, and under which boot of the host
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

/// The most incarnations in a directory's list: each is a `--resume` that was killed before its log
/// began.
const NODES_MAX: usize = 1000;

/// How a directory names the kinds of writers.
const KINDS: [(LogWriterKind, &str); 3] =
    [(LogWriterKind::Owner, "owner"), (LogWriterKind::Joining, "joining"), (LogWriterKind::Backup, "backup")];

/// Why a log may lack what clients have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PossibleLoss {
    /// It is a backup's.
    OfBackup,
    /// It is a backup's that was never told that it protects the VM.
    OfJoiningBackup,
    /// Outputs didn't wait for it.
    NothingWaited,
    /// The host has been started again, and outputs waited only for its memory.
    HostStartedAgain,
    /// The newest segment can't be read.
    NewestUnreadable,
    /// It had failed, and its VM went on without it.
    HadFailed,
    /// The note of what its writer was is damaged.
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

/// Whose log a directory's newest whole segment is, and what it may lack.
#[derive(Clone, Debug)]
pub struct LogProvenance {
    /// As which generation the VM last ran in this log. If the arbiter knows a later one, another
    /// node has run it since, unless that node is one of [`LogProvenance::nodes`].
    pub generation: Generation,
    /// Incarnations that have let out nothing that this log lacks: the segment's writer, and those
    /// that resumed from it and died before they had a segment of their own. Oldest first.
    pub nodes: Vec<NodeId>,
    pub(super) newest_is_unreadable: bool,
    pub(super) writer: WriterSaid,
    /// The present boot of the host.
    pub(super) boot: String,
}

impl LogProvenance {
    /// Whose log this is.
    #[must_use]
    pub fn identity(&self) -> LogIdentity<'_> {
        let is_owners = matches!(&self.writer, WriterSaid::Note(writer) if writer.kind == LogWriterKind::Owner);
        LogIdentity { generation: self.generation, nodes: &self.nodes, is_owners }
    }

    /// Why this log may lack what clients have seen. `owner` is the VM's last owner: it matters for
    /// a directory of an earlier release, which doesn't say what its writer was.
    #[must_use]
    pub fn possible_losses(&self, owner: NodeId) -> Vec<PossibleLoss> {
        let writer = match &self.writer {
            _ if mutated(Mutation::LossesNotAsked) => return Vec::new(),
            WriterSaid::Note(writer) => writer,
            WriterSaid::Damaged => return vec![PossibleLoss::WriterUnknown],
            // An earlier release named nobody but the segment's writer.
            WriterSaid::Nothing if self.nodes.contains(&owner) => return Vec::new(),
            WriterSaid::Nothing => return vec![PossibleLoss::OfBackup],
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

/// What a directory has of the note of its newest segment's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WriterSaid {
    /// No note: the directory is of an earlier release.
    Nothing,
    /// One that can't be read, as a loss of power may leave it.
    Damaged,
    /// This note.
    Note(WriterNote),
}

/// What a directory says of its newest segment's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WriterNote {
    pub(super) kind: LogWriterKind,
    /// What outputs waited for.
    pub(super) wait: LogWait,
    /// The boot of the host under which it was written; empty where the host doesn't tell.
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
    /// Adds `node` to the list, durably: before it claims the VM, so that the claim is known here
    /// if it dies before it has a log.
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

/// The incarnations in the list, oldest first.
pub(super) fn read_nodes(storage: &impl Storage) -> Result<Vec<NodeId>, LogDirectoryError> {
    let text = read_note(storage, NODES)?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Makes `node` the only one in the list.
pub(super) fn replace_nodes(storage: &impl Storage, node: NodeId) -> Result<(), LogDirectoryError> {
    write_nodes(storage, &[node])
}

/// Says in the directory that its log has failed, and empties the list of nodes, as far as the disk
/// lets it: outputs leave from now on that the directory lacks.
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

/// What is said of the newest segment's writer.
pub(super) fn read_writer(storage: &impl Storage) -> Result<WriterSaid, LogDirectoryError> {
    let note = read_note(storage, WRITER)?;
    Ok(note.map_or(WriterSaid::Nothing, |text| WriterNote::parse(&text).map_or(WriterSaid::Damaged, WriterSaid::Note)))
}

/// Says what the newest segment's writer is. The name isn't made durable, because outputs wait for
/// the step that writes it: a loss of power may leave an earlier kind, which promises less. The
/// content is made durable if outputs wait for the disk; otherwise a loss of power may leave a
/// damaged note, which promises nothing.
pub(super) fn write_writer(storage: &impl Storage, writer: &WriterNote) -> Result<(), LogDirectoryError> {
    let is_synced = writer.wait == LogWait::Durable;
    replace(storage, WRITER, &writer.text(), is_synced).map_err(failed("writing", &storage.path_of(WRITER)))
}
