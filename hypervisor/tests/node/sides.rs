//! Each side with its real threads and a real socket. The other side is either played by the test,
//! or real as well, behind a link that the test can cut.

use super::roles_image::{JUMP_BACK_ONE, image};
use ft::claim::{Claim, ClaimKind};
use ft::role::{BackupEnd, DiskLogState, Inheritance, PrimaryEnd, PrimaryRole, Timing};
use hypervisor::lan::port::PortTiming;
use hypervisor::lan::wire::ServerMessage;
use hypervisor::node::backup;
use hypervisor::node::backup::{BackupOutcome, FaultInjection, Succession};
use hypervisor::node::environment::Node;
use hypervisor::node::io::network::NetworkAddress;
use hypervisor::node::primary::LiveEnd;
use hypervisor::program::guest::Guest;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::frame::{FrameDecoder, FrameKind, append_frame};
use logchannel::message::Message;
use logchannel::session::{NodeId, VmId};
use logchannel::stream::LogSender;
use nix::sys::socket::{MsgFlags, SockaddrIn, getpeername, send, setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vm::{Event, InstructionCount, Machine};

use super::peer::*;

#[test]
fn a_backup_that_wins_always_goes_live() {
    let image = Guest::load("hello").unwrap().image;
    for round in 0..100_u64 {
        let image = image.clone();
        let outcome = run_backup(&Claims::owned(), move |mut peer| {
            peer.protect(&image);
            let mut log = LogSender::new(LogSeq(0));
            for count in 0..=round % 3 {
                log.append(&LogEntry { count: InstructionCount(count), body: EntryBody::Progress });
            }
            let (mut bytes, entries) = (Vec::new(), log.appended());
            while log.take_frame(&mut bytes) {}
            peer.stream.write_all(&bytes).unwrap();
            peer.hear(|message| *message == Message::Ack { received: entries });
            // The primary dies here. In some rounds replay is done by then, in others not.
            thread::sleep(Duration::from_micros(round * 20));
        });
        let BackupOutcome::GoLive(succession) = outcome else { panic!("round {round}: {outcome:?}") };
        assert_eq!(succession.session.generation, G.next());
        assert_eq!(succession.entries, LogSeq(round % 3 + 1));
    }
}

#[test]
fn a_backup_that_loses_the_flag_ends_fenced() {
    let arbiter = Claims::owned();
    let image = Guest::load("hello").unwrap().image;
    let (claims, (tell, told)) = (arbiter.clone(), mpsc::channel());
    let outcome = run_backup(&arbiter, move |mut peer| {
        peer.protect(&image);
        tell.send(claims.hold(G, NodeId(1))).unwrap();
    });
    let holder = told.recv().unwrap();
    assert!(matches!(outcome, BackupOutcome::End(BackupEnd::Fenced { holder: found }) if found == holder));
}

#[test]
fn a_primary_that_this_sides_arbiter_does_not_know_is_refused() {
    let (nobody, another) = (Arc::new(Claims::default()), Claims::owned());
    another.hold(G, NodeId(7));
    for arbiter in [nobody, another] {
        let outcome = run_backup(&arbiter, |mut peer| {
            peer.say(&[Message::Session { header: session(4 << 20, &image(&[NOP])), owner: NodeId(1) }]);
            let is_refusal = |message: &Message| matches!(message, Message::Refused { .. });
            while peer.next().is_some_and(|message| !is_refusal(&message)) {}
        });
        let BackupOutcome::End(BackupEnd::Refused { reason }) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains("arbiter"), "{reason}");
    }
}

/// A backup that has accepted may be told at once that it protects the VM. So it must have checked
/// the owner before, even if the guest is restored long before the arbiter answers.
#[test]
fn a_guest_that_is_restored_before_the_arbiter_answers_is_not_accepted() {
    let slow_stranger = Arc::new(Claims { hesitation: Duration::from_millis(300), ..Claims::default() });
    let outcome = run_backup(&slow_stranger, |mut peer| {
        peer.send_guest(&image(&[NOP]));
        loop {
            match peer.next() {
                Some(Message::Refused { .. }) | None => break,
                said => assert_ne!(said, Some(Message::Accepted)),
            }
        }
    });
    let BackupOutcome::End(BackupEnd::Refused { reason }) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("--arbiter"), "{reason}");
}

