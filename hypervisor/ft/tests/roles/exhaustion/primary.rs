//! A primary and its host, operation by operation.

use super::guest::{Guest, Story};
use super::link::{Asking, Link};
use super::outside::Outside;
use super::points::{Died, Kind, Side};
use crate::host::{OutputRule, actions_of};
use ft::output_gate::Released;
use ft::role::{PrimaryAction, PrimaryEnd, PrimaryRole};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::{Left, Message};
use logchannel::session::NodeId;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

#[derive(Debug)]
pub(super) struct Primary {
    pub(super) node: NodeId,
    pub(super) role: PrimaryRole,
    pub(super) guest: Guest,
    /// The side as which it can die; `None` for one that has been succeeded.
    actor: Option<Side>,
    /// The generation under which it is attached to the LAN.
    pub(super) port: Option<Generation>,
    /// Packets in the guest's inbox.
    pub(super) inbox: VecDeque<u64>,
    pub(super) asking: Asking,
    /// It has logged the guest's end. A successor of a guest that has ended logs it again.
    is_stopped: bool,
    /// The last generation in the log.
    logged: Option<Generation>,
    output_rule: OutputRule,
    /// The outputs of which it was told as a backup that they have left.
    told_released: Left,
    pub(super) end: Option<PrimaryEnd>,
}

impl Primary {
    pub(super) fn new(node: NodeId, role: PrimaryRole, guest: Guest, told_released: Left) -> Self {
        Self {
            node,
            role,
            guest,
            actor: Some(Side::Primary),
            port: None,
            inbox: VecDeque::new(),
            asking: Asking::default(),
            is_stopped: false,
            logged: None,
            output_rule: OutputRule::new(),
            told_released,
            end: None,
        }
    }

    /// Another node has gone live, and this one doesn't know it yet.
    pub(super) const fn is_succeeded(&mut self) {
        self.actor = None;
    }

    pub(super) const fn story(&self) -> &Story {
        &self.guest.story
    }

    fn op<T>(
        &mut self,
        outside: &mut Outside,
        kind: Kind,
        act: impl FnOnce(&mut Self, &mut Outside) -> T,
    ) -> Result<T, Died> {
        outside.points.before(self.actor, kind)?;
        let done = act(self, outside);
        outside.points.after(self.actor, kind)?;
        Ok(done)
    }

    /// The guest takes a step, if it may run.
    pub(super) fn live(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        if !self.role.may_run() || self.is_stopped {
            return Ok(());
        }
        let generation = self.role.generation();
        if self.logged.replace(generation) != Some(generation) {
            let entry = self.guest.owned(generation);
            self.append(outside, link, &entry, None)?;
        }
        let (entry, output) = self.guest.live(self.node, self.inbox.front().copied());
        if matches!(entry.body, EntryBody::Event(vm::Event::Packet { .. })) {
            self.inbox.pop_front();
        }
        self.is_stopped = self.story().is_stopped;
        let flushes = output.is_some() || self.is_stopped;
        self.append(outside, link, &entry, output)?;
        if flushes {
            self.op(outside, Kind::Flush, |primary, outside| primary.role.handle_flush(outside.now_ns))?;
        }
        self.follow_up(outside, link)
    }

    fn append(
        &mut self,
        outside: &mut Outside,
        link: &mut Link,
        entry: &LogEntry,
        output: Option<(OutputId, OutputOperation)>,
    ) -> Result<(), Died> {
        self.op(outside, Kind::Append, |primary, outside| primary.role.handle_entry(outside.now_ns, entry, output))?;
        self.follow_up(outside, link)
    }

    /// A joining backup gets a piece of memory.
    pub(super) fn copy(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        if !self.role.wants_copy() {
            return Ok(());
        }
        outside.points.before(self.actor, Kind::SnapshotPiece)?;
        self.role.copy_snapshot(outside.now_ns, &mut self.guest.machine);
        if self.role.is_copying() {
            outside.points.after(self.actor, Kind::SnapshotPiece)?;
        } else {
            link.snapshot = Some(self.story().clone());
            outside.points.after(self.actor, Kind::SnapshotComplete)?;
        }
        self.follow_up(outside, link)
    }

    /// The next `bytes` bytes in flight arrive.
    pub(super) fn hear(&mut self, outside: &mut Outside, link: &mut Link, bytes: usize) -> Result<(), Died> {
        for message in link.to_primary.deliver(bytes) {
            self.op(outside, Kind::of_hearing(&message), |primary, outside| {
                let Message::Join { vm, .. } = message else {
                    return primary.role.handle_message(outside.now_ns, message);
                };
                if primary.role.handle_join(outside.now_ns, &vm).is_err() {
                    link.cut();
                }
            })?;
            self.follow_up(outside, link)?;
        }
        Ok(())
    }

