//! Joining: backups that are early, late or have another guest, and connections that are no
//! backups.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use crate::beginnings::loaded_pair;
use ft::claim::{Claim, ClaimKind, Verdict};
use hypervisor::arbiter;
use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::{Generation, LogSeq};
use logchannel::frame::{BODY_BYTES_MAX, FrameDecoder, FrameKind, append_frame};
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader, VmId};
use logchannel::snapshot::{Pages, Snapshot};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tests::client::Load;
use tests::programs;
use tests::random::{self, Random};
use tests::stage::{Node, Pair, Stage};
use vm::{MachineConfig, PAGE_BYTES, StateDigest};

#[test]
fn backup_that_is_started_first_waits_and_joins() {
    let stage = Stage::new(programs!());
    // Both find each other through the arbiter.
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
fn backups_join_after_the_loss_of_either_side() {
    let (stage, Pair { primary: mut owner, backup: mut other }, load) = loaded_pair(&[], &[]);
    for generation in 2..=6 {
        // The backup and the primary are lost in turn.
        if generation % 2 == 0 {
            other.kill();
        } else {
            owner.kill();
            owner = other;
        }
        owner.comes_to_own(generation);
        load.goes_on();
        // The backup finds the owner through the arbiter, and the guest runs on while it joins.
        other = stage.node("ft-backup", &[]);
        assert_eq!(other.told_number("protected", "generation"), generation);
        load.goes_on();
    }
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
    assert!(ended.reason.contains("the primary of VM vm0, not of vm7"), "{}", ended.reason);
    primary.told("backup_refused");

    let mut right = stage.node("ft-backup", &["--primary", &channel, "--guest", "echo"]);
    right.told("protected");
    Load::on(stage.site.service).lost_nothing();
    assert_eq!(primary.owned(), [1]);
}

#[test]
fn a_second_backup_waits_as_a_spare_until_the_first_is_lost() {
    let (stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    let channel = primary.told_text("listening", "channel");
    let mut second = stage.node("ft-backup", &["--primary", &channel]);
    second.told("waits_for_place");
    primary.told("spare_waits");
    assert!(!primary.has_told("backup_lost") && !primary.has_told("backup_refused"));
    primary.kill();
    backup.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}

/// Bytes that are no messages of a logging channel.
fn malformed() -> Vec<(&'static str, Vec<u8>)> {
    let seed = random::seed();
    let mut random = Random::new(seed);
    let mut huge_length = u32::MAX.to_le_bytes().to_vec();
    huge_length.extend([0; 1000]);
    let mut long_frame = Vec::new();
    append_frame(FrameKind(1), &vec![0; BODY_BYTES_MAX], &mut long_frame);
    let mut foreign_kind = Vec::new();
    append_frame(FrameKind(200), b"GET / HTTP/1.0", &mut foreign_kind);
    let mut early_ack = Vec::new();
    Message::Ack { received: LogSeq(u64::MAX) }.encode(&mut early_ack);
    vec![
        ("nothing", Vec::new()),
        ("random bytes", (0..1000).flat_map(|_| random.next_u64().to_le_bytes()).collect()),
        ("a huge length", huge_length),
        ("zeros", vec![0; 100_000]),
        ("half a frame", long_frame[..long_frame.len() / 2].to_vec()),
        ("a frame without sense", long_frame),
        ("another protocol's frame", foreign_kind),
        ("an acknowledgement out of turn", early_ack),
    ]
}

#[test]
fn malformed_connections_do_not_keep_a_backup_from_joining() {
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &[]);
    let channel = primary.told_text("listening", "channel");
    let visits = malformed();
    let since = Instant::now();
    for (what, bytes) in &visits {
        let mut connection = TcpStream::connect(&channel).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        // The other side may close the connection before all is written.
        let _ = connection.write_all(bytes).and_then(|()| connection.shutdown(Shutdown::Write));
        let hung_up = connection.read_to_end(&mut Vec::new());
        let is_late = hung_up.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert!(!is_late, "{what}: the primary doesn't hang up");
    }
    // The first refusal is reported, and then one every five seconds.
    primary.told("backup_refused");
    let most = since.elapsed().as_secs() / 5 + 1;
    assert!(primary.count("backup_refused") as u64 <= most, "{:?}", primary.reports());
    assert_eq!((primary.owned(), primary.count("backup_lost")), (vec![1], 0));
    let mut backup = stage.node("ft-backup", &["--primary", &channel]);
    backup.told("protected");
    Load::on(stage.site.service).lost_nothing();
    primary.assert_no_panic();
}

fn vm() -> VmId {
    VmId::new("vm0").unwrap()
}

/// Connects as a backup does until the primary has room for it; returns the connection once its
/// session begins.
fn join_by_hand(channel: &str) -> TcpStream {
    loop {
        let mut stream = TcpStream::connect(channel).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&encoded(&[Message::Join { vm: vm(), node: NodeId(7) }])).unwrap();
        let mut decoder = FrameDecoder::new();
        // A connection that ends at once was refused, because the one before was still there.
        while let Ok(bytes @ 1..) = stream.read(decoder.space()) {
            decoder.filled(bytes);
            let Some(frame) = decoder.next_frame().unwrap() else { continue };
            let first = Message::decode(frame).unwrap();
            if matches!(first, Message::Session { .. }) {
                return stream;
            }
            assert!(matches!(first, Message::Refused { .. } | Message::Wait), "a primary begins with {first:?}");
            break;
        }
    }
}

