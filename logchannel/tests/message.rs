//! Messages of the logging channel.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{Random, header, seed};
use logchannel::codec::CodecError;
use logchannel::entry::{Generation, LogSeq};
use logchannel::frame::{Frame, FrameDecoder, FrameKind};
use logchannel::message::{BATCH_BYTES_MAX, EntryBatch, Left, Message, MessageError, REASON_BYTES_MAX};
use logchannel::session::{
    ImageAssembler, ImageDigest, ImageError, NodeId, SessionHeader, VM_ID_BYTES_MAX, VmId, image_chunks,
};
use logchannel::snapshot::{PAGES_MAX, Pages, Snapshot, UnsentOutput};
use vm::{
    BootMode, CONSOLE_BYTES_MAX, InstructionCount, OutputId, OutputOperation, PACKET_BYTES_MAX, PAGE_BYTES,
    STATE_BYTES_MAX, StateDigest,
};

fn session(header: SessionHeader) -> Message {
    Message::Session { header, owner: NodeId(u128::MAX - 3) }
}

fn messages() -> Vec<Message> {
    vec![
        Message::Join { vm: VmId::new("alpha").unwrap(), node: NodeId(u128::MAX - 5) },
        Message::Join { vm: VmId::new(&"x".repeat(VM_ID_BYTES_MAX)).unwrap(), node: NodeId(0) },
        session(header(b"image")),
        Message::AskOwner { vm: VmId::new("alpha").unwrap() },
        Message::Owner { node: NodeId(u128::MAX - 9), generation: Generation(u64::MAX) },
        Message::Pages(Pages { first: u64::MAX, bytes: vec![1; PAGE_BYTES] }),
        Message::UnsentOutput(UnsentOutput {
            id: OutputId(u64::MAX),
            operation: OutputOperation::Packet(vec![2; PACKET_BYTES_MAX]),
        }),
        Message::UnsentOutput(UnsentOutput {
            id: OutputId(0),
            operation: OutputOperation::Console(vec![3; CONSOLE_BYTES_MAX]),
        }),
        Message::UnsentOutput(UnsentOutput { id: OutputId(300), operation: OutputOperation::Packet(Vec::new()) }),
        Message::Snapshot(Snapshot {
            seq: LogSeq(u64::MAX),
            digest: StateDigest(u128::MAX - 7),
            state: vec![4; STATE_BYTES_MAX],
        }),
        Message::Wait,
        Message::NoPrimary,
        Message::Accepted,
        Message::Refused { reason: "the image differs".into() },
        Message::Entries(EntryBatch { first_seq: LogSeq(u64::MAX), bytes: vec![8; BATCH_BYTES_MAX] }),
        Message::Ack { received: LogSeq(300) },
        Message::Consumed { consumed: LogSeq(299), count: InstructionCount(8_123_456) },
        Message::Protected { generation: Generation(4) },
        Message::Released(Left { packets: OutputId(17), console: OutputId(300) }),
        Message::Storing,
        Message::Heartbeat,
        Message::Clock { ticks: 123_456_789, runs: true },
        Message::Goodbye { reason: String::new() },
    ]
}

fn decode(bytes: &[u8]) -> Result<Message, MessageError> {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    Message::decode(decoder.next_frame().unwrap().unwrap())
}

#[test]
fn every_message_comes_back() {
    let most_pages = Message::Pages(Pages { first: 0, bytes: vec![5; PAGES_MAX * PAGE_BYTES] });
    let messages: Vec<_> = messages().into_iter().chain([most_pages]).collect();
    let mut stream = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut stream));
    let mut decoder = FrameDecoder::new();
    decoder.push(&stream);
    for message in messages {
        assert_eq!(Message::decode(decoder.next_frame().unwrap().unwrap()), Ok(message));
    }
    assert!(decoder.unread().is_empty());
}

/// An acknowledgement goes out for every batch: it must cost next to nothing.
#[test]
fn an_ack_is_twelve_bytes() {
    let mut bytes = Vec::new();
    Message::Ack { received: LogSeq(1_000_000) }.encode(&mut bytes);
    assert_eq!(bytes.len(), 12);
}

/// The shortest body of a message whose last part has no length of its own; `None` if all its parts
/// have one.
const fn shortest_body(message: &Message) -> Option<usize> {
    match message {
        Message::Join { .. } => Some(4 + 16 + 1),
        Message::Snapshot(_) => Some(10 + 16),
        Message::Refused { .. } | Message::Goodbye { .. } => Some(0),
        Message::Entries(_) => Some(10),
        Message::AskOwner { .. } => Some(4 + 1),
        Message::Wait
        | Message::NoPrimary
        | Message::Session { .. }
        | Message::Owner { .. }
        | Message::Pages(_)
        | Message::UnsentOutput(_)
        | Message::Accepted
        | Message::Ack { .. }
        | Message::Consumed { .. }
        | Message::Protected { .. }
        | Message::Released(_)
        | Message::Storing
        | Message::Heartbeat
        | Message::Clock { .. } => None,
    }
}

