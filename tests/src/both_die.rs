//! The roles with logs on disk, killed at any moment: is there a directory from which the VM goes
//! on, with all that was seen?
//!
//! One seed is one history: a primary, alone or joined by a backup, with disks that write one order
//! after the other; the death of the primary, and its backup's going live; the death of that one; a
//! restart from the last owner's directory, and its end. A real disk and a real restart are in
//! `hypervisor/tests/log_directory.rs` and `tests/tests/failover/cold_restart.rs`.

use crate::random::Random;
use ft::claim::{Claim, ClaimKind, Verdict};
use ft::guest_clock::GuestClock;
use ft::output_gate::Released;
use ft::role::{
    BackupAction, BackupRole, ClaimAnswer, DiskLogState, Expectation, Inheritance, LatestAnswer, PrimaryAction,
    PrimaryEnd, PrimaryRole, Timing,
};
use hypervisor::program::guest::Guest;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader, VmId};
use std::cell::RefCell;
use std::collections::VecDeque;
use vm::{InstructionCount, Machine, MachineConfig, OutputId, OutputOperation};

/// Time stands still: what it does is the business of other tests.
const NOW_NS: u64 = 0;

/// The first owner, and the node that backs it up and takes over.
const OWNER: NodeId = NodeId(1);
const BACKUP: NodeId = NodeId(2);

/// Steps of each owner's life at most.
const STEPS_MAX: u32 = 48;

/// What a predecessor leaves; no guest of this test reads its clock.
const fn inheritance(
    first: LogSeq,
    next_output: OutputId,
    unsent: VecDeque<(OutputId, OutputOperation)>,
    disk_log: DiskLogState,
) -> Inheritance {
    Inheritance { clock: GuestClock::standing(0), first, next_output, unsent, disk_log }
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A backup went live.
    pub went_live: bool,
    /// An output left after that.
    pub left_after_going_live: bool,
    /// An output waited for a log that was only promised.
    pub waited_for_promise: bool,
    /// A backup was restored before its log was whole.
    pub waited_to_accept: bool,
    /// A restart was interrupted before it had a log of its own.
    pub restart_interrupted: bool,
    /// An output left after a restart.
    pub left_after_restart: bool,
}

impl Seen {
    /// All that a test is worth something for.
    pub const ALL: Self = Self {
        went_live: true,
        left_after_going_live: true,
        waited_for_promise: true,
        waited_to_accept: true,
        restart_interrupted: true,
        left_after_restart: true,
    };

    /// What one of two histories has.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            went_live: self.went_live | other.went_live,
            left_after_going_live: self.left_after_going_live | other.left_after_going_live,
            waited_for_promise: self.waited_for_promise | other.waited_for_promise,
            waited_to_accept: self.waited_to_accept | other.waited_to_accept,
            restart_interrupted: self.restart_interrupted | other.restart_interrupted,
            left_after_restart: self.left_after_restart | other.left_after_restart,
        }
    }
}

/// A log on disk: what it was given, and what of that is written.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// Where the first segment begins, once its snapshot was handed over, and where the entries
    /// handed over end.
    handed: Option<(LogSeq, LogSeq)>,
    /// A restart comes to here; `None` while none is possible.
    written: Option<LogSeq>,
}

impl Disk {
    fn hand(&mut self, end: LogSeq) {
        self.handed = Some((self.handed.map_or(end, |(first, _)| first), end));
    }

    fn write_one(&mut self) -> DiskLogState {
        if let Some((first, end)) = self.handed {
            self.written = Some(self.written.map_or(first, |written| written.next().min(end)));
        }
        self.state()
    }

    fn state(&self) -> DiskLogState {
        self.written.map_or(DiskLogState::Promised, DiskLogState::UpTo)
    }
}

/// A primary on its host.
struct Owner {
    role: PrimaryRole,
    disk: Disk,
    said: Vec<u8>,
}

