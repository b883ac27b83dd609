//! What can happen next.

use super::Cluster;
use super::node::Node;
use super::state::State;
use ft::claim::ClaimKind;

/// Something that happens. Nodes, and messages under way, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The guest of an owner does its next step, and it is logged.
    GuestRuns(usize),
    /// The owner's log goes to the channel.
    Flush(usize),
    /// Time has passed for a node, and it says something.
    Tick(usize),
    /// A released output goes to the LAN.
    WriteReleased(usize),
    /// A packet arrives at the LAN.
    PacketArrives,
    /// The LAN tells an owner what it has carried.
    LanTells(usize),
    /// An owner attaches to the LAN.
    Attach(usize),
    /// The LAN's connection is cut.
    CutCable,
    /// A spare node asks an owner to be its backup.
    Join {
        /// The spare node.
        backup: usize,
        /// The owner.
        primary: usize,
    },
    /// An owner copies the guest for its new backup.
    Copy(usize),
    /// A backup has put the guest together.
    Restored(usize),
    /// A backup replays the oldest batch of entries.
    Replay(usize),
    /// The writer of a node's log on disk carries out its next order.
    WriteLog(usize),
    /// The VM goes on from the log of the first of these nodes, which is dead, as the second.
    Restart {
        /// Whose log.
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
    /// The arbiter's answer arrives.
    Answer(usize),
    /// The arbiter's answer doesn't arrive in time, and the node asks again.
    NoAnswer(usize),
    /// The test-and-set of a node that is gone arrives at the arbiter.
    DecideLate(usize),
    /// A node asks for the latest claim and is told.
    Latest(usize),
    /// A node asks for the latest claim and is told nothing.
    NoLatest(usize),
    /// An owner checks its claim at the arbiter.
    CheckClaim(usize),
    /// An owner claims a flag again that the arbiter has lost, and is told how that went.
    Refill(usize),
    /// The arbiter loses its claims.
    Forget,
    /// A node dies.
    Crash(usize),
    /// The operator stops an owner.
    Retire(usize),
}

impl State {
    /// What can happen next. Some of it changes nothing.
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
                // The guest's last outputs go before its end mark.
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

    /// An operator goes on from a log once nothing of the VM is alive.
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
            // Before, it finds what it expects.
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

    /// What an action is, with the message that it brings.
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