#[test]
fn bodies_cut_short_or_too_long_are_refused() {
    for message in messages() {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let kind = FrameKind(bytes[8]);
        let body = &bytes[9..];
        for length in 0..shortest_body(&message).unwrap_or(body.len()) {
            assert!(Message::decode(Frame { kind, body: &body[..length] }).is_err(), "{message:?} at {length}");
        }
        let longer = [body, &[0]].concat();
        let is_text = matches!(message, Message::Refused { .. } | Message::Goodbye { .. });
        assert_eq!(Message::decode(Frame { kind, body: &longer }).is_ok(), is_text, "{message:?}");
    }
}

#[test]
fn limits_are_checked() {
    let refused = |kind: u8, bytes: usize| {
        let result = Message::decode(Frame { kind: FrameKind(kind), body: &vec![b'a'; bytes] });
        matches!(result, Err(MessageError::Body { source: CodecError::TooLong { .. }, .. }))
    };
    assert!(refused(3, BATCH_BYTES_MAX + 2));
    assert!(refused(5, REASON_BYTES_MAX + 1));
    assert!(!refused(5, REASON_BYTES_MAX));
    assert!(refused(14, 1 + PAGES_MAX * PAGE_BYTES + 1));
    assert!(!refused(14, 1 + PAGES_MAX * PAGE_BYTES));
    assert!(refused(16, 1 + 16 + STATE_BYTES_MAX + 1));
    assert!(!refused(16, 1 + 16 + STATE_BYTES_MAX));
    assert!(Message::decode(Frame { kind: FrameKind(14), body: &[0] }).is_err(), "no page at all");
    assert!(Message::decode(Frame { kind: FrameKind(5), body: &[0xff] }).is_err(), "not UTF-8");
    for unknown in [0, 2, 12, 23, 64] {
        assert_eq!(
            Message::decode(Frame { kind: FrameKind(unknown), body: &[] }),
            Err(MessageError::UnknownKind(FrameKind(unknown)))
        );
    }
}

/// Byte table of FORMAT.md: id, kind of output, length, bytes.
#[test]
fn unsent_outputs_are_no_longer_than_a_guest_makes_them() {
    let unsent = |tag: u8, bytes: usize| {
        let length = [u8::try_from(bytes & 0x7f).unwrap() | 0x80, u8::try_from(bytes >> 7).unwrap()];
        let body = [&[9, tag][..], &length, &vec![7; bytes]].concat();
        Message::decode(Frame { kind: FrameKind(15), body: &body })
    };
    for (tag, bytes_max) in [(0, PACKET_BYTES_MAX), (1, CONSOLE_BYTES_MAX)] {
        assert!(
            matches!(unsent(tag, bytes_max), Ok(Message::UnsentOutput(UnsentOutput { id: OutputId(9), .. }))),
            "{tag}"
        );
        let longer = unsent(tag, bytes_max + 1);
        assert!(
            matches!(longer, Err(MessageError::Body { source: CodecError::TooLong { .. }, .. })),
            "{tag}: {longer:?}"
        );
    }
    assert!(unsent(2, 200).is_err(), "no such kind of output");
}

#[test]
#[should_panic(expected = "bytes of pages")]
fn our_own_pages_are_whole() {
    Message::Pages(Pages { first: 0, bytes: vec![0; PAGE_BYTES + 1] }).encode(&mut Vec::new());
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let mut bytes = Vec::new();
    Message::Refused { reason: "ü".repeat(REASON_BYTES_MAX) + "!" }.encode(&mut bytes);
    assert_eq!(decode(&bytes), Ok(Message::Refused { reason: "ü".repeat(REASON_BYTES_MAX / 2) }));
}

#[test]
fn another_version_is_refused_by_its_number() {
    for message in [session(header(b"")), messages().remove(0)] {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let kind = FrameKind(bytes[8]);
        let mut body = bytes[9..].to_vec();
        body[0] = 99;
        // What another version says behind its number, nobody here can know.
        for length in [body.len(), 4] {
            let error = Message::decode(Frame { kind, body: &body[..length] }).unwrap_err();
            assert_eq!(error, MessageError::Version { found: 99 }, "{message:?}");
        }
    }
}

#[test]
fn random_bodies_never_panic() {
    let mut random = Random(seed(4));
    for _ in 0..20_000 {
        let (kind, length) = (random.below(20), random.below(200));
        let body = random.bytes(length);
        let _ = Message::decode(Frame { kind: FrameKind(u8::try_from(kind).unwrap()), body: &body });
    }
}

