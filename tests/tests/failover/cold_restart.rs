//! Cold restart: both sides die, and the VM goes on from the log that one of them has on disk.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use crate::beginnings::loaded_pair;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::client::Load;
use tests::programs;
use tests::stage::{Ended, Node, Pair, Stage, wait_until};

/// The log directories of both sides.
struct Logs {
    primary: TempDir,
    backup: TempDir,
}

impl Logs {
    fn new() -> Self {
        Self { primary: tempfile::tempdir().unwrap(), backup: tempfile::tempdir().unwrap() }
    }

    /// `options` for the primary and for the backup, each with its log.
    fn options<'a>(&'a self, options: &[&'a str]) -> [Vec<&'a str>; 2] {
        [&self.primary, &self.backup].map(|log| [&["--log", text(log.path())], options].concat())
    }
}

/// A pair under load whose sides both have a log.
#[track_caller]
fn logged_pair(options: &[&str]) -> (Stage, Logs, Pair, Load) {
    let logs = Logs::new();
    let [primary, backup] = logs.options(options);
    let (stage, pair, load) = loaded_pair(&primary, &backup);
    (stage, logs, pair, load)
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
    // If there is a log, the error must not suggest to give its contents up.
    assert!(segments(log).is_empty() || !reason.contains("--force-new"), "{reason:?}");
}

/// The segments of a log, oldest first.
fn segments(log: &Path) -> Vec<PathBuf> {
    let mut segments: Vec<_> = fs::read_dir(log).unwrap().map(|file| file.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "ftlog"));
    segments.sort();
    segments
}