#[test]
fn a_primary_that_sends_garbage_is_lost_and_the_log_before_it_counts() {
    let image = Guest::load("hello").unwrap().image;
    let outcome = run_backup(&Claims::owned(), move |mut peer| {
        peer.protect(&image);
        let mut log = LogSender::new(LogSeq(0));
        log.append(&LogEntry { count: InstructionCount(100), body: EntryBody::Progress });
        let mut bytes = Vec::new();
        log.take_frame(&mut bytes);
        bytes.extend([0xff; 64]);
        peer.stream.write_all(&bytes).unwrap();
        // The connection stays open: the backup must give this primary up.
        let _ = peer.stream.read_to_end(&mut Vec::new());
    });
    let BackupOutcome::GoLive(succession) = outcome else { panic!("{outcome:?}") };
    assert_eq!(succession.entries, LogSeq(1));
    assert_eq!(succession.machine.instruction_count(), InstructionCount(100));
}

#[test]
fn a_backup_that_is_alive_but_reads_nothing_does_not_hang_its_primary() {
    let arbiter = Claims::owned();
    // This guest fills every buffer between the two at once.
    let primary = Running::awaiting_backup(&arbiter, READ_CLOCK, Timing::default());
    let mut backup = Peer::connect(primary.address);
    backup.become_protected();
    // The connection stays open but silent, as that of a stopped process, until the primary gives
    // the backup up.
    wait_until("the primary asks for the flag", || arbiter.holder(G).is_some());
    assert!(matches!(primary.retire(), LiveEnd::Role(PrimaryEnd::Retired)));
    assert_eq!(arbiter.holder(G).unwrap().kind, ClaimKind::Owner);
    drop(backup);
}

