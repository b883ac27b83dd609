//! Entries to bytes and back: exact, small, bounded.

mod common;

use common::{Entries, Random, entries, seed};
use logchannel::codec::{CONSOLE_INPUT_BYTES_MAX, CodecError, ENTRY_BYTES_MAX, EntryDecoder, EntryEncoder};
use logchannel::entry::{EntryBody, LogEntry};
use vm::{Event, InstructionCount, OutputId, PACKET_BYTES_MAX, RANDOM_BYTES_MAX};

fn at(count: u64, body: EntryBody) -> LogEntry {
    LogEntry { count: InstructionCount(count), body }
}

fn packet(number: u64, bytes: usize) -> EntryBody {
    EntryBody::Event(Event::Packet { number, packet: vec![0xa5; bytes] })
}

/// Bytes of each entry.
fn sizes(entries: &[LogEntry]) -> Vec<usize> {
    let mut encoder = EntryEncoder::new();
    let mut out = Vec::new();
    entries
        .iter()
        .map(|entry| {
            out.clear();
            encoder.encode(entry, &mut out);
            out.len()
        })
        .collect()
}

#[test]
fn every_entry_comes_back_from_its_bytes() {
    let seed = seed(1);
    let mut encoder = EntryEncoder::new();
    let mut bytes = Vec::new();
    let written = entries(seed, 20_000);
    for entry in &written {
        let before = bytes.len();
        encoder.encode(entry, &mut bytes);
        assert!(bytes.len() - before <= ENTRY_BYTES_MAX);
    }
    let mut decoder = EntryDecoder::new();
    let mut input = &bytes[..];
    for entry in &written {
        assert_eq!(decoder.decode(&mut input).as_ref(), Ok(entry));
    }
    assert!(input.is_empty());
}

#[test]
fn extremes_come_back() {
    let written = [
        at(u64::MAX - 1, packet(u64::MAX, PACKET_BYTES_MAX)),
        at(u64::MAX, EntryBody::Event(Event::ConsoleInput { bytes: vec![1; CONSOLE_INPUT_BYTES_MAX] })),
        at(u64::MAX, EntryBody::Event(Event::ClockRead { ticks: u64::MAX })),
        at(u64::MAX, EntryBody::Event(Event::WallClock { ns: u64::MAX })),
        at(u64::MAX, EntryBody::Event(Event::RandomBytes { bytes: vec![1; RANDOM_BYTES_MAX] })),
        at(u64::MAX, EntryBody::Output { id: OutputId(u64::MAX - 1), digest: u64::MAX }),
    ];
    assert!(sizes(&written).iter().all(|&size| size <= ENTRY_BYTES_MAX));
    let (mut encoder, mut decoder, mut bytes) = (EntryEncoder::new(), EntryDecoder::new(), Vec::new());
    written.iter().for_each(|entry| encoder.encode(entry, &mut bytes));
    let mut input = &bytes[..];
    for entry in &written {
        assert_eq!(decoder.decode(&mut input).as_ref(), Ok(entry));
    }
}

/// At a guest's usual pace: thousands of instructions and up to 1.6 ms between two entries.
#[test]
fn entries_are_as_small_as_promised() {
    let clock = |ticks| EntryBody::Event(Event::ClockRead { ticks });
    let output = |id| EntryBody::Output { id: OutputId(id), digest: u64::MAX };
    let written = [
        at(5_000, clock(100)),
        at(15_000, clock(16_000)),
        at(2_000_000, output(0)),
        at(4_000_000, output(1)),
        at(6_000_000, packet(1, 60)),
        at(8_000_000, packet(2, PACKET_BYTES_MAX)),
        at(8_000_000, EntryBody::Event(Event::TimerInterrupt)),
        at(10_000_000, EntryBody::Progress),
    ];
    assert_eq!(sizes(&written), [4, 5, 12, 12, 60 + 5, PACKET_BYTES_MAX + 6, 2, 4]);
}

#[test]
fn a_bad_entry_moves_nothing() {
    let mut encoder = EntryEncoder::new();
    let mut bytes = Vec::new();
    for entry in entries(7, 50) {
        encoder.encode(&entry, &mut bytes);
    }
    let mut decoder = EntryDecoder::new();
    for entry in entries(7, 50) {
        let mut input = &bytes[..];
        let mut probe = decoder.clone();
        assert_eq!(probe.decode(&mut input), Ok(entry.clone()));
        let size = bytes.len() - input.len();
        for cut in 0..size {
            let mut short = &bytes[..cut];
            assert_eq!(decoder.decode(&mut short), Err(CodecError::Truncated), "cut to {cut} of {size}");
            assert_eq!(short.len(), cut);
        }
        let mut input = &bytes[..size];
        assert_eq!(decoder.decode(&mut input), Ok(entry));
        bytes.drain(..size);
    }
}

