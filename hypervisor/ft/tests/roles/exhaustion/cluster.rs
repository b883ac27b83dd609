//! One VM's life, in rounds: pair after pair, with the script's disturbances and the deaths that a
//! run adds.

use super::backup::Backup;
use super::guest::{Guest, STEPS};
use super::link::Link;
use super::outside::{Outside, PACKETS};
use super::points::{Crash, Died, Fate, Kind, Moment, Points, Side};
use super::primary::Primary;
use crate::world::{G, MS, PRIMARY, session, vm_id};
use ft::claim::ClaimKind;
use ft::role::{BackupEnd, DiskLogState, Inheritance, PrimaryEnd, PrimaryRole, Timing};
use logchannel::entry::Generation;
use logchannel::message::Left;
use logchannel::session::{NodeId, SessionHeader};
use std::collections::{BTreeSet, VecDeque};

/// Short timeouts, so that silence costs a run no more rounds than messages do.
const TIMING: Timing = Timing {
    heartbeat_ns: 6 * MS,
    failure_timeout_ns: 30 * MS,
    claim_retry_ns: 6 * MS,
    lag_bound_ns: 100 * MS,
    claim_check_ns: u64::MAX,
};

/// The duration of a round.
const ROUND_NS: u64 = 2 * MS;

/// Rounds from the loss of a backup to the next one's connection, and from the VM's start to the
/// first one's.
const JOIN_AFTER: u32 = 8;

/// Rounds after which the packets of a torn host arrive: so many that its successor attaches
/// before.
const STRAY_ROUNDS: u32 = 14;

/// The bound on a run's rounds: the guest's steps, and some dozens for each death and disturbance.
const ROUNDS_MAX: u32 = 600;

/// The script's disturbances: each happens once the guest has taken that many steps and is
/// protected.
const SCRIPT: [(usize, Disturbance); 5] = [
    (45, Disturbance::LanLost),
    (80, Disturbance::CutSeenByPrimary),
    (130, Disturbance::CutSeenByBackup),
    (170, Disturbance::LanLost),
    (STEPS - 4, Disturbance::LanSlow),
];

#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// The primary loses its connection to the LAN.
    LanLost,
    /// Packets in flight to the LAN are delayed.
    LanSlow,
    /// The channel is cut. The primary notices first, and its claim's answer is lost.
    CutSeenByPrimary,
    /// The channel is cut. The backup notices first.
    CutSeenByBackup,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The guest ended.
    Ended,
    /// The VM's owner died without a backup that could go live.
    Gone,
}

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) outside: Outside,
    primary: Option<Primary>,
    backup: Option<Backup>,
    link: Link,
    /// A primary that has been succeeded and doesn't know it yet, and its channel.
    stale: Option<(Primary, Link)>,
    script: VecDeque<(usize, Disturbance)>,
    round: u32,
    /// The round in which the next backup connects, or the LAN is back.
    join_at: u32,
    attach_at: u32,
    /// The round in which delayed packets arrive.
    carry_at: u32,
    dead: BTreeSet<NodeId>,
    /// A backup that was told it may claim has lost a primary that had claimed nothing.
    must_survive: bool,
    has_ended: bool,
    session: SessionHeader,
    pub(super) log_entries: usize,
    pub(super) protections: u32,
}

impl Cluster {
    pub(super) fn new(crashes: &[Crash]) -> Self {
        let session = session();
        let mut outside = Outside::new(Points::new(crashes));
        outside.owners.insert(G, PRIMARY);
        let role = PrimaryRole::alone(PRIMARY, session.clone(), TIMING);
        Self {
            outside,
            primary: Some(Primary::new(PRIMARY, role, Guest::new(), Left::default())),
            backup: None,
            link: Link::default(),
            stale: None,
            script: SCRIPT.into(),
            round: 0,
            join_at: JOIN_AFTER,
            attach_at: 0,
            carry_at: 0,
            dead: BTreeSet::new(),
            must_survive: false,
            has_ended: false,
            session,
            log_entries: 0,
            protections: 0,
        }
    }

    /// Runs to the end.
    pub(super) fn run(&mut self) -> Outcome {
        while self.primary.is_some() || self.backup.is_some() || self.stale.is_some() {
            self.round();
            assert!(self.round < ROUNDS_MAX, "service doesn't come back in {ROUNDS_MAX} rounds");
        }
        if self.has_ended {
            return Outcome::Ended;
        }
        assert!(!self.must_survive, "the VM is gone, though its backup could have gone on");
        let owner = self.outside.arbiter.claims.last_key_value().map_or(PRIMARY, |(_, claim)| claim.node);
        assert!(self.dead.contains(&owner), "the VM is gone, and its owner isn't dead");
        Outcome::Gone
    }

