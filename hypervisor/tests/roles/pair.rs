//! A pair of roles, everything around them in memory, in virtual nanoseconds.

use hypervisor::arbiter::{Claim, ClaimKind, Verdict};
use hypervisor::role::{
    BackupAction, BackupEnd, BackupRole, ClaimAnswer, ClaimRequest, Expectation, PrimaryAction, PrimaryEnd,
    PrimaryRole, Timing,
};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::{ImageDigest, NodeId, SessionHeader, VmId};
use std::collections::{BTreeMap, VecDeque};
use vm::{InstructionCount, MachineConfig, OutputId, OutputOperation, StopReason};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const PRIMARY: NodeId = NodeId(1);
pub(crate) const BACKUP: NodeId = NodeId(2);
/// The pair's generation in every test.
pub(crate) const G: Generation = Generation(3);
/// The guest's image; nothing executes it here.
pub(crate) const IMAGE: &[u8] = b"not really a guest, but long enough to be one";

/// One direction of the channel: bytes under way, cut into messages as the programs do.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    bytes: VecDeque<u8>,
    decoder: FrameDecoder,
    pub(crate) is_cut: bool,
}

impl Wire {
    /// How many bytes are under way.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Lets the next `bytes` arrive; gives the messages that are whole by that.
    pub(crate) fn deliver(&mut self, bytes: usize) -> Vec<Message> {
        let bytes: Vec<u8> = self.bytes.drain(..bytes.min(self.bytes.len())).collect();
        self.decoder.push(&bytes);
        let mut messages = Vec::new();
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            messages.push(Message::decode(frame).unwrap());
        }
        messages
    }

    fn send(&mut self, bytes: &[u8]) {
        if !self.is_cut {
            self.bytes.extend(bytes);
        }
    }
}

/// A test-and-set per generation.
#[derive(Debug, Default)]
pub(crate) struct Arbiter {
    pub(crate) claims: BTreeMap<u64, Claim>,
    /// Requests don't arrive.
    pub(crate) is_unreachable: bool,
    /// So many requests arrive whose answers don't.
    pub(crate) lost_replies: u32,
}

impl Arbiter {
    pub(crate) fn ask(&mut self, node: NodeId, request: ClaimRequest) -> ClaimAnswer {
        if self.is_unreachable {
            return ClaimAnswer::Unreachable;
        }
        let claim = Claim { node, kind: request.kind, address: None };
        let holder = self.claims.entry(request.generation.0).or_insert(claim).clone();
        if self.lost_replies > 0 {
            self.lost_replies -= 1;
            return ClaimAnswer::Unreachable;
        }
        ClaimAnswer::Decided(if holder.node == node { Verdict::Won } else { Verdict::Lost(holder) })
    }
}

/// A primary, a backup, and what is between and around them.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) now_ns: u64,
    pub(crate) primary: PrimaryRole,
    pub(crate) backup: BackupRole,
    pub(crate) to_backup: Wire,
    pub(crate) to_primary: Wire,
    pub(crate) arbiter: Arbiter,
    pub(crate) primary_actions: VecDeque<PrimaryAction>,
    pub(crate) backup_actions: VecDeque<BackupAction>,
    /// Outputs that the primary's host has sent, by id.
    pub(crate) out: Vec<u64>,
    /// Entries that the backup's machine has yet to replay.
    pub(crate) to_replay: VecDeque<LogEntry>,
    replayed: u64,
    next_output: u64,
    count: u64,
}

/// What the guest sends as its output `id`.
pub(crate) fn operation(id: OutputId) -> OutputOperation {
    OutputOperation::Frame(id.0.to_le_bytes().repeat(8))
}

pub(crate) fn vm_id() -> VmId {
    VmId::new("vm0").unwrap()
}

pub(crate) fn session() -> SessionHeader {
    SessionHeader::new(vm_id(), G, MachineConfig::default(), "test", IMAGE).unwrap()
}

pub(crate) fn expectation() -> Expectation {
    Expectation { vm: vm_id(), image: Some(("test".into(), ImageDigest::of(IMAGE))) }
}

impl Pair {
    /// A primary that waits, and a backup that has just connected to it and is expected to be fit.
    pub(crate) fn new() -> Self {
        Self::with(PrimaryRole::awaiting_backup(session(), Timing::default()), expectation())
    }

