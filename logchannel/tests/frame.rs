//! Frames out of a stream in pieces.

mod common;

use common::{Random, seed};
use logchannel::frame::{
    BODY_BYTES_MAX, FRAME_HEADER_BYTES, FrameDecoder, FrameError, FrameKind, append_frame, append_frame_with,
};

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_frame(FrameKind(kind), body, &mut bytes);
    bytes
}

#[test]
fn frames_come_out_whatever_the_pieces() {
    let mut random = Random(seed(3));
    for _ in 0..50 {
        let bodies: Vec<(u8, Vec<u8>)> = (0..30)
            .map(|index| {
                let bits = random.below(15);
                let length = random.below(1 << bits);
                (index + 1, random.bytes(length))
            })
            .collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|(kind, body)| frame(*kind, body)).collect();
        let mut decoder = FrameDecoder::new();
        let mut rest = &stream[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = usize::try_from(1 + random.below(9000)).unwrap().min(rest.len());
            decoder.push(&rest[..length]);
            rest = &rest[length..];
            while decoder.missing() == 0 {
                let frame = decoder.next_frame().unwrap().expect("nothing is missing");
                found.push((frame.kind.0, frame.body.to_vec()));
            }
            assert_eq!(decoder.next_frame(), Ok(None), "something is missing");
        }
        assert_eq!(found, bodies);
        assert_eq!(decoder.offset(), stream.len() as u64);
        assert!(decoder.unread().is_empty());
    }
}

#[test]
fn the_longest_frame_passes_and_a_longer_claim_does_not() {
    let mut decoder = FrameDecoder::new();
    decoder.push(&frame(9, &vec![7; BODY_BYTES_MAX]));
    assert_eq!(decoder.next_frame().unwrap().unwrap().body.len(), BODY_BYTES_MAX);
    let claim = u32::try_from(BODY_BYTES_MAX + 1).unwrap();
    decoder.push(&claim.to_le_bytes());
    let offset = decoder.offset();
    assert_eq!(decoder.missing(), 0);
    for _ in 0..2 {
        let error = decoder.next_frame().unwrap_err();
        assert_eq!(error, FrameError::TooLong { offset, bytes: claim, max: BODY_BYTES_MAX });
    }
}

#[test]
fn a_protocol_with_short_messages_has_its_own_limit() {
    let mut decoder = FrameDecoder::with_body_limit(10);
    decoder.push(&frame(64, &[1; 10]));
    assert_eq!(decoder.next_frame().unwrap().unwrap().kind, FrameKind(64));
    decoder.push(&frame(64, &[1; 11]));
    assert_eq!(decoder.next_frame(), Err(FrameError::TooLong { offset: 19, bytes: 11, max: 10 }));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let whole = frame(3, b"what a guest was sent");
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let mut decoder = FrameDecoder::new();
        decoder.push(&damaged);
        // A length that got longer waits for bytes that never come; everything else is an error at
        // once.
        match decoder.next_frame() {
            Ok(None) => assert!(bit < 32, "bit {bit}"),
            Ok(Some(frame)) => panic!("bit {bit} went unnoticed: {frame:?}"),
            Err(_) => {}
        }
    }
}

#[test]
fn zeros_are_no_frame() {
    let mut decoder = FrameDecoder::new();
    decoder.push(&[0; FRAME_HEADER_BYTES]);
    assert!(matches!(decoder.next_frame(), Err(FrameError::Checksum { offset: 0, found: 0, .. })));
}

#[test]
fn frames_are_appended_behind_what_is_there() {
    let mut bytes = vec![1, 2, 3];
    append_frame_with(FrameKind(5), &mut bytes, |out| out.extend_from_slice(b"body"));
    assert_eq!(bytes[..3], [1, 2, 3]);
    assert_eq!(bytes[3..], frame(5, b"body"));
}

#[test]
#[should_panic(expected = "a frame body of")]
fn a_body_that_could_not_be_read_is_not_written() {
    let _ = frame(1, &vec![0; BODY_BYTES_MAX + 1]);
}
