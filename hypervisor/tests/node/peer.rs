//! A node's peer that the test plays, an arbiter in memory, and primaries that run in the
//! background.

use crate::roles_image::{JUMP_BACK_ONE, image};
use ft::claim::{Claim, ClaimKind, Verdict, is_successor};
use ft::record::Intervals;
use ft::role::{BackupRole, Expectation, PrimaryRole, Timing};
use hypervisor::arbiter::{Arbiter, ArbiterError};
use hypervisor::node::arbiter_thread::ArbiterThread;
use hypervisor::node::backup;
use hypervisor::node::backup::{BackupOutcome, FaultInjection};
use hypervisor::node::environment::Node;
use hypervisor::node::io::console::Keys;
use hypervisor::node::primary::{LiveEnd, LiveVm};
use hypervisor::os::clock;
use hypervisor::os::report::Reporter;
use logchannel::entry::Generation;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader, VmId};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use vm::{Machine, MachineConfig};

pub(crate) const G: Generation = Generation(5);
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const NOP: u32 = 0x13;
pub(crate) const READ_CLOCK: u32 = 0xc010_22f3;
pub(crate) const WAIT_FOR_INTERRUPT: u32 = 0x1050_0073;

/// The first node that claims a generation wins it. If there is a favourite, the others wait for an
/// answer until it has claimed.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub holders: Mutex<BTreeMap<Generation, Claim>>,
    pub favourite: Mutex<Option<NodeId>>,
    /// How long the answer about the owner takes.
    pub hesitation: Duration,
}

impl Claims {
    /// An arbiter at which node 1 owns generation [`G`].
    pub(crate) fn owned() -> Arc<Self> {
        let claims = Self::default();
        claims.hold(Generation(G.0 - 1), NodeId(1));
        Arc::new(claims)
    }

    pub(crate) fn hold(&self, generation: Generation, node: NodeId) -> Claim {
        let claim = Claim { node, kind: ClaimKind::Owner, address: None };
        self.holders.lock().unwrap().insert(generation, claim.clone());
        claim
    }

    pub(crate) fn holder(&self, generation: Generation) -> Option<Claim> {
        self.holders.lock().unwrap().get(&generation).cloned()
    }

    pub(crate) fn favour(&self, node: NodeId) {
        *self.favourite.lock().unwrap() = Some(node);
    }
}

impl Arbiter for Claims {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        let mut holders = self.holders.lock().unwrap();
        let favourite = *self.favourite.lock().unwrap();
        if !holders.contains_key(&generation) && favourite.is_some_and(|favourite| favourite != claim.node) {
            return Err(ArbiterError::BadClaim { claim: vm.to_string(), reason: "wait for the other".into() });
        }
        let before = generation.0.checked_sub(1).and_then(|before| holders.get(&Generation(before)));
        assert!(is_successor(generation, predecessor, before), "{claim:?} after {before:?}");
        let holder = holders.entry(generation).or_insert_with(|| claim.clone());
        Ok(if holder.node == claim.node { Verdict::Won } else { Verdict::Lost(holder.clone()) })
    }

    fn latest(&self, _: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        thread::sleep(self.hesitation);
        Ok(self.holders.lock().unwrap().last_key_value().map(|(generation, claim)| (*generation, claim.clone())))
    }
}

pub(crate) fn vm() -> VmId {
    VmId::new("vm0").unwrap()
}

pub(crate) fn node(id: u128, arbiter: &Arc<Claims>) -> Node {
    Node {
        vm: vm(),
        id: NodeId(id),
        arbiter: ArbiterThread::new(arbiter.clone(), "test", None).unwrap(),
        network: None,
        mac: [0; 6],
        address: "127.0.0.1:1".into(),
        reporter: Reporter::new("test", true),
        intervals: Intervals::default(),
        keys: Keys::default(),
    }
}

/// Silence loses no side, because the host may stop either for a while; a closed connection needs
/// no timeout.
pub(crate) fn patient() -> Timing {
    Timing { failure_timeout_ns: 60_000_000_000, ..Timing::default() }
}

pub(crate) fn backup_role(node: &Node) -> BackupRole {
    BackupRole::new(clock::now_ns(), node.id, Expectation { vm: vm(), image: None }, patient())
}

pub(crate) fn session(ram_bytes: u64, image: &[u8]) -> SessionHeader {
    let config = MachineConfig { ram_bytes, ..MachineConfig::default() };
    SessionHeader::new(vm(), G, config, "guest", image).unwrap()
}

