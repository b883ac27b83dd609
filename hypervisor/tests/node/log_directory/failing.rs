//! Disks that fail, hang, or are full.

use super::found::{open, resume};
use super::vm::{NODE, Vm, begin, config, finish, guest, limits, session};
use hypervisor::node::log::{DiskLimits, LogDirectoryError, StuckDisk};
use logchannel::entry::{Generation, LogSeq};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use vm::Machine;

/// Lets the disk fail under a VM with a log: the failure is returned once, the VM runs on, and the
/// directory is marked.
fn fails(path: &Path, mut vm: Vm) {
    let mut failure = None;
    vm.run_until("failure", |vm| {
        failure = vm.disk().take_failure();
        failure.is_some()
    });
    let failure = failure.unwrap();
    assert!(matches!(&failure, LogDirectoryError::Io { path: at, .. } if at.starts_with(path)), "{failure}");
    let lost = vm.disk().entries_lost();
    let before = vm.sink.entries.len();
    vm.run(10);
    assert_eq!(vm.disk().entries_lost() - lost, (vm.sink.entries.len() - before) as u64);
    assert!(vm.sink.entries.len() > before);
    assert!(!vm.disk().is_full());
    assert!(vm.disk().take_failure().is_none(), "told twice");
    assert!(vm.finish().is_ok(), "told before");
}

#[test]
fn a_full_disk_ends_the_logging_and_not_the_vm() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(0));
    vm.run_until("durable snapshot", |vm| vm.disk().durable().is_some());
    std::os::unix::fs::symlink("/dev/full", directory.path().join("snapshot.part")).unwrap();
    fails(directory.path(), vm);
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(&error, LogDirectoryError::Stopped { reason, .. } if reason.contains("No space left")), "{error}");
    fs::remove_file(directory.path().join("stopped")).unwrap();
    assert!(resume(directory.path()).next_seq > LogSeq(0), "for who wants it");

    fs::write(directory.path().join("stopped"), "before").unwrap();
    fs::remove_file(directory.path().join("snapshot.part")).unwrap();
    let mut vm = Vm::logged(open(directory.path()), 2, limits(u64::MAX));
    vm.finish().unwrap();
    assert_eq!(resume(directory.path()).generation, Generation(2), "a new log is not stopped");
}

#[test]
fn a_directory_that_goes_away_ends_the_logging_and_not_the_vm() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("log");
    let mut vm = Vm::logged(open(&path), 1, limits(0));
    vm.run_until("durable snapshot", |vm| vm.disk().durable().is_some());
    fs::remove_dir_all(&path).unwrap();
    fails(&path, vm);
}

/// The snapshot's file is a FIFO without a reader: opening it blocks, as a disk that hangs does.
/// Without the bounds this test doesn't end.
#[test]
fn a_process_that_ends_does_not_wait_for_a_disk_that_hangs() {
    let directory = TempDir::new().unwrap();
    let opened = open(directory.path());
    nix::unistd::mkfifo(&directory.path().join("snapshot.part"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let limits = DiskLimits { queue_bytes_max: 1, patience: Duration::from_millis(200), ..limits(u64::MAX) };
    let mut disk = begin(opened, session(1), NODE, limits);
    let mut machine = Machine::new(&config(), &guest()).unwrap();
    disk.stand_until_begun();
    disk.serve(&mut machine, LogSeq(0), Vec::new);
    assert!(disk.watch().is_pending());
    let stuck = finish(disk).unwrap_err();
    assert!(matches!(stuck, LogDirectoryError::Stuck { .. }), "{stuck}");
}

#[test]
fn a_disk_is_stuck_while_it_takes_nothing_of_what_there_is() {
    let mut disk = StuckDisk::since(100);
    let updates = [(200, 0, true), (300, 1, true), (400, 1, true), (500, 1, false), (600, 1, true), (650, 1, true)];
    let stuck = updates.map(|(now_ns, taken, is_pending)| disk.update(now_ns, taken, is_pending));
    assert_eq!(stuck, [100, 0, 100, 0, 100, 150]);
}
