//! Backups that come: early, late, to the wrong guest, and visitors that are no backups at all.

use hypervisor::host::entropy;
use hypervisor::program::cluster::PATIENCE;
use logchannel::frame::{BODY_BYTES_MAX, FrameDecoder, FrameKind, append_frame};
use logchannel::message::Message;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;
use tests::client::Load;
use tests::programs;
use tests::stage::{Node, Pair, Stage};

#[test]
fn backup_that_is_started_first_waits_and_joins() {
    let stage = Stage::new(programs!());
    // Neither knows the other's address: the arbiter tells.
    let mut backup = stage.node("ft-backup", &[]);
    backup.told("waiting");
    let mut primary = stage.node("ft-primary", &[]);
    backup.told("protected");
    primary.told("console");
    let load = Load::on(stage.site.service);
    primary.kill();
    backup.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn backup_with_another_guest_is_refused_by_name_and_the_right_one_joins() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &["--guest", "echo"]);
    let channel = primary.told_text("listening", "channel");
    let mut wrong = stage.node("ft-backup", &["--primary", &channel, "--guest", "counter"]);
    let ended = wrong.end();
    assert_eq!(ended.code, Some(1), "{}", ended.reason);
    assert!(ended.reason.contains("image counter (") && ended.reason.contains("runs echo ("), "{}", ended.reason);
    let lost = primary.told_text("backup_lost", "reason");
    assert!(lost.contains("refused"), "{lost}");
    assert!(!primary.has_told("protected") && !primary.has_told("console"), "the guest must not run unprotected");

    let mut other_vm = stage.node("ft-backup", &["--primary", &channel, "--vm", "vm7"]);
    let ended = other_vm.end();
    assert_eq!(ended.code, Some(1), "{}", ended.reason);
    assert!(ended.reason.contains("for VM vm7, the primary runs vm0"), "{}", ended.reason);

    let mut right = stage.node("ft-backup", &["--primary", &channel, "--guest", "echo"]);
    right.told("protected");
    Load::on(stage.site.service).lost_nothing();
    assert_eq!(primary.owned(), [1]);
}

#[test]
fn second_backup_is_refused_and_the_first_stays() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let load = Load::on(stage.site.service);
    let channel = primary.told_text("listening", "channel");
    let mut second = stage.node("ft-backup", &["--primary", &channel]);
    let ended = second.end();
    assert_eq!(ended.code, Some(1), "{}", ended.reason);
    assert!(ended.reason.contains("has a backup already"), "{}", ended.reason);
    primary.told("backup_refused");
    assert!(!primary.has_told("backup_lost"));
    primary.kill();
    backup.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}

/// Bytes that make no sense on a logging channel.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let seed = entropy::node_id().0;
    println!("seed {seed:#x}");
    let mut state = seed | 1;
    let mut random = || {
        state = state.wrapping_mul(0x2d99_787d_6c57_1e6d_9b5b_6d2c_5f0b_4e35).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    let mut huge_length = u32::MAX.to_le_bytes().to_vec();
    huge_length.extend([0; 1000]);
    let mut long_frame = Vec::new();
    append_frame(FrameKind(1), &vec![0; BODY_BYTES_MAX], &mut long_frame);
    let mut foreign_kind = Vec::new();
    append_frame(FrameKind(200), b"GET / HTTP/1.0", &mut foreign_kind);
    let mut early_ack = Vec::new();
    Message::Ack { received: logchannel::entry::LogSeq(u64::MAX) }.encode(&mut early_ack);
    vec![
        ("nothing", Vec::new()),
        ("random bytes", (0..5000).map(|_| random()).collect()),
        ("a huge length", huge_length),
        ("zeros", vec![0; 100_000]),
        ("half a frame", long_frame[..long_frame.len() / 2].to_vec()),
        ("a frame without sense", long_frame),
        ("another protocol's frame", foreign_kind),
        ("an acknowledgement out of turn", early_ack),
    ]
}

#[test]
fn visitors_without_sense_do_not_keep_the_primary_from_its_backup() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &[]);
    let channel = primary.told_text("listening", "channel");
    for (visits, (what, bytes)) in (1..).zip(garbage()) {
        let mut visitor = TcpStream::connect(&channel).unwrap();
        // It may hang up on us in the middle.
        let _ = visitor.write_all(&bytes).and_then(|()| visitor.shutdown(Shutdown::Write));
        tests::stage::wait_until(what, || primary.count("backup_lost") == visits);
        drop(visitor);
    }
    assert_eq!(primary.owned(), [1]);
    let mut backup = stage.node("ft-backup", &["--primary", &channel]);
    backup.told("protected");
    Load::on(stage.site.service).lost_nothing();
    primary.assert_no_panic();
}

/// Connects as a backup does, until there is a place for it, and gives the connection once the session begins on it.
fn take_the_place(channel: &str) -> TcpStream {
    loop {
        let mut stream = TcpStream::connect(channel).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut decoder = FrameDecoder::new();
        // A connection that ends at once was refused, too: the one before it was still there.
        while let Ok(bytes @ 1..) = stream.read(decoder.space()) {
            decoder.filled(bytes);
            let Some(frame) = decoder.next_frame().unwrap() else { continue };
            match Message::decode(frame).unwrap() {
                Message::Session(_) => return stream,
                Message::Refused { .. } => break,
                other => panic!("a primary begins with {other:?}"),
            }
        }
    }
}

/// Reads what comes, until nothing comes for a while; `false` if the connection ended.
fn stays_open(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(60))).unwrap();
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Ok(0) | Err(_) => return false,
        }
    }
}

#[test]
fn visitor_that_hangs_up_does_not_take_the_next_backup_with_it() {
    const ROUNDS: u32 = 40;
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &[]);
    let channel = primary.told_text("listening", "channel");
    let kept = (0..ROUNDS).filter(|_| {
        drop(take_the_place(&channel));
        stays_open(&take_the_place(&channel))
    });
    assert_eq!(kept.count(), ROUNDS as usize, "a backup was dropped for the fault of the one before it");
    primary.assert_no_panic();
}

#[test]
fn silent_visitor_does_not_stop_a_protected_guest() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, backup: _backup } = stage.pair(&[], &[]);
    let load = Load::on(stage.site.service);
    let channel = primary.told_text("listening", "channel");
    let _visitors: Vec<_> = (0..20).map(|_| TcpStream::connect(&channel).unwrap()).collect();
    load.goes_on();
    load.lost_nothing();
    assert!(!primary.has_told("backup_lost"));
}

/// Runs a backup against a primary that says `bytes` and hangs up.
fn backup_of(stage: &Stage, bytes: &[u8]) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let backup = stage.node("ft-backup", &["--primary", &address]);
    let (mut stream, _) = listener.accept().unwrap();
    // It may hang up on us in the middle.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    backup
}

#[test]
fn backup_of_a_senseless_primary_ends_with_an_error() {
    let stage = Stage::new(programs!());
    for (what, bytes) in garbage() {
        let ended = backup_of(&stage, &bytes).end();
        assert!(matches!(ended.code, Some(1 | 5)), "{what}: {ended:?}");
        assert!(!ended.reason.is_empty(), "{what}");
    }
}
