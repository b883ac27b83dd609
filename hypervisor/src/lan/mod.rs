//! The LAN: a network that outlives the hosts of the VMs on it.
//!
//! ```text
//!   hypervisor ── client ══ TCP ══╗
//!   hypervisor ── client ══ TCP ══╬═ server ── Lan: VmPort · QemuPort ── Switch ── Gateway ── server ══ nc, curl, …
//!   QEMU, passt ═══════════ TCP ══╝            (no sockets, no clock)              (smoltcp)
//! ```
//!
//! What makes it more than a switch is the port of a VM, which stays when the host under the VM is
//! lost. It knows the generation of the VM's owner and serves no older one. It tells how far it has
//! carried the VM's outputs, and drops those that it has, so a primary, be it the old one on a new
//! connection or a new one, sends again what it isn't sure of. It numbers the packets that it gives
//! to the VM and keeps the recent ones, so a new primary gets what its predecessor had not
//! logged. Together: each packet once, without help from TCP.
//!
//! Everything that decides is in [`fabric`] and below and takes no input but its arguments;
//! [`server`] moves bytes. A simulator drives the fabric as the server does.
//!
//! Deliberately absent: spanning tree (ports are leaves), VLANs, IPv6 and DHCP at the gateway,
//! persistence. A LAN that is started again adopts each VM's numbering from its next attachment:
//! packets for VMs that were in it are lost, and outputs that it had carried and not told of yet
//! come twice.

mod attachment;
pub mod client;
mod events;
pub mod fabric;
pub mod pulse;
pub mod server;
pub mod session;
pub mod wire;

pub use attachment::Attachment;
pub use events::{Dropped, ForwardListening, LanEvent};
pub use server::{ConnectionLimits, Forward, ForwardError};
pub use wire::WireError;
