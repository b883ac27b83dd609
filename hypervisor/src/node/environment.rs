//! One side of a VM, as its process knows itself.

use super::arbiter_client::ArbiterClient;
use super::arbiter_thread::ArbiterThread;
use super::io::console::Keys;
use super::io::network::NetworkAddress;
use crate::os::report::Reporter;
use ft::record::Intervals;
use logchannel::session::{NodeId, VmId};

/// Who this process is and what it works with.
#[derive(Clone, Debug)]
pub struct Node {
    /// Which VM.
    pub vm: VmId,
    /// This incarnation.
    pub id: NodeId,
    /// Who decides which side lives.
    pub arbiter: ArbiterThread,
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

/// How long the arbiter may take to answer, in nanoseconds: a busy disk takes seconds to make a
/// claim durable, now and then, and a name server that is gone seconds to be given up.
pub const ANSWER_NS: u64 = 6_000_000_000;

impl Node {
    /// A way to the arbiter.
    #[must_use]
    pub fn arbiter_client(&self) -> ArbiterClient<ArbiterThread> {
        ArbiterClient::new(self.arbiter.clone(), self.vm.clone(), self.address.clone(), ANSWER_NS)
    }
}
