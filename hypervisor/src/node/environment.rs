//! One side of a VM, as its process knows itself.

use super::host::{Answer, Question};
use super::io::console::Keys;
use super::io::network::NetworkAddress;
use super::reports::NodeReport;
use crate::arbiter::{Arbiter, ArbiterError};
use crate::os::report::Reporter;
use ft::claim::Claim;
use ft::record::Intervals;
use ft::role::{ClaimAnswer, ClaimRequest, LatestAnswer};
use logchannel::session::{NodeId, VmId};
use std::sync::Arc;

/// Who this process is and what it works with.
#[derive(Clone, Debug)]
pub struct Node {
    /// Which VM.
    pub vm: VmId,
    /// This incarnation.
    pub id: NodeId,
    /// Who decides which side lives.
    pub arbiter: Arc<dyn Arbiter>,
    /// Where frames go; without one they go nowhere.
    pub network: Option<NetworkAddress>,
    /// The network device's address, as the network knows it.
    pub mac: [u8; 6],
    /// Where this node accepts a backup, as told to others.
    pub address: String,
    /// Where this node tells what happens.
    pub reporter: Reporter,
    /// When to log what no event asks for.
    pub intervals: Intervals,
    /// How what is typed here comes to the guest.
    pub keys: Keys,
}

impl Node {
    /// Asks the arbiter; `failed` as in [`Node::claim`].
    pub(in crate::node) fn ask(&self, question: Question, failed: &mut u32) -> Answer {
        match question {
            Question::Claim(request) => Answer::Claim(self.claim(request, failed)),
            Question::Latest => Answer::Latest(self.latest(failed)),
        }
    }

    /// Asks the arbiter. `failed` counts the tries in a row that it could not be asked; they are
    /// told ever more rarely.
    pub(in crate::node) fn claim(&self, request: ClaimRequest, failed: &mut u32) -> ClaimAnswer {
        let claim = Claim { node: request.node, kind: request.kind, address: Some(self.address.clone()) };
        match self.arbiter.test_and_set(&self.vm, request.generation, &claim, request.predecessor) {
            Ok(verdict) => {
                *failed = 0;
                ClaimAnswer::Decided(verdict)
            }
            Err(error) => {
                self.tell_failed(&error, failed);
                ClaimAnswer::Unreachable
            }
        }
    }

    /// Asks the arbiter for the VM's latest claim; `failed` as in [`Node::claim`].
    pub(in crate::node) fn latest(&self, failed: &mut u32) -> LatestAnswer {
        match self.arbiter.latest(&self.vm) {
            Ok(latest) => {
                *failed = 0;
                LatestAnswer::Known(latest)
            }
            Err(error) => {
                self.tell_failed(&error, failed);
                if error.is_unreachable() { LatestAnswer::Unreachable } else { LatestAnswer::Failed(error.to_string()) }
            }
        }
    }

    fn tell_failed(&self, error: &ArbiterError, failed: &mut u32) {
        *failed = failed.saturating_add(1);
        if failed.is_power_of_two() {
            self.reporter.tell(&NodeReport::ArbiterUnreachable { reason: error.to_string() });
        }
    }
}
