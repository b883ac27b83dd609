//! A cut link between two live sides: exactly one goes on, and the other releases nothing any more.

use crate::beginnings::loaded_linked_pair;
use tests::client::Load;
use tests::link::{Direction, Link};
use tests::programs;
use tests::stage::{Node, Pair, Stage, wait_until};

/// Failure timeouts in milliseconds: long enough that a busy host causes no failover, and far
/// enough apart that one side notices the cut first.
const ALERT_MS: &str = "1000";
const PATIENT_MS: &str = "4000";

#[track_caller]
fn assert_fenced_primary_kept_silent(primary: &mut Node, link: &Link) {
    primary.ends_fenced();
    assert_eq!(primary.owned(), [1]);
    let figures = primary.told("figures");
    let allowed = link.outputs_covered(&link.passed(Direction::ToPrimary)) as u64;
    // An acknowledgement that just passed the link may be lost in the primary's socket.
    let left = figures["hold_time"]["samples"].as_u64().unwrap_or(0);
    assert!((1..=allowed).contains(&left), "{left} outputs left, {allowed} might have");
    assert!(figures["frames"].as_u64() <= Some(allowed), "{figures}");
}

#[track_caller]
fn assert_fenced_backup_kept_silent(backup: &mut Node) {
    backup.ends_fenced();
    backup.has_put_nothing_out();
}

#[test]
fn silent_cut_that_the_backup_notices_first_fences_the_primary() {
    let stage = Stage::new(programs!());
    let patient = ["--failure-timeout-ms", PATIENT_MS];
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&patient, &["--failure-timeout-ms", ALERT_MS]);
    let load = Load::on(stage.site.service);
    link.silence();
    assert_eq!(backup.told_number("live", "generation"), 2);
    // The old primary doesn't know yet and runs on, but its outputs are held.
    load.goes_on();
    assert_fenced_primary_kept_silent(&mut primary, &link);
    load.goes_on();
    load.lost_nothing();
    assert_eq!(backup.owned(), [2]);
}

#[test]
fn silent_cut_that_the_primary_notices_first_fences_the_backup() {
    let stage = Stage::new(programs!());
    let patient = ["--failure-timeout-ms", PATIENT_MS];
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&["--failure-timeout-ms", ALERT_MS], &patient);
    let load = Load::on(stage.site.service);
    link.silence();
    primary.comes_to_own(2);
    load.goes_on();
    assert_fenced_backup_kept_silent(&mut backup);
    load.goes_on();
    load.lost_nothing();
    assert_eq!(primary.owned(), [1, 2]);
}

/// Both sides lose each other at about the same time; the arbiter decides which of them goes on.
#[track_caller]
fn exactly_one_goes_on(separate: impl Fn(&Link)) {
    let (_stage, Pair { mut primary, mut backup }, link, load) =
        loaded_linked_pair(&["--failure-timeout-ms", ALERT_MS], &["--failure-timeout-ms", ALERT_MS]);
    separate(&link);
    wait_until("one side's end", || primary.has_told("end") || backup.has_told("end"));
    if primary.has_told("end") {
        assert_fenced_primary_kept_silent(&mut primary, &link);
        assert_eq!(backup.told_number("live", "generation"), 2);
    } else {
        assert_fenced_backup_kept_silent(&mut backup);
        primary.comes_to_own(2);
    }
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn a_silent_cut_leaves_exactly_one_live_side() {
    exactly_one_goes_on(Link::silence);
}

#[test]
fn a_closed_connection_leaves_exactly_one_live_side() {
    exactly_one_goes_on(Link::cut);
}