    fn round(&mut self) {
        self.round += 1;
        self.outside.now_ns += ROUND_NS;
        self.disturb();
        let round = self.round;
        if self.outside.lan.packets < PACKETS && round.is_multiple_of(4) {
            let number = self.outside.lan.packets;
            self.outside.lan.packets += 1;
            self.primary
                .iter_mut()
                .filter(|primary| primary.port.is_some())
                .for_each(|primary| primary.inbox.push_back(number));
        }
        let attaches = round >= self.attach_at;
        self.primary_turn(|primary, outside, link| {
            if primary.port.is_none() && attaches {
                primary.attach(outside, link)?;
            }
            primary.live(outside, link)?;
            if round.is_multiple_of(3) {
                primary.live(outside, link)?;
            }
            primary.copy(outside, link)
        });
        self.backup_turn(|backup, outside, link| {
            // Bytes in flight arrive cut anywhere, or several messages at once.
            let bytes = [0, link.to_backup.len() / 2, usize::MAX, usize::MAX][round as usize % 4];
            backup.hear(outside, link, bytes)?;
            backup.restore(outside, link)?;
            let entries = [0, 3, 0, 5, 1][round as usize % 5];
            backup.consume(outside, link, entries)?;
            backup.follow_up(outside, link)
        });
        self.primary_turn(|primary, outside, link| {
            let is_deaf = matches!(link.slow, Some((Side::Primary, _)));
            let bytes = if is_deaf { 0 } else { [usize::MAX, link.to_primary.len() / 2, 0][round as usize % 3] };
            primary.hear(outside, link, bytes)
        });
        self.carry();
        self.tell_and_tick();
        self.claim();
        self.notice();
        self.stale_turn();
        self.join();
    }

    fn carry(&mut self) {
        if self.round % 3 == 1 || self.round < self.carry_at {
            return;
        }
        for _ in 0..self.outside.lan.under_way.len() {
            // A side that dies here is handled in `bury`.
            let _ = self.outside.points.before(None, Kind::Carry);
            self.outside.carry();
            let _ = self.outside.points.after(None, Kind::Carry);
            self.bury();
        }
    }

    fn tell_and_tick(&mut self) {
        let round = self.round;
        self.primary_turn(|primary, outside, link| {
            if round % 4 == 1 {
                primary.hear_lan(outside, link)?;
            }
            if round % 3 == 1 { primary.tick(outside, link) } else { Ok(()) }
        });
        self.backup_turn(|backup, outside, link| if round % 3 == 2 { backup.tick(outside, link) } else { Ok(()) });
    }

    fn claim(&mut self) {
        self.primary_turn(Primary::claim);
        self.backup_turn(Backup::claim);
        self.go_live();
    }

    /// The sides that see the closed channel handle that.
    fn notice(&mut self) {
        self.link.round();
        if self.link.is_seen_closed_by(Side::Primary) {
            self.primary_turn(Primary::backup_lost);
        }
        if self.link.is_seen_closed_by(Side::Backup) {
            self.backup_turn(Backup::primary_lost);
        }
    }

    fn primary_turn(&mut self, turn: impl FnOnce(&mut Primary, &mut Outside, &mut Link) -> Result<(), Died>) {
        if let Some(primary) = &mut self.primary {
            self.outside.points.alive = (true, self.backup.is_some());
            // If it died, `bury` handles that.
            let _ = turn(primary, &mut self.outside, &mut self.link);
        }
        self.bury();
        let Some(primary) = &self.primary else { return };
        self.log_entries = primary.story().entries();
        match primary.end.clone() {
            None => {}
            // The process ends once the last outputs have left.
            Some(PrimaryEnd::GuestStopped(_)) if primary.role.gate().next_to_leave() < primary.role.gate().end() => {}
            Some(PrimaryEnd::GuestStopped(_)) => {
                let claims = &self.outside.arbiter.claims;
                let mark = claims.last_key_value().map(|(_, claim)| (claim.node, claim.kind));
                assert_eq!(mark, Some((primary.node, ClaimKind::Ended)), "an end without its mark");
                self.outside.check_end(primary.story());
                (self.has_ended, self.primary) = (true, None);
                self.link.cut();
            }
            Some(PrimaryEnd::Fenced { holder }) => {
                assert_eq!(Some(&holder), self.outside.arbiter.claims.get(&primary.role.generation().0));
                self.primary = None;
                self.link.cut();
            }
            Some(end @ (PrimaryEnd::Retired | PrimaryEnd::Stranded | PrimaryEnd::Left | PrimaryEnd::Interrupted)) => {
                panic!("nobody asked the primary to end: {end:?}")
            }
        }
    }