/// Byte tables of FORMAT.md: tag, content, steps.
#[test]
fn numbers_never_wrap() {
    let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let clock_read = |ticks: &[u8], steps: &[u8]| [&[0][..], ticks, steps].concat();
    let mut decoder = EntryDecoder::new();
    decoder.decode(&mut &clock_read(&max, &max)[..]).unwrap();
    assert_eq!(
        decoder.decode(&mut &clock_read(&[0], &[1])[..]),
        Err(CodecError::Overflow { what: "instruction count" })
    );
    assert_eq!(decoder.decode(&mut &clock_read(&[1], &[0])[..]), Err(CodecError::Overflow { what: "clock" }));
    let packet_after_gap = [&[4][..], &max, &[0, 0]].concat();
    assert_eq!(decoder.decode(&mut &packet_after_gap[..]), Err(CodecError::Overflow { what: "packet number" }));
    let output_after_gap = [&[7][..], &max, &[0; 9]].concat();
    assert_eq!(decoder.decode(&mut &output_after_gap[..]), Err(CodecError::Overflow { what: "output id" }));
    let time_of_day = |ns: &[u8]| [&[13][..], ns, &[0]].concat();
    decoder.decode(&mut &time_of_day(&max)[..]).unwrap();
    assert_eq!(decoder.decode(&mut &time_of_day(&[1])[..]), Err(CodecError::Overflow { what: "time of day" }));
    assert!(decoder.decode(&mut &clock_read(&[0], &[0])[..]).is_ok());
}

#[test]
fn what_is_beyond_a_limit_is_refused() {
    let body = |tag: u8, length: u16| {
        let length = [length.to_le_bytes()[0] & 0x7f | 0x80, (length >> 7).to_le_bytes()[0]];
        [&[tag][..], &length, &[0; 5000]].concat()
    };
    let decode = |bytes: Vec<u8>| EntryDecoder::new().decode(&mut &bytes[..]);
    assert!(decode(body(3, 1514)).is_ok());
    assert_eq!(decode(body(3, 1515)), Err(CodecError::TooLong { what: "Ethernet frame", bytes: 1515, max: 1514 }));
    assert!(decode(body(5, 4096)).is_ok());
    assert_eq!(decode(body(5, 4097)), Err(CodecError::TooLong { what: "console input", bytes: 4097, max: 4096 }));
    assert!(decode(body(15, 256)).is_ok());
    assert_eq!(decode(body(15, 257)), Err(CodecError::TooLong { what: "random bytes", bytes: 257, max: 256 }));
    assert!(matches!(decode(vec![16, 0]), Err(CodecError::Malformed(_))), "no such tag");
    assert!(matches!(decode(vec![4, 0, 0, 0]), Err(CodecError::Invalid { .. })), "a gap of none");
}

#[test]
fn garbage_is_refused_or_is_the_one_encoding_of_what_it_says() {
    let mut random = Random(seed(2));
    let mut decoded = 0;
    for _ in 0..20_000 {
        let length = random.below(40);
        let mut bytes = random.bytes(length);
        if let Some(tag) = bytes.first_mut() {
            *tag %= 17;
        }
        let mut input = &bytes[..];
        if let Ok(entry) = EntryDecoder::new().decode(&mut input) {
            decoded += 1;
            let mut again = Vec::new();
            EntryEncoder::new().encode(&entry, &mut again);
            assert!(bytes.starts_with(&again) || entry_is_stop(&entry), "{entry:?} from {bytes:02x?}");
            assert_eq!(bytes.len() - input.len(), again.len());
        }
    }
    assert!(decoded > 1000, "only {decoded} of the random inputs were entries: the test tests nothing");
}

/// Stop reasons are bincode's integers, which can be written longer than needed.
fn entry_is_stop(entry: &LogEntry) -> bool {
    matches!(entry.body, EntryBody::Stopped(_))
}

#[test]
#[should_panic(expected = "instruction count 9 after 10")]
fn our_own_log_never_goes_back() {
    let mut encoder = EntryEncoder::new();
    let mut entries = Entries::new(0);
    let body = entries.next().unwrap().body;
    encoder.encode(&at(10, EntryBody::Progress), &mut Vec::new());
    encoder.encode(&at(9, body), &mut Vec::new());
}
