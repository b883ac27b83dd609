//! Peers that send any message at any time. A role must refuse the message or give the peer up; it
//! asserts the order of its cursors and outputs, which no peer may break.

use crate::host::{BackupHost, actions_of};
use crate::pair::Pair;
use crate::world::{Arbiter, BACKUP, G, MS, PRIMARY, Random, expectation, guest_image, machine, operation, session};
use ft::claim::Verdict;
use ft::role::{BackupAction, BackupRole, ClaimAnswer, DiskLogState, Inheritance, PrimaryAction, PrimaryRole, Timing};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::frame::FrameDecoder;
use logchannel::message::{EntryBatch, Left, Message};
use logchannel::session::SessionHeader;
use logchannel::snapshot::{Pages, Snapshot, UnsentOutput};
use logchannel::stream::LogSender;
use vm::{InstructionCount, OutputId, OutputOperation, PAGE_BYTES, StateDigest};

const RUNS: u64 = 1000;
const STEPS: u32 = 60;

/// A number that is usually small, and otherwise at an end of the range.
fn number(random: &mut Random) -> u64 {
    const ENDS: [u64; 6] = [u64::MAX / 2 - 1, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX - 2, u64::MAX - 1, u64::MAX];
    if random.chance(3) { ENDS[usize::try_from(random.below(6)).unwrap()] } else { random.below(6) }
}

fn progress() -> LogEntry {
    LogEntry { count: InstructionCount(1), body: EntryBody::Progress }
}

/// A valid entry at `first`, or invalid bytes.
fn entries(random: &mut Random, first: u64) -> Message {
    if first == u64::MAX || random.chance(8) {
        return Message::Entries(EntryBatch { first_seq: LogSeq(first), bytes: vec![0xff; 9] });
    }
    let mut sender = LogSender::new(LogSeq(first));
    sender.append(&progress());
    let mut bytes = Vec::new();
    sender.take_frame(&mut bytes);
    let mut decoder = FrameDecoder::default();
    decoder.push(&bytes);
    Message::decode(decoder.next_frame().unwrap().unwrap()).unwrap()
}

fn anything(random: &mut Random) -> Message {
    match random.below(19) {
        0 => Message::Session { header: session(), owner: PRIMARY },
        1 => Message::Wait,
        2 => Message::NoPrimary,
        3 => Message::Pages(Pages { first: number(random), bytes: vec![1; PAGE_BYTES] }),
        4 => {
            let operation = if random.chance(2) {
                OutputOperation::Packet(vec![7; 60])
            } else {
                OutputOperation::Console(vec![b'x'; 3])
            };
            Message::UnsentOutput(UnsentOutput { id: OutputId(number(random)), operation })
        }
        5 => snapshot(random),
        6 => Message::Accepted,
        7 => Message::Refused { reason: "no".into() },
        8 => {
            let first = number(random);
            entries(random, first)
        }
        9 | 10 => Message::Ack { received: LogSeq(number(random)) },
        11 | 12 => Message::Consumed { consumed: LogSeq(number(random)), count: InstructionCount(number(random)) },
        13 => Message::Protected { generation: Generation(number(random)) },
        14 => {
            let (packets, console) = (OutputId(number(random)), OutputId(number(random)));
            Message::Released(Left { packets, console })
        }
        15 => Message::Storing,
        16 => Message::Heartbeat,
        17 => Message::Clock { ticks: number(random), runs: random.chance(2) },
        _ => Message::Goodbye { reason: "over".into() },
    }
}

fn snapshot(random: &mut Random) -> Message {
    Message::Snapshot(Snapshot { seq: LogSeq(number(random)), digest: StateDigest(0), state: Vec::new() })
}

/// A backup whose host does everything that the role allows.
struct Backup {
    role: BackupRole,
    host: BackupHost,
    now_ns: u64,
    live: bool,
}

impl Backup {
    fn new() -> Self {
        let role = BackupRole::new(0, BACKUP, expectation(), Timing::default());
        Self { role, host: BackupHost::default(), now_ns: 0, live: false }
    }

    /// The message that would be valid next, so that runs get far.
    fn next_in_order(&self, random: &mut Random, at: u32) -> Message {
        match at {
            0 => Message::Session { header: session(), owner: PRIMARY },
            1 => snapshot(random),
            2 => Message::Clock { ticks: number(random), runs: true },
            3 => Message::Protected { generation: G },
            _ => entries(random, self.role.cursors().0.0),
        }
    }

