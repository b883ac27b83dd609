//! Loss of the backup: the primary claims the pair's flag and goes on alone.

use crate::beginnings::loaded_pair;
use tests::stage::{Ended, Pair};

#[test]
fn primary_whose_backup_is_killed_goes_on_alone_as_the_next_generation() {
    let (_stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    backup.kill();
    primary.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
    assert_eq!(primary.owned(), [1, 2]);
    assert_eq!(primary.count("backup_lost"), 1);
    // It owns the VM, so it may end it.
    let Ended { code, reason } = primary.interrupt();
    assert_eq!(code, Some(0), "{reason}");
    assert!(reason.contains("can be started again"), "{reason}");
    assert_eq!(primary.told("figures")["frames_without_lan"], 0);
}

#[test]
fn backup_that_is_interrupted_costs_the_guest_nothing() {
    let (_stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    // A backup has no VM to end: its exit code is that of SIGINT.
    assert_eq!(backup.interrupt().code, Some(130));
    primary.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
    assert_eq!(primary.owned(), [1, 2]);
}
