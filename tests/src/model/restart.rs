//! The nodes' logs on disk, and restarts from them.

use super::disk::{Disk, Restart};
use super::environment::node_id;
use super::node::{NOW_NS, Node, Owner, TIMING};
use super::shared::Shared;
use super::state::{State, entropy_of, session};
use ft::claim::ClaimKind;
use ft::guest_clock::GuestClock;
use ft::role::{ClaimRequest, DiskLogState, Inheritance, PrimaryRole};
use ft::start::LogWriterKind;

impl State {
    pub(super) fn edit_disk(&mut self, node: usize, change: impl FnOnce(&mut Disk)) {
        if let Some(disk) = self.disks.get(node) {
            let mut disk = (**disk).clone();
            change(&mut disk);
            self.disks[node] = Shared::new(disk);
        }
    }

    /// An owner's guest takes its next step, which goes to the log on disk too.
    pub(super) fn run_guest(&mut self, node: usize) -> Option<()> {
        let mut entry = None;
        self.drive_owner(node, |owner| entry = Some(owner.run_guest(entropy_of(node))))?;
        self.edit_disk(node, |disk| disk.append(entry));
        Some(())
    }

    /// The writer does an order, and the role gets the log's new state.
    pub(super) fn write_log(&mut self, node: usize) -> Option<()> {
        self.edit_disk(node, Disk::write);
        let state = self.disks.get(node)?.state();
        self.drive_owner(node, |owner| owner.role.handle_disk_log(NOW_NS, state))
            .or_else(|| self.drive_backup(node, |backup| backup.role.handle_disk_log(NOW_NS, state)))
    }

    /// `true` if no process of the VM is alive.
    pub(super) fn is_dead(&self) -> bool {
        self.nodes.iter().all(|node| matches!(**node, Node::Gone(_) | Node::Vacant | Node::Spare))
    }

    /// `true` if the VM may be resumed from a node's log without losing anything that was seen.
    pub(super) fn may_restart(&self, log: usize) -> bool {
        self.disks.get(log).is_some_and(|disk| disk.judge(self.arbiter.latest_claim()).is_some())
    }

    /// `true` if a node's log is that of the last owner, which died before its log recorded that it
    /// owned the VM: it may lack outputs that the previous owner sent.
    pub(super) fn is_operators_to_decide(&self, log: usize) -> bool {
        let holder = self.arbiter.latest_claim().map(|(_, claim)| claim.node);
        holder.is_some_and(|holder| self.disks.get(log).is_some_and(|disk| disk.may_lack_of(holder)))
    }

    /// `true` if all nodes are dead, clients have seen outputs, and no end mark is set.
    pub(super) fn can_restart_be_needed(&self) -> bool {
        !self.disks.is_empty()
            && self.is_dead()
            && !self.lan.carried.is_empty()
            && self.arbiter.latest().is_some_and(|(_, kind)| kind == ClaimKind::Owner)
    }

    /// `true` if an owner has resumed from a log.
    pub(super) fn has_restarted(&self) -> bool {
        !self.disks.is_empty() && self.nodes.last().is_some_and(|node| !matches!(**node, Node::Vacant))
    }

    /// Resumes the VM from a log: judges, claims and replays in one step; the simulator explores
    /// their order.
    pub(super) fn restart(&mut self, log: usize, node: usize) -> Option<()> {
        let judged = self.disks.get(log)?.judge(self.arbiter.latest_claim())?;
        self.faults.restarts -= 1;
        // The new process has the directory now.
        self.disks.swap(log, node);
        let mut restart = None;
        self.edit_disk(node, |disk| restart = disk.restart(node_id(node)));
        let Restart { guest, next, unsent } = restart?;
        let request = ClaimRequest {
            node: node_id(node),
            generation: judged.free,
            kind: ClaimKind::Owner,
            predecessor: Some(judged.holder.node),
        };
        self.arbiter.decide(node, request);
        let generation = judged.free.next();
        self.check_claim(node, generation);
        let begin = (next, guest.clone());
        self.edit_disk(node, |disk| disk.begin(node_id(node), begin, generation, LogWriterKind::Owner));
        let mut session = session();
        session.generation = generation;
        let next_output = guest.next_output();
        let clock = GuestClock::standing(0);
        let inheritance = Inheritance { clock, first: next, next_output, unsent, disk_log: DiskLogState::Promised };
        let role = PrimaryRole::resumed(node_id(node), session, TIMING, inheritance);
        self.nodes[node] = Shared::new(Node::Owner(Box::new(Owner::alone(role, guest, next))));
        Some(())
    }
}
