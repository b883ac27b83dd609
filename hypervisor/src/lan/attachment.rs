//! What a VM says when it plugs in.

use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use vm::OutputId;

/// Who attaches to the LAN, and where its numbering stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The VM.
    pub vm: VmId,
    /// The process that runs it. Of one generation, only the process that attached first may attach
    /// again.
    pub node: NodeId,
    /// The VM's owner: a greater one closes the port of a smaller one, a smaller one is refused.
    pub generation: Generation,
    /// The Ethernet address of the guest's network device.
    pub mac: [u8; 6],
    /// The first output that may come. Binding only if the LAN doesn't know the VM; otherwise the
    /// LAN drops what it has already carried.
    pub next_output: OutputId,
    /// The id behind the last output that the guest has made. A LAN that has carried more of an
    /// earlier life, of which the guest doesn't know because it went on from an older log, takes
    /// new outputs from here on.
    pub output_end: OutputId,
    /// The number of the last packet that the guest has had, 0 if none: delivery goes on after it.
    pub last_packet: u64,
    /// The owner's generation when the guest was reset, with outputs and packets counted from the
    /// start: a LAN that knows another run of the guest forgets what it has counted and kept of it.
    /// At most `generation`.
    pub booted: Generation,
}
