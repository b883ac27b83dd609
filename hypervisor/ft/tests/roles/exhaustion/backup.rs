//! A backup and its host, operation by operation.

use super::guest::Guest;
use super::link::{Asking, Link};
use super::outside::Outside;
use super::points::{Died, Kind, Side};
use crate::host::BackupHost;
use crate::world::expectation;
use ft::role::{BackupAction, BackupEnd, BackupRole, Timing};
use logchannel::entry::{Generation, LogSeq};
use logchannel::message::{Left, Message};
use logchannel::session::NodeId;

const ACTOR: Option<Side> = Some(Side::Backup);

#[derive(Debug)]
pub(super) struct Backup {
    pub(super) node: NodeId,
    pub(super) role: BackupRole,
    pub(super) host: BackupHost,
    pub(super) guest: Option<Guest>,
    /// It was told that it may claim.
    pub(super) is_told: bool,
    pub(super) told_released: Left,
    /// A message that it has to send and that has an operation of its own.
    to_say: Option<Kind>,
    pub(super) asking: Asking,
    pub(super) end: Option<BackupEnd>,
    pub(super) goes_live: Option<Generation>,
}

impl Backup {
    pub(super) fn new(now_ns: u64, node: NodeId, timing: Timing) -> Self {
        Self {
            node,
            role: BackupRole::new(now_ns, node, expectation(), timing),
            host: BackupHost::default(),
            guest: None,
            is_told: false,
            told_released: Left::default(),
            to_say: Some(Kind::JoinSent),
            asking: Asking::default(),
            end: None,
            goes_live: None,
        }
    }

    fn op<T>(
        &mut self,
        outside: &mut Outside,
        kind: Kind,
        act: impl FnOnce(&mut Self, &mut Outside) -> T,
    ) -> Result<T, Died> {
        outside.points.before(ACTOR, kind)?;
        let done = act(self, outside);
        outside.points.after(ACTOR, kind)?;
        Ok(done)
    }

    /// The next `bytes` bytes in flight arrive.
    pub(super) fn hear(&mut self, outside: &mut Outside, link: &mut Link, bytes: usize) -> Result<(), Died> {
        for message in link.to_backup.deliver(bytes) {
            let kind = Kind::of_hearing(&message);
            self.op(outside, kind, |backup, outside| {
                if let Message::Released(left) = message {
                    outside.check_released(left);
                    backup.told_released = left;
                }
                let (before, _) = backup.role.cursors();
                backup.role.handle_message(outside.now_ns, message);
                link.received = backup.role.cursors().0;
                if kind == Kind::Receive && link.received > before {
                    backup.to_say = Some(Kind::AckSent);
                }
            })?;
            self.follow_up(outside, link)?;
        }
        Ok(())
    }

    /// Restores the machine, once all of the snapshot has arrived.
    pub(super) fn restore(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        if !self.host.is_restoring() {
            return Ok(());
        }
        self.op(outside, Kind::Restore, |backup, outside| {
            let (_, machine) = backup.host.restore().unwrap();
            let machine = machine.expect("the copy is the guest");
            let story = link.snapshot.take().unwrap();
            backup.role.handle_restored(outside.now_ns, story.next_output());
            backup.guest = Some(Guest { story, machine });
            backup.to_say = Some(Kind::AcceptedSent);
        })?;
        self.follow_up(outside, link)
    }

    /// Replays at most `entries` entries.
    pub(super) fn consume(&mut self, outside: &mut Outside, link: &mut Link, entries: usize) -> Result<(), Died> {
        for _ in 0..entries.min(self.host.to_replay.len()) {
            if self.guest.is_none() {
                break;
            }
            self.op(outside, Kind::Consume, |backup, outside| {
                let (Some(guest), Some(entry)) = (&mut backup.guest, backup.host.to_replay.pop_front()) else { return };
                if let Some((id, output)) = guest.replay(&entry) {
                    backup.role.handle_output(id, output);
                }
                backup.role.handle_consumed(outside.now_ns, LogSeq(guest.story.entries() as u64), entry.count);
            })?;
            self.follow_up(outside, link)?;
        }
        Ok(())
    }

    pub(super) fn primary_lost(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        self.role.handle_disconnect(outside.now_ns, "closed");
        self.follow_up(outside, link)
    }

    pub(super) fn tick(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        self.role.handle_tick(outside.now_ns);
        self.follow_up(outside, link)
    }

    /// Its claim makes a step: to the arbiter, or back.
    pub(super) fn claim(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        let Some(answer) = self.asking.get_on(outside, ACTOR)? else { return Ok(()) };
        self.op(outside, Kind::ClaimAnswered, |backup, outside| backup.role.handle_claim(outside.now_ns, answer))?;
        self.follow_up(outside, link)
    }

    pub(super) fn follow_up(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        self.send(outside, link)?;
        while let Some(action) = self.role.poll_action() {
            let Some(action) = self.host.act(&mut self.role, outside.now_ns, &outside.arbiter, action) else {
                continue;
            };
            match action {
                BackupAction::Protected(_) => {
                    let from = link.told_from;
                    assert!(link.received >= from, "told that it may claim, with {} of {from} entries", link.received);
                    self.is_told = true;
                }
                BackupAction::Lost { .. } => link.cut(),
                BackupAction::Claim(request) => {
                    assert!(self.is_told, "it claims, and nobody has told it that it may");
                    self.op(outside, Kind::ClaimAsked, |backup, _| backup.asking.ask(request))?;
                }
                BackupAction::GoLive(generation) => {
                    assert!(self.host.to_replay.is_empty(), "live with something left to consume");
                    self.goes_live = Some(generation);
                }
                BackupAction::End(end) => self.end = Some(end),
                other @ (BackupAction::ClaimsLost(_)
                | BackupAction::Waits
                | BackupAction::Begin(_)
                | BackupAction::CheckOwner
                | BackupAction::Joined
                | BackupAction::Pages(_)
                | BackupAction::Restore(_)
                | BackupAction::Consume(_)) => panic!("no claim is ever lost here, and the host does {other:?}"),
            }
        }
        Ok(())
    }

    fn send(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        if !self.role.has_outgoing() {
            return Ok(());
        }
        let kind = self.to_say.take().unwrap_or(Kind::WordSent);
        self.op(outside, kind, |backup, _| {
            let mut bytes = Vec::new();
            backup.role.poll_outgoing(&mut bytes);
            link.to_primary.send(&bytes);
        })
    }
}
