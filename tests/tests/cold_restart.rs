//! Both sides die, and the VM goes on from the log that one of them kept on disk.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::client::Load;
use tests::programs;
use tests::stage::{Ended, Node, Pair, Stage};

/// A directory for each side's log.
struct Logs {
    primary: TempDir,
    backup: TempDir,
}

impl Logs {
    fn new() -> Self {
        Self { primary: tempfile::tempdir().unwrap(), backup: tempfile::tempdir().unwrap() }
    }

    fn pair(&self, stage: &Stage, options: &[&str]) -> Pair {
        let [primary, backup] = [text(self.primary.path()), text(self.backup.path())];
        stage.pair(&[&["--log", primary], options].concat(), &[&["--log", backup], options].concat())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn resumed(stage: &Stage, log: &Path) -> Node {
    let mut node = stage.node("ft-primary", &["--resume", text(log)]);
    node.told("resumed");
    node
}

#[track_caller]
fn assert_refused(stage: &Stage, log: &Path, words: &[&str]) {
    let Ended { code, reason } = stage.node("ft-primary", &["--resume", text(log)]).end();
    assert_eq!(code, Some(1), "{reason}");
    for word in words {
        assert!(reason.contains(word), "{word:?} is not in {reason:?}");
    }
}

/// Segments, oldest first.
fn segments(log: &Path) -> Vec<PathBuf> {
    let mut segments: Vec<_> = fs::read_dir(log).unwrap().map(|file| file.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "ftlog"));
    segments.sort();
    segments
}

fn goes_on_after_the_death_of_both(options: &[&str]) {
    let stage = Stage::new(programs!());
    let logs = Logs::new();
    let Pair { mut primary, mut backup } = logs.pair(&stage, options);
    let load = Load::on(stage.site.service);
    // At most the primary can notice.
    backup.kill();
    primary.kill();
    let mut again = resumed(&stage, logs.primary.path());
    load.goes_on();
    // It is a VM like any other: it takes a backup, and outlives its host again.
    let mut backup = stage.node("ft-backup", &[]);
    backup.told("protected");
    load.goes_on();
    again.kill();
    backup.told("live");
    load.goes_on();
    load.lost_nothing();
    assert!(!again.has_told("log_lost"));
}

#[test]
fn nothing_that_a_client_has_seen_is_taken_back_by_the_death_of_both_sides() {
    goes_on_after_the_death_of_both(&[]);
}

#[test]
fn outputs_may_wait_for_the_disk_itself() {
    goes_on_after_the_death_of_both(&["--log-wait", "durable"]);
}

#[test]
fn only_a_log_of_the_last_owner_is_gone_on_from() {
    let stage = Stage::new(programs!());
    let logs = Logs::new();
    let Pair { mut primary, mut backup } = logs.pair(&stage, &[]);
    let load = Load::on(stage.site.service);
    primary.kill();
    backup.told("live");
    load.goes_on();
    backup.kill();
    assert_refused(&stage, logs.primary.path(), &["went on as generation 2", "--force-new"]);
    let mut again = resumed(&stage, logs.backup.path());
    load.goes_on();
    load.lost_nothing();
    assert_eq!(again.owned(), [3]);
    // While it runs, nobody else may go on from anything.
    assert_refused(&stage, logs.backup.path(), &["in use"]);
    assert_refused(&stage, logs.primary.path(), &["went on as generation 3"]);
    // In order ended, it isn't gone on with but started afresh.
    again.interrupt();
    assert_refused(&stage, logs.backup.path(), &["ended in order"]);
}

#[test]
fn a_log_that_was_cut_goes_on_from_its_last_whole_entry() {
    let stage = Stage::new(programs!());
    let log = tempfile::tempdir().unwrap();
    let mut primary = stage.node("ft-primary", &["--unprotected", "--log", text(log.path())]);
    primary.told("console");
    Load::on(stage.site.service).lost_nothing();
    primary.kill();
    let segment = segments(log.path()).pop().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1000).unwrap();
    drop(file);
    let mut again = resumed(&stage, log.path());
    let ending = again.told_text("resumed", "ending");
    assert!(ending.contains("torn"), "{ending}");
    // What was lost with the end of the log was seen by clients that are gone; new ones are served by the guest as it is.
    Load::on(stage.site.service).lost_nothing();
    again.assert_no_panic();
}

#[test]
fn directories_that_are_none_of_this_vm_are_refused_before_anything_is_claimed() {
    let stage = Stage::new(programs!());
    let empty = tempfile::tempdir().unwrap();
    assert_refused(&stage, empty.path(), &["no segment"]);
    let log = tempfile::tempdir().unwrap();
    let mut primary = stage.node("ft-primary", &["--unprotected", "--log", text(log.path())]);
    primary.told("console");
    primary.kill();
    let other = stage.node("ft-primary", &["--vm", "another", "--resume", text(log.path())]).end();
    assert_eq!(other.code, Some(1), "{}", other.reason);
    assert!(other.reason.contains("belongs to VM vm0"), "{}", other.reason);
    let segment = segments(log.path()).pop().unwrap();
    fs::write(&segment, b"no log at all").unwrap();
    assert_refused(&stage, log.path(), &["no segment", text(&segment)]);
}
