//! The state of the cluster, and the transition that an action makes.

use super::Cluster;
use super::actions::Action;
use super::disk::Disk;
use super::environment::{Arbiter, Channel, Lan, messages, node_id};
use super::guest::Guest;
use super::node::{Backup, CHECKING_CLAIMS, End, NOW_NS, Node, Owner, TIMING, config};
use super::shared::Shared;
use ft::claim::{ClaimKind, Verdict};
use ft::output_gate::Released;
use ft::role::{
    BackupAction, BackupEnd, BackupRole, ClaimAnswer, ClaimRequest, DiskLogState, Expectation, Inheritance,
    LatestAnswer, PrimaryAction, PrimaryEnd, PrimaryRole,
};
use ft::start::LogWriterKind;
use logchannel::entry::Generation;
use logchannel::message::Message;
use logchannel::session::{SessionHeader, VmId};
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

/// The state of everything.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct State {
    pub(super) nodes: Vec<Shared<Node>>,
    /// By the index of the backup.
    pub(super) channels: Vec<Shared<Channel>>,
    /// The logs on disk, by the index of the node; empty without logs.
    pub(super) disks: Vec<Shared<Disk>>,
    pub(super) arbiter: Arbiter,
    /// The last node's arbiter, if it has another one, which knows a VM of the same name.
    pub(super) other_arbiter: Shared<Arbiter>,
    pub(super) lan: Shared<Lan>,
    pub(super) faults: Faults,
    /// The rule that was broken.
    pub(super) broken: Option<Rule>,
}

/// The faults that may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub(super) crashes: u8,
    pub(super) cuts: u8,
    pub(super) retirements: u8,
    pub(super) vanishings: u8,
    pub(super) restarts: u8,
    /// The last node has another arbiter than the rest.
    pub(super) is_last_mistaken: bool,
    /// The greatest generation that any node has owned.
    pub(super) latest_owned: u64,
}

/// A node of another VM, at the other arbiter.
const STRANGER: usize = 9;

/// A rule that an action of a node can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// An output leaves although the backup lacks its entry, and its node isn't alone by a won
    /// claim.
    OutputRule,
    /// An output leaves a node that the arbiter has told that another one has won.
    Fencing,
    /// A node goes on as the owner of a generation that the arbiter hasn't given it.
    TestAndSet,
    /// A backup protects the VM although it has another arbiter than its primary.
    OneArbiter,
    /// A primary is fenced although no other node has won.
    FencedByNobody,
    /// The LAN gets an output without the one before.
    NoGap,
    /// A backup's replay differs from its log.
    Lockstep,
    /// An output leaves that a restart from its node's log wouldn't have.
    Promise,
    /// A restart that is interrupted before its own log begins leaves an end mark.
    Interrupted,
}

impl State {
    /// An owner that has just started, alone or with a backup that protects it.
    pub(super) fn initial(model: &Cluster) -> Self {
        let guest = Guest::new(model.outputs, model.powers_off);
        let timing = if model.vanishings > 0 { CHECKING_CLAIMS } else { TIMING };
        let has_logs = model.restarts > 0;
        let disk_log = if has_logs { DiskLogState::Promised } else { DiskLogState::None };
        let role = PrimaryRole::alone(node_id(0), session(), timing).with_disk_log(disk_log);
        let mut nodes = vec![Shared::new(Node::Spare); model.nodes];
        let appended = role.appended();
        let mut disks = Vec::new();
        if has_logs {
            nodes[model.nodes - 1] = Shared::new(Node::Vacant);
            let mut disk = Disk::default();
            disk.begin(node_id(0), (appended, guest.clone()), Generation(1), LogWriterKind::Owner);
            disks = vec![Shared::new(Disk::default()); model.nodes];
            disks[0] = Shared::new(disk);
        }
        nodes[0] = Shared::new(Node::Owner(Box::new(Owner::alone(role, guest, appended))));
        let mut arbiter = Arbiter::default();
        let first =
            ClaimRequest { node: node_id(0), generation: Generation(0), kind: ClaimKind::Owner, predecessor: None };
        arbiter.decide(0, first);
        let mut other_arbiter = Arbiter::default();
        other_arbiter.decide(STRANGER, ClaimRequest { node: node_id(STRANGER), ..first });
        let mut state = Self {
            channels: vec![Shared::new(Channel::default()); nodes.len()],
            nodes,
            disks,
            arbiter,
            other_arbiter: Shared::new(other_arbiter),
            lan: Shared::new(Lan::new(0)),
            faults: Faults {
                crashes: model.crashes,
                cuts: model.cuts,
                retirements: model.retirements,
                vanishings: model.vanishings,
                restarts: model.restarts,
                is_last_mistaken: model.is_last_mistaken,
                latest_owned: 1,
            },
            broken: None,
        };
        let joining = [
            Action::Join { backup: 1, primary: 0 },
            Action::AtBackup(1, 0),
            Action::Latest(1),
            Action::Copy(0),
            Action::AtBackup(1, 0),
            Action::Restored(1),
            Action::AtPrimary(1, 0),
            Action::AtBackup(1, 0),
        ];
        for action in joining.into_iter().filter(|_| model.is_protected) {
            state = state.after(action).unwrap_or_else(|| panic!("{action:?} is a step of joining, in {state:#?}"));
        }
        state
    }