#[test]
fn silent_connections_keep_no_backup_out() {
    let is_there = |mut pending: TcpStream| {
        pending.set_nonblocking(true).unwrap();
        pending.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    // On a host so busy that the connections were refused meanwhile, a try shows nothing.
    let shown = (0..10).any(|_| {
        let primary = Running::awaiting_backup(&Claims::owned(), NOP, patient());
        let silent: Vec<_> = (0..7).map(|_| TcpStream::connect(primary.address).unwrap()).collect();
        let mut backup = Peer::connect(primary.address);
        backup.become_protected();
        let were_there = silent.into_iter().all(is_there);
        assert!(matches!(primary.retire(), LiveEnd::HandedOver));
        were_there
    });
    assert!(shown, "the backup always had to wait until the others were gone");
}

#[test]
fn a_connection_that_sends_byte_by_byte_is_refused() {
    let arbiter = Claims::owned();
    let primary = Running::awaiting_backup(&arbiter, NOP, patient());
    let mut pending = TcpStream::connect(primary.address).unwrap();
    // The beginning of a valid frame, which would take hours.
    let mut bytes = Vec::new();
    append_frame(FrameKind(13), &[0; 100_000], &mut bytes);
    pending.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let end = Instant::now() + TIMEOUT;
    for byte in bytes {
        assert!(Instant::now() < end, "it is listened to for ever");
        let written = pending.write_all(&[byte]);
        let is_open = |read: std::io::Result<usize>| {
            read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
        };
        if written.is_err() || !is_open(pending.read(&mut [0; 64])) {
            break;
        }
    }
    let mut backup = Peer::connect(primary.address);
    backup.become_protected();
    assert!(matches!(primary.retire(), LiveEnd::HandedOver));
}

#[test]
fn a_backup_of_another_vm_is_refused_with_the_reason_and_the_next_one_joins() {
    let arbiter = Claims::owned();
    let primary = Running::awaiting_backup(&arbiter, NOP, patient());
    let mut other = Peer::connect(primary.address);
    other.say(&[Message::Join { vm: VmId::new("other").unwrap(), node: NodeId(4) }]);
    let said = other.next();
    assert!(matches!(&said, Some(Message::Refused { reason }) if reason.contains("other")), "{said:?}");
    assert_eq!(other.next(), None);
    let mut backup = Peer::connect(primary.address);
    backup.become_protected();
    assert!(matches!(primary.retire(), LiveEnd::HandedOver));
}

#[test]
fn a_spare_waits_and_is_admitted_when_the_place_is_free() {
    let arbiter = Claims::owned();
    let primary = Running::awaiting_backup(&arbiter, NOP, patient());
    let mut backup = Peer::connect(primary.address);
    backup.become_protected();
    let mut gone = Peer::connect(primary.address);
    gone.say(&[Message::Join { vm: vm(), node: NodeId(5) }]);
    assert_eq!(gone.next(), Some(Message::Wait));
    let mut spare = Peer::connect(primary.address);
    spare.say(&[Message::Join { vm: vm(), node: NodeId(6) }]);
    assert_eq!(spare.next(), Some(Message::Wait));
    for _ in 0..5 {
        assert_eq!(spare.next(), Some(Message::Heartbeat), "a spare knows that its primary is there");
    }
    // The closed connection doesn't take the place of the open one.
    drop(gone);
    drop(backup);
    spare.hear(|message| matches!(message, Message::Session { header, .. } if header.vm == vm()));
    spare.hear(|message| matches!(message, Message::Snapshot(_)));
    spare.say(&[Message::Accepted]);
    spare.hear(|message| matches!(message, Message::Protected { .. }));
    assert!(matches!(primary.retire(), LiveEnd::HandedOver));
}

/// A connection between a backup and its primary that can be cut. It reports when the backup is
/// told that it may claim.
struct Link {
    ends: [TcpStream; 2],
    protected: mpsc::Receiver<()>,
}

impl Link {
    /// Connects to the primary at `address`; returns the backup's end.
    fn to(address: SocketAddr) -> (Self, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (backup, _) = listener.accept().unwrap();
        let primary = TcpStream::connect(address).unwrap();
        let (tell, protected) = mpsc::channel();
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        let (from_primary, from_backup) = ((clone(&primary), clone(&backup)), (clone(&backup), clone(&primary)));
        thread::spawn(move || {
            let mut decoder = FrameDecoder::new();
            pump(from_primary, |bytes| {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    if matches!(Message::decode(frame).unwrap(), Message::Protected { .. }) {
                        let _ = tell.send(());
                    }
                }
            });
        });
        thread::spawn(move || pump(from_backup, |_| ()));
        (Self { ends: [primary, backup], protected }, stream)
    }

    fn wait_for_protection(&self) {
        self.protected.recv_timeout(TIMEOUT).expect("the pair is never complete");
    }

    fn cut(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Forwards bytes until one end closes.
fn pump((mut from, mut to): (TcpStream, TcpStream), mut see: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer)
        && to.write_all(&buffer[..length]).is_ok()
    {
        see(&buffer[..length]);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A real backup of the primary at `address`, protected.
fn real_backup(id: u128, arbiter: &Arc<Claims>, address: SocketAddr) -> (Link, thread::JoinHandle<BackupOutcome>) {
    let (link, stream) = Link::to(address);
    let node = node(id, arbiter);
    let thread = thread::spawn(move || {
        let role = backup_role(&node);
        backup::run(&node, role, Arc::new(stream), None, FaultInjection::default()).unwrap()
    });
    link.wait_for_protection();
    (link, thread)
}

#[test]
fn backups_join_and_rejoin_over_real_sockets_whichever_side_is_lost() {
    let arbiter = Claims::owned();
    let mut primary = Running::awaiting_backup(&arbiter, NOP, patient());
    let mut owner = 1;
    for round in 0..6 {
        let generation = Generation(G.0 + round);
        let id = 10 + u128::from(round);
        let (link, backup) = real_backup(id, &arbiter, primary.address);
        // The backup and the primary are lost by turns.
        let survivor = if round % 2 == 0 { owner } else { id };
        arbiter.favour(NodeId(survivor));
        link.cut();
        let outcome = backup.join().unwrap();
        assert_eq!(arbiter.holder(generation).unwrap().node, NodeId(survivor));
        if survivor == owner {
            let is_fenced = |holder: &Claim| holder.node == NodeId(owner);
            assert!(
                matches!(&outcome, BackupOutcome::End(BackupEnd::Fenced { holder }) if is_fenced(holder)),
                "{outcome:?}"
            );
            continue;
        }
        let BackupOutcome::GoLive(succession) = outcome else { panic!("{outcome:?}") };
        let end = primary.thread.join().unwrap();
        assert!(matches!(end, LiveEnd::Role(PrimaryEnd::Fenced { .. })), "{end:?}");
        let Succession { machine, clock, session, entries, unsent, next_output, .. } = *succession;
        assert_eq!(session.generation, generation.next());
        assert!(machine.instruction_count() > InstructionCount(0), "the guest has run");
        let inheritance = Inheritance { clock, first: entries, next_output, unsent, disk_log: DiskLogState::None };
        let role = PrimaryRole::gone_live(NodeId(id), session, patient(), inheritance);
        primary = Running::start(node(id, &arbiter), role, machine);
        owner = id;
    }
    assert!(matches!(primary.retire(), LiveEnd::Role(PrimaryEnd::Retired)));
}

/// Source: Scales et al. 2010, §2.1: the log buffer is bounded, and a full one stops the primary.
#[test]
fn a_backup_whose_log_buffer_is_full_stops_reading_and_goes_on_when_there_is_room() {
    const FRAME_BYTES: usize = 1500;
    /// A quarter more than the buffer holds.
    const PACKETS: u64 = (backup::LOG_BUFFER_BYTES_MAX / FRAME_BYTES * 5 / 4) as u64;
    /// About as many as the buffer holds, without an entry's overhead and what is in flight.
    const FULL: u64 = (backup::LOG_BUFFER_BYTES_MAX / (FRAME_BYTES + 200)) as u64;
    let arbiter = Claims::owned();
    let faults = FaultInjection { slowdown: 50, ..FaultInjection::default() };
    let outcome = run_faulty_backup(&arbiter, faults, |mut peer| {
        peer.protect(&image(&[]));
        let mut stream = peer.stream.try_clone().unwrap();
        let writer = thread::spawn(move || {
            let (mut log, mut bytes) = (LogSender::new(LogSeq(0)), Vec::new());
            for number in 1..=PACKETS {
                let event = Event::Packet { number, packet: vec![0; FRAME_BYTES] };
                log.append(&LogEntry { count: InstructionCount(0), body: EntryBody::Event(event) });
                while log.pending_bytes() > 4096 && log.take_frame(&mut bytes) {}
                stream.write_all(&std::mem::take(&mut bytes)).unwrap();
            }
            while log.take_frame(&mut bytes) {}
            stream.write_all(&bytes).unwrap();
        });
        let (mut acked, mut consumed, mut most) = (0, 0, 0);
        while consumed < PACKETS {
            let said = peer.next().expect("the backup lives");
            if let Message::Ack { received } = said {
                acked = received.0;
            } else if let Message::Consumed { consumed: place, .. } = said {
                consumed = place.0;
            }
            most = most.max(acked.saturating_sub(consumed));
        }
        writer.join().unwrap();
        assert!(
            (FULL..PACKETS - FULL / 20).contains(&most),
            "{most} of {PACKETS} entries waited; {FULL} fill the buffer"
        );
        peer.say(&[Message::Goodbye { reason: "done".into() }]);
    });
    let BackupOutcome::GoLive(succession) = outcome else { panic!("{outcome:?}") };
    assert_eq!(succession.entries, LogSeq(PACKETS));
    assert_eq!(succession.machine.last_packet_number(), PACKETS);
}

/// A LAN that accepts connections and sends nothing, and one whose accept queue is full.
fn silent_lans() -> [(TcpListener, Vec<TcpStream>); 2] {
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let full = listener();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let address = full.local_addr().unwrap();
    let fillers =
        (0..4).filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok()).collect();
    [(listener(), Vec::new()), (full, fillers)]
}

#[test]
fn a_lan_that_does_not_answer_holds_up_neither_guest_nor_backup() {
    for (lan, _fillers) in silent_lans() {
        let network = NetworkAddress::Lan(lan.local_addr().unwrap());
        let time_to_protection = |id| {
            let arbiter = Arc::new(Claims::default());
            arbiter.hold(Generation(G.0 - 1), NodeId(id));
            let image = image(&[NOP, JUMP_BACK_ONE]);
            let session = session(4 << 20, &image);
            let machine = Machine::new(&session.config, &image).unwrap();
            let node = Node { network: Some(network.clone()), ..node(id, &arbiter) };
            let started = Instant::now();
            let primary = Running::start(node, PrimaryRole::alone(NodeId(id), session, patient()), machine);
            let mut backup = Peer::connect(primary.address);
            backup.become_protected();
            // The guest runs: its log arrives, or a heartbeat.
            assert!(backup.next().is_some());
            drop(backup);
            let time = started.elapsed();
            primary.retire();
            time
        };
        // A single slow time may be the host's; if the VM waits for the LAN, all are slow.
        let times: Vec<_> = (0..5).map(time_to_protection).collect();
        let answer_time = Duration::from_nanos(PortTiming::default().answer_ns);
        assert!(times.iter().any(|&time| time < answer_time), "{times:?}");
    }
}

/// A LAN that refuses every owner, and reports each refusal.
fn refusing_lan() -> (NetworkAddress, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map(Result::unwrap) {
            let mut refusal = Vec::new();
            ServerMessage::Refused { reason: "another process has it" }.append(&mut refusal);
            let _ = stream.read(&mut [0; 1024]);
            if stream.write_all(&refusal).is_err() || tell.send(()).is_err() {
                break;
            }
        }
    });
    (NetworkAddress::Lan(address), told)
}

