//! The segments of a log, and their content.

use super::found::{copy_of, index, open, resume, vm_of_many_segments};
use super::vm::{HELD, NODE, Vm, config, guest, limits, session, vm_id};
use ft::replay::{Consumed, Replayer};
use hypervisor::node::log::{DiskLimits, LogDirectory, LogDirectoryError, segments};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::file::{Ending, LogReader};
use logchannel::session::VmId;
use std::fs;
use tempfile::TempDir;
use vm::Machine;

#[test]
fn segments_follow_each_other_and_the_last_two_are_kept() {
    let directory = TempDir::new().unwrap();
    let vm = vm_of_many_segments(directory.path());
    let kept = segments(directory.path()).unwrap();
    assert_eq!(kept.len(), 2, "{kept:?}");
    let logs: Vec<_> = kept.iter().map(|path| LogReader::open(fs::File::open(path).unwrap()).unwrap()).collect();
    assert!(logs[0].next_seq() > LogSeq(0), "the first segment has gone");
    let newest = logs[1].next_seq();
    for mut log in logs {
        let mut at = log.next_seq();
        while let Some(entry) = log.next_entry().unwrap() {
            assert_eq!(entry, vm.sink.entries[index(at)]);
            at = log.next_seq();
        }
        assert_eq!(log.ending(), Some(&Ending::Finished));
        assert!(at == newest || index(at) == vm.sink.entries.len());
    }
    let mut resumed = resume(directory.path());
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert_eq!(resumed.entries_replayed, resumed.next_seq.0 - newest.0);
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
    assert_eq!((&resumed.ending, &*resumed.nodes, resumed.stopped), (&Ending::Finished, &[NODE][..], None));
    assert!(resumed.losses.is_empty(), "{:?}", resumed.losses);
    assert_eq!((&resumed.session, resumed.generation), (&session(1), Generation(1)));
    assert!(resumed.skipped.is_empty());
}

#[test]
fn what_may_not_have_left_is_what_the_snapshot_says_and_what_came_after() {
    let directory = TempDir::new().unwrap();
    let vm = vm_of_many_segments(directory.path());
    let resumed = resume(directory.path());
    let first = resumed.next_seq.0 - resumed.entries_replayed;
    let is_output = |entry: &&LogEntry| matches!(entry.body, EntryBody::Output { .. });
    let before = vm.sink.entries[..index(LogSeq(first))].iter().filter(is_output).count();
    let expected: Vec<_> = vm.sink.outputs[before - HELD..].iter().map(|(id, sent)| (*id, (**sent).clone())).collect();
    assert!(expected.len() > HELD);
    assert_eq!(resumed.next_output.0, vm.sink.outputs.last().unwrap().0.0 + 1);
    assert_eq!(Vec::from(resumed.unsent.clone()), expected);
    assert_eq!(resumed.unsent_dropped, 0);
}

#[test]
fn a_directory_has_one_vm_and_one_user() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("of/alpha");
    let first = open(&path);
    let error = LogDirectory::open(&path, &vm_id()).unwrap_err();
    assert!(matches!(&error, LogDirectoryError::InUse(in_use) if *in_use == path), "{error}");
    let mut vm = Vm::logged(first, 1, limits(u64::MAX));
    assert!(matches!(LogDirectory::open(&path, &vm_id()), Err(LogDirectoryError::InUse(_))));
    drop(vm.finish().unwrap());
    let error = LogDirectory::open(&path, &VmId::new("beta").unwrap()).unwrap_err();
    assert!(error.to_string().contains("belongs to VM alpha, not beta"), "{error}");
    fs::write(path.join("vm"), "beta").unwrap();
    let error = LogDirectory::open(&path, &VmId::new("beta").unwrap()).unwrap().survey().unwrap_err();
    assert!(matches!(error, LogDirectoryError::OtherVm { .. }), "a segment of another VM: {error}");
}

#[test]
fn an_empty_directory_has_nothing_to_resume() {
    let directory = TempDir::new().unwrap();
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(error, LogDirectoryError::NoSegment { .. }), "{error}");
}

#[test]
fn entries_become_durable_and_a_full_queue_is_told_until_it_is_written() {
    let directory = TempDir::new().unwrap();
    let limits = DiskLimits { queue_bytes_max: 1, ..limits(u64::MAX) };
    let mut vm = Vm::logged(open(directory.path()), 1, limits);
    assert!(!vm.disk().is_full(), "the first snapshot waits for its own writing");
    let mut was_full = false;
    vm.run_until("full queue", |vm| {
        was_full |= vm.disk().is_full();
        was_full
    });
    let end = LogSeq(vm.sink.entries.len() as u64);
    vm.run_until("durable entries", |vm| vm.disk().durable() >= Some(end) && !vm.disk().is_full());
}

/// What a killed process has written is in its log.
#[test]
fn what_was_written_is_there_without_an_end() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    vm.run(10);
    let end = LogSeq(vm.sink.entries.len() as u64);
    vm.run_until("durable entries", |vm| vm.disk().durable() >= Some(end));
    let copy = copy_of(directory.path());
    let mut resumed = resume(copy.path());
    assert!(resumed.next_seq >= end);
    assert!(matches!(resumed.ending, Ending::Torn { .. } | Ending::Unfinished { .. }));
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
}

#[test]
fn what_is_replayed_is_what_was_recorded() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    vm.run(10);
    vm.finish().unwrap();
    let mut log = LogReader::open(fs::File::open(segments(directory.path()).unwrap().remove(0)).unwrap()).unwrap();
    let mut replayer = Replayer::new(Machine::new(&config(), &guest()).unwrap(), LogSeq(0));
    let mut outputs = 0;
    while let Some(entry) = log.next_entry().unwrap() {
        outputs += usize::from(matches!(replayer.consume(&entry), Ok(Consumed::Output(..))));
    }
    assert_eq!(outputs, vm.sink.outputs.len());
    assert!(outputs > 10);
}

#[test]
fn pipes_instead_of_files_hang_no_restart() {
    let directory = TempDir::new().unwrap();
    vm_of_many_segments(directory.path());
    let pipe = |name: &str| nix::unistd::mkfifo(&directory.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    pipe("99999999999999999999-00000000000000000000.ftlog");
    assert!(resume(directory.path()).entries_replayed > 0, "it is no segment");
    pipe("stopped");
    let error = open(directory.path()).survey().unwrap_err().to_string();
    assert!(error.contains("stopped") && error.contains("no file"), "{error}");
}