    fn backup_turn(&mut self, turn: impl FnOnce(&mut Backup, &mut Outside, &mut Link) -> Result<(), Died>) {
        if let Some(backup) = &mut self.backup {
            let was_told = backup.is_told;
            self.outside.points.alive = (self.primary.is_some(), true);
            let _ = turn(backup, &mut self.outside, &mut self.link);
            self.protections += u32::from(backup.is_told && !was_told);
        }
        self.bury();
        let Some(backup) = &self.backup else { return };
        let latest = self.outside.arbiter.claims.last_key_value().map(|(_, claim)| claim);
        match &backup.end {
            None => return,
            Some(BackupEnd::GuestStopped(_)) => {
                assert_eq!(latest.map(|claim| claim.kind), Some(ClaimKind::Ended), "an end without its mark");
                let story = &backup.guest.as_ref().unwrap().story;
                assert!(story.is_stopped);
                self.outside.check_end(story);
                self.has_ended = true;
            }
            Some(BackupEnd::Fenced { holder }) => {
                assert!(self.outside.arbiter.claims.values().any(|claim| claim == holder), "fenced by nobody");
            }
            Some(BackupEnd::Unprotected { .. }) => assert!(!backup.is_told, "it may claim, and doesn't"),
            Some(end @ (BackupEnd::NoPlace { .. } | BackupEnd::Refused { .. } | BackupEnd::Diverged)) => {
                panic!("{end:?}")
            }
        }
        self.backup = None;
        self.join_at = self.round + JOIN_AFTER;
        self.link.cut();
    }

    /// A primary that has been succeeded receives what is left in its channel, notices the cut,
    /// claims, and is fenced.
    fn stale_turn(&mut self) {
        let Some((primary, link)) = &mut self.stale else { return };
        link.round();
        let outside = &mut self.outside;
        outside.points.alive = (self.primary.is_some(), self.backup.is_some());
        let mut turn = || {
            primary.live(outside, link)?;
            primary.hear(outside, link, usize::MAX)?;
            primary.tick(outside, link)?;
            if link.is_seen_closed_by(Side::Primary) {
                primary.backup_lost(outside, link)?;
            }
            primary.claim(outside, link)
        };
        turn().expect("it is nobody's victim");
        match &primary.end {
            None => {}
            Some(PrimaryEnd::Fenced { .. }) => self.stale = None,
            Some(
                end @ (PrimaryEnd::GuestStopped(_)
                | PrimaryEnd::Retired
                | PrimaryEnd::Stranded
                | PrimaryEnd::Left
                | PrimaryEnd::Interrupted),
            ) => {
                panic!("succeeded, and {end:?}")
            }
        }
        self.bury();
    }

    fn go_live(&mut self) {
        let Some(generation) = self.backup.as_ref().and_then(|backup| backup.goes_live) else { return };
        self.outside.points.alive = (self.primary.is_some(), true);
        let died = self.outside.points.before(Some(Side::Backup), Kind::GoLive).is_err();
        self.bury();
        let Some(backup) = self.backup.take_if(|_| !died) else { return };
        let primary = succeed(self.outside.now_ns, backup, &self.session, generation);
        self.outside.owns(generation, primary.node, primary.story());
        if let Some(mut stale) = self.primary.replace(primary) {
            stale.is_succeeded();
            self.stale = Some((stale, std::mem::take(&mut self.link)));
        }
        self.outside.points.alive = (true, false);
        // From here on it dies as a primary.
        let _ = self.outside.points.pass(Some(Side::Primary), Kind::GoLive, Moment::After);
        self.bury();
        self.link = Link::default();
        self.link.cut();
        self.join_at = self.round + JOIN_AFTER;
        // Unsent outputs are taken before the LAN is attached, or are sent at once.
        let attaches_later = generation.0 % 2 == 1;
        self.attach_at = self.round + if attaches_later { 3 } else { 0 };
        if !attaches_later {
            self.primary_turn(Primary::attach);
        }
    }