    fn settle(&mut self, random: &mut Random, arbiter: &Arbiter) {
        while let Some(action) = self.role.poll_action() {
            // Restoring always succeeds here, whatever the state is.
            if matches!(action, BackupAction::Restore(_)) {
                self.role.handle_restored(self.now_ns, OutputId(number(random)));
                continue;
            }
            let action = self.host.act(&mut self.role, self.now_ns, arbiter, action);
            if let Some(BackupAction::Claim(_)) = action {
                self.role.handle_claim(self.now_ns, ClaimAnswer::Decided(Verdict::Won));
            } else if let Some(BackupAction::GoLive(generation)) = action {
                self.go_live(generation);
            }
            self.host.to_replay.clear();
            let (received, _) = self.role.cursors();
            self.role.handle_consumed(self.now_ns, received, InstructionCount(1));
        }
    }

    /// The guest continues after the primary's last numbers.
    fn go_live(&mut self, generation: Generation) {
        let session = SessionHeader { generation, ..session() };
        let inheritance = Inheritance {
            clock: self.role.take_over_clock(self.now_ns, 0),
            first: self.role.cursors().0,
            next_output: self.role.next_output(),
            unsent: self.role.take_unsent(),
            disk_log: DiskLogState::None,
        };
        let mut next = inheritance.next_output;
        let mut primary = PrimaryRole::gone_live(BACKUP, session, Timing::default(), inheritance);
        for _ in 0..3 {
            primary.handle_entry(self.now_ns, &progress(), Some((next, operation(BACKUP, next))));
            next = next.next();
        }
        primary.handle_attachment(OutputId(0));
        while primary.poll_released().is_some() {}
        assert_eq!(primary.gate().end(), next);
        self.live = true;
    }
}

#[test]
fn whatever_a_primary_says_its_backup_stays_in_order() {
    let arbiter = Arbiter::default();
    let mut live = 0;
    for seed in 0..RUNS {
        let mut random = Random(seed * 2 + 1);
        let mut backup = Backup::new();
        let mut in_order = 0;
        for _ in 0..STEPS {
            let message = if random.chance(10) {
                anything(&mut random)
            } else {
                in_order += 1;
                backup.next_in_order(&mut random, in_order - 1)
            };
            backup.now_ns += random.below(2) * 30 * MS;
            backup.role.handle_message(backup.now_ns, message);
            if random.chance(20) {
                let id = backup.role.next_output();
                backup.role.handle_output(id, operation(PRIMARY, id));
            }
            backup.role.handle_tick(backup.now_ns);
            backup.settle(&mut random, &arbiter);
        }
        backup.role.handle_disconnect(backup.now_ns, "gone");
        backup.settle(&mut random, &arbiter);
        live += u32::from(backup.live);
    }
    assert!(u64::from(live) > RUNS / 10, "only {live} of {RUNS} went live");
}

#[test]
fn whatever_a_backup_says_its_primary_stays_in_order() {
    let (mut protected, mut lost) = (0_u64, 0_u64);
    for seed in 0..RUNS {
        let mut random = Random(seed * 2 + 1);
        let mut primary = match random.below(3) {
            0 => Pair::new().primary,
            1 => Pair::alone().primary,
            _ => Pair::protected().primary,
        };
        let mut machine = machine(&guest_image());
        let mut now_ns = 2_000 * MS;
        let mut next = primary.gate().end();
        for _ in 0..STEPS {
            let _ = primary.handle_join(now_ns, &session().vm);
            primary.copy_snapshot(now_ns, &mut machine);
            if primary.may_run() {
                primary.handle_entry(now_ns, &progress(), Some((next, operation(PRIMARY, next))));
                next = next.next();
            }
            if random.chance(2) {
                primary.handle_flush(now_ns);
            }
            let message = match random.below(8) {
                0 => anything(&mut random),
                1 => Message::Ack { received: LogSeq(random.below(primary.appended().0 + 2)) },
                2 => Message::Accepted,
                3 => Message::Consumed {
                    consumed: LogSeq(random.below(primary.appended().0 + 2)),
                    count: InstructionCount(0),
                },
                _ => Message::Ack { received: primary.appended() },
            };
            primary.handle_message(now_ns, message);
            now_ns += random.below(3) * 5 * MS;
            primary.handle_tick(now_ns);
            for action in actions_of(&mut primary, || ()) {
                protected += u64::from(matches!(action, PrimaryAction::Protected(_)));
                lost += u64::from(matches!(action, PrimaryAction::CloseChannel { .. }));
                if matches!(action, PrimaryAction::Claim(_)) {
                    primary.handle_claim(now_ns, ClaimAnswer::Decided(Verdict::Won));
                }
            }
            while let Some(released) = primary.poll_released() {
                assert!(released.id < next);
            }
            primary.poll_outgoing(&mut Vec::new());
        }
    }
    assert!(protected > RUNS && lost > RUNS, "protected {protected} times, lost {lost} times");
}