    /// The state after `action`, if that is possible.
    pub(super) fn after(&self, action: Action) -> Option<Self> {
        let mut next = self.clone();
        match action {
            Action::GuestRuns(node) => next.run_guest(node),
            Action::WriteLog(node) => next.write_log(node),
            Action::Restart { log, node } => next.restart(log, node),
            Action::Flush(node) => next.drive_owner(node, |owner| {
                owner.must_flush = false;
                owner.role.handle_flush(NOW_NS);
            }),
            Action::Tick(node) => return self.after_tick(node),
            Action::WriteReleased(node) => next.write_released(node),
            Action::PacketArrives => next.packet_arrives(),
            Action::LanTells(node) => {
                let carried = next.lan.next_output();
                next.drive_owner(node, |owner| owner.role.handle_carried(carried))
            }
            Action::Attach(node) => next.attach(node),
            Action::CutCable => {
                next.faults.cuts -= 1;
                next.lan = edit(&next.lan, Lan::cut);
                Some(())
            }
            Action::Join { backup, primary } => next.join(backup, primary),
            Action::Copy(node) => next.copy(node),
            Action::Restored(node) => next.drive_backup(node, |backup| {
                let Some((guest, is_restored)) = &mut backup.guest else { return };
                *is_restored = true;
                backup.role.handle_restored(NOW_NS, guest.next_output());
            }),
            Action::Replay(node) => next.replay(node),
            Action::AtBackup(node, index) => next.arrive_at_backup(node, index),
            Action::AtPrimary(node, index) => next.arrive_at_primary(node, index),
            Action::SuspectPrimary(node) => {
                next.drive_backup(node, |backup| backup.role.handle_disconnect(NOW_NS, "silent"))
            }
            Action::SuspectBackup(node) => next.drive_owner(node, |owner| owner.role.handle_disconnect("silent")),
            Action::Decide(node) => {
                let request = next.nodes[node].asking()?;
                next.decide(node, request);
                Some(())
            }
            Action::Latest(node) => {
                let latest = next.arbiter_of(node).latest_answer();
                next.handle_latest(node, &latest)
            }
            Action::NoLatest(node) => next.handle_latest(node, &LatestAnswer::Unreachable),
            Action::CheckClaim(node) => next.drive_owner(node, |owner| owner.role.handle_tick(NOW_NS)),
            Action::Refill(node) => {
                let request = next.nodes[node].owner()?.refilling?;
                next.decide(node, request);
                let answer = ClaimAnswer::Decided(next.arbiter_of(node).answer(node, request)?);
                next.drive_owner(node, |owner| {
                    owner.refilling = None;
                    owner.role.handle_refill(NOW_NS, answer);
                    owner.role.handle_tick(NOW_NS);
                })
            }
            Action::Forget => {
                next.faults.vanishings -= 1;
                next.arbiter.forget();
                Some(())
            }
            Action::Answer(node) => next.answer(node),
            Action::NoAnswer(node) => next.claim_answered(node, &ClaimAnswer::Unreachable),
            Action::DecideLate(index) => {
                let (node, request) = *next.arbiter.late.get(index)?;
                next.arbiter.decide(node, request);
                Some(())
            }
            Action::Crash(node) => {
                next.faults.crashes -= 1;
                next.leave(node, Node::Gone(End::Crashed));
                Some(())
            }
            Action::Retire(node) => {
                next.faults.retirements -= 1;
                next.drive_owner(node, |owner| owner.role.handle_retire(NOW_NS))
            }
        }?;
        Some(next)
    }

