//! A backup's log.

use super::found::{copy_of, index, open, resume};
use super::replay::ft_replay;
use super::vm::{NODE, TIMEOUT, Vm, config, finish, limits, run, session};
use ft::replay::Replayer;
use hypervisor::node::log::{
    DiskLimits, DiskLog, DiskLogSteps, HostDirectory, JoiningLog, LogDirectory, PossibleLoss, Storage, segments,
};
use logchannel::entry::{Generation, LogSeq};
use logchannel::file::LogReader;
use logchannel::snapshot::{Pages, Snapshot};
use std::fs;
use std::time::Duration;
use tempfile::TempDir;
use vm::{PageCopy, Restoration};

/// A backup's log: `joining` takes what is received, and `machine` consumes it later.
pub(super) struct Following<S: Storage = HostDirectory> {
    pub(super) disk: DiskLog<S>,
    joining: JoiningLog,
    replayer: Replayer,
    received: usize,
}

impl Following {
    /// Joins `vm` at its present state, by the stream that a primary sends. The log's steps run on
    /// threads.
    fn join(vm: &mut Vm, directory: LogDirectory, limits: DiskLimits) -> Self {
        Self::join_with(vm, directory, limits, run)
    }
}

impl<S: Storage> Following<S> {
    /// Joins `vm`; `run` gets the log's steps.
    pub(super) fn join_with(
        vm: &mut Vm,
        directory: LogDirectory<S>,
        limits: DiskLimits,
        run: impl FnOnce(DiskLogSteps<S>),
    ) -> Self {
        let (mut disk, joining, steps) = directory.begin_joining(session(1), NODE, limits);
        run(steps);
        let machine = vm.recorder.machine_mut();
        machine.begin_copy(PageCopy::Backup);
        let mut restoration = Restoration::new(&config()).unwrap();
        let (mut next, mut bytes) = (0, 0);
        while let Some((first, page)) = machine.take_page(PageCopy::Backup, next) {
            let pages = Pages { first, bytes: page.to_vec() };
            joining.pages(&pages);
            restoration.put_pages(first, &pages.bytes).unwrap();
            (next, bytes) = (first + 1, bytes + pages.bytes.len() as u64);
        }
        let seq = LogSeq(vm.sink.entries.len() as u64);
        let snapshot = Snapshot { seq, digest: machine.digest(), state: machine.state() };
        joining.complete(std::iter::empty(), &snapshot);
        let machine = restoration.finish(&snapshot.state).unwrap();
        disk.on_restored(&machine, bytes);
        Self { disk, joining, replayer: Replayer::new(machine, seq), received: index(seq) }
    }

    /// Receives what `vm` has logged, and consumes all of it except the last `behind` entries.
    pub(super) fn follow(&mut self, vm: &Vm, behind: usize) {
        self.joining.entries(vm.sink.entries[self.received..].iter());
        self.received = vm.sink.entries.len();
        let until = self.received.saturating_sub(behind);
        while index(self.replayer.consumed()) < until {
            let entry = &vm.sink.entries[index(self.replayer.consumed())];
            self.replayer.consume(entry).unwrap();
            self.disk.on_consumed(entry);
            // No snapshot can be made while a step's outputs aren't all logged.
            if !self.replayer.machine().has_output() {
                let next = self.replayer.consumed();
                self.disk.serve(self.replayer.machine_mut(), next, Vec::new);
            }
        }
    }

    fn wait_written(&self, end: usize) {
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        while self.disk.in_cache() < Some(LogSeq(end as u64)) {
            std::thread::sleep(Duration::from_millis(1));
            assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - started < TIMEOUT, "{:?}", self.disk);
        }
    }
}

/// A VM that has run for a while without a log.
pub(super) fn running() -> Vm {
    let mut vm = Vm::new();
    let Ok(()) = vm.recorder.log_generation(&mut vm.sink, Generation(1));
    vm.run(10);
    vm
}

#[test]
fn the_stream_with_which_a_backup_joins_is_its_first_segment() {
    let directory = TempDir::new().unwrap();
    let mut vm = running();
    let following = Following::join(&mut vm, open(directory.path()), limits(u64::MAX));
    following.wait_written(following.received);
    // Killed now, before it has replayed anything.
    let copy = copy_of(directory.path());
    let mut resumed = resume(copy.path());
    assert_eq!((index(resumed.next_seq), resumed.entries_replayed), (vm.sink.entries.len(), 0));
    assert_eq!(resumed.machine.digest(), vm.recorder.machine_mut().digest());
    assert_eq!(resumed.nodes, [NODE], "its claim is known before it makes it");
    assert_eq!(resumed.losses, [PossibleLoss::OfJoiningBackup], "it was never told that it protects the VM");
}

#[test]
fn a_backups_log_has_what_was_received_though_its_machine_is_behind() {
    let directory = TempDir::new().unwrap();
    let mut vm = running();
    let mut following = Following::join(&mut vm, open(directory.path()), limits(u64::MAX));
    vm.run(10);
    following.follow(&vm, usize::MAX);
    following.wait_written(vm.sink.entries.len());
    let mut resumed = resume(copy_of(directory.path()).path());
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
}

#[test]
fn a_backups_next_segment_has_the_entries_that_were_received_before_its_snapshot_was_made() {
    let directory = TempDir::new().unwrap();
    let mut vm = running();
    let mut following = Following::join(&mut vm, open(directory.path()), limits(0));
    let mut begun = std::collections::BTreeSet::new();
    let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    while begun.len() < 4 {
        vm.run(1);
        following.follow(&vm, 7);
        std::thread::sleep(Duration::from_millis(1));
        begun.extend(segments(directory.path()).unwrap());
        assert!(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - started < TIMEOUT);
    }
    following.wait_written(vm.sink.entries.len());
    let Following { disk, joining, .. } = following;
    drop(joining);
    finish(disk).unwrap();
    let mut resumed = resume(directory.path());
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert!(resumed.entries_replayed >= 7);
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
    // The segment before has entries beyond the snapshot; its replay ends where the next segment
    // begins.
    let kept = segments(directory.path()).unwrap();
    let [before, newest] =
        [0, 1].map(|segment: usize| LogReader::open(fs::File::open(&kept[segment]).unwrap()).unwrap());
    let expected = vm.sink.entries.len() - index(before.next_seq());
    assert!(before.next_seq() < newest.next_seq());
    for arguments in [&["--json"][..], &["--entries"]] {
        let output = ft_replay(directory.path(), arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        if arguments == ["--entries"] {
            assert_eq!(text.lines().count(), 1 + expected, "a head, and each entry once");
        } else {
            assert!(text.contains(&format!("\"entries\":{expected},")), "{expected}: {text}");
        }
    }
}
