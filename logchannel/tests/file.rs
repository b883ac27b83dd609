//! Log files: whole, cut, damaged, and not logs at all.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{Parts, Random, entries, header, log, log_from_snapshot, parts, seed};
use logchannel::codec::CodecError;
use logchannel::entry::{LogEntry, LogSeq};
use logchannel::file::{
    Ending, FLUSH_BYTES, LogCursor, LogFileError, LogHead, LogReader, LogStart, LogWriter, MAGIC, TornReason,
    UNSENT_BYTES_MAX, UNSENT_OUTPUT_BYTES,
};
use logchannel::frame::{FRAME_HEADER_BYTES, FrameDecoder, FrameKind, append_frame};
use logchannel::message::Message;
use logchannel::session::{FORMAT_VERSION, ImageError};
use logchannel::snapshot::{Pages, UnsentOutput};
use std::io::{self, Write};

const PREAMBLE_BYTES: usize = 12;

/// Everything up to the end or the first error.
fn read(bytes: &[u8]) -> (Vec<LogEntry>, Result<Ending, LogFileError>) {
    let mut reader = match LogReader::open(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let first = reader.next_seq().0;
    let mut found = Vec::new();
    loop {
        assert_eq!(reader.next_seq(), LogSeq(first + found.len() as u64));
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
    let mut head = LogHead::read(&bytes[..]).unwrap();
    assert_eq!(head.header(), &header(&image));
    assert!(head.next_pages().unwrap().is_none());
    let (start, reader) = head.into_log().unwrap();
    assert_eq!(start, LogStart::Image(image));
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
    assert!(matches!(ending, Ok(Ending::Unfinished { .. })));
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
        let offset = offsets[whole] as u64;
        let expected = match dropped {
            0 => Ending::Unfinished { offset },
            bytes_dropped => Ending::Torn { offset, bytes_dropped, reason: TornReason::CutInFrame },
        };
        assert_eq!(ending.unwrap(), expected, "cut at {cut}");
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
    newer[MAGIC.len()] = 5;
    let error = LogReader::open(&newer[..]).unwrap_err();
    assert!(matches!(error, LogFileError::Version { found: 5 }));
    assert!(error.to_string().contains("format version 5, this build reads up to 4"), "{error}");
    newer[MAGIC.len()] = 1;
    let error = LogReader::open(&newer[..]).unwrap_err();
    assert!(matches!(error, LogFileError::Header(CodecError::Invalid { what: "format version", .. })), "{error}");
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

/// All that a log has before its first entry.
fn read_start(bytes: &[u8]) -> Result<(Vec<Pages>, LogStart), LogFileError> {
    let mut head = LogHead::read(bytes)?;
    let mut pages = Vec::new();
    while let Some(piece) = head.next_pages()? {
        pages.push(piece);
    }
    let (start, _) = head.into_log()?;
    Ok((pages, start))
}

#[test]
fn a_log_may_begin_with_a_snapshot() {
    let parts = parts(24, LogSeq(1_000_000));
    let written = entries(seed(25), 2000);
    let bytes = log_from_snapshot(&parts, &written);
    let (pages, start) = read_start(&bytes).unwrap();
    assert_eq!(pages, parts.pages);
    assert_eq!(start.first_seq(), LogSeq(1_000_000));
    assert_eq!(start, LogStart::Snapshot { snapshot: parts.snapshot, unsent: parts.unsent });
    let reader = LogReader::open(&bytes[..]).unwrap();
    assert_eq!(reader.next_seq(), LogSeq(1_000_000));
    let (found, ending) = read(&bytes);
    assert_eq!(found, written);
    assert_eq!(ending.unwrap(), Ending::Finished);
}

#[test]
fn a_snapshot_needs_neither_pages_nor_unsent_outputs() {
    let bare = Parts { pages: Vec::new(), unsent: Vec::new(), ..parts(26, LogSeq(3)) };
    let (pages, start) = read_start(&log_from_snapshot(&bare, &[])).unwrap();
    assert!(pages.is_empty());
    assert_eq!(start, LogStart::Snapshot { snapshot: bare.snapshot, unsent: Vec::new() });
}

#[test]
fn a_log_cut_in_its_snapshot_leaves_nothing_to_replay() {
    let written = entries(27, 3);
    let bytes = log_from_snapshot(&parts(28, LogSeq(9)), &written);
    let offsets = frame_offsets(&bytes);
    let first_entry = offsets[8];
    // Every byte of the small frames, and some of the pages.
    let cuts = (1..offsets[1] + 50).chain((offsets[1]..offsets[4]).step_by(97)).chain(offsets[4] - 50..first_entry);
    for cut in cuts {
        let error = read_start(&bytes[..cut]).unwrap_err();
        assert!(
            matches!(error, LogFileError::Truncated { offset, .. } if offset == cut as u64),
            "cut at {cut}: {error}"
        );
    }
    let (found, ending) = read(&bytes[..first_entry]);
    assert!(found.is_empty());
    assert!(matches!(ending, Ok(Ending::Unfinished { .. })), "{ending:?}");
}

#[test]
fn a_flipped_bit_in_a_snapshot_leaves_nothing_to_replay() {
    let mut bytes = log_from_snapshot(&parts(29, LogSeq(9)), &entries(30, 3));
    let offsets = frame_offsets(&bytes);
    let (first_page, first_unsent, first_entry) = (offsets[1], offsets[4], offsets[8]);
    let some_of_the_pages = (first_page * 8..first_unsent * 8).step_by(1009);
    for bit in some_of_the_pages.chain(first_unsent * 8..first_entry * 8) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read_start(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// What version 3 appended to the session header, of a machine as the one here; and what version 4
/// appended: behaviour and boot.
const MACHINE_BYTES: usize = 2;
const RUN_BYTES: usize = 2;

/// The frames of `messages` behind the session of a log of this version or that.
fn log_of(version: u8, messages: &[Message]) -> Vec<u8> {
    let mut bytes = log(b"", &[]);
    bytes.truncate(frame_offsets(&bytes)[1]);
    if u32::from(version) != FORMAT_VERSION {
        let mut session = bytes[PREAMBLE_BYTES + FRAME_HEADER_BYTES..].to_vec();
        session[0] = version;
        let appended_later = if version == 3 { RUN_BYTES } else { MACHINE_BYTES + RUN_BYTES };
        session.truncate(session.len() - appended_later);
        bytes.truncate(PREAMBLE_BYTES);
        bytes[MAGIC.len()] = version;
        append_frame(FrameKind(1), &session, &mut bytes);
    }
    messages.iter().for_each(|message| message.encode(&mut bytes));
    bytes
}

#[test]
fn the_parts_of_a_snapshot_have_their_order() {
    let parts = parts(31, LogSeq(9));
    let pages = || Message::Pages(parts.pages[0].clone());
    let unsent = |at: usize| Message::UnsentOutput(parts.unsent[at].clone());
    let snapshot = || Message::Snapshot(parts.snapshot.clone());
    for version in [2, 3, 4] {
        let log = log_of(version, &[pages(), unsent(0), unsent(1), snapshot()]);
        assert!(read_start(&log).is_ok());
        assert_eq!(LogHead::read(&log[..]).unwrap().version(), version.into());
    }
    for (at, wrong) in [
        vec![pages(), unsent(0), pages(), snapshot()],
        vec![unsent(0), pages(), snapshot()],
        vec![pages(), Message::Heartbeat, snapshot()],
        vec![unsent(0), Message::Heartbeat],
    ]
    .iter()
    .enumerate()
    {
        let error = read_start(&log_of(3, wrong)).unwrap_err();
        assert!(matches!(error, LogFileError::UnexpectedFrame { part: "snapshot", .. }), "{at}: {error}");
    }
    for wrong in [vec![unsent(1), unsent(0), snapshot()], vec![unsent(1), unsent(1), snapshot()]] {
        let error = read_start(&log_of(2, &wrong)).unwrap_err();
        let expected =
            matches!(error, LogFileError::BadFrame { source: CodecError::Invalid { what: "unsent outputs", .. }, .. });
        assert!(expected, "{error}");
    }
    let (found, ending) = read(&log_of(2, &[snapshot(), pages()]));
    assert!(found.is_empty());
    assert!(matches!(ending, Err(LogFileError::UnexpectedFrame { part: "entries", .. })), "{ending:?}");
}

#[test]
fn version_1_has_no_snapshots() {
    let parts = parts(32, LogSeq(9));
    for first in [Message::Pages(parts.pages[0].clone()), Message::Snapshot(parts.snapshot)] {
        let (found, ending) = read(&log_of(1, &[first]));
        assert!(found.is_empty());
        assert!(matches!(ending, Err(LogFileError::UnexpectedFrame { .. })), "{ending:?}");
    }
}

#[test]
fn unsent_outputs_are_bounded() {
    let parts = parts(33, LogSeq(9));
    let operation = &parts.unsent[2].operation;
    let most = UNSENT_BYTES_MAX / (UNSENT_OUTPUT_BYTES + operation.bytes().len());
    for (outputs, is_read) in [(most, true), (most + 1, false)] {
        let mut bytes = log_of(2, &[]);
        for id in 0..outputs as u64 {
            Message::UnsentOutput(UnsentOutput { id: vm::OutputId(id), operation: operation.clone() })
                .encode(&mut bytes);
        }
        Message::Snapshot(parts.snapshot.clone()).encode(&mut bytes);
        match read_start(&bytes) {
            Ok((_, LogStart::Snapshot { unsent, .. })) => assert!(is_read && unsent.len() == most, "{}", unsent.len()),
            Ok((_, LogStart::Image(_))) => panic!("no snapshot"),
            Err(LogFileError::BadFrame { source: CodecError::TooLong { what: "unsent outputs", .. }, .. }) => {
                assert!(!is_read);
            }
            Err(error) => panic!("{error}"),
        }
    }
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
        let mut snapshot = bytes[..offsets[1]].to_vec();
        let kind = [14, 15, 16][usize::try_from(random.below(3)).unwrap()];
        append_frame(FrameKind(kind), &random.bytes(length), &mut snapshot);
        let _ = read_start(&snapshot);
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

#[test]
fn a_reader_goes_on_at_any_entry_without_what_comes_before() {
    let written = entries(seed(13), 600);
    let (bytes, _) = log_in_groups(&written, 7);
    let mut reader = LogReader::open(&bytes[..]).unwrap();
    for next in 0..=written.len() {
        let cursor = reader.cursor();
        assert_eq!(cursor.seq(), LogSeq(next as u64));
        let rest = &bytes[usize::try_from(cursor.offset).unwrap()..];
        let mut resumed = LogReader::resume(rest, header(b"image"), cursor).unwrap();
        assert_eq!((resumed.cursor(), resumed.next_seq()), (cursor, cursor.seq()));
        for expected in written.get(next..).unwrap().iter().take(20) {
            assert_eq!(resumed.next_entry().unwrap().as_ref(), Some(expected));
        }
        assert_eq!(reader.next_entry().unwrap().as_ref(), written.get(next));
    }
    assert_eq!(reader.ending(), Some(&Ending::Finished));
}

#[test]
fn a_cursor_of_another_log_is_refused_or_reads_wrong_entries_and_never_panics() {
    let written = entries(seed(14), 300);
    let (bytes, offsets) = log_in_groups(&written, 7);
    let mut reader = LogReader::open(&bytes[..]).unwrap();
    (0..100).for_each(|_| drop(reader.next_entry().unwrap()));
    let good = reader.cursor();
    let resume = |cursor: LogCursor, offset: usize| {
        LogReader::resume(&bytes[offset..], header(b"image"), cursor).map(|mut log| log.next_entry())
    };
    let here = usize::try_from(good.offset).unwrap();
    assert!(matches!(resume(LogCursor { skip: 8, ..good }, here), Err(LogFileError::WrongCursor { .. })));
    assert!(matches!(resume(LogCursor { skip: u64::MAX, ..good }, here), Err(LogFileError::WrongCursor { .. })));
    let elsewhere = LogCursor { frame_first: LogSeq(1), ..good };
    assert!(matches!(resume(elsewhere, here), Err(LogFileError::BadEntries { .. })));
    for offset in offsets {
        // Only the positions are compared; another frame has another one.
        assert!(offset == here || resume(good, offset).is_err() || offset == bytes.len());
    }
}