    /// The arbiter of a node.
    pub(super) fn arbiter_of(&self, node: usize) -> &Arbiter {
        if self.is_mistaken(node) { &self.other_arbiter } else { &self.arbiter }
    }

    fn is_mistaken(&self, node: usize) -> bool {
        self.faults.is_last_mistaken && node + 1 == self.nodes.len()
    }

    fn decide(&mut self, node: usize, request: ClaimRequest) {
        if self.is_mistaken(node) {
            let mut arbiter = (*self.other_arbiter).clone();
            arbiter.decide(node, request);
            self.other_arbiter = Shared::new(arbiter);
        } else {
            self.arbiter.decide(node, request);
        }
    }

    fn handle_latest(&mut self, node: usize, answer: &LatestAnswer) -> Option<()> {
        match &*self.nodes[node] {
            Node::Owner(_) => self.drive_owner(node, |owner| {
                owner.is_checking = false;
                owner.role.handle_latest(NOW_NS, answer.clone());
            }),
            Node::Backup(_) => self.drive_backup(node, |backup| {
                backup.is_checking = false;
                backup.role.handle_owner(NOW_NS, answer.clone());
                backup.role.handle_tick(NOW_NS);
            }),
            Node::Vacant | Node::Spare | Node::Gone(_) => None,
        }
    }

    /// The state after a tick that makes a node send something; other ticks are left out.
    fn after_tick(&self, node: usize) -> Option<Self> {
        let mut next = self.clone();
        let mut says = false;
        next.drive_owner(node, |owner| {
            owner.role.handle_tick(NOW_NS);
            says = owner.role.has_outgoing();
        });
        next.drive_backup(node, |backup| {
            backup.role.handle_tick(NOW_NS);
            says = backup.role.has_outgoing();
        });
        says.then_some(next)
    }

    fn broke(&mut self, rule: Rule) {
        self.broken.get_or_insert(rule);
    }

    /// Gives an owner an input, and does its role's actions.
    pub(super) fn drive_owner(&mut self, node: usize, input: impl FnOnce(&mut Owner)) -> Option<()> {
        let mut owner = self.nodes[node].owner()?.clone();
        input(&mut owner);
        self.settle_owner(node, owner);
        Some(())
    }

    /// Does a primary's actions in the production driver's order: close the channel, send, act.
    fn settle_owner(&mut self, node: usize, mut owner: Owner) {
        let actions: Vec<_> = std::iter::from_fn(|| owner.role.poll_action()).collect();
        if actions.iter().any(|action| matches!(action, PrimaryAction::CloseChannel { .. }))
            && let Some(backup) = owner.backup.take()
        {
            owner.free = owner.free.max(self.channels[backup].received);
            self.edit_channel(backup, Channel::close_at_primary);
        }
        let mut bytes = Vec::new();
        owner.role.poll_outgoing(&mut bytes);
        self.send_to_backup(&owner, &bytes);
        for action in actions {
            match action {
                PrimaryAction::Claim(request) => owner.asking = Some(request),
                PrimaryAction::CheckClaim => owner.is_checking = true,
                PrimaryAction::Refill(request) => owner.refilling = Some(request),
                PrimaryAction::ClaimsLost { .. }
                | PrimaryAction::ClaimsRestored(_)
                | PrimaryAction::Confirmed(_)
                | PrimaryAction::Stranded(_) => {}
                PrimaryAction::CloseChannel { .. } => {}
                PrimaryAction::Owner(generation) => {
                    self.check_claim(node, generation);
                    owner.is_alone = true;
                    owner.note_if_alone();
                }
                PrimaryAction::Protected(_) => owner.is_alone = false,
                PrimaryAction::HandOver => owner.end = Some(End::Retired),
                PrimaryAction::End(PrimaryEnd::Fenced { holder }) => {
                    if holder.node == node_id(node) {
                        self.broke(Rule::FencedByNobody);
                    }
                    owner.end = Some(End::PrimaryFenced);
                }
                PrimaryAction::End(PrimaryEnd::Interrupted) => owner.end = Some(End::Retired),
                PrimaryAction::End(PrimaryEnd::Stranded) => owner.end = Some(End::Retired),
                PrimaryAction::End(PrimaryEnd::GuestStopped(_) | PrimaryEnd::Retired | PrimaryEnd::Left) => {
                    owner.end = Some(End::GuestOver);
                    if self.disks.get(node).is_some_and(|disk| disk.is_anothers()) {
                        self.broke(Rule::Interrupted);
                    }
                    // It is alone by the claim that is its end mark.
                    self.check_claim(node, owner.role.generation());
                    owner.free = owner.role.appended();
                }
            }
        }
        self.put_back(node, owner);
    }

