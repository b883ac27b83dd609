//! Connections to the LAN break with packets on them. The packets must be sent again, and arrive
//! once and in order.

use ft::guest_clock::GuestClock;
use ft::output_gate::OutputGate;
use hypervisor::lan::client::{LanError, attach};
use hypervisor::lan::port::PortSender;
use hypervisor::lan::server::{LanConfig, LanServer};
use hypervisor::lan::wire::ServerMessage;
use hypervisor::lan::{Attachment, ConnectionLimits};
use hypervisor::node::host::Host;
use hypervisor::node::io::inbox::HostEventSource;
use hypervisor::node::io::lan::{AttachmentConfig, LanUser};
use hypervisor::node::io::network;
use hypervisor::node::io::sink::NetworkAndConsole;
use hypervisor::node::process::ProcessHost;
use hypervisor::os::report::Reporter;
use logchannel::entry::{Generation, LogSeq};
use logchannel::session::NodeId;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vm::{OutputId, OutputOperation};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
/// The connections that break before one stays.
const CUTS: u64 = 12;
/// Bounds every wait; no test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Starts a LAN for the time of the test; returns where VMs and QEMU processes connect.
fn start_lan() -> (SocketAddr, SocketAddr) {
    let config =
        LanConfig { listen: loopback(), qemu: Some(loopback()), forwards: vec![], limits: ConnectionLimits::default() };
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = LanServer::bind(&config, Reporter::new("lan-test", false)).await.unwrap();
            tell.send((server.listen_address(), server.qemu_address().unwrap())).unwrap();
            server.run(std::future::pending()).await;
        });
    });
    told.recv_timeout(PATIENCE).unwrap()
}

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}

/// A link to the LAN whose first connections break after some bytes, anywhere in a message, and
/// lose what was in flight.
fn start_faulty_link(lan: SocketAddr, seed: u64, cuts: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut state = seed;
        for client in listener.incoming().map(Result::unwrap) {
            let bytes_left =
                if cuts.load(Ordering::SeqCst) < CUTS { 100 + random(&mut state) % 8000 } else { u64::MAX };
            let lan = TcpStream::connect(lan).unwrap();
            let (mut answers, mut back) = (lan.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut answers, &mut back));
            pass(client, lan, bytes_left);
            cuts.fetch_add(1, Ordering::SeqCst);
        }
    });
    address
}

