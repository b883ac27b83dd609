//! `ft-replay` of log directories.

use super::found::{index, open, vm_of_many_segments};
use super::vm::{NODE, Vm, begin, limits, session};
use hypervisor::node::log::segments;
use logchannel::entry::Generation;
use logchannel::file::LogReader;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub(super) fn ft_replay(path: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ft-replay")).arg(path).args(more).output().unwrap()
}

/// A VM with several segments.
fn chain(path: &Path) -> (Vm, Vec<PathBuf>) {
    let vm = vm_of_many_segments(path);
    (vm, segments(path).unwrap())
}

#[test]
pub(super) fn ft_replay_takes_segments_and_directories_of_them() {
    let directory = TempDir::new().unwrap();
    let (vm, kept) = chain(directory.path());
    let first = LogReader::open(fs::File::open(&kept[0]).unwrap()).unwrap().next_seq();
    let expected = [
        (directory.path(), vm.sink.entries.len() - index(first)),
        (&kept[0], index(LogReader::open(fs::File::open(&kept[1]).unwrap()).unwrap().next_seq()) - index(first)),
    ];
    for (path, entries) in expected {
        let output = ft_replay(path, &["--json"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let replayed = text.lines().find(|line| line.contains("\"replayed\"")).unwrap();
        assert!(replayed.contains(&format!("\"entries\":{entries},")), "{entries}: {replayed}");
        let output = ft_replay(path, &["--entries"]);
        let has_head = 1;
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), has_head + entries);
    }

    // The newest snapshot is torn: the segments before it are replayed, and it is named.
    let bytes = fs::read(&kept[1]).unwrap();
    fs::write(&kept[1], &bytes[..bytes.len() / 3]).unwrap();
    let output = ft_replay(directory.path(), &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("skipped") && text.contains(&*kept[1].to_string_lossy()), "{text}");
}

/// The next segment's snapshot must be the state with which the segment before ends.
#[test]
pub(super) fn ft_replay_compares_the_state_between_segments() {
    let directory = TempDir::new().unwrap();
    let (_, kept) = chain(directory.path());
    let other = TempDir::new().unwrap();
    let mut vm = Vm::new();
    let Ok(()) = vm.recorder.log_generation(&mut vm.sink, Generation(1));
    let second = LogReader::open(fs::File::open(&kept[1]).unwrap()).unwrap().next_seq();
    vm.sink.disk = Some(begin(open(other.path()), session(1), NODE, limits(u64::MAX)));
    vm.snapshot_at(second);
    vm.finish().unwrap();
    fs::copy(segments(other.path()).unwrap().remove(0), &kept[1]).unwrap();
    let output = ft_replay(directory.path(), &[]);
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
}