/// A backup on its host, and its connection.
struct Joiner {
    role: BackupRole,
    disk: Disk,
    to_backup: VecDeque<Message>,
    to_primary: VecDeque<Message>,
    restoring: Option<LogSeq>,
    is_restored: bool,
    replaying: VecDeque<LogEntry>,
    claimed: Option<Generation>,
    live: Option<Generation>,
}

/// The VM's one history.
struct History {
    random: Random,
    /// The place of each output's entry.
    outputs: Vec<LogSeq>,
    seen: Seen,
}

fn session(generation: u64) -> SessionHeader {
    let config = MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() };
    SessionHeader::new(vm(), Generation(generation), config, "hello", b"image").expect("a header")
}

fn vm() -> VmId {
    VmId::new("alpha").expect("a name")
}

thread_local! {
    /// What joins copy. The history here is only of the log.
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fn machine() -> Machine {
    let guest = Guest::load("hello").expect("a built-in guest");
    let config = MachineConfig { ram_bytes: 16 << 20, ..MachineConfig::default() };
    Machine::new(&config, &guest.image).expect("a built-in guest fits")
}

fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let mut messages = Vec::new();
    while let Some(frame) = decoder.next_frame().expect("a role sends whole frames") {
        messages.push(Message::decode(frame).expect("a role sends messages"));
    }
    messages
}

/// Goes through the history of one seed.
///
/// # Errors
/// Which promise was broken.
pub fn run(seed: u64) -> Result<Seen, String> {
    let mut history = History { random: Random::new(seed), outputs: Vec::new(), seen: Seen::default() };
    let role = PrimaryRole::alone(OWNER, session(1), Timing::default()).with_disk_log(DiskLogState::Promised);
    let mut owner = Owner::new(role, Disk::default());
    owner.disk.hand(LogSeq(0));
    let mut joiner = if history.random.one_in(4) { None } else { Some(Joiner::new()) };
    for _ in 0..history.random.below(STEPS_MAX) {
        history.step(&mut owner, joiner.as_mut())?;
    }
    // The primary dies. If its backup goes live, that one is the last owner.
    if let Some(joiner) = joiner
        && let Some(next) = history.goes_live(joiner)?
    {
        owner = next;
    }
    history.restart(&owner)?;
    Ok(history.seen)
}

impl Joiner {
    fn new() -> Self {
        let expectation = Expectation { vm: vm(), image: None };
        let role = BackupRole::new(NOW_NS, BACKUP, expectation, Timing::default());
        Self {
            role: role.with_disk_log(DiskLogState::Promised),
            disk: Disk::default(),
            to_backup: VecDeque::new(),
            to_primary: VecDeque::new(),
            restoring: None,
            is_restored: false,
            replaying: VecDeque::new(),
            claimed: None,
            live: None,
        }
    }

    /// Does what the role says, as the driver does: what is received goes to the disk first.
    fn settle(&mut self) {
        let mut bytes = Vec::new();
        self.role.poll_outgoing(&mut bytes);
        self.to_primary.extend(messages(&bytes));
        while let Some(action) = self.role.poll_action() {
            match action {
                BackupAction::Restore(snapshot) => {
                    self.disk.hand(snapshot.seq);
                    self.restoring = Some(snapshot.seq);
                }
                BackupAction::Consume(entries) => {
                    self.disk.hand(self.role.cursors().0);
                    self.replaying.extend(entries);
                }
                BackupAction::Claim(request) => self.claimed = Some(request.generation),
                BackupAction::GoLive(generation) => self.live = Some(generation),
                // One arbiter, which knows the owner.
                BackupAction::CheckOwner => {
                    let claim = Claim { node: OWNER, kind: ClaimKind::Owner, address: None };
                    self.role.handle_owner(NOW_NS, LatestAnswer::Known(Some((Generation(0), claim))));
                }
                BackupAction::Begin(_)
                | BackupAction::Joined
                | BackupAction::ClaimsLost(_)
                | BackupAction::Waits
                | BackupAction::Pages(_)
                | BackupAction::Protected(_)
                | BackupAction::Lost { .. }
                | BackupAction::End(_) => {}
            }
        }
    }

