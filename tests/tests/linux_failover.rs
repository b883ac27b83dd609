//! Redis on a stock Debian Linux outlives one primary after the other, and no client sees more of it than a pause.

use tests::linux::{GREETING, LinuxGuest, REDIS_READY, REDIS_SERVICE, wait_for_console};
use tests::programs;
use tests::redis::RedisLoad;
use tests::stage::{Node, Stage};

/// A backup that has joined wherever the VM is.
#[track_caller]
fn joined_backup(stage: &Stage) -> Node {
    let mut backup = stage.node("ft-backup", &[]);
    backup.told("protected");
    backup
}

#[test]
fn redis_loses_nothing_that_it_acknowledged_by_the_loss_of_two_primaries_and_keeps_its_connection() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let stage = Stage::serving(programs!(), REDIS_SERVICE);
    // It boots in lockstep with its first backup.
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
        // A guest with a hundred megabytes in use is copied while it serves.
        backup = joined_backup(&stage);
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
