//! Scales et al. 2010, §2.2: no output leaves the primary before the backup has acknowledged the
//! log up to it.
//!
//! The link holds the acknowledgements back and records all messages, so that the tests see that
//! the guest has produced its output, that the backup has its entry, that the guest runs on, and
//! that the output isn't released.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use crate::beginnings::UNBOUNDED_LAG;
use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::LogSeq;
use logchannel::message::Message;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;
use tests::link::{Direction, Link};
use tests::programs;
use tests::stage::{Stage, wait_until};

/// How long a test waits for an output that must not come.
const SILENCE: Duration = Duration::from_millis(500);

fn no_answer<T: std::fmt::Debug>(answer: std::io::Result<T>) {
    let error = answer.expect_err("an output left before its entry was acknowledged");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
}

fn covers(message: &Message, seq: LogSeq) -> bool {
    matches!(message, Message::Ack { received } if *received > seq)
}

/// The instruction count of entry `seq`.
fn count_at(link: &Link, seq: LogSeq) -> u64 {
    link.entries()[usize::try_from(seq.0).unwrap()].count.0
}

/// Waits until the backup has replayed more than `steps` steps, so that the primary has run further
/// than that.
fn wait_for_replay_beyond(link: &Link, steps: u64) {
    wait_until("the backup's replay", || {
        let said = link.seen(Direction::ToPrimary);
        said.iter().any(|message| matches!(message, Message::Consumed { count, .. } if count.0 > steps))
    });
}

#[test]
fn output_waits_for_its_acknowledgement_while_the_guest_runs_on() {
    let stage = Stage::new(programs!());
    let (_pair, link) = stage.linked_pair(&UNBOUNDED_LAG, &[]);
    let mut client = TcpStream::connect(stage.site.service).unwrap();
    let mut answer = [0; 5];
    client.write_all(b"first").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"first");

    link.hold(Direction::ToPrimary);
    client.write_all(b"other").unwrap();
    let [_, answer_seq] = link.wait_for_answer(b"other");
    link.wait_for_ack(answer_seq);
    wait_for_replay_beyond(&link, count_at(&link, answer_seq));
    client.set_read_timeout(Some(SILENCE)).unwrap();
    no_answer(client.read(&mut answer));

    link.release(Direction::ToPrimary);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"other");
}

#[test]
fn every_acknowledgement_lets_out_what_it_covers_and_nothing_more() {
    let stage = Stage::new(programs!());
    let (_pair, link) = stage.linked_pair(&UNBOUNDED_LAG, &[]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(stage.site.service).unwrap();
    let mut buffer = [0; 100];
    // LAN and guest resolve each other's addresses first, so that an answer is one packet.
    client.send(b"hello").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.recv(&mut buffer).unwrap();

    link.hold(Direction::ToPrimary);
    let requests = ["request one", "request two", "request three"];
    let outputs = requests.map(|request| {
        client.send(request.as_bytes()).unwrap();
        let [_, seq] = link.wait_for_answer(request.as_bytes());
        link.wait_for_ack(seq);
        seq
    });
    for (request, seq) in requests.iter().zip(outputs) {
        client.set_read_timeout(Some(SILENCE)).unwrap();
        no_answer(client.recv(&mut buffer));
        link.pass_until(Direction::ToPrimary, |message| covers(message, seq));
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], request.as_bytes());
    }
}

/// The counter guest's count, in chunks.
fn ask_count(client: &UdpSocket) -> u64 {
    client.send(b"?").unwrap();
    receive_count(client)
}

fn receive_count(client: &UdpSocket) -> u64 {
    let mut buffer = [0; 200];
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = client.recv(&mut buffer).unwrap();
    let text = std::str::from_utf8(&buffer[..length]).unwrap();
    text.split(' ').nth(1).and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {text:?}"))
}

#[test]
fn guest_that_never_sleeps_computes_on_while_its_outputs_are_held() {
    /// Steps that the guest computes with an output held: many times what an answer takes.
    const STEPS: u64 = 20_000_000;
    let stage = Stage::new(programs!());
    let (_pair, link) = stage.linked_pair(&[&["--guest", "counter"], &UNBOUNDED_LAG[..]].concat(), &[]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(stage.site.service).unwrap();
    let first = ask_count(&client);

    link.hold(Direction::ToPrimary);
    client.send(b"how far?").unwrap();
    let [_, answer_seq] = link.wait_for_answer(b"how far?");
    wait_for_replay_beyond(&link, count_at(&link, answer_seq) + STEPS);
    client.set_read_timeout(Some(SILENCE)).unwrap();
    no_answer(client.recv(&mut [0; 200]));

    link.release(Direction::ToPrimary);
    let held = receive_count(&client);
    let now = ask_count(&client);
    assert!(first < held, "{first} then {held}");
    // A chunk takes about two thousand steps.
    assert!(now - held > STEPS / 4000, "the guest stood still from {held} to {now}");
}
