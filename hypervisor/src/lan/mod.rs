//! The LAN: a network that outlives the hosts of the VMs on it.
//!
//! ```text
//!   hypervisor ── client ══ TCP ══╗
//!   hypervisor ── client ══ TCP ══╬═ server ── Lan: VmPort · QemuPort ── Switch ── Gateway ── server ══ nc, curl, …
//!   QEMU, passt ═══════════ TCP ══╝            (no sockets, no clock)              (smoltcp)
//! ```
//!
//! What makes it more than a switch is the port of a VM, which stays when the host under the VM is lost. It knows the
//! generation of the VM's owner and serves no older one. It drops outputs that it has already carried, so a new primary
//! may send again what it isn't sure of. It numbers the frames that it gives to the VM and keeps the recent ones, so a
//! new primary gets what its predecessor had not logged. Together: each frame once, without help from TCP.
//!
//! Everything that decides is in `fabric` and below and takes no input but its arguments; [`server`] moves bytes.
//!
//! Deliberately absent: spanning tree (ports are leaves), VLANs, IPv6 and DHCP at the gateway, persistence. A LAN that is
//! started again adopts each VM's numbering from its next attachment; frames in flight at that moment are lost.

mod attachment;
pub mod client;
mod events;
mod fabric;
mod forward;
mod gateway;
mod qemu_port;
pub mod server;
mod switch;
mod vm_port;
mod wire;

pub use attachment::Attachment;
pub use forward::{Forward, ForwardError};
pub use wire::WireError;