    /// Stores the node. An owner that has ended stays until the guest's last outputs have left.
    fn put_back(&mut self, node: usize, mut owner: Owner) {
        match owner.end {
            Some(end) if !owner.role.gate().has_released() => self.leave(node, Node::Gone(end)),
            _ => {
                // A clone's buffers have no spare capacity; the checker stores very many states.
                owner.role = owner.role.clone();
                self.nodes[node] = Shared::new(Node::Owner(Box::new(owner)));
            }
        }
    }

    /// Sends an owner's messages; the guest travels instead of the machine's state.
    fn send_to_backup(&mut self, owner: &Owner, bytes: &[u8]) {
        let Some(backup) = owner.backup.filter(|_| !bytes.is_empty()) else { return };
        self.edit_channel(backup, |channel| {
            for mut message in messages(bytes) {
                if matches!(message, Message::Pages(_)) {
                    continue;
                }
                if let Message::Snapshot(snapshot) = &mut message {
                    snapshot.state = owner.guest.save();
                }
                channel.send_to_backup(message);
            }
        });
    }

    fn edit_channel<T>(&mut self, backup: usize, change: impl FnOnce(&mut Channel) -> T) -> T {
        let mut channel = (*self.channels[backup]).clone();
        let result = change(&mut channel);
        self.channels[backup] = Shared::new(channel);
        result
    }

    pub(super) fn check_claim(&mut self, node: usize, generation: Generation) {
        let claim = generation.0.checked_sub(1).and_then(|flag| self.arbiter_of(node).claim_of(flag));
        // A claim that was won may be lost before its holder gets the answer.
        let is_won = claim.map_or(self.arbiter.has_forgotten, |(holder, _)| holder == node);
        self.faults.latest_owned = self.faults.latest_owned.max(generation.0);
        if !is_won {
            self.broke(Rule::TestAndSet);
        }
    }

    /// Replaces a node by its successor. Its connections are closed; its request may still arrive.
    fn leave(&mut self, node: usize, successor: Node) {
        if let Some(request) = self.nodes[node].asking()
            && self.arbiter.claim_of(request.generation.0).is_none()
        {
            self.arbiter.late.push((node, request));
        }
        if let Some(backup) = self.nodes[node].owner().and_then(|owner| owner.backup) {
            self.edit_channel(backup, Channel::close_at_primary);
        }
        if self.nodes[node].backup().is_some() {
            self.edit_channel(node, Channel::close_at_backup);
        }
        self.edit_disk(node, Disk::lose_orders);
        self.nodes[node] = Shared::new(successor);
    }

    fn write_released(&mut self, node: usize) -> Option<()> {
        let mut owner = self.nodes[node].owner()?.clone();
        let Released { id, operation, .. } = owner.role.poll_released()?;
        let received = owner.backup.map(|backup| self.channels[backup].received).unwrap_or_default();
        if !owner.may_be_known(id, received) {
            self.broke(Rule::OutputRule);
        }
        if owner.has_lost {
            self.broke(Rule::Fencing);
        }
        // A VM with an end mark is never resumed.
        if owner.end.is_none() && self.disks.get(node).is_some_and(|disk| !disk.has_output(id)) {
            self.broke(Rule::Promise);
        }
        if self.lan.serves(node) {
            self.lan = edit(&self.lan, |lan| lan.wire.push_back((id, operation.bytes().to_vec())));
        }
        owner.role.handle_console_left(id.next());
        self.settle_owner(node, owner);
        Some(())
    }

    fn packet_arrives(&mut self) -> Option<()> {
        let mut in_order = true;
        self.lan = edit(&self.lan, |lan| in_order = lan.carry());
        if !in_order {
            self.broke(Rule::NoGap);
        }
        Some(())
    }

    fn attach(&mut self, node: usize) -> Option<()> {
        let generation = self.nodes[node].owner()?.role.generation();
        let mut accepted = false;
        self.lan = edit(&self.lan, |lan| accepted = lan.attach(node, generation.0));
        if !accepted {
            return None;
        }
        let carried = self.lan.next_output();
        self.drive_owner(node, |owner| owner.role.handle_attachment(carried))
    }