#[test]
fn session_headers_are_checked_part_by_part() {
    let mut bytes = Vec::new();
    session(header(b"image")).encode(&mut bytes);
    let body = &bytes[9..];
    let name = body.windows(5).position(|window| window == b"alpha").unwrap();
    let mut bad_name = body.to_vec();
    bad_name[name] = b'/';
    let error = Message::decode(Frame { kind: FrameKind(1), body: &bad_name }).unwrap_err();
    assert!(error.to_string().contains("\"/lpha\" is not a VM name"), "{error}");
}

#[test]
fn a_session_says_who_boots_the_machine_and_how_large_its_disk_is() {
    for (boot, disk_bytes) in [(BootMode::Firmware, 0), (BootMode::Bare, 250)] {
        let mut header = header(b"image");
        (header.config.boot, header.config.disk_bytes) = (boot, disk_bytes);
        let (session, mut bytes) = (session(header), Vec::new());
        session.encode(&mut bytes);
        let body = &mut bytes[9..];
        assert_eq!(Message::decode(Frame { kind: FrameKind(1), body }), Ok(session));
        // Disk, behaviour and the boot's generation stand behind it, a byte each.
        let mode = body.len() - 4;
        body[mode] = 2;
        let error = Message::decode(Frame { kind: FrameKind(1), body }).unwrap_err().to_string();
        assert!(error.contains("bad boot mode: there is no 2"), "{error}");
    }
}

#[test]
fn a_session_says_in_which_generation_its_guest_was_reset() {
    let decoded = |booted| {
        let mut bytes = Vec::new();
        let sent = session(SessionHeader { booted: Generation(booted), ..header(b"image") });
        sent.encode(&mut bytes);
        (Message::decode(Frame { kind: FrameKind(1), body: &bytes[9..] }), sent)
    };
    for booted in [0, 3] {
        let (received, sent) = decoded(booted);
        assert_eq!(received, Ok(sent));
    }
    let error = decoded(4).0.unwrap_err().to_string();
    assert!(error.contains("bad generation of the boot"), "{error}");
}

#[test]
fn a_wish_to_join_names_a_vm() {
    let mut bytes = Vec::new();
    messages()[0].encode(&mut bytes);
    let body = &bytes[9..];
    let join = |name: &[u8]| Message::decode(Frame { kind: FrameKind(13), body: &[&body[..20], name].concat() });
    assert_eq!(join(b"alpha").as_ref(), Ok(&messages()[0]));
    for bad in [&b"/lpha"[..], b"..", b"", b"\xff\xfe", &[b'x'; VM_ID_BYTES_MAX + 1]] {
        let error = join(bad).unwrap_err().to_string();
        assert!(error.contains("bad join message: bad VM name"), "{error}");
    }
}

#[test]
fn names_are_file_names() {
    for good in ["a", "web-1.example_A", &"x".repeat(VM_ID_BYTES_MAX)] {
        assert_eq!(VmId::new(good).unwrap().as_str(), good);
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ü", "a\0", &"x".repeat(VM_ID_BYTES_MAX + 1)] {
        assert!(VmId::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn node_ids_are_read_as_they_are_written() {
    for node in [NodeId(0), NodeId(0xabc), NodeId(u128::MAX)] {
        assert_eq!(node.to_string().parse(), Ok(node));
    }
    for bad in ["", "12", "+2345678901234567890123456789012", "ABCDEF78901234567890123456789012"] {
        assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
    }
}

#[test]
fn an_image_is_put_together_and_checked() {
    let image: Vec<u8> = (0..600_000_u32).map(|index| index.to_le_bytes()[1]).collect();
    let header = header(&image);
    let mut assembler = ImageAssembler::new(&header);
    for chunk in image_chunks(&image) {
        assert!(!assembler.is_complete());
        assembler.push(chunk).unwrap();
    }
    assert!(assembler.is_complete());
    assert_eq!(assembler.push(&[0]), Err(ImageError::TooLong { expected: 600_000 }));
    assert_eq!(assembler.finish().unwrap(), image);

    let mut other = image.clone();
    other[599_999] ^= 1;
    let mut assembler = ImageAssembler::new(&header);
    image_chunks(&other).for_each(|chunk| assembler.push(chunk).unwrap());
    let found = ImageDigest::of(&other);
    assert_eq!(assembler.finish(), Err(ImageError::WrongDigest { expected: header.image_digest, found }));
    assert_eq!(ImageAssembler::new(&header).finish(), Err(ImageError::TooShort { expected: 600_000, found: 0 }));
}

#[test]
fn digests_are_sha_256() {
    let text = ImageDigest::of(b"abc").to_string();
    assert_eq!(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}