    pub(super) fn backup_lost(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        self.role.handle_disconnect("closed");
        self.follow_up(outside, link)
    }

    pub(super) fn tick(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        self.role.handle_tick(outside.now_ns);
        self.follow_up(outside, link)
    }

    /// Its claim makes a step: to the arbiter, or back.
    pub(super) fn claim(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        let Some(answer) = self.asking.get_on(outside, self.actor)? else { return Ok(()) };
        self.op(outside, Kind::ClaimAnswered, |primary, outside| primary.role.handle_claim(outside.now_ns, answer))?;
        self.follow_up(outside, link)
    }

    /// It attaches to the LAN, perhaps again, and gets the packets that the log doesn't have.
    pub(super) fn attach(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        let generation = self.role.generation();
        self.op(outside, Kind::Attach, |primary, outside| {
            let Some(next) = outside.lan.attach(generation) else { return };
            primary.port = Some(generation);
            primary.inbox = (primary.story().next_packet..outside.lan.packets).collect();
            primary.role.handle_attachment(next);
        })?;
        self.follow_up(outside, link)
    }

    /// The LAN reports what it has carried.
    pub(super) fn hear_lan(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        let Some(next) = self.port.and_then(|port| outside.lan.tell(port)) else { return Ok(()) };
        self.op(outside, Kind::Carried, |primary, _| primary.role.handle_carried(next))?;
        self.follow_up(outside, link)
    }

    /// Does what the role wants after an input, in the order of the production driver: connections
    /// first, then outputs, bytes, and what takes time.
    fn follow_up(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        let actions = actions_of(&mut self.role, || link.cut());
        for action in &actions {
            self.output_rule.note(&self.role, action);
            match action {
                PrimaryAction::Protected(generation) => {
                    assert_eq!(*generation, self.role.generation());
                    link.told_from = self.role.appended();
                }
                PrimaryAction::Owner(generation) => outside.owns(*generation, self.node, self.story()),
                PrimaryAction::End(end) => self.end = Some(end.clone()),
                PrimaryAction::CloseChannel { .. } | PrimaryAction::Claim(_) => {}
                other @ (PrimaryAction::CheckClaim
                | PrimaryAction::Refill(_)
                | PrimaryAction::ClaimsLost { .. }
                | PrimaryAction::ClaimsRestored(_)
                | PrimaryAction::Confirmed(_)
                | PrimaryAction::Stranded(_)) => panic!("no claim is ever lost here: {other:?}"),
                PrimaryAction::HandOver => panic!("nobody asked the primary to hand over"),
            }
        }
        self.write_released(outside, link)?;
        self.send(outside, link)?;
        for action in actions {
            if let PrimaryAction::Claim(request) = action {
                self.op(outside, Kind::ClaimAsked, |primary, _| primary.asking.ask(request))?;
            }
        }
        Ok(())
    }

    fn write_released(&mut self, outside: &mut Outside, link: &Link) -> Result<(), Died> {
        while self.role.gate().has_released() {
            assert!(!matches!(self.end, Some(PrimaryEnd::Fenced { .. })), "a fenced primary lets an output out");
            let Some(Released { id, operation: output, .. }) =
                self.op(outside, Kind::Release, |primary, _| primary.role.poll_released())?
            else {
                return Ok(());
            };
            let position = self.story().position_of(id, output.digest());
            let seq = LogSeq(position as u64);
            self.output_rule.check(id, seq, link.received);
            self.op(outside, Kind::WriteReleased, |primary, outside| {
                outside.learn(primary.story(), position);
                match (&*output, primary.port) {
                    (OutputOperation::Console(_), _) => {
                        assert!(
                            !primary.told_released.has(id, &output),
                            "{id:?} is said to have left, and is written again"
                        );
                        outside.write(primary.node, id, &output);
                    }
                    (OutputOperation::Packet(_), Some(port)) => outside.lan.under_way.push_back((port, id, output)),
                    (OutputOperation::Packet(_), None) => {}
                }
            })?;
            self.role.handle_console_left(id.next());
        }
        Ok(())
    }

    fn send(&mut self, outside: &mut Outside, link: &mut Link) -> Result<(), Died> {
        if !self.role.has_outgoing() {
            return Ok(());
        }
        self.op(outside, Kind::Send, |primary, _| {
            let mut bytes = Vec::new();
            primary.role.poll_outgoing(&mut bytes);
            link.to_backup.send(&bytes);
        })
    }
}
