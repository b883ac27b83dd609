//! What a restart finds in a directory.

use super::vm::{NODE, Vm, limits, vm_id};
use hypervisor::node::log::restore::RestoreError;
use hypervisor::node::log::{LogDirectory, LogDirectoryError, PossibleLoss, Resumed, Survey, segments};
use logchannel::entry::{Generation, LogSeq};
use logchannel::session::{NodeId, SessionHeader};
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use vm::StopReason;

pub(super) fn open(path: &Path) -> LogDirectory {
    // A process that another test is just starting may have inherited the lock, until its exec
    // closes it.
    for _ in 0..100 {
        match LogDirectory::open(path, &vm_id()) {
            Err(LogDirectoryError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays in use", path.display())
}

/// A VM resumed from a directory, and what its survey found.
pub(super) struct Found {
    pub(super) session: SessionHeader,
    pub(super) generation: Generation,
    pub(super) nodes: Vec<NodeId>,
    pub(super) stopped: Option<StopReason>,
    pub(super) skipped: Vec<(PathBuf, RestoreError)>,
    pub(super) losses: Vec<PossibleLoss>,
    pub(super) resumed: Resumed,
}

impl Deref for Found {
    type Target = Resumed;

    fn deref(&self) -> &Resumed {
        &self.resumed
    }
}

impl DerefMut for Found {
    fn deref_mut(&mut self) -> &mut Resumed {
        &mut self.resumed
    }
}

pub(super) fn resume(path: &Path) -> Found {
    found(open(path).survey().unwrap_or_else(|error| panic!("{error}")))
}

pub(super) fn found(mut survey: Survey) -> Found {
    let (session, generation, stopped) = (survey.session.clone(), survey.provenance.generation, survey.stopped);
    let losses = survey.provenance.possible_losses(NODE);
    let (nodes, skipped) = (survey.provenance.nodes.clone(), std::mem::take(&mut survey.skipped));
    let (entries, end_count) = (survey.entries, survey.end_count);
    let mut last = 0;
    let resumed = survey
        .replay(|progress| {
            assert!(progress.entries > last && progress.entries <= progress.entries_all);
            assert!(progress.entries_all == entries && progress.count <= end_count);
            last = progress.entries;
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(resumed.entries_replayed, entries);
    Found { session, generation, nodes, stopped, skipped, losses, resumed }
}

pub(super) fn index(seq: LogSeq) -> usize {
    usize::try_from(seq.0).unwrap()
}

/// A VM that has begun at least its third segment, and whose log has ended in order.
pub(super) fn vm_of_many_segments(path: &Path) -> Vm {
    let mut vm = Vm::logged(open(path), 1, limits(0));
    let mut seen = Vec::new();
    vm.run_until("third segment", |_| {
        let newest = segments(path).unwrap().pop();
        if seen.last() != newest.as_ref() {
            seen.extend(newest);
        }
        seen.len() >= 3
    });
    for _ in 0..8 {
        vm.run_slice();
        // So that each slice gets a frame of its own.
        std::thread::sleep(Duration::from_millis(5));
    }
    vm.finish().unwrap();
    vm
}

/// A copy of a directory.
pub(super) fn copy_of(path: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(path).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
    }
    copy
}