    fn join(&mut self, backup: usize, primary: usize) -> Option<()> {
        let vm = vm_id();
        self.nodes[primary].owner()?.role.can_take_backup(&vm).ok()?;
        let expectation = Expectation { vm: vm.clone(), image: None };
        let mut role = BackupRole::new(NOW_NS, node_id(backup), expectation, TIMING);
        if !self.disks.is_empty() {
            role = role.with_disk_log(DiskLogState::Promised);
        }
        // The request to join.
        role.poll_outgoing(&mut Vec::new());
        let joining =
            Backup { role, session: None, guest: None, work: VecDeque::new(), asking: None, is_checking: false };
        self.nodes[backup] = Shared::new(Node::Backup(Box::new(joining)));
        self.channels[backup] = Shared::new(Channel::open(primary));
        let mut taken = Ok(());
        self.drive_owner(primary, |owner| {
            owner.backup = Some(backup);
            taken = owner.role.handle_join(NOW_NS, &vm);
        })?;
        taken.ok()
    }

    fn copy(&mut self, node: usize) -> Option<()> {
        let mut owner = self.nodes[node].owner()?.clone();
        let bytes = owner.copy();
        self.send_to_backup(&owner, &bytes);
        self.settle_owner(node, owner);
        Some(())
    }

    /// Gives a backup an input, and does its role's actions.
    pub(super) fn drive_backup(&mut self, node: usize, input: impl FnOnce(&mut Backup)) -> Option<()> {
        let mut backup = self.nodes[node].backup()?.clone();
        input(&mut backup);
        self.settle_backup(node, backup);
        Some(())
    }

    /// Does a backup's actions in the production driver's order: acknowledge, then act.
    fn settle_backup(&mut self, node: usize, mut backup: Backup) {
        let mut bytes = Vec::new();
        backup.role.poll_outgoing(&mut bytes);
        let received = backup.role.cursors().0;
        if !bytes.is_empty() || self.channels[node].received != received {
            self.edit_channel(node, |channel| {
                channel.received = received;
                messages(&bytes).into_iter().for_each(|message| channel.send_to_primary(message));
            });
        }
        while let Some(action) = backup.role.poll_action() {
            match action {
                BackupAction::Begin(session) => backup.session = Some(session),
                BackupAction::CheckOwner => backup.is_checking = true,
                BackupAction::Protected(_) if self.is_mistaken(node) => self.broke(Rule::OneArbiter),
                BackupAction::Protected(generation) => {
                    self.edit_disk(node, |disk| disk.become_kind(LogWriterKind::Backup, generation));
                }
                BackupAction::Waits | BackupAction::Pages(_) | BackupAction::Joined | BackupAction::ClaimsLost(_) => {}
                BackupAction::Restore(snapshot) => {
                    backup.guest = Guest::restore(&snapshot.state).map(|guest| (guest, false));
                    if let (Some((guest, _)), Some(session)) = (&backup.guest, &backup.session) {
                        let begin = (snapshot.seq, guest.clone());
                        let generation = session.generation;
                        self.edit_disk(node, |disk| {
                            disk.begin(node_id(node), begin, generation, LogWriterKind::Joining);
                        });
                    }
                }
                BackupAction::Consume(entries) => {
                    self.edit_disk(node, |disk| disk.append(entries.iter().cloned()));
                    backup.work.push_back(entries);
                }
                BackupAction::Lost { .. } => self.edit_channel(node, Channel::close_at_backup),
                BackupAction::Claim(request) => backup.asking = Some(request),
                BackupAction::GoLive(generation) => return self.go_live(node, backup, generation),
                BackupAction::End(end) => return self.leave(node, after_end(&end)),
            }
        }
        self.nodes[node] = Shared::new(Node::Backup(Box::new(backup)));
    }

    fn go_live(&mut self, node: usize, mut backup: Backup, generation: Generation) {
        self.check_claim(node, generation);
        self.edit_channel(node, Channel::close_at_backup);
        let (Some(mut session), Some((guest, true))) = (backup.session.take(), backup.guest.take()) else {
            return self.broke(Rule::Lockstep);
        };
        session.generation = generation;
        let (_, first) = backup.role.cursors();
        let unsent = backup.role.take_unsent();
        let timing = if self.faults.vanishings > 0 || self.arbiter.has_forgotten { CHECKING_CLAIMS } else { TIMING };
        let clock = backup.role.take_over_clock(NOW_NS, 0);
        let next_output = backup.role.next_output();
        self.edit_disk(node, |disk| disk.become_kind(LogWriterKind::Owner, generation));
        let disk_log = self.disks.get(node).map_or(DiskLogState::None, |disk| disk.state());
        let inheritance = Inheritance { clock, first, next_output, unsent, disk_log };
        let role = PrimaryRole::gone_live(node_id(node), session, timing, inheritance);
        self.nodes[node] = Shared::new(Node::Owner(Box::new(Owner::alone(role, guest, first))));
    }

