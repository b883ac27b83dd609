//! Messages and their cutting.

use super::*;
use crate::lan::cutter::{Cutter, Prefix};

/// xorshift64*: enough to make garbage, and the same garbage for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[7]).collect()
    }
}

fn attachment() -> Attachment {
    Attachment {
        vm: "some-vm.1".parse().unwrap(),
        node: NodeId(0x0123_4567_89ab_cdef_0011_2233_4455_6677),
        generation: Generation(9),
        mac: [2, 1, 2, 3, 4, 5],
        next_output: OutputId(77),
        output_end: OutputId(99),
        last_packet: 1 << 40,
        booted: Generation(8),
    }
}

fn cut(bytes: &[u8]) -> Result<Vec<Vec<u8>>, WireError> {
    let mut cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
    let mut messages = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = cutter.space();
        let taken = space.len().min(rest.len());
        space[..taken].copy_from_slice(&rest[..taken]);
        cutter.filled(taken);
        rest = &rest[taken..];
        while let Some(message) = cutter.next_message()? {
            messages.push(message.to_vec());
        }
    }
    Ok(messages)
}

#[test]
fn messages_come_back_as_they_were() {
    let packet = [7; PACKET_BYTES_MAX];
    let mut out = Vec::new();
    let attach = ClientMessage::Attach(attachment());
    let output = ClientMessage::Output { id: OutputId(u64::MAX), packet: &packet };
    attach.append(&mut out);
    output.append(&mut out);
    let messages = cut(&out).unwrap();
    assert_eq!(ClientMessage::decode(&messages[0]).unwrap(), attach);
    assert_eq!(ClientMessage::decode(&messages[1]).unwrap(), output);
    out.clear();
    ClientMessage::Heartbeat.append(&mut out);
    assert_eq!(ClientMessage::decode(&out[4..]).unwrap(), ClientMessage::Heartbeat);
    out.push(0);
    assert_eq!(ClientMessage::decode(&out[4..]), Err(WireError::Body { kind: VM_HEARTBEAT, bytes: 1 }));

    for sent in [
        ServerMessage::Heartbeat,
        ServerMessage::Attached { first_packet: 12, next_output: OutputId(13) },
        ServerMessage::Carried { next_output: OutputId(u64::MAX) },
        ServerMessage::Refused { reason: "because" },
        ServerMessage::Fenced { by: Generation(3) },
        ServerMessage::Packet { number: 5, packet: &packet[..PACKET_BYTES_MIN] },
    ] {
        out.clear();
        sent.append(&mut out);
        assert_eq!(ServerMessage::decode(&cut(&out).unwrap()[0]).unwrap(), sent);
    }
}

#[test]
fn an_attach_is_these_bytes() {
    let mut out = Vec::new();
    ClientMessage::Attach(attachment()).append(&mut out);
    let expected = [
        &[79, 0, 0, 0, 1][..],
        b"FTLAN\x03\x00",
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01],
        &[2, 1, 2, 3, 4, 5],
        &[77, 0, 0, 0, 0, 0, 0, 0],
        &[99, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 1, 0, 0],
        &[8, 0, 0, 0, 0, 0, 0, 0],
        b"some-vm.1",
    ]
    .concat();
    assert_eq!(out, expected);
}

#[test]
fn a_stream_is_cut_the_same_however_it_is_read() {
    let mut random = Random(0x5eed_1a2b);
    let mut stream = Vec::new();
    let sent: Vec<_> = (0..200).map(|_| 14 + random.below(1501)).collect();
    for &length in &sent {
        ServerMessage::Packet { number: 1, packet: &vec![0xa5; length] }.append(&mut stream);
    }
    let mut cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
    let (mut rest, mut received) = (&stream[..], Vec::new());
    while !rest.is_empty() {
        let wanted = 1 + random.below(3000);
        let space = cutter.space();
        let taken = wanted.min(space.len()).min(rest.len());
        space[..taken].copy_from_slice(&rest[..taken]);
        cutter.filled(taken);
        rest = &rest[taken..];
        while let Some(message) = cutter.next_message().unwrap() {
            received.push(message.len() - 9);
        }
    }
    assert_eq!(received, sent);
}

#[test]
fn lengths_out_of_range_are_refused_before_they_are_believed() {
    for length in [0, MESSAGE_BYTES_MAX + 1, u32::MAX as usize] {
        let prefix = u32::try_from(length).unwrap().to_le_bytes();
        assert_eq!(cut(&prefix), Err(WireError::Length { length, max: MESSAGE_BYTES_MAX }));
    }
}

#[test]
fn every_truncation_of_an_attach_is_an_error() {
    let mut out = Vec::new();
    ClientMessage::Attach(attachment()).append(&mut out);
    let message = &out[4..];
    let name = message.len() - "some-vm.1".len();
    for length in 0..=name {
        assert!(ClientMessage::decode(&message[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn other_protocols_and_versions_are_named() {
    let mut out = Vec::new();
    ClientMessage::Attach(attachment()).append(&mut out);
    let mut other_version = out[4..].to_vec();
    other_version[6] = 1;
    assert_eq!(ClientMessage::decode(&other_version), Err(WireError::Version(1)));
    let mut other_magic = out[4..].to_vec();
    other_magic[1] = b'X';
    assert_eq!(ClientMessage::decode(&other_magic), Err(WireError::Magic));
}

#[test]
fn names_and_packets_are_checked() {
    let mut out = Vec::new();
    ClientMessage::Attach(attachment()).append(&mut out);
    let mut message = out[4..].to_vec();
    *message.last_mut().unwrap() = b'/';
    assert_eq!(ClientMessage::decode(&message), Err(WireError::Field("the VM's name")));
    for length in [0, PACKET_BYTES_MIN - 1, PACKET_BYTES_MAX + 1] {
        let message = [vec![OUTPUT], vec![0; 8 + length]].concat();
        assert_eq!(ClientMessage::decode(&message), Err(WireError::Packet(length)));
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let reason = "ü".repeat(REASON_BYTES_MAX);
    let mut out = Vec::new();
    ServerMessage::Refused { reason: &reason }.append(&mut out);
    let expected = "ü".repeat(REASON_BYTES_MAX / 2);
    assert_eq!(ServerMessage::decode(&out[4..]).unwrap(), ServerMessage::Refused { reason: &expected });
}

#[test]
fn garbage_is_never_more_than_an_error() {
    let seed = 0x0dd_ba11;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    for round in 0..20_000 {
        let length = random.below(100);
        let mut message = random.bytes(length);
        if let Some(kind) = message.first_mut() {
            *kind = [ATTACH, OUTPUT, ATTACHED, REFUSED, FENCED, PACKET, CARRIED, 255][round % 8];
        }
        let _ = ClientMessage::decode(&message);
        let _ = ServerMessage::decode(&message);
        let _ = cut(&message);
    }
}