/// The test's end of a logging channel.
pub(crate) struct Peer {
    pub stream: TcpStream,
    pub decoder: FrameDecoder,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, decoder: FrameDecoder::new() }
    }

    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn say(&mut self, messages: &[Message]) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(Message::decode(frame).unwrap());
            }
            let length = self.stream.read(&mut buffer).unwrap();
            if length == 0 {
                return None;
            }
            self.decoder.push(&buffer[..length]);
        }
    }

    /// Reads messages until one is `wanted`.
    pub(crate) fn hear(&mut self, wanted: impl Fn(&Message) -> bool) {
        loop {
            let message = self.next().expect("the other side closed the connection");
            assert!(!matches!(message, Message::Refused { .. }), "{message:?}");
            if wanted(&message) {
                return;
            }
        }
    }

    /// Sends a backup the whole state of a guest that was just reset.
    pub(crate) fn send_guest(&mut self, image: &[u8]) {
        let session = session(16 << 20, image);
        let mut machine = Machine::new(&session.config, image).unwrap();
        self.hear(|message| *message == Message::Join { vm: vm(), node: NodeId(9) });
        let mut role = PrimaryRole::alone(NodeId(1), session, patient());
        role.handle_join(0, &vm()).unwrap();
        let mut bytes = Vec::new();
        while role.is_copying() {
            role.copy_snapshot(0, &mut machine);
            role.poll_outgoing(&mut bytes);
        }
        self.stream.write_all(&bytes).unwrap();
    }

    /// Pairs with a backup, as a primary whose guest was just reset.
    pub(crate) fn protect(&mut self, image: &[u8]) {
        self.send_guest(image);
        self.hear(|message| *message == Message::Accepted);
        self.say(&[Message::Protected { generation: G }]);
    }

    /// Pairs with a primary, as a backup.
    pub(crate) fn become_protected(&mut self) {
        self.say(&[Message::Join { vm: vm(), node: NodeId(4) }]);
        self.hear(|message| matches!(message, Message::Session { header: session, .. } if session.vm == vm()));
        self.hear(|message| matches!(message, Message::Snapshot(_)));
        self.say(&[Message::Accepted]);
        self.hear(|message| matches!(message, Message::Protected { .. }));
    }
}

/// Runs a backup whose primary is `primary`, which gets the accepted connection. Returns how the
/// backup ends.
pub(crate) fn run_backup(arbiter: &Arc<Claims>, primary: impl FnOnce(Peer) + Send + 'static) -> BackupOutcome {
    run_faulty_backup(arbiter, FaultInjection::default(), primary)
}

pub(crate) fn run_faulty_backup(
    arbiter: &Arc<Claims>,
    faults: FaultInjection,
    primary: impl FnOnce(Peer) + Send + 'static,
) -> BackupOutcome {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let primary = thread::spawn(move || primary(Peer::new(accepted)));
    let node = node(9, arbiter);
    let role = backup_role(&node);
    let outcome = backup::run(&node, role, Arc::new(stream), None, faults).unwrap();
    primary.join().unwrap();
    outcome
}

/// A live VM, running on a thread of its own.
pub(crate) struct Running {
    pub live: LiveVm,
    pub address: SocketAddr,
    pub thread: thread::JoinHandle<LiveEnd>,
}

impl Running {
    pub(crate) fn start(node: Node, role: PrimaryRole, machine: Machine) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (running, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            LiveVm::run(&node, role, machine, None, listener, |live| running.send(live).unwrap()).unwrap()
        });
        Self { live: started.recv_timeout(TIMEOUT).unwrap(), address, thread }
    }

    /// A guest that loops over two instructions, whose primary waits for its first backup.
    pub(crate) fn awaiting_backup(arbiter: &Arc<Claims>, instruction: u32, timing: Timing) -> Self {
        let image = image(&[instruction, JUMP_BACK_ONE]);
        let session = session(4 << 20, &image);
        let machine = Machine::new(&session.config, &image).unwrap();
        Self::start(node(1, arbiter), PrimaryRole::awaiting_backup(NodeId(1), session, timing), machine)
    }

    pub(crate) fn retire(self) -> LiveEnd {
        self.live.retire();
        self.thread.join().unwrap()
    }
}

/// Waits for a condition that another thread will make true.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
