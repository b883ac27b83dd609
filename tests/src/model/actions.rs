//! The actions that are possible in a state.

use super::Cluster;
use super::node::Node;
use super::state::State;
use ft::claim::ClaimKind;

/// An action. Nodes and messages in flight are named by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// An owner's guest takes a step, which is logged.
    GuestRuns(usize),
    /// An owner's log is flushed to the channel.
    Flush(usize),
    /// A node's role gets a tick and sends something.
    Tick(usize),
    /// An owner sends a released output to the LAN.
    WriteReleased(usize),
    /// A packet arrives at the LAN.
    PacketArrives,
    /// The LAN reports to an owner what it has carried.
    LanTells(usize),
    /// An owner attaches to the LAN.
    Attach(usize),
    /// The LAN's connection is cut.
    CutCable,
    /// A spare asks an owner to be its backup.
    Join {
        /// The spare.
        backup: usize,
        /// The owner.
        primary: usize,
    },
    /// An owner copies the guest's memory for a joining backup.
    Copy(usize),
    /// A backup has restored the guest.
    Restored(usize),
    /// A backup replays the oldest batch of entries.
    Replay(usize),
    /// The writer of a node's log on disk does its next order.
    WriteLog(usize),
    /// The VM is resumed from a dead node's log, on a vacant node.
    Restart {
        /// The dead node.
        log: usize,
        /// The vacant node.
        node: usize,
    },
    /// A message arrives at a backup.
    AtBackup(usize, usize),
    /// A message of this backup arrives at its primary.
    AtPrimary(usize, usize),
    /// A backup takes its primary for lost.
    SuspectPrimary(usize),
    /// An owner takes its backup for lost.
    SuspectBackup(usize),
    /// A node's test-and-set arrives at the arbiter.
    Decide(usize),
    /// The arbiter's answer arrives at a node.
    Answer(usize),
    /// The arbiter's answer doesn't arrive in time, and the node asks again.
    NoAnswer(usize),
    /// The test-and-set of a node that is gone arrives at the arbiter.
    DecideLate(usize),
    /// A node asks for the latest claim and gets it.
    Latest(usize),
    /// A node asks for the latest claim and gets no answer.
    NoLatest(usize),
    /// An owner checks its claim at the arbiter.
    CheckClaim(usize),
    /// An owner claims a flag again that the arbiter has lost, and gets the answer.
    Refill(usize),
    /// The arbiter loses its claims.
    Forget,
    /// A node dies.
    Crash(usize),
    /// The operator stops an owner.
    Retire(usize),
}

impl State {
    /// The possible actions. Some of them may not change the state.
    pub(super) fn actions(&self, model: &Cluster, actions: &mut Vec<Action>) {
        for (index, node) in self.nodes.iter().enumerate() {
            match &**node {
                Node::Spare => self.spare_actions(model, index, actions),
                Node::Backup(_) => self.backup_actions(index, actions),
                Node::Owner(_) => self.owner_actions(index, actions),
                Node::Vacant | Node::Gone(_) => continue,
            }
            if node.is_checking() {
                actions.push(Action::Latest(index));
                actions.push(Action::NoLatest(index));
            }
            if self.disks.get(index).is_some_and(|disk| disk.has_orders()) {
                actions.push(Action::WriteLog(index));
            }
            if let Some(request) = node.asking() {
                let decided = self.arbiter_of(index).answer(index, request).is_some();
                // The guest's last outputs are sent before its end mark.
                let has_words_left = request.kind == ClaimKind::Ended
                    && node.owner().is_some_and(|owner| owner.role.gate().has_released());
                if decided {
                    actions.push(Action::Answer(index));
                } else if !has_words_left {
                    actions.push(Action::Decide(index));
                }
                actions.push(Action::NoAnswer(index));
            }
            if self.faults.crashes > 0 && !matches!(**node, Node::Spare) {
                actions.push(Action::Crash(index));
            }
        }
        self.restarts(actions);
        actions.extend((0..self.arbiter.late.len()).map(Action::DecideLate));
        if self.faults.vanishings > 0 {
            actions.push(Action::Forget);
        }
        if !self.lan.wire.is_empty() {
            actions.push(Action::PacketArrives);
        }
        if self.faults.cuts > 0 && self.lan.is_attached() {
            actions.push(Action::CutCable);
        }
    }

