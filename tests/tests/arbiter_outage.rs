//! The arbiter is away when it is needed: nobody goes on until it is back, and then exactly one does.

use tests::client::Load;
use tests::programs;
use tests::stage::{Node, Pair, Stage, wait_until};

/// Reports of unanswered claims after which a side has had every chance to go on by mistake. Outages are told ever more
/// rarely: the fifth report is of the sixteenth try.
const REPORTS: usize = 5;

/// A failure timeout long enough that a busy host causes no loss before the test does.
const ALERT: [&str; 2] = ["--failure-timeout-ms", "1000"];

/// Waits until `sides` have asked the arbiter in vain for a while. Nothing reaches the clients meanwhile.
#[track_caller]
fn nobody_goes_on(sides: &mut [&mut Node], load: &Load) {
    for side in &mut *sides {
        side.told("arbiter_unreachable");
    }
    let before = load.received();
    for side in sides {
        wait_until("unanswered claims", || side.count("arbiter_unreachable") >= REPORTS);
        assert!(!side.has_told("live") && !side.has_told("end"), "{:?}", side.reports().last());
        assert!(!side.owned().contains(&2));
    }
    assert_eq!(load.received(), before, "somebody answered without having won the flag");
}

#[test]
fn backup_of_a_killed_primary_waits_for_the_arbiter() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let load = Load::on(stage.site.service);
    stage.kill_arbiter();
    // As long as both live, nobody needs it.
    load.goes_on();
    primary.kill();
    nobody_goes_on(&mut [&mut backup], &load);
    stage.restart_arbiter();
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn primary_of_a_killed_backup_waits_for_the_arbiter() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let load = Load::on(stage.site.service);
    stage.kill_arbiter();
    backup.kill();
    nobody_goes_on(&mut [&mut primary], &load);
    stage.restart_arbiter();
    primary.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn sides_that_lose_each_other_both_wait_and_exactly_one_goes_on() {
    let mut stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&ALERT, &ALERT);
    let load = Load::on(stage.site.service);
    stage.kill_arbiter();
    link.silence();
    nobody_goes_on(&mut [&mut primary, &mut backup], &load);
    stage.restart_arbiter();
    wait_until("one side's end", || primary.has_told("end") || backup.has_told("end"));
    let (mut fenced, mut winner) = if primary.has_told("end") { (primary, backup) } else { (backup, primary) };
    assert_eq!(fenced.end().code, Some(3));
    assert!(!fenced.owned().contains(&2));
    winner.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}
