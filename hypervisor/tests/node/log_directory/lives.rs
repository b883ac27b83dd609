//! A directory through several lives of a VM, and what its notes say.

use super::found::{index, open, resume, vm_of_many_segments};
use super::vm::{NODE, Vm, begin, limits, session};
use hypervisor::node::log::{PossibleLoss, segments};
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

#[test]
fn a_resumed_vm_goes_on_in_the_same_directory() {
    let directory = TempDir::new().unwrap();
    let mut first = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    first.run(10);
    first.finish().unwrap();
    let log_directory = open(directory.path());
    let resumed = log_directory.survey().unwrap().replay(|_| ()).unwrap();
    let ticks = resumed.machine.last_ticks();
    let mut second = Vm::of(resumed.machine, first.sink.entries, ticks);
    second.sink.disk = Some(begin(log_directory, session(1), NodeId(2), limits(u64::MAX)));
    let Ok(()) = second.recorder.log_generation(&mut second.sink, Generation(2));
    second.snapshot_now();
    second.run(10);
    let Ok(()) = second.recorder.log_generation(&mut second.sink, Generation(3));
    let end = second.sink.entries.len();
    second.finish().unwrap();
    let mut resumed = resume(directory.path());
    assert_eq!(index(resumed.next_seq), end);
    assert_eq!(Some(&resumed.machine.digest()), second.states().last());
    assert_eq!((resumed.session.generation, resumed.generation), (Generation(2), Generation(3)));
    assert_eq!(resumed.nodes, [NodeId(2)]);
    assert_eq!(segments(directory.path()).unwrap().len(), 2);
}

#[test]
fn a_generation_that_begins_during_a_snapshot_is_known() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::large();
    vm.run(60);
    vm.sink.disk = Some(begin(open(directory.path()), session(1), NODE, limits(u64::MAX)));
    vm.run(1);
    assert!(vm.disk().is_copying() && vm.disk().durable().is_none());
    let Ok(()) = vm.recorder.log_generation(&mut vm.sink, Generation(5));
    vm.run_until("durable snapshot", |vm| vm.disk().durable().is_some());
    vm.finish().unwrap();
    let mut resumed = resume(directory.path());
    assert_eq!((resumed.session.generation, resumed.generation), (Generation(5), Generation(5)));
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
    assert_eq!(resumed.machine.digest(), vm.state_at(resumed.next_seq, &resumed.machine));
}

/// A VM that is started afresh counts its entries from 0 again, under a greater generation.
#[test]
fn a_new_life_comes_after_the_old_one() {
    let directory = TempDir::new().unwrap();
    vm_of_many_segments(directory.path());
    let mut vm = Vm::logged(open(directory.path()), 2, limits(u64::MAX));
    vm.run(3);
    vm.finish().unwrap();
    let resumed = resume(directory.path());
    assert_eq!(resumed.generation, Generation(2));
    assert_eq!(index(resumed.next_seq), vm.sink.entries.len());
}

#[test]
fn a_log_that_may_lack_something_says_why() {
    let lost = |prepare: &dyn Fn(&Path)| {
        let directory = TempDir::new().unwrap();
        let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
        vm.run(3);
        vm.finish().unwrap();
        prepare(directory.path());
        resume(directory.path()).losses
    };
    let kept = |text: &'static str| move |path: &Path| fs::write(path.join("kept"), text).unwrap();
    let other = NodeId(7).to_string();
    let of_other = |kind: &str| {
        let kind = kind.to_owned();
        let other = other.clone();
        move |path: &Path| {
            let kept = fs::read_to_string(path.join("kept")).unwrap();
            fs::write(path.join("kept"), kept.replace("owner", &kind)).unwrap();
            fs::write(path.join("node"), &other).unwrap();
        }
    };
    assert_eq!(lost(&|_| ()), []);
    assert_eq!(lost(&kept("owner written an-earlier-boot")), [PossibleLoss::HostStartedAgain]);
    assert_eq!(lost(&kept("owner durable an-earlier-boot")), []);
    assert_eq!(lost(&kept("owner no an-earlier-boot")), [PossibleLoss::NothingWaited]);
    // As a loss of power may leave it.
    assert_eq!(lost(&kept("")), [PossibleLoss::WriterUnknown]);
    assert_eq!(lost(&kept("own")), [PossibleLoss::WriterUnknown]);
    assert_eq!(lost(&of_other("backup")), [PossibleLoss::OfBackup]);
    // The backup has won the flag, and died before its log had everything that it had acknowledged.
    assert_eq!(lost(&kept("backup written an-earlier-boot")), [PossibleLoss::OfBackup, PossibleLoss::HostStartedAgain]);
    assert_eq!(lost(&of_other("joining")), [PossibleLoss::OfJoiningBackup]);
    assert_eq!(lost(&|path| fs::remove_file(path.join("node")).unwrap()), [PossibleLoss::HadFailed]);
    assert_eq!(
        lost(&|path| fs::write(path.join("99999999999999999999-00000000000000000000.ftlog"), b"torn").unwrap()),
        [PossibleLoss::NewestUnreadable]
    );
}

#[test]
fn nodes_that_resume_are_listed_until_the_log_is_theirs() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    vm.run(3);
    vm.finish().unwrap();
    for node in [2, 3] {
        open(directory.path()).add_node(NodeId(node)).unwrap();
    }
    assert_eq!(resume(directory.path()).nodes, [NODE, NodeId(2), NodeId(3)]);
    let mut vm = Vm::new();
    vm.sink.disk = Some(begin(open(directory.path()), session(4), NodeId(3), limits(u64::MAX)));
    vm.snapshot_now();
    vm.finish().unwrap();
    assert_eq!(resume(directory.path()).nodes, [NodeId(3)]);
}
