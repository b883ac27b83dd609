//! Loss of the primary: the guest goes on, and its clients notice a pause only.

use crate::beginnings::loaded_pair;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use tests::client::Load;
use tests::programs;
use tests::stage::{Ended, Pair, wait_until};

#[test]
fn killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled() {
    let (mut stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    assert!(!backup.has_told("live") && !backup.has_told("first_output"), "a backup puts nothing out");
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();
    let live = backup.told("live");
    let moment = |field: &str| live[field].as_u64().unwrap();
    assert!(moment("loss_noticed_us") <= moment("test_and_set_won_us"), "{live}");
    assert!(moment("test_and_set_won_us") <= moment("live_us"), "{live}");
    assert!(moment("last_entry_received_us") <= moment("live_us"), "{live}");
    let unsent = moment("tail_outputs");
    assert!(
        unsent < Load::REPLIES,
        "the primary tells under load too what it has released, but {unsent} outputs were kept"
    );
    // The console goes on where it was: only the first primary prints the guest's greeting.
    assert!(!primary.console().is_empty());
    let greeting = primary.console().lines().next().unwrap().to_owned();
    assert!(!backup.console().contains(&greeting), "{greeting:?} came out twice");
    assert!(!stage.site.lan.has_told("refused"));
}

#[test]
fn interrupted_primary_hands_over_to_its_backup() {
    let (_stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    let Ended { code, reason } = primary.interrupt();
    assert_eq!(code, Some(0), "{reason}");
    assert!(reason.contains("its backup goes on"), "{reason}");
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();
}

/// `ft-demo` in a process group with its children, so that all can be killed if it doesn't end.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let group = Pid::from_raw(self.0.id().cast_signed());
            let _ = killpg(group, Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn demo_with_two_kills_passes_and_says_so_in_json_and_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("verdict");
    let mut command = programs!().command("ft-demo");
    command.args(["--kills", "2", "--json"]).stdin(Stdio::null()).stdout(File::create(&out).unwrap());
    let mut demo = Demo(command.process_group(0).spawn().unwrap());
    let mut status = None;
    wait_until("the demo's end", || {
        status = demo.0.try_wait().unwrap();
        status.is_some()
    });
    let text = std::fs::read_to_string(&out).unwrap();
    let verdict: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{verdict}");
    assert_eq!(verdict["passed"], true, "{verdict}");
    let kills = verdict["kills"].as_array().unwrap();
    assert_eq!(kills.len(), 2, "{verdict}");
    for kill in kills {
        assert!(kill["first_output_us"].as_i64().unwrap() > 0, "{kill}");
        assert!(kill["rejoin_us"].as_u64().unwrap() > 0, "{kill}");
    }
    assert_eq!([&kills[0]["generation"], &kills[1]["generation"]], [2, 3], "one VM throughout: {verdict}");
    let clients = verdict["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 2, "{verdict}");
    for client in clients {
        assert_eq!(client["sent"], client["received"], "{verdict}");
        for flaw in ["lost", "changed", "out_of_order"] {
            assert_eq!(client[flaw], 0, "{flaw}: {verdict}");
        }
        assert!(client["sent"].as_u64().unwrap() >= 3000, "500 around each kill and rejoin: {verdict}");
    }
}

#[test]
fn demo_without_the_files_of_linux_says_what_makes_them() {
    let out = programs!().command("ft-demo").args(["--guest", "linux", "--linux-files", "/nowhere"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let error = String::from_utf8(out.stderr).unwrap();
    assert!(error.contains("/nowhere/Image") && error.contains("guest-programs/linux/build.sh"), "{error}");
}
