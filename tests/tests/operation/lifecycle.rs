//! Starts and ends of VMs and programs: end marks, a second owner, signals, ports in use.

use std::net::TcpListener;
use tests::client::Load;
use tests::programs;
use tests::stage::{Ended, Node, Pair, Stage};

#[track_caller]
fn assert_ended(node: &mut Node, code: i32, words: &[&str]) {
    let ended = node.end();
    assert_eq!(ended.code, Some(code), "{}", ended.reason);
    for word in words {
        assert!(ended.reason.contains(word), "{word:?} is not in {:?}", ended.reason);
    }
}

#[test]
fn guest_that_powers_off_ends_both_sides_without_a_failover() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&["--guest", "hello"], &[]);
    assert_ended(&mut primary, 0, &["power"]);
    assert_ended(&mut backup, 0, &["power"]);
    assert!(!backup.has_told("live") && !backup.has_told("primary_lost") && !primary.has_told("backup_lost"));
    let console = primary.console();
    assert_eq!(console.matches("hello").count(), 1, "{console:?}");
    assert_eq!(backup.console(), "", "what the primary has put out is not put out again");

    // The end mark used generation 1: the VM may be started again, as the next generation.
    let Pair { primary: mut again, backup: mut again_backup } = stage.pair(&["--guest", "hello"], &[]);
    assert_ended(&mut again, 0, &[]);
    assert_ended(&mut again_backup, 0, &[]);
    assert_eq!(again.owned(), [3]);
    assert_eq!(again.console(), console);
}

#[test]
fn second_primary_of_a_vm_refuses_to_start() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, backup: _backup } = stage.pair(&[], &[]);
    let address = primary.told_text("listening", "channel");
    let load = Load::on(stage.site.service);
    let mut second = stage.node("ft-primary", &["--unprotected"]);
    assert_ended(&mut second, 1, &["VM vm0 is owned by node", &address, "--force-new"]);
    assert!(!second.has_told("owner") && !second.has_told("lan_attached") && !second.has_told("console"));
    // Another VM may start.
    let mut other = stage.node("ft-primary", &["--vm", "vm1", "--unprotected"]);
    other.told("console");
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn interrupted_primary_without_backup_leaves_its_end_mark() {
    let stage = Stage::new(programs!());
    // Each end mark uses a generation.
    for generation in [1, 3] {
        let mut primary = stage.node("ft-primary", &["--unprotected"]);
        primary.told("console");
        assert_eq!(primary.owned(), [generation]);
        primary.interrupt();
        assert_ended(&mut primary, 0, &["can be started again"]);
    }
    // A primary that waits for its backup ends like this too.
    let mut waiting = stage.node("ft-primary", &[]);
    waiting.told("listening");
    waiting.interrupt();
    assert_ended(&mut waiting, 0, &["can be started again"]);
    assert!(!waiting.has_told("console"));
}

#[test]
fn primary_that_is_interrupted_before_its_guest_runs_leaves_its_end_mark_too() {
    let stage = Stage::new(programs!());
    let arbiter = format!("tcp:{}", stage.site.arbiter_address());
    // A LAN that accepts connections and never answers delays the start, after the claim.
    let mute_lan = TcpListener::bind("127.0.0.1:0").unwrap();
    let lan = mute_lan.local_addr().unwrap().to_string();
    let options = ["--arbiter", &arbiter, "--lan", &lan, "--listen", "127.0.0.1:0"];
    let mut primary = stage.program("ft-primary", &options);
    primary.told("owner");
    primary.interrupt();
    assert_ended(&mut primary, 0, &["can be started again"]);
    let mut again = stage.node("ft-primary", &["--unprotected"]);
    again.told("console");
}

#[test]
fn vm_that_died_on_both_sides_starts_only_when_the_operator_says_so() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    backup.kill();
    primary.comes_to_own(2);
    primary.kill();
    assert_ended(&mut stage.node("ft-primary", &[]), 1, &["is owned by node", "as generation 2"]);
    let Pair { mut primary, backup: _backup } = stage.pair(&["--force-new"], &[]);
    assert_eq!(primary.owned(), [3]);
    // The LAN treats the new machine as a guest that was reset.
    Load::on(stage.site.service).lost_nothing();
}

#[test]
fn signals_end_the_programs_with_their_documented_codes() {
    let mut stage = Stage::new(programs!());
    let mut waiting = stage.node("ft-backup", &[]);
    waiting.told("waiting");
    assert_eq!(waiting.interrupt().code, Some(130));
    assert_eq!(stage.site.lan.interrupt().unwrap(), Some(0));
    assert_eq!(stage.site.arbiter.interrupt().unwrap(), Some(0));
    assert!(stage.site.arbiter.has_told("end"));
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let stage = Stage::new(programs!());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let claims = tempfile::tempdir().unwrap();
    let claims = claims.path().to_str().unwrap();
    let arbiter = format!("file:{claims}");
    for (program, options) in [
        ("ft-primary", vec!["--arbiter", &arbiter]),
        ("ft-backup", vec!["--arbiter", &arbiter]),
        ("ft-arbiter", vec!["--dir", claims]),
    ] {
        let mut node = stage.program(program, &[&["--listen", &address], &options[..]].concat());
        assert_ended(&mut node, 1, &["can't listen", &address, "choose another port"]);
    }
    assert_ended(&mut stage.program("ft-lan", &["--listen", &address]), 1, &[&address]);
    // A program that can't listen claims nothing, so that the VM may start elsewhere.
    let mut primary = stage.program("ft-primary", &["--arbiter", &arbiter, "--listen", "127.0.0.1:0"]);
    primary.told("listening");
    assert_eq!(primary.owned(), [1]);
}

#[test]
fn no_vm_starts_until_its_arbiter_answers() {
    let mut stage = Stage::new(programs!());
    stage.kill_arbiter();
    let mut impatient = stage.node("ft-primary", &["--unprotected"]);
    impatient.told("arbiter_unreachable");
    // It has claimed nothing, so it needn't wait for an answer.
    assert_eq!(impatient.interrupt().code, Some(130));
    let mut primary = stage.node("ft-primary", &["--unprotected"]);
    let reason = primary.told_text("arbiter_unreachable", "reason");
    assert!(reason.contains(stage.site.arbiter_address()), "{reason}");
    assert!(!primary.has_told("owner"));
    stage.restart_arbiter();
    primary.told("console");
    let Ended { code, .. } = primary.interrupt();
    assert_eq!(code, Some(0));
}

#[test]
fn a_side_that_listens_on_all_addresses_must_advertise_one() {
    let stage = Stage::new(programs!());
    let everywhere = ["--arbiter", &format!("tcp:{}", stage.site.arbiter_address()), "--listen", "0.0.0.0:0"];
    let mut lost = stage.program("ft-primary", &everywhere);
    assert_ended(&mut lost, 1, &["0.0.0.0", "--advertise"]);
    let mut found = stage.program("ft-primary", &[&everywhere[..], &["--advertise", "127.0.0.1:9"]].concat());
    assert_eq!(found.told_text("listening", "channel"), "127.0.0.1:9");
}
