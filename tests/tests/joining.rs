//! Backups that come: early, late, to the wrong guest, and visitors that are no backups at all.

use hypervisor::host::entropy;
use logchannel::frame::{BODY_BYTES_MAX, FrameKind, append_frame};
use logchannel::message::Message;
use std::io::{Read, Write};
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

#[test]
fn visitor_that_hangs_up_does_not_take_the_next_backup_with_it() {
    let stage = Stage::new(programs!());
    for _ in 0..5 {
        let mut primary = stage.node("ft-primary", &["--force-new"]);
        let channel = primary.told_text("listening", "channel");
        let mut backup = stage.node("ft-backup", &["--primary", &channel]);
        // Up to the moment that the backup has the place.
        while !backup.has_told("primary_connected") {
            drop(TcpStream::connect(&channel).unwrap());
        }
        backup.told("protected");
        primary.told("protected");
        primary.assert_no_panic();
    }
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
