//! The environment of a side: its identity, arbiter, network and options, as its process has them.

use super::arbiter_client::ArbiterClient;
use super::arbiter_thread::ArbiterThread;
use super::io::console::Keys;
use super::io::network::NetworkAddress;
use crate::os::report::Reporter;
use ft::record::Intervals;
use logchannel::session::{NodeId, VmId};

/// A node: one process as a side of a VM.
#[derive(Clone, Debug)]
pub struct Node {
    /// The VM of which it is a side.
    pub vm: VmId,
    /// The id of this incarnation, which no other process has.
    pub id: NodeId,
    /// The VM's arbiter.
    pub arbiter: ArbiterThread,
    /// Where the guest's packets go; `None` drops them.
    pub network: Option<NetworkAddress>,
    /// The MAC address of the guest's network device.
    pub mac: [u8; 6],
    /// `HOST:PORT` where this node accepts a backup, as its claims tell others.
    pub address: String,
    /// Where this node reports what happens.
    pub reporter: Reporter,
    /// How often the recorder logs digests and clock values that no event causes.
    pub intervals: Intervals,
    /// How standard input reaches the guest.
    pub keys: Keys,
}

/// How long an answer of the arbiter may take, in nanoseconds. A busy disk may take seconds to make
/// a claim durable, and so does giving up a name server that is down.
pub const ANSWER_NS: u64 = 6_000_000_000;

impl Node {
    /// A client of the arbiter for a role of this node.
    #[must_use]
    pub fn arbiter_client(&self) -> ArbiterClient<ArbiterThread> {
        ArbiterClient::new(self.arbiter.clone(), self.vm.clone(), self.address.clone(), ANSWER_NS)
    }
}