    pub(crate) fn with(primary: PrimaryRole, expectation: Expectation) -> Self {
        let now_ns = 1_000 * MS;
        Self {
            now_ns,
            primary,
            backup: BackupRole::new(now_ns, BACKUP, expectation, Timing::default()),
            to_backup: Wire::default(),
            to_primary: Wire::default(),
            arbiter: Arbiter::default(),
            primary_actions: VecDeque::new(),
            backup_actions: VecDeque::new(),
            out: Vec::new(),
            to_replay: VecDeque::new(),
            replayed: 0,
            next_output: 0,
            count: 0,
        }
    }

    /// A pair that has just become protected, with nothing under way.
    pub(crate) fn protected() -> Self {
        let mut pair = Self::new();
        pair.connect();
        pair.exchange();
        assert_eq!(pair.primary_actions.pop_front(), Some(PrimaryAction::Protected(G)));
        assert_eq!(pair.backup_actions.pop_front(), Some(BackupAction::Protected(G)));
        assert!(pair.primary.is_protected() && pair.primary.may_run());
        pair
    }

    /// The backup's connection arrives at the primary.
    pub(crate) fn connect(&mut self) {
        self.primary.backup_connected(self.now_ns, IMAGE);
        self.collect();
    }

    /// Takes what both roles have to say and do. The driver's own parts are done at once: machines are built, entries
    /// queued for replay, connections closed.
    pub(crate) fn collect(&mut self) {
        let mut bytes = Vec::new();
        self.primary.take_outgoing(&mut bytes);
        self.to_backup.send(&bytes);
        bytes.clear();
        self.backup.take_outgoing(&mut bytes);
        self.to_primary.send(&bytes);
        while let Some((id, found)) = self.primary.take_released() {
            assert_eq!(found, operation(id), "output {id:?} changed on its way");
            self.out.push(id.0);
            self.primary.has_left(id);
        }
        while let Some(action) = self.primary.poll_action() {
            if matches!(action, PrimaryAction::CloseChannel { .. }) {
                self.cut();
            }
            self.primary_actions.push_back(action);
        }
        while let Some(action) = self.backup.poll_action() {
            match action {
                BackupAction::Build { ref session, ref image } => {
                    assert_eq!((session, &**image), (&self::session(), IMAGE));
                    self.backup.machine_built(self.now_ns);
                    return self.collect();
                }
                BackupAction::Consume(entries) => self.to_replay.extend(entries),
                BackupAction::Lost { .. } => self.cut(),
                BackupAction::Protected(_)
                | BackupAction::Claim(_)
                | BackupAction::GoLive(_)
                | BackupAction::End(_) => self.backup_actions.push_back(action),
            }
        }
    }

    /// Nothing more gets into the channel; what is under way may still arrive.
    pub(crate) fn cut(&mut self) {
        self.to_backup.is_cut = true;
        self.to_primary.is_cut = true;
    }

    /// Everything under way to the backup arrives.
    pub(crate) fn deliver_to_backup(&mut self) {
        self.deliver_some_to_backup(usize::MAX);
    }

    pub(crate) fn deliver_some_to_backup(&mut self, bytes: usize) {
        for message in self.to_backup.deliver(bytes) {
            self.backup.primary_said(self.now_ns, message);
        }
        self.collect();
    }

    /// Everything under way to the primary arrives.
    pub(crate) fn deliver_to_primary(&mut self) {
        self.deliver_some_to_primary(usize::MAX);
    }

    pub(crate) fn deliver_some_to_primary(&mut self, bytes: usize) {
        for message in self.to_primary.deliver(bytes) {
            self.primary.backup_said(self.now_ns, message);
        }
        self.collect();
    }

    /// Both ways, until nothing is under way.
    pub(crate) fn exchange(&mut self) {
        self.collect();
        while self.to_backup.len() + self.to_primary.len() > 0 {
            self.deliver_to_backup();
            self.deliver_to_primary();
        }
    }

    /// The backup says `message`, and the primary hears it at once.
    pub(crate) fn backup_says(&mut self, message: Message) {
        self.primary.backup_said(self.now_ns, message);
        self.collect();
    }

    /// The primary says `message`, and the backup hears it at once.
    pub(crate) fn primary_says(&mut self, message: Message) {
        self.backup.primary_said(self.now_ns, message);
        self.collect();
    }