    fn restore(&mut self, outputs: &[LogSeq], seen: &mut Seen) {
        if let Some(seq) = self.restoring.take() {
            self.is_restored = true;
            seen.waited_to_accept |= self.disk.written.is_none();
            self.role.handle_restored(NOW_NS, next_output_at(outputs, seq));
            self.settle();
        }
    }

    fn replay(&mut self) {
        if !self.is_restored {
            return;
        }
        while let Some(entry) = self.replaying.pop_front() {
            if let EntryBody::Output { id, .. } = entry.body {
                self.role.handle_output(id, operation(id));
            }
            let consumed = self.role.cursors().1.next();
            self.role.handle_consumed(NOW_NS, consumed, entry.count);
        }
        self.settle();
    }
}

fn operation(id: OutputId) -> OutputOperation {
    OutputOperation::Packet(id.0.to_le_bytes().to_vec())
}

fn next_output_at(outputs: &[LogSeq], seq: LogSeq) -> OutputId {
    OutputId(outputs.iter().filter(|output| **output < seq).count() as u64)
}

impl Owner {
    fn new(role: PrimaryRole, disk: Disk) -> Self {
        Self { role, disk, said: Vec::new() }
    }

    fn say(&mut self) {
        self.role.poll_outgoing(&mut self.said);
    }
}

impl History {
    /// The guest sends something.
    fn output(&mut self, owner: &mut Owner) {
        let id = OutputId(self.outputs.len() as u64);
        self.outputs.push(owner.role.appended());
        let body = EntryBody::Output { id, digest: operation(id).digest() };
        let entry = LogEntry { count: InstructionCount(0), body };
        owner.role.handle_entry(NOW_NS, &entry, Some((id, operation(id))));
        owner.disk.hand(owner.role.appended());
        owner.role.handle_flush(NOW_NS);
        self.seen.waited_for_promise |= owner.disk.written.is_none();
    }

    /// Outputs leave that the role has released: what their receivers have seen must outlive the
    /// death of both sides.
    fn write_released(&mut self, owner: &mut Owner) -> Result<bool, String> {
        let mut has_left = false;
        while let Some(Released { id, .. }) = owner.role.poll_released() {
            let entry = self.outputs[usize::try_from(id.0).expect("few outputs")];
            match owner.disk.written {
                None => return Err(format!("output {} left, and no log could be resumed", id.0)),
                Some(written) if written <= entry => {
                    return Err(format!("output {} left before its entry {entry} was in the log on disk", id.0));
                }
                Some(_) => has_left = true,
            }
            owner.role.handle_console_left(id.next());
        }
        Ok(has_left)
    }

    fn step(&mut self, owner: &mut Owner, mut joiner: Option<&mut Joiner>) -> Result<bool, String> {
        match (self.random.below(9), joiner.as_deref_mut()) {
            (0 | 1, _) => self.output(owner),
            (2, _) => {
                let state = owner.disk.write_one();
                owner.role.handle_disk_log(NOW_NS, state);
            }
            (3, Some(joiner)) => {
                let state = joiner.disk.write_one();
                joiner.role.handle_disk_log(NOW_NS, state);
                joiner.settle();
            }
            (4, Some(joiner)) => {
                let some = self.random.index(joiner.to_backup.len() + 1);
                for message in joiner.to_backup.drain(..some).collect::<Vec<_>>() {
                    joiner.role.handle_message(NOW_NS, message);
                }
                joiner.settle();
            }
            (5, Some(joiner)) => {
                joiner.settle();
                for message in joiner.to_primary.drain(..).collect::<Vec<_>>() {
                    if let Message::Join { vm, .. } = &message {
                        owner.role.handle_join(NOW_NS, vm)?;
                    } else {
                        owner.role.handle_message(NOW_NS, message);
                    }
                }
            }
            (6, _) => MACHINE.with_borrow_mut(|machine| {
                while owner.role.is_copying() {
                    owner.role.copy_snapshot(NOW_NS, machine);
                    owner.say();
                }
            }),
            (7, Some(joiner)) => joiner.restore(&self.outputs, &mut self.seen),
            (8, Some(joiner)) => joiner.replay(),
            _ => {}
        }
        owner.say();
        let said = std::mem::take(&mut owner.said);
        if let Some(joiner) = joiner {
            joiner.to_backup.extend(messages(&said));
        }
        self.write_released(owner)
    }