/// A LAN alone never ends a VM, because it may be wrong; only the arbiter's answer does.
#[test]
fn an_owner_that_its_lan_refuses_asks_the_arbiter_who_owns_the_vm() {
    for is_fenced in [false, true] {
        let arbiter = Claims::owned();
        let (network, refused) = refusing_lan();
        let image = image(&[NOP, JUMP_BACK_ONE]);
        let session = session(4 << 20, &image);
        let machine = Machine::new(&session.config, &image).unwrap();
        let node = Node { network: Some(network), ..node(1, &arbiter) };
        // The owner makes no periodic check within this test.
        let timing = Timing { claim_check_ns: 600_000_000_000, ..patient() };
        let primary = Running::start(node, PrimaryRole::alone(NodeId(1), session, timing), machine);
        refused.recv_timeout(TIMEOUT).unwrap();
        // The check after this refusal notices it, or the one after the next.
        match is_fenced.then(|| arbiter.hold(G, NodeId(7))) {
            // It runs on, and tries again.
            None => {
                (0..2).for_each(|_| refused.recv_timeout(TIMEOUT).unwrap());
                assert!(matches!(primary.retire(), LiveEnd::Role(PrimaryEnd::Retired)));
            }
            Some(holder) => {
                let end = primary.thread.join().unwrap();
                assert!(matches!(&end, LiveEnd::Role(PrimaryEnd::Fenced { holder: by }) if *by == holder), "{end:?}");
            }
        }
    }
}

