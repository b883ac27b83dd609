//! An index is believed only as far as it is proved: stale, foreign, torn and damaged ones lead to
//! no wrong machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::moments::{Recorded, Unwatched, index};
use hypervisor::recording::index::{Index, IndexError, IndexLimits, build};
use hypervisor::recording::{Recording, Seeker, Target};
use logchannel::frame::FRAME_HEADER_BYTES;
use std::fs;
use tests::random::{Random, seed};
use vm::{InstructionCount, StateDigest};

const PAGES_KIND: u8 = 113;

/// Where the frames of an index are, and whether each has pages.
fn frames(bytes: &[u8]) -> Vec<(std::ops::Range<usize>, bool)> {
    let mut frames = Vec::new();
    let mut at = 12;
    while at < bytes.len() {
        let length = usize::try_from(u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())).unwrap();
        let end = at + FRAME_HEADER_BYTES + length;
        frames.push((at..end, bytes[at + 8] == PAGES_KIND));
        at = end;
    }
    frames
}

/// The states at the moments of an index's snapshots, and at the end, by a replay without index.
fn expected(recorded: &Recorded, recording: &Recording) -> Vec<(Target, StateDigest)> {
    let index = Index::open(&recording.parts()[0]).unwrap();
    let plain = |target| {
        let mut replay = Seeker::new(recording).seek(target, &Unwatched).unwrap();
        replay.machine_mut().digest()
    };
    let counts = index.records().iter().map(|record| Target::Count(record.count));
    let targets: Vec<Target> = counts.chain([Target::Count(InstructionCount(recorded.last_count()))]).collect();
    fs::rename(index.path(), recorded.path().with_extension("aside")).unwrap();
    let expected = targets.iter().map(|target| (*target, plain(*target))).collect();
    fs::rename(recorded.path().with_extension("aside"), index.path()).unwrap();
    expected
}

#[track_caller]
fn check(recording: &Recording, expected: &[(Target, StateDigest)], what: &str) -> Vec<String> {
    let seeker = Seeker::new(recording);
    for (target, digest) in expected {
        let mut replay = seeker.seek(*target, &Unwatched).unwrap_or_else(|error| panic!("{what}, {target}: {error}"));
        assert_eq!(replay.machine_mut().digest(), *digest, "{what}: {target}");
    }
    seeker.take_complaints()
}

#[test]
fn an_index_cut_at_any_byte_is_good_up_to_its_last_whole_snapshot() {
    let recorded = Recorded::of("hello", seed(), 1_000_000);
    let recording = recorded.open();
    let made = index(&recording, 5_000);
    assert!(made.snapshots >= 2, "{made:?}");
    let path = recording.parts()[0].index_path();
    let expected = expected(&recorded, &recording);
    let whole = fs::read(path).unwrap();
    let frames = frames(&whole);
    let mut lengths = Vec::new();
    for (range, has_pages) in &frames {
        let cuts = range.clone().step_by(if *has_pages { 1021 } else { 1 });
        for cut in cuts.chain([0, 1, 11, 12]) {
            fs::write(path, &whole[..cut]).unwrap();
            let snapshots = match Index::open(&recording.parts()[0]) {
                Ok(index) => {
                    assert!(index.damage().is_none(), "cut at {cut}: {:?}", index.damage());
                    index.records().len()
                }
                Err(IndexError::NotOurs { .. }) => 0,
                Err(error) => panic!("cut at {cut}: {error}"),
            };
            lengths.push(snapshots);
        }
        check(&recording, &expected, "cut");
    }
    assert!((0..made.snapshots).all(|length| lengths.contains(&length)), "{lengths:?}");
    // The next one goes on from there, and comes to the same.
    fs::write(path, &whole[..whole.len() - 1]).unwrap();
    let again = index(&recording, 5_000);
    assert_eq!((again.snapshots, again.found), (made.snapshots, made.snapshots - 1));
    assert!(check(&recording, &expected, "completed").is_empty());
    assert_eq!(fs::read(path).unwrap().len(), whole.len(), "no page is stored twice");
}

#[test]
fn a_flipped_bit_of_an_index_makes_no_machine_that_never_was() {
    let mut random = Random::new(seed());
    let recorded = Recorded::of("hello", 1, 1_000_000);
    let recording = recorded.open();
    index(&recording, 5_000);
    let path = recording.parts()[0].index_path();
    let expected = expected(&recorded, &recording);
    let whole = fs::read(path).unwrap();
    let (mut told, mut flips) = (0, 0);
    for (range, has_pages) in frames(&whole) {
        for byte in range.clone().step_by(if has_pages { 2039 } else { 7 }).chain(range.start..range.start + 9) {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << random.below(8);
            fs::write(path, flipped).unwrap();
            let complaints = check(&recording, &expected, &format!("byte {byte}"));
            flips += 1;
            told += usize::from(complaints.iter().any(|complaint| complaint.contains("ftindex")));
        }
    }
    // But the checksum of a frame of pages is not looked at: the machine's digest covers them.
    assert!(flips > 100 && told * 10 > flips * 8, "{told} of {flips} were told");
}

