//! What the LAN tells.

use crate::host::rate_limit::LeftOut;
use crate::report::{Level, Report};
use serde::Serialize;
use std::fmt;

/// Something that happened on the LAN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LanEvent {
    /// Everything is bound.
    Listening {
        /// Where VMs attach.
        listen: String,
        /// Where QEMU processes connect.
        qemu: Option<String>,
        /// Which ports of guests are reachable where.
        forwards: Vec<ForwardListening>,
    },
    /// A VM's port was opened.
    Attached {
        /// The VM.
        vm: String,
        /// Its owner.
        generation: u64,
        /// Number of the first frame that it gets.
        first_packet: u64,
        /// Frames that it has not had and that are no longer kept.
        lost: u64,
    },
    /// A VM's port was taken over by a newer generation.
    Fenced {
        /// The VM.
        vm: String,
        /// Who had the port.
        generation: u64,
        /// Who has it now.
        by: u64,
    },
    /// An attachment was refused.
    Refused {
        /// The VM.
        vm: String,
        /// Who asked for its port.
        generation: u64,
        /// Why, in words for a person.
        reason: String,
        /// How many refusals before this one were not told.
        left_out: u64,
    },
    /// A VM's port has no connection any more; its frames are kept.
    Detached {
        /// The VM.
        vm: String,
        /// Who had the port.
        generation: u64,
    },
    /// The connection of a VM's port was given up, as nothing came from the VM's host for so long; its frames are kept.
    Silent {
        /// The VM.
        vm: String,
        /// Who had the port.
        generation: u64,
    },
    /// A client of a forward waits for its guest.
    ClientWaits {
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// Where the client has come.
        listen: String,
        /// The guest's address and port on the LAN.
        guest: String,
        /// Whether a VM is attached at all.
        has_vm: bool,
    },
    /// A VM that was detached longest was forgotten, to make room for another.
    Forgotten {
        /// The VM.
        vm: String,
    },
    /// A QEMU process joined.
    QemuJoined {
        /// Number of its connection.
        port: u64,
    },
    /// A QEMU process left.
    QemuLeft {
        /// Number of its connection.
        port: u64,
    },
    /// Counters of what was dropped, when they have changed, and at the end.
    Dropped(Dropped),
}

/// Where a forward is reachable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForwardListening {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Where clients connect.
    pub listen: String,
    /// The guest's address and port on the LAN.
    pub guest: String,
}

/// How many frames went nowhere since the start, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Outputs that the LAN had already carried: expected at a failover.
    pub duplicates: u64,
    /// Frames for VMs that were overwritten before anybody took them.
    pub vm_overflow: u64,
    /// Frames for QEMU processes that didn't read.
    pub qemu_overflow: u64,
    /// Frames for the gateway that came faster than it works.
    pub gateway_overflow: u64,
    /// Frames that are no Ethernet frames, or longer than the LAN carries.
    pub malformed: u64,
    /// Frames with the source address of another VM or of the gateway.
    pub forged: u64,
    /// Connections and datagrams of clients beyond a limit.
    pub refused_clients: u64,
    /// Connections of clients that were closed because nothing passed over them: for too long, or others needed the place.
    pub idle_clients: u64,
    /// UDP flows that made room for others, because of a limit.
    pub replaced_flows: u64,
}

impl Report for LanEvent {
    fn level(&self) -> Level {
        let is_warning = matches!(
            self,
            Self::Attached { lost: 1.., .. } | Self::Silent { .. } | Self::Refused { .. } | Self::Forgotten { .. }
        );
        let is_notice = matches!(self, Self::Fenced { .. } | Self::Detached { .. });
        match (is_warning, is_notice) {
            (true, _) => Level::Warn,
            (false, true) => Level::Notice,
            (false, false) => Level::Info,
        }
    }
}

impl fmt::Display for LanEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening { listen, qemu, forwards } => {
                write!(f, "VMs attach at {listen}")?;
                if let Some(qemu) = qemu {
                    write!(f, ", QEMU at {qemu}")?;
                }
                forwards.iter().try_for_each(|forward| {
                    write!(f, "; {} {} is {} on the LAN", forward.protocol, forward.listen, forward.guest)
                })
            }
            Self::Attached { vm, generation, first_packet, lost } => {
                write!(f, "{vm}: generation {generation} attached, frames from {first_packet} on")?;
                if *lost > 0 {
                    write!(f, "; {lost} frames it had not seen are no longer kept")?;
                }
                Ok(())
            }
            Self::Fenced { vm, generation, by } => {
                write!(f, "{vm}: generation {generation} is fenced by generation {by}")
            }
            Self::Refused { vm, generation, reason, left_out } => {
                write!(f, "{vm}: generation {generation} is refused: {reason}{}", LeftOut(*left_out))
            }
            Self::Detached { vm, generation } => {
                write!(f, "{vm}: generation {generation} detached, its frames are kept")
            }
            Self::Silent { vm, generation } => {
                write!(
                    f,
                    "{vm}: generation {generation} has sent no heartbeat for 1.5 s: detached, its frames are kept"
                )
            }
            Self::ClientWaits { protocol, listen, guest, has_vm: false } => {
                write!(f, "a client of {protocol} {listen} waits: no VM is attached that could be {guest}")
            }
            Self::ClientWaits { protocol, listen, guest, has_vm: true } => {
                write!(f, "a client of {protocol} {listen} waits: no guest answers as {guest}; is its network up?")
            }
            Self::Forgotten { vm } => write!(f, "{vm}: forgotten, to make room for another VM"),
            Self::QemuJoined { port } => write!(f, "QEMU port {port} joined"),
            Self::QemuLeft { port } => write!(f, "QEMU port {port} left"),
            Self::Dropped(dropped) => dropped.fmt(f),
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = [
            (self.duplicates, "outputs already carried"),
            (self.vm_overflow, "frames for VMs not fetched in time"),
            (self.qemu_overflow, "frames for QEMU not fetched in time"),
            (self.gateway_overflow, "frames for the gateway"),
            (self.malformed, "malformed frames"),
            (self.forged, "forged frames"),
            (self.refused_clients, "client connections or datagrams beyond a limit"),
            (self.idle_clients, "idle client connections"),
            (self.replaced_flows, "UDP flows that made room for others"),
        ];
        let dropped: Vec<_> = counters.iter().filter(|(count, _)| *count > 0).collect();
        if dropped.is_empty() {
            return f.write_str("nothing was dropped");
        }
        f.write_str("dropped so far: ")?;
        dropped
            .iter()
            .enumerate()
            .try_for_each(|(at, (count, what))| write!(f, "{}{count} {what}", if at > 0 { ", " } else { "" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_dropped_is_said_to_people_and_every_counter_to_programs() {
        let dropped = Dropped { duplicates: 3, idle_clients: 1, ..Dropped::default() };
        let expected = "dropped so far: 3 outputs already carried, 1 idle client connections";
        assert_eq!(LanEvent::Dropped(dropped).to_string(), expected);
        let json = serde_json::to_value(LanEvent::Dropped(dropped)).unwrap();
        assert_eq!((&json["duplicates"], &json["forged"]), (&3.into(), &0.into()));
    }
}