/// Fills the other end of `stream`, which is in this process, until it takes nothing more.
fn fill_other_end(stream: &TcpStream) {
    let here = stream.local_addr().unwrap();
    let is_other_end =
        |&socket: &i32| getpeername::<SockaddrIn>(socket).is_ok_and(|peer| SocketAddr::from(peer) == here);
    let socket = (3..1024).find(is_other_end).unwrap();
    let mut full_since = None;
    while full_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_millis(100)) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let took = [64 << 10, 1].into_iter().any(|length| send(socket, &vec![0; length], flags).is_ok());
        full_since = if took { None } else { full_since.or_else(|| Some(Instant::now())) };
    }
}

/// The thread that gets the signal writes the last messages. It must not wait for the backup,
/// because it also gets the next signal. No other thread writes here: the guest sleeps and no
/// heartbeat is due.
#[test]
fn last_messages_that_the_channel_has_no_room_for_are_not_waited_for() {
    let timing = Timing { heartbeat_ns: 59_000_000_000, ..patient() };
    let primary = Running::awaiting_backup(&Claims::owned(), WAIT_FOR_INTERRUPT, timing);
    let mut backup = Peer::connect(primary.address);
    setsockopt(&backup.stream, sockopt::RcvBuf, &4096).unwrap();
    backup.become_protected();
    // The log of the guest's first steps has been written by then.
    thread::sleep(Duration::from_millis(500));
    fill_other_end(&backup.stream);
    let (ended, ends) = mpsc::channel();
    thread::spawn(move || ended.send(primary.retire()));
    let end = ends.recv_timeout(TIMEOUT).expect("the last messages wait for the backup");
    assert!(matches!(end, LiveEnd::HandedOver));
    drop(backup);
}