#[test]
fn an_index_of_another_log_is_refused_by_name() {
    let recorded = Recorded::of("hello", 1, 1_000_000);
    let recording = recorded.open();
    index(&recording, 5_000);
    let path = recording.parts()[0].index_path().to_owned();
    let expected = expected(&recorded, &recording);
    // The same guest and the same header, recorded again: only its entries tell it apart.
    let again = Recorded::of("hello", 2, 1_000_000);
    fs::copy(again.path(), recorded.path()).unwrap();
    let other = recorded.open();
    let seeker = Seeker::new(&other);
    let mut end = seeker.seek(Target::End, &Unwatched).unwrap();
    assert_eq!(end.machine_mut().digest(), again.digest_at(again.last_count(), again.scripted.entries.len()));
    let complaints = seeker.take_complaints();
    assert!(complaints.iter().any(|complaint| complaint.contains("is another one")), "{complaints:?}");
    // Another guest: the header tells it.
    let guest = Recorded::of("counter", 1, 200_000);
    fs::copy(guest.path(), recorded.path()).unwrap();
    let other = recorded.open();
    let complaints = Seeker::new(&other).take_complaints();
    assert!(complaints.iter().any(|complaint| complaint.contains("is of another log")), "{complaints:?}");
    let limits = IndexLimits { spacing: 10_000, bytes_max: 1 << 30, rebuild: false };
    let refused = build(&other.parts()[0], limits, &Unwatched).unwrap_err().to_string();
    assert!(refused.contains("of another log") && refused.contains("--rebuild"), "{refused}");
    build(&other.parts()[0], IndexLimits { rebuild: true, ..limits }, &Unwatched).unwrap();
    assert!(Seeker::new(&other).take_complaints().is_empty());
    drop((expected, path));
}

#[test]
fn an_index_stays_within_its_size_and_its_snapshots_stay_even() {
    let recorded = Recorded::of("suite", seed(), 4_000_000);
    let recording = recorded.open();
    let path = recording.parts()[0].index_path();
    let all = index(&recording, 20_000);
    let expected = expected(&recorded, &recording);
    let full = fs::metadata(path).unwrap().len();
    let bytes_max = full / 2;
    let limits = IndexLimits { spacing: 20_000, bytes_max, rebuild: true };
    let made = build(&recording.parts()[0], limits, &Unwatched).unwrap();
    let bytes = fs::metadata(path).unwrap().len();
    assert!(bytes <= bytes_max, "{bytes} of {bytes_max}");
    assert_eq!(made.bytes, bytes);
    assert!(made.snapshots > 1 && made.snapshots < all.snapshots && made.spacing > 20_000, "{made:?} {all:?}");
    assert!(check(&recording, &expected, "thinned").is_empty());
    assert_eq!(fs::read_dir(recorded.directory.path()).unwrap().count(), 2, "nothing is left beside it");
    // No room for one snapshot: the log is looked into without.
    let limits = IndexLimits { bytes_max: 1000, ..limits };
    let made = build(&recording.parts()[0], limits, &Unwatched).unwrap();
    assert!(made.is_full && made.snapshots == 0, "{made:?}");
    assert!(check(&recording, &expected[expected.len() - 1..], "without a snapshot").is_empty());
}

#[test]
fn an_index_goes_on_when_its_log_has_grown() {
    let recorded = Recorded::of("echo", seed(), 2_000_000);
    let whole = fs::read(recorded.path()).unwrap();
    fs::write(recorded.path(), &whole[..whole.len() - whole.len() / 8]).unwrap();
    let first = index(&recorded.open(), 200_000);
    fs::write(recorded.path(), &whole).unwrap();
    let recording = recorded.open();
    let second = index(&recording, 200_000);
    assert!(second.found == first.snapshots && second.snapshots > first.snapshots, "{first:?} {second:?}");
    let expected = expected(&recorded, &recording);
    assert!(check(&recording, &expected, "grown").is_empty());
    let third = index(&recording, 200_000);
    assert_eq!(third.snapshots, second.snapshots, "nothing is left to do");
}
