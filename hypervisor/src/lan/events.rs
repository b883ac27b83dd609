//! The reports of the LAN.

use crate::os::rate_limit::LeftOut;
use crate::os::report::{Level, Report};
use serde::Serialize;
use std::fmt;

/// Something that happened on the LAN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LanEvent {
    /// All sockets are bound.
    Listening {
        /// The address where VMs attach.
        listen: String,
        /// The address where QEMU processes connect.
        qemu: Option<String>,
        /// The forwards, with the addresses where they listen.
        forwards: Vec<ForwardListening>,
    },
    /// A VM's port was opened.
    Attached {
        /// The VM.
        vm: String,
        /// The generation of its owner.
        generation: u64,
        /// The number of the first packet that the VM gets.
        first_packet: u64,
        /// How many packets the VM missed because the LAN had overwritten them.
        lost: u64,
    },
    /// A VM's port was taken over by a newer generation.
    Fenced {
        /// The VM.
        vm: String,
        /// The generation that had the port.
        generation: u64,
        /// The generation that has the port now.
        by: u64,
    },
    /// An attachment was refused.
    Refused {
        /// The VM.
        vm: String,
        /// The generation that asked for the port.
        generation: u64,
        /// Why, for people.
        reason: String,
        /// How many refusals before this one were left out.
        left_out: u64,
    },
    /// A VM's port has no connection any more; its packets are kept.
    Detached {
        /// The VM.
        vm: String,
        /// The generation that had the port.
        generation: u64,
    },
    /// The connection of a VM's port was given up because the VM's host was silent too long; its
    /// packets are kept.
    Silent {
        /// The VM.
        vm: String,
        /// The generation that had the port.
        generation: u64,
    },
    /// A client of a forward waits for its guest.
    ClientWaits {
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The forward's address, to which the client connected.
        listen: String,
        /// The guest's address and port on the LAN.
        guest: String,
        /// `true` if any VM is attached.
        has_vm: bool,
    },
    /// The VM that was detached longest ago was forgotten, to make room for another.
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
    /// The counters of dropped packets and clients, reported when they have changed and at the end.
    Dropped(Dropped),
}

/// A forward and the address where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForwardListening {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The address where clients connect.
    pub listen: String,
    /// The guest's address and port on the LAN.
    pub guest: String,
}

