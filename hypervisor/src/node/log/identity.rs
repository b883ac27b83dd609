//! Whose log a directory is: what a restart from it must know beside the log itself.
//!
//! ```text
//!   DIR/node    the incarnations that are known to have let out nothing that the directory lacks, one a line
//!   DIR/kept    what kind of writer the newest segment is of, what outputs waited for, and under which boot of the host
//! ```

use super::kept_log::Waiting;
use super::{LogDirectory, LogDirectoryError, failed, read_note};
use clap::ValueEnum;
use ft::start::LogIdentity;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const NODES: &str = "node";
const STANDING: &str = "kept";

/// The most incarnations in a directory's list: each is a `--resume` that was killed before its log
/// began.
const NODES_MAX: usize = 1000;

/// Where Linux names the present boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What kind of writer a directory's newest segment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogWriterKind {
    /// It owned the VM: outputs waited for this log.
    Owner,
    /// It joined, and wasn't told that it protects the VM: no output waited for it.
    Joining,
    /// It protected the VM: outputs waited for its receiving the entries, and not for their being
    /// in this log.
    Backup,
}

impl LogWriterKind {
    const ALL: [(Self, &str); 3] = [(Self::Owner, "owner"), (Self::Joining, "joining"), (Self::Backup, "backup")];
}

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
    pub(in crate::node) newest_is_unreadable: bool,
    pub(in crate::node) standing: Option<Standing>,
}

impl LogProvenance {
    /// Whose log this is.
    #[must_use]
    pub fn identity(&self) -> LogIdentity<'_> {
        let is_owners = self.standing.as_ref().is_some_and(|standing| standing.kind == LogWriterKind::Owner);
        LogIdentity { generation: self.generation, nodes: &self.nodes, is_owners }
    }

    /// Why this log may lack what clients have seen, if the VM's last owner is `owner`.
    #[must_use]
    pub fn possible_losses(&self, owner: NodeId) -> Vec<PossibleLoss> {
        let Some(standing) = &self.standing else {
            // Of an earlier release, which named nobody but the segment's writer.
            return if self.nodes.contains(&owner) { Vec::new() } else { vec![PossibleLoss::OfBackup] };
        };
        if self.nodes.is_empty() {
            return vec![PossibleLoss::HadFailed];
        }
        let is_writers = self.nodes.first() == Some(&owner);
        let of_kind = match standing.kind {
            LogWriterKind::Owner => None,
            LogWriterKind::Joining | LogWriterKind::Backup if is_writers => None,
            LogWriterKind::Joining => Some(PossibleLoss::OfJoiningBackup),
            LogWriterKind::Backup => Some(PossibleLoss::OfBackup),
        };
        let of_waiting = match standing.waiting {
            Waiting::No => Some(PossibleLoss::NothingWaited),
            Waiting::Written if standing.is_of_earlier_boot() => Some(PossibleLoss::HostStartedAgain),
            Waiting::Written | Waiting::Durable => None,
        };
        let of_reading = self.newest_is_unreadable.then_some(PossibleLoss::NewestUnreadable);
        [of_kind, of_waiting, of_reading].into_iter().flatten().collect()
    }
}

/// What a directory says of its newest segment's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) struct Standing {
    pub(in crate::node) kind: LogWriterKind,
    pub(in crate::node) waiting: Waiting,
    /// The boot of the host under which it was written; empty where the host doesn't tell.
    pub(in crate::node) boot: String,
}

impl Standing {
    pub(in crate::node) fn new(kind: LogWriterKind, waiting: Waiting) -> Self {
        Self { kind, waiting, boot: boot_id() }
    }

    fn text(&self) -> String {
        let (_, kind) = LogWriterKind::ALL.iter().find(|(kind, _)| *kind == self.kind).expect("all are there");
        let waiting = self.waiting.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        format!("{kind} {waiting} {}", self.boot)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let kind = words.next()?;
        let (kind, _) = LogWriterKind::ALL.iter().find(|(_, name)| *name == kind)?;
        let waiting = Waiting::from_str(words.next()?, false).ok()?;
        Some(Self { kind: *kind, waiting, boot: words.next().unwrap_or_default().into() })
    }

    /// Whether the host has been started again since.
    pub(in crate::node) fn is_of_earlier_boot(&self) -> bool {
        self.boot != boot_id()
    }
}

fn boot_id() -> String {
    read_note(Path::new(BOOT_ID)).ok().flatten().unwrap_or_default()
}

impl LogDirectory {
    /// Adds `node` to the list, durably: before it claims the VM, so that the claim is known here
    /// if it dies before it has a log.
    ///
    /// # Errors
    /// If the list can't be written, or is too long.
    pub fn add_node(&self, node: NodeId) -> Result<(), LogDirectoryError> {
        let mut nodes = read_nodes(&self.path)?;
        if nodes.len() >= NODES_MAX {
            let error = std::io::Error::other("--resume was killed too often before its log had begun");
            return Err(failed("adding this node to", &self.path.join(NODES))(error));
        }
        nodes.push(node);
        write_nodes(&self.path, &nodes)
    }
}

/// The incarnations in the list, oldest first.
pub(in crate::node) fn read_nodes(directory: &Path) -> Result<Vec<NodeId>, LogDirectoryError> {
    let text = read_note(&directory.join(NODES))?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Makes `node` the only one in the list.
pub(in crate::node) fn replace_nodes(directory: &Path, node: NodeId) -> Result<(), LogDirectoryError> {
    write_nodes(directory, &[node])
}

/// Empties the list, as far as the disk lets it: outputs leave that the directory lacks.
pub(in crate::node) fn forget_nodes(directory: &Path) {
    let _ = fs::remove_file(directory.join(NODES));
}

fn write_nodes(directory: &Path, nodes: &[NodeId]) -> Result<(), LogDirectoryError> {
    let text: String = nodes.iter().map(|node| format!("{node}\n")).collect();
    write_durably(directory, NODES, &text)
}

/// What is said of the newest segment's writer; `None` in a directory of an earlier release.
pub(in crate::node) fn read_standing(directory: &Path) -> Result<Option<Standing>, LogDirectoryError> {
    Ok(read_note(&directory.join(STANDING))?.and_then(|text| Standing::parse(&text)))
}

/// Says what the newest segment's writer is. It isn't made durable, because outputs wait for the
/// thread that writes it: a loss of power may leave an earlier kind, which promises less.
pub(in crate::node) fn write_standing(directory: &Path, standing: &Standing) -> Result<(), LogDirectoryError> {
    let path = directory.join(STANDING);
    let new = directory.join(format!("{STANDING}.new"));
    fs::write(&new, standing.text()).and_then(|()| fs::rename(&new, &path)).map_err(failed("writing", &path))
}

/// Replaces a small file: after a crash it has its old text or its new one.
fn write_durably(directory: &Path, name: &str, text: &str) -> Result<(), LogDirectoryError> {
    let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("writing", &path))
}