fn goes_on_after_the_death_of_both(options: &[&str]) {
    let (stage, logs, Pair { mut primary, mut backup }, load) = logged_pair(options);
    // The primary is killed before it can go on alone.
    backup.kill();
    primary.kill();
    let mut again = resumed(&stage, logs.primary.path());
    load.goes_on();
    // The resumed VM takes a backup and survives another failover.
    let mut backup = stage.joined_backup();
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
fn nothing_is_taken_back_either_if_outputs_wait_for_durable_logs() {
    goes_on_after_the_death_of_both(&["--log-wait", "durable"]);
}

#[test]
fn only_the_last_owners_log_can_be_resumed() {
    let (stage, logs, Pair { mut primary, mut backup }, load) = logged_pair(&[]);
    primary.kill();
    backup.told("live");
    load.goes_on();
    backup.kill();
    assert_refused(&stage, logs.primary.path(), &["went on as generation 2", "--give-up-generation 2"]);
    let mut again = resumed(&stage, logs.backup.path());
    load.goes_on();
    load.lost_nothing();
    assert_eq!(again.owned(), [3]);
    // While it runs, neither log can be resumed.
    assert_refused(&stage, logs.backup.path(), &["in use"]);
    assert_refused(&stage, logs.primary.path(), &["went on as generation 3"]);
    // A VM that has ended in order can't be resumed, only started again.
    again.interrupt();
    assert_refused(&stage, logs.backup.path(), &["ended in order"]);
}

#[test]
fn a_torn_log_resumes_from_its_last_whole_entry() {
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
    // The clients that saw the lost end of the log are gone; new ones are served.
    Load::on(stage.site.service).lost_nothing();
    again.assert_no_panic();
}

#[test]
fn directories_without_a_log_of_this_vm_are_refused_before_a_claim() {
    let stage = Stage::new(programs!());
    let empty = tempfile::tempdir().unwrap();
    assert_refused(&stage, empty.path(), &["no log directory", "--log"]);
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "a directory that isn't ours stays as it was");
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

/// An operator who mistypes the directory gets told what is there, and nothing is created.
#[test]
fn a_path_that_is_no_log_directory_is_refused_with_what_it_is() {
    let stage = Stage::new(programs!());
    let site = tempfile::tempdir().unwrap();
    let path = |name: &str| site.path().join(name);
    let mistyped = path("a/mistyped");
    let ended = stage.node("ft-primary", &["--resume", text(&mistyped)]).end();
    assert_eq!(ended.code, Some(1));
    assert!(ended.reason.contains("there is no log directory") && ended.reason.contains(text(&mistyped)), "{ended:?}");
    assert!(!mistyped.exists() && !path("a").exists(), "it was made");

    let recording = path("recording");
    let recorded = stage.program("ft-record", &["--guest", "hello", "--output", text(&recording)]).end();
    assert_eq!(recorded.code, Some(0), "{}", recorded.reason);
    let log = path("log");
    let mut primary = stage.node("ft-primary", &["--unprotected", "--log", text(&log)]);
    primary.told("log_usable");
    primary.kill();
    let segment = segments(&log).pop().unwrap();
    fs::write(path("text"), "no log").unwrap();
    let wrong: [(&Path, &[&str]); 3] = [
        (&recording, &["a recording", "ft-replay"]),
        (&segment, &["one segment", text(&log)]),
        (&path("text"), &["no directory"]),
    ];
    for option in ["--resume", "--log"] {
        for (file, words) in wrong {
            let ended = stage.node("ft-primary", &[option, text(file)]).end();
            assert_eq!(ended.code, Some(1), "{}", ended.reason);
            for word in [words, &[text(file), "is a directory"]].concat() {
                assert!(ended.reason.contains(word), "{word:?} is not in {:?}", ended.reason);
            }
        }
    }
}

/// Three operators resume the VM at once, two of them from the same log.
#[test]
fn of_several_resumes_at_once_one_goes_on_and_the_others_say_why_not() {
    let stage = Stage::new(programs!());
    let [one, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let logs = [text(one.path()), text(other.path())];
    let Pair { mut primary, mut backup } = stage.pair(&["--log", logs[0]], &["--log", logs[1]]);
    backup.told("log_usable");
    backup.kill();
    primary.kill();
    // Two from the primary's log, one from the backup's.
    let mut resuming =
        [logs[0], logs[0], logs[1]].map(|log| stage.node("ft-primary", &["--resume", log, "--accept-loss"]));
    wait_until("the others' ends", || {
        let ended = resuming.iter_mut().map(|node| usize::from(node.has_told("end"))).sum::<usize>();
        ended == 2
    });
    for node in &mut resuming {
        if node.has_told("end") {
            let ended = node.end();
            assert_eq!(ended.code, Some(1), "{}", ended.reason);
            let why =
                ["in use by another process", "while this log was replayed", "went on as generation", "answers at"];
            assert!(why.iter().any(|why| ended.reason.contains(why)), "{}", ended.reason);
            assert!(!ended.reason.contains("--force-new"), "{}", ended.reason);
        } else {
            node.told("resumed");
        }
    }
}

/// The stream with which a backup joins is the first segment of its log, so the log can be resumed
/// from the moment at which the backup protects the VM.
#[test]
fn a_backup_that_goes_live_at_once_and_dies_can_be_resumed() {
    for options in [&[][..], &["--log-wait", "durable"]] {
        let stage = Stage::new(programs!());
        let logs = Logs::new();
        let [of_primary, of_backup] = logs.options(options);
        let Pair { mut primary, mut backup } = stage.pair(&of_primary, &of_backup);
        primary.kill();
        backup.told("live");
        // The mark says that the log has all that this side acknowledged as a backup.
        let is_owners = || fs::read_to_string(logs.backup.path().join("kept")).unwrap().starts_with("owner");
        wait_until("the new owner's log", is_owners);
        backup.kill();
        let _again = resumed(&stage, logs.backup.path());
        let load = Load::on(stage.site.service);
        load.lost_nothing();
    }
}

#[test]
fn the_last_owner_after_several_failovers_can_be_resumed() {
    let (stage, logs, Pair { mut primary, mut backup }, load) = logged_pair(&[]);
    primary.kill();
    backup.told("live");
    let mut third = stage.node("ft-backup", &["--log", text(logs.primary.path())]);
    third.told("protected");
    load.goes_on();
    backup.kill();
    third.told("live");
    load.goes_on();
    third.kill();
    let reasons = stage.node("ft-primary", &["--log", text(logs.primary.path())]).end().reason;
    assert!(reasons.contains("--resume") && !reasons.contains("--force-new"), "{reasons}");
    let mut again = resumed(&stage, logs.primary.path());
    load.goes_on();
    load.lost_nothing();
    assert_eq!(again.owned(), [4]);
}

/// Puts a FIFO in place of the snapshot's file: the log's writer waits for a reader, so that no
/// segment becomes whole.
fn block_the_disk(log: &Path) -> PathBuf {
    let part = log.join("snapshot.part");
    let _ = fs::remove_file(&part);
    nix::unistd::mkfifo(&part, nix::sys::stat::Mode::S_IRWXU).unwrap();
    part
}

#[test]
fn a_resume_killed_before_its_log_is_usable_can_be_repeated() {
    let (stage, logs, Pair { mut primary, mut backup }, load) = logged_pair(&[]);
    backup.kill();
    primary.kill();
    let log = logs.primary.path();
    for is_interrupted in [false, true, false, true] {
        let part = block_the_disk(log);
        let mut again = resumed(&stage, log);
        assert_eq!(again.owned().len(), 1, "it has claimed the VM");
        // The guest runs and its clients send requests, but no output leaves.
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!again.has_told("log_usable") && !again.has_told("first_output"));
        if is_interrupted {
            let Ended { code, reason } = again.interrupt();
            assert_eq!(code, Some(130), "{reason}");
        } else {
            again.kill();
        }
        fs::remove_file(part).unwrap();
    }
    let mut again = resumed(&stage, log);
    again.told("log_usable");
    load.goes_on();
    load.lost_nothing();
    // The list of the log's nodes has this one only.
    assert_eq!(fs::read_to_string(log.join("node")).unwrap().lines().count(), 1);
}

#[test]
fn a_backup_is_not_accepted_before_its_log_is_whole() {
    let stage = Stage::new(programs!());
    let logs = Logs::new();
    let mut primary = stage.node("ft-primary", &["--unprotected"]);
    primary.told("console");
    let part = block_the_disk(logs.backup.path());
    let mut backup = stage.node("ft-backup", &["--log", text(logs.backup.path())]);
    backup.told("primary_connected");
    let load = Load::on(stage.site.service);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(!primary.has_told("protected") && !backup.has_told("log_usable"));
    // A reader of the FIFO lets the writer go on.
    let reader = std::thread::spawn(move || std::io::copy(&mut fs::File::open(part).unwrap(), &mut std::io::sink()));
    backup.told("protected");
    load.goes_on();
    load.lost_nothing();
    backup.kill();
    reader.join().unwrap().unwrap();
}

#[test]
fn an_older_log_is_resumed_only_if_the_last_owner_is_given_up_and_dead() {
    let (stage, logs, Pair { mut primary, mut backup }, load) = logged_pair(&[]);
    load.lost_nothing();
    primary.kill();
    backup.told("live");
    let refused = |generation: &str, words: &str| {
        let options = ["--resume", text(logs.primary.path()), "--give-up-generation", generation];
        let Ended { code, reason } = stage.node("ft-primary", &options).end();
        assert_eq!(code, Some(1), "{reason}");
        assert!(reason.contains(words), "{words:?} is not in {reason:?}");
    };
    refused("1", "is of an earlier state");
    refused("2", "answers at");
    backup.kill();
    refused("3", "runs as generation 2");
    let options = ["--resume", text(logs.primary.path()), "--give-up-generation", "2"];
    let mut again = stage.node("ft-primary", &options);
    again.told("resumed");
    assert_eq!(again.owned(), [3]);
    Load::on(stage.site.service).lost_nothing();
    again.kill();
    // The log that was given up is out of date now.
    assert_refused(&stage, logs.backup.path(), &["went on as generation 3"]);
    drop(resumed(&stage, logs.primary.path()));
}