/// Packets and clients dropped since the start, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Outputs that the LAN had already carried: expected at a failover.
    pub duplicates: u64,
    /// Packets for VMs that were overwritten before the VM's host fetched them.
    pub vm_overflow: u64,
    /// Packets for QEMU processes that didn't read.
    pub qemu_overflow: u64,
    /// Packets for the gateway that came faster than it works.
    pub gateway_overflow: u64,
    /// Packets that are no Ethernet frames, or longer than the LAN carries.
    pub malformed: u64,
    /// Packets with the source address of another VM or of the gateway.
    pub forged: u64,
    /// Connections and datagrams of clients beyond a limit.
    pub refused_clients: u64,
    /// Connections of clients that were closed because nothing passed over them: for too long, or
    /// when others needed room.
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
                forwards.iter().enumerate().try_for_each(|(index, forward)| {
                    let ForwardListening { protocol, listen, guest } = forward;
                    // Most forwards are for both TCP and UDP: those are reported once.
                    let is_same = |other: &ForwardListening| (&other.listen, &other.guest) == (listen, guest);
                    if forwards[..index].iter().any(is_same) {
                        Ok(())
                    } else if forwards[index + 1..].iter().any(is_same) {
                        write!(f, ", {listen} is {guest}")
                    } else {
                        write!(f, ", {protocol} {listen} is {guest}")
                    }
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
                write!(f, "{vm}: generation {generation} silent for 1.5 s: detached, frames are kept")
            }
            Self::ClientWaits { protocol, listen, guest, has_vm: false } => {
                write!(f, "{protocol} client of {listen} waits: no VM is at {guest}")
            }
            Self::ClientWaits { protocol, listen, guest, has_vm: true } => {
                write!(f, "{protocol} client of {listen} waits: no answer from {guest}")
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
    use crate::os::report::on_a_terminal;

    /// Every event, with typical values.
    fn usual() -> Vec<LanEvent> {
        let vm = || "vm0".to_owned();
        let (listen, guest) = ("192.168.1.17:7007".to_owned(), "10.0.2.15:7".to_owned());
        let forward =
            |protocol, listen: &str| ForwardListening { protocol, listen: listen.into(), guest: guest.clone() };
        let client =
            |has_vm| LanEvent::ClientWaits { protocol: "tcp", listen: listen.clone(), guest: guest.clone(), has_vm };
        let listening = |forwards| LanEvent::Listening { listen: "192.168.1.17:7000".into(), qemu: None, forwards };
        vec![
            listening(vec![]),
            listening(vec![forward("tcp", &listen), forward("udp", &listen)]),
            listening(vec![forward("tcp", "0.0.0.0:7007")]),
            LanEvent::Attached { vm: vm(), generation: 2, first_packet: 123_456, lost: 0 },
            LanEvent::Fenced { vm: vm(), generation: 1, by: 2 },
            LanEvent::Detached { vm: vm(), generation: 1 },
            LanEvent::Silent { vm: vm(), generation: 1 },
            client(false),
            client(true),
            LanEvent::Forgotten { vm: vm() },
            LanEvent::QemuJoined { port: 3 },
            LanEvent::QemuLeft { port: 3 },
            LanEvent::Dropped(Dropped { duplicates: 2, ..Dropped::default() }),
            LanEvent::Dropped(Dropped::default()),
            LanEvent::Attached { vm: vm(), generation: 2, first_packet: 123_456, lost: 17 },
            LanEvent::Refused { vm: vm(), generation: 1, reason: "generation 2 owns the VM".into(), left_out: 0 },
        ]
    }

    /// `true` if an event may be longer than a line. Decide it here for a new event, and add the
    /// event to [`usual`].
    const fn may_be_longer(event: &LanEvent) -> bool {
        match event {
            LanEvent::Attached { lost, .. } => *lost > 0,
            LanEvent::Listening { .. }
            | LanEvent::Fenced { .. }
            | LanEvent::Refused { .. }
            | LanEvent::Detached { .. }
            | LanEvent::Silent { .. }
            | LanEvent::ClientWaits { .. }
            | LanEvent::Forgotten { .. }
            | LanEvent::QemuJoined { .. }
            | LanEvent::QemuLeft { .. }
            | LanEvent::Dropped(_) => false,
        }
    }

    #[test]
    fn an_event_is_one_line_on_a_terminal() {
        for event in usual() {
            let lines = on_a_terminal("ft-lan", &event);
            assert!(may_be_longer(&event) || lines.len() == 1, "{lines:?}");
            assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
        }
    }

    #[test]
    fn a_forward_of_both_protocols_is_told_once() {
        let forward = |protocol, port: u16| ForwardListening {
            protocol,
            listen: format!("127.0.0.1:{port}"),
            guest: "10.0.2.15:7".into(),
        };
        let forwards = vec![forward("tcp", 7), forward("udp", 8), forward("udp", 7)];
        let listening = LanEvent::Listening { listen: "127.0.0.1:7000".into(), qemu: None, forwards };
        let expected = "VMs attach at 127.0.0.1:7000, 127.0.0.1:7 is 10.0.2.15:7, udp 127.0.0.1:8 is 10.0.2.15:7";
        assert_eq!(listening.to_string(), expected);
    }

    #[test]
    fn only_what_was_dropped_is_said_to_people_and_every_counter_to_programs() {
        let dropped = Dropped { duplicates: 3, idle_clients: 1, ..Dropped::default() };
        let expected = "dropped so far: 3 outputs already carried, 1 idle client connections";
        assert_eq!(LanEvent::Dropped(dropped).to_string(), expected);
        let json = serde_json::to_value(LanEvent::Dropped(dropped)).unwrap();
        assert_eq!((&json["duplicates"], &json["forged"]), (&3.into(), &0.into()));
    }
}
