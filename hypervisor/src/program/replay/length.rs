//! The length of logs in instructions, so that progress can be reported as a percentage.
//!
//! It is known only from the entries: counts are deltas, and a log that was cut off has no summary
//! at its end. Reading the entries takes a small part of the time of replaying them, and is done
//! meanwhile.

use logchannel::file::{LogFileError, LogHead, LogStart};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

/// The length of logs, as soon as it is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Length(Arc<OnceLock<u64>>);

impl Length {
    /// Measures `logs` on a thread of its own, which ends with the process. A pipe can be read only
    /// once, so logs of which one is no file have no length.
    pub(super) fn of(logs: Vec<PathBuf>) -> Self {
        let length = Self::default();
        let measured = length.clone();
        if logs.iter().all(|path| fs::metadata(path).is_ok_and(|metadata| metadata.is_file())) {
            let measure = move || measured.0.set(logs.iter().map(|path| instructions(path)).sum());
            // Without the thread, progress has no percentage.
            let _ = thread::Builder::new().name("length".into()).spawn(measure);
        }
        length
    }

    /// The length, if it is known yet.
    pub(super) fn steps(&self) -> Option<u64> {
        self.0.get().copied()
    }

    /// `done` instructions in percent of the length; `None` if it isn't known yet.
    pub(super) fn percent(&self, done: u64) -> Option<u64> {
        self.0.get().map(|&all| percent(done, all))
    }
}

fn percent(done: u64, all: u64) -> u64 {
    u128::from(done).saturating_mul(100).checked_div(u128::from(all)).map_or(100, |percent| percent.min(100) as u64)
}

/// The length of the log at `path`, as far as it can be read: replaying reports what is wrong with
/// it.
fn instructions(path: &Path) -> u64 {
    let mut span = Span::default();
    // What was found before an error counts.
    let _ = measure(path, &mut span);
    span.last.saturating_sub(span.first)
}

/// The counts of a log's first and last entries.
#[derive(Debug, Default)]
struct Span {
    first: u64,
    last: u64,
}

fn measure(path: &Path, span: &mut Span) -> Result<(), LogFileError> {
    let file = File::open(path).map_err(|source| LogFileError::Io { offset: 0, source })?;
    let mut log = LogHead::read(BufReader::new(file))?.into_entries()?;
    // A log from a reset on begins at 0, another at its first entry or a little before.
    let begins_at_reset = log.next_seq() == LogStart::Image(Vec::new()).first_seq();
    let mut is_first = !begins_at_reset;
    while let Some(entry) = log.next_entry()? {
        if is_first {
            span.first = entry.count.0;
            is_first = false;
        }
        span.last = entry.count.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Length, instructions, percent};
    use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
    use logchannel::file::{LogWriter, SnapshotWriter};
    use logchannel::session::{SessionHeader, VmId};
    use logchannel::snapshot::Snapshot;
    use std::fs;
    use std::thread;
    use std::time::Duration;
    use vm::{InstructionCount, MachineConfig, StateDigest};

    #[test]
    fn percent_is_of_instructions_and_never_beyond_the_whole() {
        assert_eq!([percent(0, 7), percent(1, 3), percent(7, 7), percent(9, 7)], [0, 33, 100, 100]);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(5, 0), 100, "nothing is left to do");
    }

    fn append(mut log: LogWriter<Vec<u8>>, counts: &[u64]) -> Vec<u8> {
        for count in counts {
            log.append(&LogEntry { count: InstructionCount(*count), body: EntryBody::Progress }).unwrap();
        }
        log.flush().unwrap();
        log.get_ref().clone()
    }

    /// Most of these logs is what comes before the entries, as in a recording of Linux. They have
    /// no end mark.
    #[test]
    fn the_length_is_that_of_the_entries_of_all_logs() {
        let image = vec![7; 1 << 20];
        let header =
            SessionHeader::new(VmId::new("vm0").unwrap(), Generation(0), MachineConfig::default(), "guest", &image);
        let header = header.unwrap();
        let at_reset = append(LogWriter::create(Vec::new(), &header, &image).unwrap(), &[100, 5_000]);
        let mut snapshot = SnapshotWriter::create(Vec::new(), &header).unwrap();
        snapshot.pages(0, &[1; 4096]).unwrap();
        let snapshot = snapshot.finish(&Snapshot { seq: LogSeq(2), digest: StateDigest(0), state: vec![1] }).unwrap();
        let later = append(snapshot, &[5_000, 15_000]);
        let directory = tempfile::tempdir().unwrap();
        let paths = ["1", "2", "3"].map(|name| directory.path().join(name));
        fs::write(&paths[0], &at_reset).unwrap();
        fs::write(&paths[1], &later).unwrap();
        fs::write(&paths[2], &at_reset[..at_reset.len() - 1]).unwrap();
        assert_eq!([0, 1, 2].map(|log| instructions(&paths[log])), [5_000, 10_000, 0], "the last has no whole frame");
        let length = Length::of(paths[..2].to_vec());
        while length.percent(0).is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!([0, 3_000, 15_000].map(|done| length.percent(done)), [Some(0), Some(20), Some(100)]);
    }

    #[test]
    fn what_is_no_file_has_no_length() {
        assert_eq!(Length::of(vec!["/dev/zero".into()]).percent(1), None);
    }
}