    /// A new backup joins a primary that has none.
    fn join(&mut self) {
        let Some(primary) = &self.primary else { return };
        let has_place = primary.role.can_take_backup(&vm_id()).is_ok() && !primary.story().is_stopped;
        if self.backup.is_some() || !has_place || self.round < self.join_at {
            return;
        }
        let node = NodeId(2 + u128::from(self.round));
        self.link = Link::default();
        self.backup = Some(Backup::new(self.outside.now_ns, node, TIMING));
        self.backup_turn(Backup::follow_up);
    }

    /// Does the script's next disturbance.
    fn disturb(&mut self) {
        let (Some(primary), Some(backup)) = (&mut self.primary, &self.backup) else { return };
        let Some((step, disturbance)) = self.script.front().copied() else { return };
        if primary.story().steps() < step || !primary.role.is_protected() || !backup.is_told {
            return;
        }
        self.script.pop_front();
        match disturbance {
            Disturbance::LanLost => {
                primary.port = None;
                self.outside.lan.under_way.clear();
                self.attach_at = self.round + 7;
            }
            Disturbance::LanSlow => self.carry_at = self.round + STRAY_ROUNDS,
            Disturbance::CutSeenByPrimary => {
                self.link.cut();
                self.link.slow = Some((Side::Backup, 4));
                self.outside.arbiter.lost_replies = 1;
            }
            Disturbance::CutSeenByBackup => {
                self.link.cut();
                self.link.slow = Some((Side::Primary, 12));
            }
        }
    }

    /// Removes the sides that have died, with as much as their fate takes along.
    fn bury(&mut self) {
        for crash in std::mem::take(&mut self.outside.points.dying) {
            match crash.victim {
                Side::Primary => self.bury_primary(crash.fate),
                Side::Backup => self.bury_backup(crash.fate),
            }
        }
    }

    fn bury_primary(&mut self, fate: Fate) {
        let Some(dead) = self.primary.take() else { return };
        self.dead.insert(dead.node);
        // An older generation's port was refused long ago, or its packets will be.
        let packets = &mut self.outside.lan.under_way;
        packets.truncate(left_of(fate, packets.len()));
        if fate == Fate::Torn {
            self.carry_at = self.round + STRAY_ROUNDS;
        }
        lose(&mut self.link, fate, |link| &mut link.to_backup);
        if let (Some(request), Fate::Process) = (dead.asking.request, fate) {
            let _ = self.outside.arbiter.ask(request);
        }
        let is_decided = self.outside.arbiter.claims.contains_key(&dead.role.generation().0);
        self.must_survive = !is_decided && self.backup.as_ref().is_some_and(|backup| backup.is_told);
    }

    fn bury_backup(&mut self, fate: Fate) {
        let Some(dead) = self.backup.take() else { return };
        self.dead.insert(dead.node);
        lose(&mut self.link, fate, |link| &mut link.to_primary);
        if let (Some(request), Fate::Process) = (dead.asking.request, fate) {
            let _ = self.outside.arbiter.ask(request);
        }
        self.join_at = self.round + JOIN_AFTER;
        self.must_survive = false;
    }
}

/// Makes a primary of a backup that has gone live.
fn succeed(now_ns: u64, mut backup: Backup, session: &SessionHeader, generation: Generation) -> Primary {
    let guest = backup.guest.take().unwrap();
    let (received, consumed) = backup.role.cursors();
    assert_eq!((received, received.0), (consumed, guest.story.entries() as u64), "live with something left to consume");
    let (unsent, next) = (backup.role.take_unsent(), backup.role.next_output());
    assert_eq!(next, guest.story.next_output());
    let session = SessionHeader { generation, ..session.clone() };
    // No guest of this test reads its clock.
    let clock = backup.role.take_over_clock(now_ns, 0);
    let inheritance = Inheritance { clock, first: received, next_output: next, unsent, disk_log: DiskLogState::None };
    let role = PrimaryRole::gone_live(backup.node, session, TIMING, inheritance);
    Primary::new(backup.node, role, guest, backup.told_released)
}

/// How many of `whole` bytes or packets in flight still arrive.
const fn left_of(fate: Fate, whole: usize) -> usize {
    match fate {
        Fate::Process => whole,
        Fate::Torn => whole / 2,
        Fate::Host => 0,
    }
}

fn lose(link: &mut Link, fate: Fate, wire: impl FnOnce(&mut Link) -> &mut crate::world::Wire) {
    let wire = wire(link);
    wire.lose_behind(left_of(fate, wire.len()));
    link.is_mute = fate != Fate::Process;
    link.cut();
}