/// Reads for a while; `false` if the connection ended.
fn stays_open(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut buffer = [0; 65_536];
    let end = Instant::now() + Duration::from_millis(60);
    while Instant::now() < end {
        match stream.read(&mut buffer) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return false,
        }
    }
    true
}

#[test]
fn a_connection_closed_while_it_joins_does_not_affect_the_next_backup() {
    const ROUNDS: u32 = 40;
    let stage = Stage::new(programs!());
    let mut primary = stage.node("ft-primary", &[]);
    let channel = primary.told_text("listening", "channel");
    let kept = (0..ROUNDS).filter(|_| {
        drop(join_by_hand(&channel));
        stays_open(&join_by_hand(&channel))
    });
    assert_eq!(kept.count(), ROUNDS as usize, "a backup was dropped for the fault of the one before it");
    primary.assert_no_panic();
}

#[test]
fn a_silent_connection_does_not_stop_a_protected_guest() {
    let (_stage, Pair { mut primary, backup: _backup }, load) = loaded_pair(&[], &[]);
    let channel = primary.told_text("listening", "channel");
    let _connections: Vec<_> = (0..20).map(|_| TcpStream::connect(&channel).unwrap()).collect();
    load.goes_on();
    load.lost_nothing();
    assert!(!primary.has_told("backup_lost"));
}

/// Runs a backup against a fake primary that sends `bytes`, and then closes the connection or
/// waits.
fn backup_of(stage: &Stage, bytes: &[u8], hangs_up: bool) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let backup = stage.node("ft-backup", &["--primary", &address]);
    let (mut stream, _) = listener.accept().unwrap();
    // The other side may close the connection before all is written.
    let said = stream.write_all(bytes);
    if hangs_up {
        let _ = said.and_then(|()| stream.shutdown(Shutdown::Write));
    }
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    backup
}

#[test]
fn a_backup_ends_with_an_error_if_its_primary_sends_malformed_bytes() {
    let stage = Stage::new(programs!());
    for (what, bytes) in malformed() {
        let ended = backup_of(&stage, &bytes, true).end();
        assert!(matches!(ended.code, Some(1 | 5)), "{what}: {ended:?}");
        assert!(!ended.reason.is_empty(), "{what}");
    }
}

/// A primary's session header for a VM with this much memory.
fn session(generation: u64, ram_bytes: u64) -> Message {
    let config = MachineConfig { ram_bytes, ..MachineConfig::default() };
    let header = SessionHeader::new(vm(), Generation(generation), config, "nonsense", b"nonsense").unwrap();
    Message::Session { header, owner: NodeId(7) }
}

fn encoded(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut bytes));
    bytes
}

#[test]
fn a_backup_ends_with_an_error_that_names_its_primarys_protocol_error() {
    let stage = Stage::new(programs!());
    // The fake primary owns the VM as generation 1.
    let arbiter = arbiter::open(&format!("tcp:{}", stage.site.arbiter_address()), PATIENCE).unwrap();
    let owner = Claim { node: NodeId(7), kind: ClaimKind::Owner, address: None };
    assert_eq!(arbiter.test_and_set(&vm(), Generation(0), &owner, None).unwrap(), Verdict::Won);
    let small = || session(1, 4 << 20);
    let page = |first| Message::Pages(Pages { first, bytes: vec![1; PAGE_BYTES] });
    let snapshot = || Message::Snapshot(Snapshot { seq: LogSeq(0), digest: StateDigest(1), state: vec![0xff; 300] });
    let generation = Generation(1);
    let goodbye = Message::Goodbye { reason: "no time for you".into() };
    for (messages, code, word) in [
        (vec![small(), snapshot()], 1, "can't be restored here"),
        (vec![small(), page(1 << 40)], 1, "can't be restored here"),
        (vec![session(1, u64::MAX)], 1, "ram_bytes"),
        (vec![session(7, 4 << 20)], 1, "arbiter"),
        (vec![small(), page(0)], 5, "connection closed"),
        (vec![Message::Protected { generation }], 1, "broke the protocol"),
        (vec![small(), snapshot(), Message::Protected { generation }], 1, ""),
        (vec![page(0), Message::Heartbeat], 1, "broke the protocol"),
        (vec![goodbye], 5, "no time for you"),
    ] {
        let ended = backup_of(&stage, &encoded(&messages), word == "connection closed").end();
        assert_eq!(ended.code, Some(code), "{}", ended.reason);
        assert!(ended.reason.contains(word), "{word:?} is not in {:?}", ended.reason);
    }
}

#[test]
fn a_backup_gives_up_a_silent_primary() {
    let stage = Stage::new(programs!());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut backup = stage.node("ft-backup", &["--primary", &address, "--failure-timeout-ms", "50"]);
    let _silent = listener.accept().unwrap();
    let ended = backup.end();
    assert_eq!(ended.code, Some(5), "{}", ended.reason);
    assert!(ended.reason.contains("silent"), "{}", ended.reason);
}
