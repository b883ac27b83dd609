//! What a VM tells the LAN when it attaches.

use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use vm::OutputId;

/// A request to attach a VM to its port: the VM, its owner, and the numbers of outputs and packets
/// to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The VM.
    pub vm: VmId,
    /// The process that runs it. Of one generation, only the process that attached first may attach
    /// again.
    pub node: NodeId,
    /// The generation of the VM's owner. A greater one takes the port from a smaller one; a smaller
    /// one is refused.
    pub generation: Generation,
    /// The Ethernet address of the guest's network device.
    pub mac: [u8; 6],
    /// The id of the first output that may come. It counts only if the LAN doesn't know the VM;
    /// otherwise the LAN drops what it has already carried.
    pub next_output: OutputId,
    /// One past the last output that the guest has made. If the LAN has carried more, of an earlier
    /// life that this guest doesn't know of because it went on from an older log, it takes new
    /// outputs from here on.
    pub output_end: OutputId,
    /// The number of the last packet that the guest has had, 0 if none: delivery goes on after it.
    pub last_packet: u64,
    /// The owner's generation when the guest was reset, which begins a new run with outputs and
    /// packets counted from the start. A LAN that knows another run of the guest drops the numbers
    /// and packets of that run. At most `generation`.
    pub booted: Generation,
}