    /// An operator resumes from a log once no process of the VM is alive.
    fn restarts(&self, actions: &mut Vec<Action>) {
        let Some(node) = self.nodes.iter().position(|node| matches!(**node, Node::Vacant)) else { return };
        if self.faults.restarts > 0 && self.is_dead() {
            actions.extend((0..node).filter(|log| self.may_restart(*log)).map(|log| Action::Restart { log, node }));
        }
    }

    fn spare_actions(&self, model: &Cluster, backup: usize, actions: &mut Vec<Action>) {
        let is_joined =
            |index: &usize| self.nodes[*index].owner().is_some_and(|owner| owner.role.generation() <= model.last_pair);
        actions.extend((0..self.nodes.len()).filter(is_joined).map(|primary| Action::Join { backup, primary }));
    }

    fn backup_actions(&self, index: usize, actions: &mut Vec<Action>) {
        let Some(backup) = self.nodes[index].backup() else { return };
        let channel = &self.channels[index];
        actions.extend((0..channel.arrivals_at_backup()).map(|message| Action::AtBackup(index, message)));
        if channel.backup_listens {
            actions.push(Action::Tick(index));
            actions.push(Action::SuspectPrimary(index));
        }
        match &backup.guest {
            Some((_, false)) => actions.push(Action::Restored(index)),
            Some((_, true)) if !backup.work.is_empty() => actions.push(Action::Replay(index)),
            Some(_) | None => {}
        }
    }

    fn owner_actions(&self, index: usize, actions: &mut Vec<Action>) {
        let Some(owner) = self.nodes[index].owner() else { return };
        if owner.role.gate().has_released() {
            actions.push(Action::WriteReleased(index));
        }
        if owner.end.is_some() {
            return;
        }
        if owner.refilling.is_some() {
            actions.push(Action::Refill(index));
        } else if self.arbiter.has_forgotten && !owner.is_checking {
            // Otherwise the check would find the claim as expected.
            actions.push(Action::CheckClaim(index));
        }
        if owner.may_run() {
            actions.push(Action::GuestRuns(index));
        }
        actions.push(Action::Flush(index));
        if self.lan.serves(index) {
            actions.push(Action::LanTells(index));
        } else {
            actions.push(Action::Attach(index));
        }
        if owner.role.is_copying() && !owner.must_flush {
            actions.push(Action::Copy(index));
        }
        if let Some(backup) = owner.backup {
            let said = self.channels[backup].to_primary.len();
            actions.extend((0..said).map(|message| Action::AtPrimary(backup, message)));
            actions.push(Action::Tick(index));
            actions.push(Action::SuspectBackup(index));
        }
        if self.faults.retirements > 0 {
            actions.push(Action::Retire(index));
        }
    }

    /// An action as text, with the message that arrives.
    pub(super) fn describe(&self, action: Action) -> String {
        let message = match action {
            Action::AtBackup(backup, index) => self.channels[backup].next_at_backup(index),
            Action::AtPrimary(backup, index) => self.channels[backup].to_primary.get(index),
            Action::GuestRuns(_)
            | Action::Flush(_)
            | Action::Tick(_)
            | Action::WriteReleased(_)
            | Action::PacketArrives
            | Action::LanTells(_)
            | Action::Attach(_)
            | Action::CutCable
            | Action::Join { .. }
            | Action::Copy(_)
            | Action::Restored(_)
            | Action::Replay(_)
            | Action::WriteLog(_)
            | Action::Restart { .. }
            | Action::SuspectPrimary(_)
            | Action::SuspectBackup(_)
            | Action::Decide(_)
            | Action::Answer(_)
            | Action::NoAnswer(_)
            | Action::DecideLate(_)
            | Action::Latest(_)
            | Action::NoLatest(_)
            | Action::CheckClaim(_)
            | Action::Refill(_)
            | Action::Forget
            | Action::Crash(_)
            | Action::Retire(_) => None,
        };
        message.map_or_else(|| format!("{action:?}"), |message| format!("{action:?} {message:?}"))
    }
}