    fn replay(&mut self, node: usize) -> Option<()> {
        let mut backup = self.nodes[node].backup()?.clone();
        let entries = backup.work.pop_front()?;
        let (guest, _) = backup.guest.as_mut()?;
        let replayed: Result<Vec<_>, _> = entries.iter().map(|entry| guest.replay(entry)).collect();
        let Ok(outputs) = replayed else {
            self.broke(Rule::Lockstep);
            return Some(());
        };
        let count = guest.count();
        let mut consumed = backup.role.cursors().1;
        consumed.0 += entries.len() as u64;
        let outputs: Vec<(OutputId, OutputOperation)> = outputs.into_iter().flatten().collect();
        for (id, operation) in outputs {
            backup.role.handle_output(id, operation);
        }
        backup.role.handle_consumed(NOW_NS, consumed, count);
        self.settle_backup(node, backup);
        Some(())
    }

    fn arrive_at_backup(&mut self, node: usize, index: usize) -> Option<()> {
        let mut backup = self.nodes[node].backup()?.clone();
        let message = if self.channels[node].stream.is_empty() {
            self.channels[node].next_at_backup(index)?.clone()
        } else {
            self.edit_channel(node, |channel| channel.stream.pop_front())?
        };
        backup.role.handle_message(NOW_NS, message);
        self.settle_backup(node, backup);
        Some(())
    }

    fn arrive_at_primary(&mut self, node: usize, index: usize) -> Option<()> {
        let channel = self.channels[node].clone();
        let message = channel.to_primary.get(index)?.clone();
        self.drive_owner(channel.primary?, |owner| owner.role.handle_message(NOW_NS, message))
    }

    fn answer(&mut self, node: usize) -> Option<()> {
        let request = self.nodes[node].asking()?;
        let verdict = self.arbiter_of(node).answer(node, request)?;
        self.claim_answered(node, &ClaimAnswer::Decided(verdict))
    }

    fn claim_answered(&mut self, node: usize, answer: &ClaimAnswer) -> Option<()> {
        match &*self.nodes[node] {
            Node::Owner(_) => self.drive_owner(node, |owner| {
                owner.asking = None;
                owner.has_lost = matches!(answer, ClaimAnswer::Decided(Verdict::Lost(_)));
                owner.role.handle_claim(NOW_NS, answer.clone());
                // An unanswered claim is asked again.
                owner.role.handle_tick(NOW_NS);
            }),
            Node::Backup(_) => self.drive_backup(node, |backup| {
                backup.asking = None;
                backup.role.handle_claim(NOW_NS, answer.clone());
                backup.role.handle_tick(NOW_NS);
            }),
            Node::Vacant | Node::Spare | Node::Gone(_) => None,
        }
    }
}

/// The successor of a backup: one that was never part of a pair searches for a primary again.
const fn after_end(end: &BackupEnd) -> Node {
    Node::Gone(match end {
        BackupEnd::Unprotected { .. } | BackupEnd::NoPlace { .. } | BackupEnd::Refused { .. } => return Node::Spare,
        BackupEnd::GuestStopped(_) => End::GuestOver,
        BackupEnd::Fenced { .. } => End::BackupFenced,
        BackupEnd::Diverged => End::Diverged,
    })
}

fn edit(lan: &Shared<Lan>, change: impl FnOnce(&mut Lan)) -> Shared<Lan> {
    let mut lan = (**lan).clone();
    change(&mut lan);
    Shared::new(lan)
}

/// The entropy that a guest reads on a node.
pub(super) fn entropy_of(node: usize) -> u8 {
    u8::try_from(node).unwrap_or(u8::MAX)
}

pub(super) fn vm_id() -> VmId {
    VmId::new("vm").expect("a VM name")
}

pub(super) fn session() -> SessionHeader {
    SessionHeader::new(vm_id(), Generation(1), config(), "", &[]).expect("a session without image")
}
