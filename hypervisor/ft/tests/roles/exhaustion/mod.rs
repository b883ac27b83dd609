//! A run of a few hundred entries in which the primary, then the backup, dies before and after
//! every append, send, receive, ack, release, claim and every other elementary operation of either.
//! It dies alone as a process, or with its host in the middle of a packet, or with its host and
//! everything in flight.
//!
//! ```text
//!   run      the script alone: joins, a lost LAN, a cut that the primary survives, one that the backup
//!            survives, the end. It numbers the points at which a side can die.
//!   for each point, victim and fate     the same run up to there, and on without the victim: the other
//!            side goes on, alone or by going live, a new backup joins, the guest ends.
//! ```
//! The invariants: each generation has one owner; no output leaves before the backup has its entry,
//! unless its sender is alone by a won claim; the LAN carries every packet once and in order; the
//! console shows each line, again only if a successor wasn't told that it had left; no packet to
//! the guest is lost or logged twice; every log continues the one that is known from outputs; and
//! the guest ends in a bounded number of rounds, unless its owner died without a successor. Each is
//! asserted where it could break, in the modules of this test.

mod backup;
mod cluster;
mod guest;
mod link;
mod outside;
mod points;
mod primary;

use cluster::{Cluster, Outcome};
use points::{Crash, Fate, Kind, Moment, Point, Side};
use std::collections::BTreeMap;

/// The variable that runs a single plan: `4711:primary:torn`, or several of these separated by
/// commas.
const CRASH_VARIABLE: &str = "ROLES_CRASH";

const SIDES: [Side; 2] = [Side::Primary, Side::Backup];
const FATES: [Fate; 3] = [Fate::Process, Fate::Torn, Fate::Host];

/// At one point in this many, a second death follows.
const DOUBLE_EVERY: usize = 23;

/// The distances of the second death, in points.
const DOUBLE_BEHIND: [usize; 4] = [1, 12, 60, 250];

/// The totals of all runs.
#[derive(Debug, Default)]
struct Figures {
    runs: u32,
    doubles: u32,
    gone: u32,
    packets_dropped: u32,
    packets_refused: u32,
    words_again: u32,
    generations_max: usize,
    of: BTreeMap<Kind, u32>,
}

impl Figures {
    /// Runs with these deaths.
    fn live(&mut self, points: &[Point], crashes: &[Crash]) {
        let told = Rerun { points, crashes };
        let mut cluster = Cluster::new(crashes);
        let outcome = cluster.run();
        drop(told);
        let outside = &cluster.outside;
        let is_double = crashes.len() > 1;
        // The first death may have made the second one's point impossible.
        assert!(is_double || outside.points.are_calm(), "{crashes:?} didn't happen");
        self.runs += 1;
        self.doubles += u32::from(is_double);
        self.gone += u32::from(outcome == Outcome::Gone);
        self.packets_dropped += outside.lan.dropped;
        self.packets_refused += outside.lan.refused;
        self.words_again += outside.words_again;
        self.generations_max = self.generations_max.max(outside.owners.len());
        *self.of.entry(points[crashes[0].at].kind).or_default() += 1;
    }
}

#[test]
fn either_side_dies_before_and_after_every_operation() {
    let mut undisturbed = Cluster::new(&[]);
    assert_eq!(undisturbed.run(), Outcome::Ended);
    let points = undisturbed.outside.points.passed.as_slice();
    if let Ok(plan) = std::env::var(CRASH_VARIABLE) {
        return Figures::default().live(points, &parse(&plan));
    }
    println!(
        "{} entries, {} points, {} times protected",
        undisturbed.log_entries,
        points.len(),
        undisturbed.protections
    );
    assert!(undisturbed.log_entries > 200 && undisturbed.protections == 3);
    for kind in Kind::ALL {
        let times = |moment| points.iter().filter(|point| point.kind == kind && point.moment == moment).count();
        assert!(times(Moment::Before) + times(Moment::After) > 0, "{kind:?} never happened");
    }
    let mut figures = Figures::default();
    for (at, point) in points.iter().enumerate() {
        for victim in SIDES.into_iter().filter(|side| point.has(*side)) {
            // The state after one operation is usually that before the next.
            let of_host = if point.moment == Moment::Before { Fate::Torn } else { Fate::Host };
            for fate in [Fate::Process, of_host] {
                figures.live(points, &[Crash { at, victim, fate }]);
            }
            if at % DOUBLE_EVERY == 0 {
                for (index, behind) in DOUBLE_BEHIND.into_iter().enumerate() {
                    let first = Crash { at, victim, fate: FATES[index % 3] };
                    for (victim, fate) in SIDES.into_iter().zip(FATES.into_iter().skip(index % 2)) {
                        figures.live(points, &[first, Crash { at: at + behind, victim, fate }]);
                    }
                }
            }
        }
    }
    println!("{figures:?}");
    let Figures { runs, doubles, gone, packets_dropped, packets_refused, words_again, generations_max, of } = figures;
    assert!(runs > 5_000 && doubles > 500, "{runs} runs, {doubles} of them with two deaths");
    assert_eq!(of.len(), Kind::ALL.len());
    assert!(gone > 0 && gone < runs / 3, "{gone} VMs of {runs} are gone");
    assert!(packets_dropped > 100 && packets_refused > 100 && words_again > 100 && generations_max > 4);
}

fn parse(plan: &str) -> Vec<Crash> {
    let crash = |text: &str| {
        let mut parts = text.split(':');
        let at = parts.next().unwrap().parse().unwrap();
        let victim = SIDES.into_iter().find(|side| Some(name(side).as_str()) == parts.clone().next()).unwrap();
        let fate = FATES.into_iter().find(|fate| Some(name(fate).as_str()) == parts.clone().nth(1)).unwrap();
        Crash { at, victim, fate }
    };
    plan.split(',').map(crash).collect()
}

fn name(word: &impl std::fmt::Debug) -> String {
    format!("{word:?}").to_lowercase()
}

/// Prints how to rerun a failing plan.
struct Rerun<'a> {
    points: &'a [Point],
    crashes: &'a [Crash],
}

impl Drop for Rerun<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let Crash { at, victim, fate } = self.crashes[0];
        let Point { kind, moment, .. } = self.points[at];
        eprintln!("point {at}, {moment:?} {kind:?}: the {victim:?} dies, fate {fate:?}; then {:?}", &self.crashes[1..]);
        let plan =
            self.crashes.iter().map(|crash| format!("{}:{}:{}", crash.at, name(&crash.victim), name(&crash.fate)));
        let plan = plan.collect::<Vec<_>>().join(",");
        eprintln!("rerun: {CRASH_VARIABLE}={plan} cargo test -p ft --test roles either_side_dies");
    }
}
