//! Rejoining: a new backup joins a running guest, at any time and any number of times.

use crate::beginnings::loaded_pair;
use std::thread;
use std::time::Duration;
use tests::client::Load;
use tests::programs;
use tests::stage::{Ended, Node, Pair, Stage, wait_until};

#[test]
fn a_backup_joins_a_guest_that_ran_unprotected_and_outlives_its_primary() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &["--unprotected", "--digest-steps", "200000"]);
    primary.told("console");
    let load = Load::on(stage.site.service);
    let mut backup = stage.joined_backup();
    primary.told("protected");
    load.goes_on();
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    assert!(backup.told_number("live", "digests_checked") > 0, "lockstep was checked");
    load.goes_on();
    load.lost_nothing();
    // The guest prints its greeting when it boots, which it does once.
    let greeting = primary.console().lines().next().unwrap().to_owned();
    assert!(!backup.console().contains(&greeting), "{greeting:?} came out twice");
}

#[test]
fn any_number_of_losses_of_either_side_is_survived() {
    let (stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    for (generation, lose_primary) in (2..).zip([true, false, true, true, false, false, true]) {
        if lose_primary {
            primary.kill();
            assert_eq!(backup.told_number("live", "generation"), generation);
            primary = backup;
        } else {
            backup.kill();
            primary.comes_to_own(generation);
        }
        load.goes_on();
        backup = stage.joined_backup();
        load.goes_on();
    }
    load.lost_nothing();
    assert!(!backup.has_told("diverged"));
    primary.assert_no_panic();
}

#[test]
fn a_backup_that_dies_while_it_joins_costs_the_guest_nothing() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &["--unprotected", "--memory", "256"]);
    primary.told("console");
    let load = Load::on(stage.site.service);
    let mut unprotected = 0;
    for delay_ms in [0, 1, 2, 3, 4, 6, 8, 10, 15, 20] {
        let before = primary.owned().last().copied();
        let mut backup = stage.node("ft-backup", &[]);
        backup.told("primary_connected");
        thread::sleep(Duration::from_millis(delay_ms));
        backup.kill();
        // The backup was lost while it joined, or it had joined and the primary had to claim.
        if !backup.has_told("protected") {
            unprotected += 1;
        }
        wait_until("the loss", || primary.count("backup_lost") == primary.count("backup_connected"));
        load.goes_on();
        let now = primary.owned().last().copied();
        assert!(now == before || primary.count("protected") > 0, "a claim without a pair: {before:?} then {now:?}");
    }
    assert!(unprotected > 0, "no backup was killed while it joined");
    drop(stage.joined_backup());
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn a_backup_whose_primary_dies_while_it_joins_never_goes_live() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &["--unprotected"]);
    primary.told("console");
    // No message after the session header arrives, so the backup can't have been told that it
    // protects the VM.
    let link = tests::link::Link::to(primary.told_text("listening", "channel").parse().unwrap());
    link.hold(tests::link::Direction::ToBackup);
    let mut backup = stage.node("ft-backup", &["--primary", &link.address().to_string()]);
    primary.told("backup_connected");
    primary.kill();
    link.cut();
    let Ended { code, reason } = backup.end();
    assert_eq!(code, Some(5), "{reason}");
    assert!(!backup.has_told("live"));
}

#[test]
fn a_spare_with_keep_becomes_the_backup_after_each_loss() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &[]);
    let mut kept: Vec<Node> = (0..3).map(|_| stage.node("ft-backup", &["--keep"])).collect();
    primary.told("console");
    let load = Load::on(stage.site.service);
    primary.kill();
    for generation in [2, 3] {
        let live = |node: &mut Node| node.owned().last() == Some(&generation);
        wait_until("a spare that goes live", || kept.iter_mut().any(live));
        let index = kept.iter_mut().position(live).unwrap();
        load.goes_on();
        if generation == 2 {
            wait_until("a spare that joins", || kept[index].count("protected") == 2);
            kept.remove(index).kill();
        }
    }
    load.lost_nothing();
}

#[test]
fn a_backup_with_keep_ends_by_ctrl_c_only() {
    let stage = Stage::new(programs!());
    let mut backup = stage.node("ft-backup", &["--keep"]);
    for _ in 0..2 {
        let mut primary = stage.node("ft-primary", &["--guest", "hello"]);
        let Ended { code, reason } = primary.end();
        assert_eq!(code, Some(0), "{reason}");
    }
    wait_until("two ends", || backup.count("end") == 2);
    wait_until("the wait for a third", || backup.count("waiting") >= 1 || backup.count("primary_connected") > 2);
    assert_eq!(backup.interrupt().code, Some(130));
}

#[test]
fn a_backup_with_another_arbiter_is_refused_before_it_is_protected() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &[]);
    let channel = primary.told_text("listening", "channel");
    let elsewhere = tempfile::tempdir().unwrap();
    let arbiter = format!("file:{}", elsewhere.path().display());
    let mut stray =
        stage.program("ft-backup", &["--primary", &channel, "--arbiter", &arbiter, "--listen", "127.0.0.1:0"]);
    let Ended { code, reason } = stray.end();
    assert_eq!(code, Some(1), "{reason}");
    assert!(reason.contains("same --arbiter"), "{reason}");
    drop(stage.joined_backup());
}
