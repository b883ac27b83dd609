//! Logs that are cut or damaged.

use super::found::{index, open, resume, vm_of_many_segments};
use super::vm::{Vm, limits};
use hypervisor::node::log::{LogDirectoryError, segments};
use logchannel::entry::LogSeq;
use logchannel::file::{Ending, LogReader};
use std::fs;
use std::time::Duration;
use tempfile::TempDir;

#[test]
fn a_log_cut_at_any_byte_goes_on_from_its_last_whole_entry() {
    let directory = TempDir::new().unwrap();
    let vm = vm_of_many_segments(directory.path());
    let states = vm.states();
    let kept = segments(directory.path()).unwrap();
    let newest = &kept[1];
    let bytes = fs::read(newest).unwrap();
    let head = {
        let mut log = LogReader::open(&bytes[..]).unwrap();
        log.next_entry().unwrap();
        usize::try_from(log.frame_offset()).unwrap()
    };
    let first = LogReader::open(&bytes[..]).unwrap().next_seq();
    let in_snapshot = (0..head).step_by(head / 40).chain([head - 1]);
    let step = 1 + (bytes.len() - head) / 1000;
    let mut before = LogSeq(0);
    let mut places = 0;
    for cut in in_snapshot.chain((head..bytes.len()).step_by(step)) {
        fs::write(newest, &bytes[..cut]).unwrap();
        let mut resumed = resume(directory.path());
        let expected = match resumed.entries_replayed {
            0 => vm.state_at(resumed.next_seq, &resumed.machine),
            _ => states[index(resumed.next_seq)],
        };
        assert_eq!(resumed.machine.digest(), expected, "cut at {cut}");
        assert!(resumed.next_seq >= before, "cut at {cut}");
        places += usize::from(resumed.next_seq > before);
        before = resumed.next_seq;
        if cut < head {
            assert_eq!(resumed.skipped.len(), 1, "cut at {cut}");
            assert_eq!((&resumed.skipped[0].0, &resumed.segment), (newest, &kept[0]));
            assert_eq!(resumed.next_seq, first, "the segment before ends where the newest begins");
            assert_eq!(resumed.ending, Ending::Finished);
        } else {
            assert!(resumed.skipped.is_empty());
            assert!(
                matches!(resumed.ending, Ending::Torn { .. } | Ending::Unfinished { .. }),
                "cut at {cut}: {:?}",
                resumed.ending
            );
        }
    }
    assert!(places > 3, "{places} places in {} bytes", bytes.len() - head);
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_segment_before() {
    let directory = TempDir::new().unwrap();
    vm_of_many_segments(directory.path());
    let kept = segments(directory.path()).unwrap();
    let mut bytes = fs::read(&kept[1]).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&kept[1], &bytes).unwrap();
    let resumed = resume(directory.path());
    assert_eq!(resumed.segment, kept[0]);
    assert!(resumed.skipped[0].1.to_string().contains("snapshot is damaged"), "{}", resumed.skipped[0].1);
    fs::write(&kept[0], b"").unwrap();
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(&error, LogDirectoryError::NoSegment { skipped, .. } if skipped.len() == 2), "{error}");
    assert!(error.to_string().contains("nothing to resume"), "{error}");
}

/// The storage has damaged it, not a writer that was killed: resuming from before the damage would
/// discard the rest unnoticed.
#[test]
fn a_log_that_is_damaged_before_its_end_is_not_resumed() {
    let directory = TempDir::new().unwrap();
    let mut vm = Vm::logged(open(directory.path()), 1, limits(u64::MAX));
    for _ in 0..20 {
        vm.run(20);
        std::thread::sleep(Duration::from_millis(2));
    }
    vm.finish().unwrap();
    let segment = segments(directory.path()).unwrap().remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    let mut log = LogReader::open(&bytes[..]).unwrap();
    log.next_entry().unwrap();
    let at = usize::try_from(log.frame_offset()).unwrap() + 20;
    bytes[at] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    let error = open(directory.path()).survey().unwrap_err();
    assert!(matches!(error, LogDirectoryError::Log { .. }), "{error}");
    assert!(error.to_string().contains("corrupt at byte"), "{error}");
}
