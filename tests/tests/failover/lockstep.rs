//! Virtual lockstep: both sides' states are equal at every digest, and a backup whose state differs
//! is detected and never goes live.

use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use tests::client::Load;
use tests::programs;
use tests::stage::{Ended, Pair, Stage};
use vm::InstructionCount;

fn is_digest(entry: &LogEntry) -> bool {
    matches!(entry.body, EntryBody::Digest(_) | EntryBody::PartDigest { .. })
}

#[test]
fn state_is_equal_at_every_digest_while_clients_hammer_the_guest() {
    let stage = Stage::new(programs!());
    let options = ["--digest-steps", "200000"];
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&options, &[]);
    let load = Load::on(stage.site.service);
    load.goes_on();
    load.goes_on();
    primary.kill();
    let checked = backup.told_number("live", "digests_checked");
    load.goes_on();
    load.lost_nothing();
    assert!(!backup.has_told("diverged"));
    let logged = link.entries().iter().filter(|entry| is_digest(entry)).count() as u64;
    assert_eq!(checked, logged, "digests compared, and digests in the log");
    assert!(checked >= 50, "{checked} digests say little");
    println!("{checked} state digests were equal over {} entries", link.entries().len());
}

#[test]
fn flipped_bit_on_the_backup_is_found_at_the_next_digest_and_never_goes_live() {
    const FLIP_AT: u64 = 10_000_000;
    let stage = Stage::new(programs!());
    // Near the end of the guest's 64 MiB, which the guest doesn't write.
    let flip = format!("{FLIP_AT}:0x83000010:3");
    let options = ["--digest-steps", "1000000"];
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&options, &["--inject-bit-flip", &flip]);
    let load = Load::on(stage.site.service);
    let reason = backup.told_text("diverged", "reason");
    let Ended { code, reason: end } = backup.end();
    assert_eq!(code, Some(4), "{end}");
    assert!(!backup.has_told("live"));

    // The first digest from the flip on detects it, and the report says where that is.
    let (flipped, _) = link.wait_for_entry(LogSeq(0), |entry| entry.count >= InstructionCount(FLIP_AT));
    let (seq, digest) = link.wait_for_entry(flipped, is_digest);
    let place = format!("divergence at instruction {}, entry {seq}: state digest is ", digest.count);
    assert!(reason.starts_with(&place), "{reason:?} doesn't say {place:?}");
    let interval = digest.count.since(InstructionCount(FLIP_AT));
    assert!(interval <= 1_100_000, "found {interval} steps after the flip");

    // The primary goes on alone.
    primary.comes_to_own(2);
    let lost = primary.told_text("backup_lost", "reason");
    assert!(lost.contains("divergence"), "{lost}");
    load.goes_on();
    load.lost_nothing();
}