    /// The guest sends something, and the log is flushed as the vCPU does then.
    pub(crate) fn output(&mut self) -> OutputId {
        let id = OutputId(self.next_output);
        self.next_output += 1;
        self.log(EntryBody::Output { id, digest: operation(id).digest() }, Some((id, operation(id))));
        id
    }

    /// The guest comes to its end.
    pub(crate) fn guest_stops(&mut self) -> StopReason {
        let reason = StopReason::PowerOff { code: 0 };
        self.log(EntryBody::Stopped(reason), None);
        reason
    }

    fn log(&mut self, body: EntryBody, output: Option<(OutputId, OutputOperation)>) {
        self.count += 10;
        let entry = LogEntry { count: InstructionCount(self.count), body };
        self.primary.append(self.now_ns, &entry, output);
        self.primary.flush(self.now_ns);
        self.collect();
    }

    /// The backup's machine consumes at most `entries` of what has been received.
    pub(crate) fn replay_some(&mut self, entries: usize) {
        for entry in self.to_replay.drain(..entries.min(self.to_replay.len())) {
            self.replayed += 1;
            if let EntryBody::Output { id, .. } = entry.body {
                self.backup.produced(id, operation(id));
            }
            self.backup.consumed(self.now_ns, LogSeq(self.replayed));
        }
        self.collect();
    }

    /// The backup's machine consumes all that has been received.
    pub(crate) fn replay(&mut self) {
        self.replay_some(usize::MAX);
    }

    /// Time passes, and both sides notice.
    pub(crate) fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        self.primary.tick(self.now_ns);
        self.backup.tick(self.now_ns);
        self.collect();
    }

    pub(crate) fn primary_lost(&mut self) {
        self.cut();
        self.backup.primary_lost(self.now_ns, "killed");
        self.collect();
    }

    pub(crate) fn backup_lost(&mut self) {
        self.cut();
        self.primary.backup_lost("killed");
        self.collect();
    }

    /// The claim that the primary asks for, if it asks for one and nothing else since its channel was closed.
    pub(crate) fn primary_claim(&mut self) -> Option<ClaimRequest> {
        while let Some(action) = self.primary_actions.pop_front() {
            match action {
                PrimaryAction::Claim(request) => return Some(request),
                PrimaryAction::CloseChannel { .. } => {}
                other @ (PrimaryAction::Owner(_)
                | PrimaryAction::Protected(_)
                | PrimaryAction::HandOver
                | PrimaryAction::End(_)) => panic!("instead of a claim: {other:?}"),
            }
        }
        None
    }

    /// The claim that the backup asks for, if it asks for one and nothing else.
    pub(crate) fn backup_claim(&mut self) -> Option<ClaimRequest> {
        let action = self.backup_actions.pop_front()?;
        let BackupAction::Claim(request) = action else { panic!("instead of a claim: {action:?}") };
        Some(request)
    }

    /// The primary's request goes to the arbiter and the answer, if one comes, back.
    pub(crate) fn answer_primary(&mut self, request: ClaimRequest) {
        let answer = self.arbiter.ask(PRIMARY, request);
        self.primary.claim_answered(self.now_ns, answer);
        self.collect();
    }

    /// The same for the backup's.
    pub(crate) fn answer_backup(&mut self, request: ClaimRequest) {
        let answer = self.arbiter.ask(BACKUP, request);
        self.backup.claim_answered(self.now_ns, answer);
        self.collect();
    }

    /// How the primary ended, as its last word.
    pub(crate) fn primary_end(&mut self) -> Option<PrimaryEnd> {
        match self.primary_actions.pop_back() {
            Some(PrimaryAction::End(end)) => Some(end),
            _ => None,
        }
    }

    /// How the backup ended, as its last word.
    pub(crate) fn backup_end(&mut self) -> Option<BackupEnd> {
        match self.backup_actions.pop_back() {
            Some(BackupAction::End(end)) => Some(end),
            _ => None,
        }
    }

    /// The ids of the outputs that the backup would send first at go-live.
    pub(crate) fn tail(&mut self) -> Vec<u64> {
        self.backup.take_tail().into_iter().map(|(id, _)| id.0).collect()
    }
}

/// The claim that decides a pair.
pub(crate) const fn owner_claim() -> ClaimRequest {
    ClaimRequest { generation: G, kind: ClaimKind::Owner }
}

/// The claim that ends a VM in order.
pub(crate) const fn end_claim(generation: Generation) -> ClaimRequest {
    ClaimRequest { generation, kind: ClaimKind::Ended }
}
