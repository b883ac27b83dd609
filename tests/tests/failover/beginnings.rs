//! The beginnings that tests of failovers share: a pair whose guest serves clients.

use tests::client::Load;
use tests::link::Link;
use tests::programs;
use tests::stage::{Pair, Stage};

/// For tests in which the link holds back reports of replay, or the backup is slow: lag control
/// must not slow the guest.
pub(crate) const UNBOUNDED_LAG: [&str; 2] = ["--lag-bound-ms", "60000"];

/// A protected echo guest, and clients that load it.
#[track_caller]
pub(crate) fn loaded_pair(primary: &[&str], backup: &[&str]) -> (Stage, Pair, Load) {
    let stage = Stage::new(programs!());
    let pair = stage.pair(primary, backup);
    let load = Load::on(stage.site.service);
    (stage, pair, load)
}

/// Like [`loaded_pair`], with a link between the two sides that the test controls.
#[track_caller]
pub(crate) fn loaded_linked_pair(primary: &[&str], backup: &[&str]) -> (Stage, Pair, Link, Load) {
    let stage = Stage::new(programs!());
    let (pair, link) = stage.linked_pair(primary, backup);
    let load = Load::on(stage.site.service);
    (stage, pair, link, load)
}
