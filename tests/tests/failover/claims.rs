//! Claims at the wrong arbiter, claims that vanish, and starts of a VM that runs elsewhere.

use hypervisor::program::site::cluster::PATIENCE;
use std::fs;
use std::path::Path;
use tests::programs;
use tests::stage::{Ended, Pair, Stage, wait_until};

const ANYWHERE: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn file(directory: &Path) -> String {
    format!("file:{}", directory.display())
}

/// Each host has its own arbiter, as by default. On the backup's, another VM of this name was
/// killed as generation 1.
#[test]
fn a_backup_whose_arbiter_knows_another_node_as_owner_of_the_same_generation_is_refused() {
    let stage = Stage::new(programs!());
    let site = tempfile::tempdir().unwrap();
    let (here, there) = (file(&site.path().join("here")), file(&site.path().join("there")));
    let arguments = |arbiter| [&["--guest", "tally", "--arbiter", arbiter][..], &ANYWHERE].concat();
    let mut old = stage.program("ft-primary", &[&arguments(&there)[..], &["--unprotected"]].concat());
    old.comes_to_own(1);
    old.kill();
    let mut primary = stage.program("ft-primary", &arguments(&here));
    let channel = primary.told_text("listening", "channel");
    let stray = [&["--primary", &channel, "--arbiter", &there][..], &ANYWHERE].concat();
    let Ended { code, reason } = stage.program("ft-backup", &stray).end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("same --arbiter"), "{reason}");
    // A backup with the primary's arbiter is accepted.
    let own = [&["--primary", &channel, "--arbiter", &here][..], &ANYWHERE].concat();
    let mut backup = stage.program("ft-backup", &own);
    assert_eq!(backup.told_number("protected", "generation"), 1);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
}

#[test]
fn a_vm_whose_claims_vanish_keeps_its_owner_and_can_be_protected_again() {
    let stage = Stage::new(programs!());
    let site = tempfile::tempdir().unwrap();
    let claims = site.path().join("claims");
    let arbiter = file(&claims);
    let arguments = [&["--guest", "tally", "--arbiter", &arbiter][..], &ANYWHERE].concat();
    let mut primary = stage.program("ft-primary", &[&arguments[..], &["--unprotected"]].concat());
    let channel = primary.told_text("listening", "channel");
    primary.comes_to_own(1);
    fs::remove_dir_all(claims.join("vm0")).unwrap();
    primary.told("claims_lost");
    primary.told("claims_restored");
    let Ended { code, reason } = stage.program("ft-primary", &arguments).end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("owned by node"), "{reason}");
    let mut backup =
        stage.program("ft-backup", &[&["--primary", &channel, "--arbiter", &arbiter][..], &ANYWHERE].concat());
    assert_eq!(backup.told_number("protected", "generation"), 1);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    assert!(claims.join("vm0/1.claim").exists());
}

/// The flag stays free, so the answer to each claim is known, and this process owns nothing.
#[test]
fn a_backup_that_waits_for_lost_claims_ends_by_a_signal() {
    let stage = Stage::new(programs!());
    let site = tempfile::tempdir().unwrap();
    let arbiter = file(&site.path().join("claims"));
    let options = ["--guest", "tally", "--arbiter", &arbiter];
    let mut primary = stage.program("ft-primary", &[&options[..], &ANYWHERE].concat());
    let channel = primary.told_text("listening", "channel");
    let side = [&["--primary", &channel, "--arbiter", &arbiter][..], &ANYWHERE].concat();
    let mut backup = stage.program("ft-backup", &side);
    backup.told("protected");
    // The primary checks its claims every five seconds, and is killed before.
    fs::remove_dir_all(site.path().join("claims/vm0")).unwrap();
    primary.kill();
    let report = backup.told("primary_claim_lost");
    assert_eq!(report["level"], "error", "{report}");
    assert_eq!(backup.interrupt().code, Some(130));
}

#[test]
fn a_live_vm_is_not_started_again_even_with_force_new() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &["--unprotected"]);
    primary.told("listening");
    primary.comes_to_own(1);
    let Ended { code, reason } = stage.node("ft-primary", &["--unprotected", "--force-new"]).end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("as generation 1") && reason.contains("answers"), "{reason}");
    primary.kill();
    let mut second = stage.node("ft-primary", &["--unprotected", "--force-new"]);
    second.comes_to_own(2);
    wait_until("the guest's first words", || !second.console().is_empty());
}

/// Claims are numbered from 0: a claim's number is called a flag, and the generation is one more.
#[test]
fn all_programs_report_the_same_generation() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    assert_eq!(primary.told_number("owner", "generation"), 1);
    assert_eq!(backup.told_number("protected", "generation"), 1);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    backup.told("lan_attached");
    for nth in 1..=2 {
        let generation = nth as u64;
        let claim = stage.site.arbiter.wait_for_nth("claim", nth, PATIENCE).unwrap();
        assert_eq!(claim["generation"], generation, "{claim}");
        assert_eq!(claim["flag"], generation - 1, "{claim}");
        let attached = stage.site.lan.wait_for_nth("attached", nth, PATIENCE).unwrap();
        assert_eq!(attached["generation"], generation, "{attached}");
    }
}
