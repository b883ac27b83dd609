//! The LAN: a network that outlives the hosts of the VMs on it.
//!
//! ```text
//!   hypervisor ── client ══ TCP ══╗
//!   hypervisor ── client ══ TCP ══╬═ server ── Lan: VmPort · QemuPort ── Switch ── Gateway ── server ══ nc, curl, …
//!   QEMU, passt ═══════════ TCP ══╝            (no sockets, no clock)              (smoltcp)
//! ```
//!
//! A VM's port, which stays when the host under the VM is lost, makes the LAN more than a switch.
//! The port knows the generation of the VM's owner and serves no older one. It reports how far it
//! has carried the VM's outputs, and drops those that come again, so that a primary that attaches
//! (the old one on a new connection, or its successor) sends again every output of which it doesn't
//! know that it was carried. The port numbers the packets that it delivers to the VM and keeps the
//! recent ones, so that a new primary gets those that its predecessor had not logged. Together:
//! each packet once, without help from TCP.
//!
//! All decisions are in [`fabric`] and below, which take no input but their arguments; [`server`]
//! moves bytes. A simulator drives the fabric as the server does.
//!
//! Deliberately absent: spanning tree (ports are leaves), VLANs, IPv6 and DHCP at the gateway,
//! persistence. A LAN that is started again adopts each VM's numbering from its next attachment:
//! packets for VMs that were in it are lost, and outputs that it had carried and not told of yet
//! come twice.

mod attachment;
pub mod client;
pub mod cutter;
mod events;
pub mod fabric;
pub mod port;
pub mod pulse;
pub mod server;
pub mod session;
pub mod wire;

pub use attachment::Attachment;
pub use events::{Dropped, ForwardListening, LanEvent};
pub use server::{ConnectionLimits, Forward, ForwardError};
pub use wire::WireError;