    /// The primary has died: its backup becomes the owner, if it may.
    fn goes_live(&mut self, mut joiner: Joiner) -> Result<Option<Owner>, String> {
        joiner.restore(&self.outputs, &mut self.seen);
        joiner.role.handle_disconnect(NOW_NS, "killed");
        joiner.settle();
        if joiner.claimed.is_none() {
            return Ok(None);
        }
        joiner.role.handle_claim(NOW_NS, ClaimAnswer::Decided(Verdict::Won));
        joiner.replay();
        let Some(generation) = joiner.live else { return Err("a backup that has won doesn't go live".into()) };
        self.seen.went_live = true;
        let Some(written) = joiner.disk.written else {
            return Err("a backup went live, and its log could not be resumed".into());
        };
        let (first, _) = joiner.role.cursors();
        let (next, unsent) = (joiner.role.next_output(), joiner.role.take_unsent());
        // What the dead primary made and its backup never received has never happened.
        self.outputs.truncate(usize::try_from(next.0).expect("few outputs"));
        let log = DiskLogState::UpTo(written);
        let role = PrimaryRole::gone_live(
            BACKUP,
            session(generation.0),
            Timing::default(),
            inheritance(first, next, unsent, log),
        );
        let mut owner = Owner::new(role, joiner.disk);
        self.seen.left_after_going_live |= self.write_released(&mut owner)?;
        for _ in 0..self.random.below(STEPS_MAX) {
            self.seen.left_after_going_live |= self.step(&mut owner, None)?;
        }
        Ok(Some(owner))
    }

    /// The owner has died too, and the VM goes on from its directory; then the operator ends it.
    fn restart(&mut self, dead: &Owner) -> Result<(), String> {
        let Some(first) = dead.disk.written else { return Ok(()) };
        let next = next_output_at(&self.outputs, first);
        let unsent = (0..next.0).map(|id| (OutputId(id), operation(OutputId(id)))).collect();
        self.outputs.truncate(usize::try_from(next.0).expect("few outputs"));
        let inheritance = inheritance(first, next, unsent, DiskLogState::Promised);
        let role = PrimaryRole::resumed(BACKUP, session(9), Timing::default(), inheritance);
        let mut owner = Owner::new(role, Disk::default());
        owner.disk.hand(first);
        for _ in 0..self.random.below(STEPS_MAX) {
            self.seen.left_after_restart |= self.step(&mut owner, None)?;
        }
        owner.role.handle_retire(NOW_NS);
        let actions: Vec<_> = std::iter::from_fn(|| owner.role.poll_action()).collect();
        let is_ended = actions
            .iter()
            .any(|action| matches!(action, PrimaryAction::Claim(request) if request.kind == ClaimKind::Ended));
        match (owner.disk.written, is_ended) {
            (None, true) => Err("a restart that was interrupted before it had a log left an end mark".into()),
            (None, false) => {
                self.seen.restart_interrupted = true;
                let end = PrimaryAction::End(PrimaryEnd::Interrupted);
                if actions.contains(&end) {
                    Ok(())
                } else {
                    Err(format!("an interrupted restart goes on: {actions:?}"))
                }
            }
            (Some(_), true) => Ok(()),
            (Some(_), false) => Err("a VM that the operator ends has no end mark".into()),
        }
    }
}
