//! A VM of a run: what its arbiter knows of it, and the judge of its history.

use super::arbiter::SimArbiter;
use super::judge::Judge;
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};

/// All that the environment has of one VM. Two VMs of a run share the network, the LAN and the
/// way to the arbiter, and nothing else.
#[derive(Debug)]
pub(super) struct SimVm {
    pub(super) id: VmId,
    /// The VM's claims at the arbiter.
    pub(super) arbiter: SimArbiter,
    /// Another arbiter, which has a VM of this name too: that of the mistaken.
    pub(super) other_arbiter: SimArbiter,
    /// The arbiter has lost claims of this VM once.
    pub(super) has_forgotten: bool,
    pub(super) judge: Judge,
    /// The last packet that any host had from the LAN.
    last_packet: u64,
    /// Who asked last for which flag.
    last_asked: Option<(Generation, NodeId)>,
}

impl SimVm {
    pub(super) fn new(id: VmId) -> Self {
        Self {
            id,
            arbiter: SimArbiter::default(),
            other_arbiter: SimArbiter::default(),
            has_forgotten: false,
            judge: Judge::default(),
            last_packet: 0,
            last_asked: None,
        }
    }

    /// A node owns the VM as `generation` from now on.
    pub(super) fn owns(&mut self, node: NodeId, generation: Generation) {
        self.judge.owns(&self.arbiter, self.has_forgotten, node, generation);
    }

    /// Whether somebody owns the VM, or may still claim it, without the nodes of `dead`.
    pub(super) fn survives(&self, dead: &[NodeId]) -> bool {
        self.judge.survives(&self.arbiter, dead)
    }

    /// A host has packet `number` for the guest. `true` if one has had it before.
    pub(super) fn packet_arrives(&mut self, number: u64) -> bool {
        let is_again = number <= self.last_packet;
        self.last_packet = self.last_packet.max(number);
        is_again
    }

    /// A node asks for the flag of `generation`. `true` if another one has asked for it just
    /// before.
    pub(super) fn flag_asked(&mut self, node: NodeId, generation: Generation) -> bool {
        let last = self.last_asked.replace((generation, node));
        last.is_some_and(|(flag, other)| flag == generation && other != node)
    }
}
