//! A stock Debian Linux with redis survives the loss of one primary after the other; its clients
//! see a pause only.

use tests::linux::{GREETING, LinuxGuest, PATIENCE, REDIS_READY, REDIS_SERVICE, wait_for_console};
use tests::programs;
use tests::redis::RedisLoad;
use tests::stage::Stage;

#[test]
fn redis_loses_nothing_that_it_acknowledged_by_the_loss_of_two_primaries_and_keeps_its_connection() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let stage = Stage::serving(programs!(), REDIS_SERVICE);
    // It boots with a backup from the beginning.
    let mut primary = stage.node("ft-primary", &guest.options(&[]));
    let channel = primary.told_text("listening", "channel");
    let mut backup = stage.node("ft-backup", &["--primary", &channel]);
    backup.told("protected");
    wait_for_console(&mut primary, REDIS_READY);
    assert_eq!(primary.console().matches(GREETING).count(), 1);

    let load = RedisLoad::on(stage.site.service);
    for generation in [2, 3] {
        primary.kill();
        assert_eq!(backup.told_number("live", "generation"), generation);
        assert!(backup.told_number("live", "digests_checked") > 0, "lockstep was checked");
        load.goes_on();
        primary = backup;
        assert!(!primary.console().contains(GREETING), "it goes on, and doesn't boot again");
        // A guest that uses about 100 MB is copied while it serves.
        backup = stage.joined_backup();
        load.goes_on();
    }
    let acknowledged = load.lost_nothing();
    assert!(acknowledged >= 5 * RedisLoad::REPLIES, "{acknowledged}");
    for node in [&mut primary, &mut backup] {
        assert!(!node.has_told("diverged"));
        node.assert_no_panic();
    }
    println!("{acknowledged} commands acknowledged");
}

/// Console output of a boot, in this order: early, with traps and page tables just set up; amid the
/// drivers; at the end of the kernel's start; from the first program.
const MILESTONES: [&str; 4] = ["Linux version", "SBI TIME extension", "Trying to unpack rootfs", "Run /init"];

#[test]
fn linux_loses_its_primary_again_and_again_while_it_boots_and_boots_once() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let stage = Stage::serving(programs!(), REDIS_SERVICE);
    let mut primary = stage.node("ft-primary", &guest.plain_options());
    let channel = primary.told_text("listening", "channel");
    let mut backup = stage.node("ft-backup", &["--primary", &channel]);
    backup.told("protected");
    let mut before = String::new();
    for milestone in MILESTONES {
        // On a host that is slow to start backups the guest may have booted further.
        if !before.contains(milestone) {
            wait_for_console(&mut primary, milestone);
        }
        primary.kill();
        before += &primary.console();
        backup.told("live");
        primary = backup;
        backup = stage.joined_backup();
    }
    wait_for_console(&mut primary, REDIS_READY);
    // A line may be printed on both sides of a failover, but not of all four.
    let console = primary.console();
    assert!(!console.contains(MILESTONES[0]), "it went on, and didn't boot again: {console}");
    assert!((before + &console).contains(GREETING), "{console}");
    let load = RedisLoad::on(stage.site.service);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2 + MILESTONES.len() as u64);
    assert!(backup.told_number("live", "digests_checked") > 0, "lockstep was checked");
    load.goes_on();
    load.lost_nothing();
    backup.assert_no_panic();
}

#[test]
fn redis_goes_on_from_the_log_on_disk_after_the_death_of_both_sides() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let stage = Stage::serving(programs!(), REDIS_SERVICE);
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().to_str().unwrap();
    let mut primary = stage.node("ft-primary", &guest.options(&["--log", log]));
    let channel = primary.told_text("listening", "channel");
    let mut backup = stage.node("ft-backup", &["--primary", &channel]);
    backup.told("protected");
    wait_for_console(&mut primary, REDIS_READY);
    let load = RedisLoad::on(stage.site.service);

    // The primary is killed before it can go on alone.
    backup.kill();
    primary.kill();
    let mut again = stage.node("ft-primary", &["--resume", log]);
    // The log is replayed from its last snapshot on, which may be the boot.
    again.wait_for("resumed", PATIENCE).unwrap();
    load.goes_on();
    let mut backup = stage.joined_backup();
    again.kill();
    backup.told("live");
    load.goes_on();
    load.lost_nothing();
}
