//! Log files: whole, cut, damaged, and not logs at all.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{Random, entries, header, log, seed};
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::file::{Ending, FLUSH_BYTES, LogFileError, LogReader, LogWriter, MAGIC, TornReason};
use logchannel::frame::{FRAME_HEADER_BYTES, FrameDecoder, FrameKind, append_frame};
use logchannel::session::ImageError;
use std::io::{self, Write};

const PREAMBLE_BYTES: usize = 12;

/// Everything up to the end or the first error.
fn read(bytes: &[u8]) -> (Vec<LogEntry>, Result<Ending, LogFileError>) {
    let mut reader = match LogReader::open(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut found = Vec::new();
    loop {
        assert_eq!(reader.next_seq(), LogSeq(found.len() as u64));
        match reader.next_entry() {
            Ok(Some(entry)) => found.push(entry),
            Ok(None) => return (found, Ok(reader.ending().unwrap().clone())),
            Err(error) => return (found, Err(error)),
        }
    }
}

/// Where each frame begins, and where the last ends.
fn frame_offsets(bytes: &[u8]) -> Vec<usize> {
    let mut decoder = FrameDecoder::new().starting_at(PREAMBLE_BYTES as u64);
    decoder.push(&bytes[PREAMBLE_BYTES..]);
    let mut offsets = vec![PREAMBLE_BYTES];
    while decoder.next_frame().unwrap().is_some() {
        offsets.push(usize::try_from(decoder.offset()).unwrap());
    }
    offsets
}

/// A log with the entries in frames of `group`, and where its frames begin.
fn log_in_groups(written: &[LogEntry], group: usize) -> (Vec<u8>, Vec<usize>) {
    let mut writer = LogWriter::create(Vec::new(), &header(b"image"), b"image").unwrap();
    for group in written.chunks(group) {
        for entry in group {
            writer.append(entry).unwrap();
        }
        writer.flush().unwrap();
    }
    let bytes = writer.finish().unwrap();
    let offsets = frame_offsets(&bytes);
    (bytes, offsets)
}

#[test]
fn a_whole_log_comes_back() {
    let written = entries(seed(11), 5000);
    let image: Vec<u8> = Random(12).bytes(300_000);
    let bytes = log(&image, &written);
    let reader = LogReader::open(&bytes[..]).unwrap();
    assert_eq!(reader.header(), &header(&image));
    assert_eq!(reader.image(), image);
    assert_eq!(reader.ending(), None, "not there yet");
    let (found, ending) = read(&bytes);
    assert_eq!(found, written);
    assert_eq!(ending.unwrap(), Ending::Finished);
}

#[test]
fn an_empty_log_is_a_log() {
    let (found, ending) = read(&log(b"", &[]));
    assert!(found.is_empty());
    assert_eq!(ending.unwrap(), Ending::Finished);
}

#[test]
fn entries_reach_the_output_every_few_kibibytes() {
    let mut writer = LogWriter::create(Vec::new(), &header(b""), b"").unwrap();
    let empty = writer.get_ref().len();
    for entry in entries(13, 1000) {
        writer.append(&entry).unwrap();
    }
    let (found, ending) = read(writer.get_ref());
    assert!(matches!(ending, Ok(Ending::Torn { bytes_dropped: 0, reason: TornReason::NoEndMark, .. })));
    assert!(found.len() > 900, "{} of 1000 entries", found.len());
    let offsets = frame_offsets(writer.get_ref());
    let frames = offsets.windows(2).filter(|pair| pair[0] >= empty).map(|pair| pair[1] - pair[0]);
    assert!(frames.into_iter().all(|bytes| (FLUSH_BYTES..FLUSH_BYTES + 2000).contains(&bytes)));
}

#[test]
fn a_log_cut_at_any_byte_reads_to_its_last_whole_frame() {
    let written = entries(14, 60);
    let (bytes, offsets) = log_in_groups(&written, 6);
    let first_entry = offsets[2];
    for cut in 0..bytes.len() {
        let (found, ending) = read(&bytes[..cut]);
        if cut < first_entry {
            let error = ending.unwrap_err();
            let expected = matches!(error, LogFileError::Truncated { offset, .. } if offset == cut as u64)
                || (cut == 0 && matches!(error, LogFileError::NotALog));
            assert!(expected, "cut at {cut}: {error}");
            continue;
        }
        let whole = offsets.iter().rposition(|&offset| offset <= cut).unwrap();
        assert_eq!(found, written[..written.len().min((whole - 2) * 6)], "cut at {cut}");
        let dropped = (cut - offsets[whole]) as u64;
        let reason = if dropped == 0 { TornReason::NoEndMark } else { TornReason::CutInFrame };
        let torn = Ending::Torn { offset: offsets[whole] as u64, bytes_dropped: dropped, reason };
        assert_eq!(ending.unwrap(), torn, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_in_the_last_frame_costs_that_frame_only() {
    let written = entries(15, 12);
    let (mut bytes, offsets) = log_in_groups(&written, 6);
    bytes.truncate(offsets[4]);
    for bit in offsets[3] * 8..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (found, ending) = read(&bytes);
        assert_eq!(found, written[..6], "bit {bit}");
        let dropped = (bytes.len() - offsets[3]) as u64;
        assert!(
            matches!(&ending, Ok(Ending::Torn { offset, bytes_dropped, .. })
                if *offset == offsets[3] as u64 && *bytes_dropped == dropped),
            "bit {bit}: {ending:?}"
        );
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_flipped_bit_before_whole_frames_is_corruption() {
    let written = entries(16, 18);
    let (mut bytes, offsets) = log_in_groups(&written, 6);
    for bit in offsets[3] * 8..offsets[4] * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (found, ending) = read(&bytes);
        assert_eq!(found, written[..6], "bit {bit}");
        let error = ending.unwrap_err();
        let expected = matches!(error, LogFileError::Corrupt { offset, before: LogSeq(6), whole_offset }
            if offset == offsets[3] as u64 && whole_offset == offsets[4] as u64);
        assert!(expected, "bit {bit}: {error}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_flipped_bit_before_the_entries_leaves_nothing_to_replay() {
    let (mut bytes, offsets) = log_in_groups(&entries(17, 3), 3);
    for bit in 0..offsets[2] * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (found, ending) = read(&bytes);
        assert!(found.is_empty(), "bit {bit}");
        assert!(ending.is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// What a file system may leave behind a file's last write when the host loses power.
#[test]
fn a_tail_of_zeros_is_torn() {
    let written = entries(18, 6);
    let (mut bytes, offsets) = log_in_groups(&written, 6);
    bytes.truncate(offsets[3]);
    bytes.resize(bytes.len() + 200_000, 0);
    let (found, ending) = read(&bytes);
    assert_eq!(found, written);
    let Ok(Ending::Torn { offset, bytes_dropped: 200_000, reason: TornReason::Damaged(_) }) = ending else {
        panic!("{ending:?}");
    };
    assert_eq!(offset, offsets[3] as u64);
}

#[test]
fn a_missing_or_repeated_frame_is_an_error_that_names_the_entries() {
    let written = entries(19, 18);
    let (bytes, offsets) = log_in_groups(&written, 6);
    let missing = [&bytes[..offsets[3]], &bytes[offsets[4]..]].concat();
    let (found, ending) = read(&missing);
    assert_eq!(found, written[..6]);
    assert!(ending.unwrap_err().to_string().contains("entries from 6 up to but not including 12 are missing"));
    let repeated = [&bytes[..offsets[3]], &bytes[offsets[2]..]].concat();
    let (found, ending) = read(&repeated);
    assert_eq!(found, written[..6]);
    assert!(ending.unwrap_err().to_string().contains("entry 0 came again"));
}

#[test]
fn the_end_mark_counts_and_ends() {
    let (bytes, offsets) = log_in_groups(&entries(20, 12), 6);
    let without_second = [&bytes[..offsets[3]], &bytes[offsets[4]..]].concat();
    let (_, ending) = read(&without_second);
    assert!(matches!(ending, Err(LogFileError::WrongEnd { counted: LogSeq(12), found: LogSeq(6) })));
    let longer = [&bytes[..], b"x"].concat();
    let (found, ending) = read(&longer);
    assert_eq!(found.len(), 12);
    assert!(matches!(ending, Err(LogFileError::TrailingBytes { offset }) if offset == bytes.len() as u64));
}

#[test]
fn what_is_no_log_is_refused_by_name() {
    for other in [&b"\x7fELF\x02\x01\x01 and so on"[..], b"FTLOG\0\n and so on", b"x", b""] {
        assert!(matches!(LogReader::open(other), Err(LogFileError::NotALog)), "{other:?}");
    }
    let mut newer = log(b"", &[]);
    newer[MAGIC.len()] = 2;
    let error = LogReader::open(&newer[..]).unwrap_err();
    assert!(matches!(error, LogFileError::Version { found: 2 }));
    assert!(error.to_string().contains("format version 2, this build reads 1"), "{error}");
}

#[test]
fn the_image_is_checked() {
    let image = b"the image";
    let bytes = log(image, &[]);
    let offsets = frame_offsets(&bytes);
    let mut other = bytes[..offsets[1]].to_vec();
    append_frame(FrameKind(2), b"thE image", &mut other);
    assert!(matches!(LogReader::open(&other[..]), Err(LogFileError::Image(ImageError::WrongDigest { .. }))));
    let mut longer = bytes[..offsets[1]].to_vec();
    append_frame(FrameKind(2), b"the image!", &mut longer);
    assert!(matches!(LogReader::open(&longer[..]), Err(LogFileError::Image(ImageError::TooLong { expected: 9 }))));
    let mut foreign = bytes[..offsets[1]].to_vec();
    append_frame(FrameKind(10), &[], &mut foreign);
    let error = LogReader::open(&foreign[..]).unwrap_err();
    assert!(matches!(error, LogFileError::UnexpectedFrame { part: "image", .. }), "{error}");
}

#[test]
fn garbage_behind_the_head_never_panics() {
    let mut random = Random(seed(21));
    let (bytes, offsets) = log_in_groups(&entries(22, 6), 6);
    for _ in 0..2000 {
        let length = random.below(400);
        let mut garbage = bytes[..offsets[2]].to_vec();
        let kind = [3, 12, 10][usize::try_from(random.below(3)).unwrap()];
        append_frame(FrameKind(kind), &random.bytes(length), &mut garbage);
        garbage.extend(random.bytes(length));
        let _ = read(&garbage);
    }
}

/// Takes `room` bytes and fails then, as a full disk does.
struct Full {
    bytes: Vec<u8>,
    room: usize,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        self.bytes.extend_from_slice(&bytes[..taken]);
        if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_written_behind_a_failed_write() {
    let written = entries(23, 400);
    let head = log(b"", &[]).len() - FRAME_HEADER_BYTES - 1;
    let output = &mut Full { bytes: Vec::new(), room: head + 10_000 };
    let mut writer = LogWriter::create(&mut *output, &header(b""), b"").unwrap();
    let failed = written.iter().position(|entry| writer.append(entry).is_err()).expect("the disk is full");
    for entry in &written[failed + 1..] {
        let _ = writer.append(entry);
    }
    assert!(writer.finish().is_err());
    output.room = 1 << 20;
    let (found, ending) = read(&output.bytes);
    assert!(!found.is_empty() && found.len() <= failed);
    assert_eq!(found, written[..found.len()]);
    assert!(matches!(ending, Ok(Ending::Torn { reason: TornReason::CutInFrame, .. })), "{ending:?}");
}