/// Forwards `bytes_left` bytes, and then cuts both connections.
fn pass(mut client: TcpStream, mut lan: TcpStream, mut bytes_left: u64) {
    let mut buffer = [0; 4096];
    while bytes_left > 0 {
        let length = client.read(&mut buffer).unwrap_or(0);
        let passed = length.min(usize::try_from(bytes_left).unwrap());
        if length == 0 || lan.write_all(&buffer[..passed]).is_err() {
            break;
        }
        bytes_left -= passed as u64;
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = lan.shutdown(Shutdown::Both);
}

/// An owner of a VM that has only its output gate.
struct Owner {
    gate: Mutex<OutputGate>,
    sink: Arc<Mutex<NetworkAndConsole>>,
    host: ProcessHost,
}

impl Owner {
    /// Writes the released outputs, as a live VM does.
    fn write(&self) {
        let mut sink = self.sink.lock().unwrap();
        let batch: Vec<_> = {
            let mut gate = self.gate.lock().unwrap();
            std::iter::from_fn(|| gate.take_released()).collect()
        };
        if let Some(last) = batch.last() {
            sink.write(&batch);
            self.gate.lock().unwrap().console_left(last.id.next());
        }
    }

    fn produce(&self, id: u64) {
        let mut gate = self.gate.lock().unwrap();
        gate.hold(0, LogSeq(id), OutputId(id), OutputOperation::Packet(numbered_packet(id)));
        gate.release(0, LogSeq(id + 1));
    }
}

impl LanUser for Owner {
    type Host = ProcessHost;

    fn host(&self) -> &ProcessHost {
        &self.host
    }

    fn is_over(&self) -> bool {
        false
    }

    fn owner(&self) -> (Generation, Range<OutputId>) {
        let gate = self.gate.lock().unwrap();
        (Generation(0), gate.next_to_leave()..gate.end())
    }

    fn attached(&self, sender: PortSender<TcpStream>, next_output: OutputId) {
        {
            let mut sink = self.sink.lock().unwrap();
            self.gate.lock().unwrap().send_again(next_output);
            sink.lan().set(Some(sender));
        }
        self.write();
    }

    fn detached(&self) {
        self.sink.lock().unwrap().lan().set(None);
    }

    fn send_heartbeat(&self) {
        self.sink.lock().unwrap().lan().send_heartbeat(self.host.now_ns());
    }

    fn refused(&self) {}

    fn carried(&self, next_output: OutputId) {
        self.gate.lock().unwrap().carried(next_output);
    }
}

/// An owner whose network is at `lan`.
fn plug_in(lan: SocketAddr) -> Arc<Owner> {
    let reporter = Reporter::new("lan-test", true);
    let sink = Arc::new(Mutex::new(NetworkAndConsole::new(reporter, true)));
    let (_source, inbox) = HostEventSource::new(GuestClock::standing(0)).unwrap();
    let host = ProcessHost::with_guest(reporter, inbox);
    let gate = Mutex::new(OutputGate::new(OutputId(0)));
    let owner = Arc::new(Owner { gate, sink, host: host.clone() });
    let (node, booted, mac) = (NodeId(1), Generation(0), GUEST_MAC);
    let config = AttachmentConfig { vm: "vm".parse().unwrap(), node, booted, mac, lan };
    network::start_lan(&host, network::attachment(config, 0), owner.clone()).unwrap();
    owner
}

fn numbered_packet(number: u64) -> Vec<u8> {
    [&[2, 9, 9, 9, 9, 9][..], &GUEST_MAC, &[0x88, 0xb5], &number.to_be_bytes(), &[0; 38]].concat()
}

/// The number in the next packet from the LAN.
fn next_number(qemu: &mut TcpStream) -> u64 {
    let mut packet = [0; 4 + 60];
    qemu.read_exact(&mut packet).unwrap();
    u64::from_be_bytes(*packet[18..].first_chunk().unwrap())
}

#[test]
fn packets_lost_with_a_connection_are_sent_again_and_arrive_once() {
    let seed = std::env::var("FT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121);
    println!("FT_SEED={seed}");
    let (listen, qemu) = start_lan();
    let mut qemu = TcpStream::connect(qemu).unwrap();
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    let cuts = Arc::new(AtomicU64::new(0));
    let link = start_faulty_link(listen, seed, cuts.clone());

    let owner = plug_in(link);

    // Known once all cuts are done, well before the test gets there.
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let (producer, ends_at) = (owner.clone(), end.clone());
    thread::spawn(move || {
        let mut produced = 0;
        while produced < ends_at.load(Ordering::SeqCst) {
            // Several at once, so that a cut falls into a batch; fewer in total than a QEMU port
            // retains for its peer.
            for _ in 0..=produced % 5 {
                producer.produce(produced);
                produced += 1;
            }
            producer.write();
            thread::sleep(Duration::from_millis(5));
            if cuts.load(Ordering::SeqCst) == CUTS {
                ends_at.fetch_min(produced + 200, Ordering::SeqCst);
            }
        }
    });
    let mut expected = 0;
    while expected < end.load(Ordering::SeqCst) {
        assert_eq!(next_number(&mut qemu), expected);
        expected += 1;
    }
    println!("{expected} packets over {CUTS} connections that died");
    // The LAN says what it has carried, and the gate forgets that.
    wait_until_carried(&owner, expected);
}

fn wait_until_carried(owner: &Owner, next_output: u64) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while owner.gate.lock().unwrap().next_to_leave() < OutputId(next_output) {
        assert!(std::time::Instant::now() < deadline, "the LAN doesn't tell that it has carried everything");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The guest of a VM that goes live runs at once. Its packets wait for the LAN, which never answers
/// its first connection here.
#[test]
fn packets_that_are_sent_before_the_lan_answers_arrive_once_it_does() {
    let (listen, qemu) = start_lan();
    let mut qemu = TcpStream::connect(qemu).unwrap();
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    let listener = TcpListener::bind(loopback()).unwrap();
    let owner = plug_in(listener.local_addr().unwrap());
    let (_unanswered, _) = listener.accept().unwrap();
    for id in 0..100 {
        owner.produce(id);
        owner.write();
    }
    let (client, _) = listener.accept().unwrap();
    let lan = TcpStream::connect(listen).unwrap();
    let (mut answers, mut back) = (lan.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut answers, &mut back));
    thread::spawn(move || pass(client, lan, u64::MAX));
    for id in 0..100 {
        assert_eq!(next_number(&mut qemu), id);
    }
}

/// The direction in which a dead connection passes nothing, though it isn't closed.
#[derive(Clone, Copy, Debug)]
struct Dead {
    to_lan: bool,
    from_lan: bool,
}

/// A link to the LAN whose first connection goes dead when the test says so; the next one works.
fn start_mortal_link(lan: SocketAddr, dead: Dead, is_dead: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (index, client) in listener.incoming().map(Result::unwrap).enumerate() {
            let lan = TcpStream::connect(lan).unwrap();
            let ways =
                [(client.try_clone().unwrap(), lan.try_clone().unwrap(), dead.to_lan), (lan, client, dead.from_lan)];
            for (mut from, mut to, dies) in ways {
                let is_dead = is_dead.clone();
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        let is_lost = index == 0 && dies && is_dead.load(Ordering::SeqCst);
                        if !is_lost && to.write_all(&buffer[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    address
}

/// When the other host loses its power, or a firewall forgets the connection, no end of the
/// connection arrives. An idle guest would be unreachable for ever.
#[test]
fn a_connection_that_is_dead_and_not_closed_is_replaced() {
    let both = Dead { to_lan: true, from_lan: true };
    for dead in [both, Dead { from_lan: false, ..both }, Dead { to_lan: false, ..both }] {
        println!("{dead:?}");
        let (listen, qemu) = start_lan();
        let mut qemu = TcpStream::connect(qemu).unwrap();
        qemu.set_read_timeout(Some(PATIENCE)).unwrap();
        let is_dead = Arc::new(AtomicBool::new(false));
        let owner = plug_in(start_mortal_link(listen, dead, is_dead.clone()));
        owner.produce(0);
        owner.write();
        assert_eq!(next_number(&mut qemu), 0);
        wait_until_carried(&owner, 1);
        is_dead.store(true, Ordering::SeqCst);
        // Lost with the connection, or the LAN's report of them is; they must arrive once.
        (1..20).for_each(|id| {
            owner.produce(id);
            owner.write();
        });
        (1..20).for_each(|id| assert_eq!(next_number(&mut qemu), id));
        // The LAN's report arrives too.
        wait_until_carried(&owner, 20);
    }
}

/// A LAN that sends its answer byte by byte must not keep a VM from attaching to one that works.
/// Without the bound this takes a minute.
#[test]
fn a_lan_whose_answer_comes_byte_by_byte_is_given_up() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut vm, _) = listener.accept().unwrap();
        let mut answer = Vec::new();
        ServerMessage::Refused { reason: &"x".repeat(1200) }.append(&mut answer);
        for byte in answer {
            if vm.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    let given_up = attach(address, &first_attachment(), Duration::from_millis(500)).unwrap_err();
    assert!(matches!(given_up, LanError::NoAnswer), "{given_up}");
}

#[test]
fn a_lan_that_is_stopped_is_one_that_does_not_answer() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let given_up = attach(listener.local_addr().unwrap(), &first_attachment(), Duration::from_millis(200)).unwrap_err();
    assert!(matches!(given_up, LanError::NoAnswer), "{given_up}");
}

fn first_attachment() -> Attachment {
    Attachment {
        vm: "vm0".parse().unwrap(),
        node: NodeId(1),
        generation: Generation(1),
        mac: GUEST_MAC,
        next_output: OutputId(0),
        output_end: OutputId(0),
        last_packet: 0,
        booted: Generation(0),
    }
}
