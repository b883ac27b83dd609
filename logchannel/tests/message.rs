//! Messages of the logging channel.
#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{Random, header, seed};
use logchannel::codec::CodecError;
use logchannel::entry::{Generation, LogSeq};
use logchannel::frame::{Frame, FrameDecoder, FrameKind};
use logchannel::message::{BATCH_BYTES_MAX, EntryBatch, Message, MessageError, REASON_BYTES_MAX};
use logchannel::session::{
    IMAGE_CHUNK_BYTES, ImageAssembler, ImageDigest, ImageError, NodeId, VM_ID_BYTES_MAX, VmId, image_chunks,
};
use vm::{InstructionCount, OutputId};

fn messages() -> Vec<Message> {
    vec![
        Message::Session(header(b"image")),
        Message::ImageChunk(vec![1; IMAGE_CHUNK_BYTES]),
        Message::Accepted { node: NodeId(u128::MAX - 5) },
        Message::Refused { reason: "the image differs".into() },
        Message::Entries(EntryBatch { first_seq: LogSeq(u64::MAX), bytes: vec![8; BATCH_BYTES_MAX] }),
        Message::Ack { received: LogSeq(300) },
        Message::Consumed { consumed: LogSeq(299), count: InstructionCount(8_123_456) },
        Message::Protected { generation: Generation(4) },
        Message::Released { next_output: OutputId(17) },
        Message::Heartbeat,
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
    let mut stream = Vec::new();
    messages().iter().for_each(|message| message.encode(&mut stream));
    let mut decoder = FrameDecoder::new();
    decoder.push(&stream);
    for message in messages() {
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

#[test]
fn bodies_cut_short_or_too_long_are_refused() {
    for message in messages() {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let kind = FrameKind(bytes[8]);
        let body = &bytes[9..];
        let free_length = matches!(
            message,
            Message::ImageChunk(_) | Message::Refused { .. } | Message::Goodbye { .. } | Message::Entries(_)
        );
        if !free_length {
            for length in 0..body.len() {
                assert!(Message::decode(Frame { kind, body: &body[..length] }).is_err(), "{message:?} at {length}");
            }
            let longer = [body, &[0]].concat();
            assert!(Message::decode(Frame { kind, body: &longer }).is_err(), "{message:?}");
        }
    }
}

#[test]
fn limits_are_checked() {
    let refused = |kind: u8, bytes: usize| {
        let result = Message::decode(Frame { kind: FrameKind(kind), body: &vec![b'a'; bytes] });
        matches!(result, Err(MessageError::Body { source: CodecError::TooLong { .. }, .. }))
    };
    assert!(refused(2, IMAGE_CHUNK_BYTES + 1));
    assert!(refused(3, BATCH_BYTES_MAX + 2));
    assert!(refused(5, REASON_BYTES_MAX + 1));
    assert!(!refused(5, REASON_BYTES_MAX));
    assert!(Message::decode(Frame { kind: FrameKind(2), body: &[] }).is_err(), "an empty image piece");
    assert!(Message::decode(Frame { kind: FrameKind(5), body: &[0xff] }).is_err(), "not UTF-8");
    assert_eq!(
        Message::decode(Frame { kind: FrameKind(64), body: &[] }),
        Err(MessageError::UnknownKind(FrameKind(64)))
    );
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let mut bytes = Vec::new();
    Message::Refused { reason: "ü".repeat(REASON_BYTES_MAX) + "!" }.encode(&mut bytes);
    assert_eq!(decode(&bytes), Ok(Message::Refused { reason: "ü".repeat(REASON_BYTES_MAX / 2) }));
}

#[test]
fn another_version_is_refused_by_its_number() {
    let mut bytes = Vec::new();
    Message::Session(header(b"")).encode(&mut bytes);
    let mut body = bytes[9..].to_vec();
    body[0] = 99;
    let error = Message::decode(Frame { kind: FrameKind(1), body: &body }).unwrap_err();
    assert_eq!(error, MessageError::Version { found: 99 });
}

#[test]
fn random_bodies_never_panic() {
    let mut random = Random(seed(4));
    for _ in 0..20_000 {
        let (kind, length) = (random.below(16), random.below(200));
        let body = random.bytes(length);
        let _ = Message::decode(Frame { kind: FrameKind(u8::try_from(kind).unwrap()), body: &body });
    }
}

#[test]
fn session_headers_are_checked_part_by_part() {
    let mut bytes = Vec::new();
    Message::Session(header(b"image")).encode(&mut bytes);
    let body = &bytes[9..];
    let name = body.windows(5).position(|window| window == b"alpha").unwrap();
    let mut bad_name = body.to_vec();
    bad_name[name] = b'/';
    let error = Message::decode(Frame { kind: FrameKind(1), body: &bad_name }).unwrap_err();
    assert!(error.to_string().contains("\"/lpha\" is not a VM name"), "{error}");
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
