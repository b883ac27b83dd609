//! A learning Ethernet switch: which port a packet goes to.
//!
//! It knows ports only by their ids; queues and connections are elsewhere. Entries don't age by
//! time: a station that moves is learned again from its next packet, and a full table forgets the
//! station that was silent longest.

use super::VMS_MAX;
use std::collections::BTreeMap;
use vm::PACKET_BYTES_MIN;

/// How many stations the switch remembers, pinned ones included.
pub(in crate::lan) const STATIONS_MAX: usize = 1024;

// Not all stations can be pinned: each VM and the gateway pin one.
const _: () = assert!(VMS_MAX + 1 < STATIONS_MAX);

/// An Ethernet address.
pub(in crate::lan) type Mac = [u8; 6];

/// A port of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lan) enum Port {
    /// The gateway in this process.
    Gateway,
    /// A VM; the port stays when the host under the VM is lost.
    Vm(u64),
    /// A QEMU connection.
    Qemu(u64),
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) enum Forwarding {
    /// It goes to this port.
    To(Port),
    /// It goes to all ports except the one it came from.
    Flood,
    /// It is dropped.
    Drop(DropReason),
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) enum DropReason {
    /// Shorter than an Ethernet header, or sent from a group address.
    Malformed,
    /// Its source address is pinned to another port.
    Forged,
    /// Its destination is on the port it came from.
    Local,
}

#[derive(Debug)]
struct Station {
    port: Port,
    /// Pinned stations are never forgotten or moved by a packet, so that no guest can take
    /// another's traffic.
    pinned: bool,
    last_seen: u64,
}

/// The table of stations.
#[derive(Debug, Default)]
pub(in crate::lan) struct Switch {
    stations: BTreeMap<Mac, Station>,
    /// Counts packets; the switch's only clock.
    packets: u64,
}

impl Switch {
    /// The port that `mac` is pinned to.
    pub(in crate::lan) fn pinned(&self, mac: Mac) -> Option<Port> {
        self.stations.get(&mac).filter(|station| station.pinned).map(|station| station.port)
    }

    /// Binds `mac`, which must not be pinned to another port, to `port` until
    /// [`Switch::forget_port`].
    pub(in crate::lan) fn pin(&mut self, mac: Mac, port: Port) {
        assert!(self.pinned(mac).is_none_or(|owner| owner == port), "an address was pinned to two ports");
        self.insert(mac, Station { port, pinned: true, last_seen: self.packets });
    }

    /// Forgets every station on `port`.
    pub(in crate::lan) fn forget_port(&mut self, port: Port) {
        self.stations.retain(|_, station| station.port != port);
    }

    /// Learns the port of the packet's sender, and returns where the packet goes.
    pub(in crate::lan) fn forward(&mut self, from: Port, packet: &[u8]) -> Forwarding {
        let Some((&destination, &source)) = packet
            .split_first_chunk::<6>()
            .and_then(|(destination, rest)| Some((destination, rest.first_chunk::<6>()?)))
            .filter(|(_, source)| packet.len() >= PACKET_BYTES_MIN && !is_group(**source))
        else {
            return Forwarding::Drop(DropReason::Malformed);
        };
        self.packets += 1;
        if !self.learn(source, from) {
            return Forwarding::Drop(DropReason::Forged);
        }
        if is_group(destination) {
            return Forwarding::Flood;
        }
        match self.stations.get(&destination) {
            Some(station) if station.port == from => Forwarding::Drop(DropReason::Local),
            Some(station) => Forwarding::To(station.port),
            None => Forwarding::Flood,
        }
    }

    /// Learns `source`. Returns `true` if it may send from `port`.
    fn learn(&mut self, source: Mac, port: Port) -> bool {
        match self.stations.get_mut(&source) {
            Some(station) if station.pinned => station.port == port,
            Some(station) => {
                station.port = port;
                station.last_seen = self.packets;
                true
            }
            None => {
                self.insert(source, Station { port, pinned: false, last_seen: self.packets });
                true
            }
        }
    }

    fn insert(&mut self, mac: Mac, station: Station) {
        if self.stations.len() >= STATIONS_MAX && !self.stations.contains_key(&mac) {
            let stalest = self
                .stations
                .iter()
                .filter(|(_, station)| !station.pinned)
                .min_by_key(|(_, station)| station.last_seen)
                .map(|(&mac, _)| mac);
            // There are far fewer ports than stations, so that not all can be pinned.
            self.stations.remove(&stalest.expect("an unpinned station in a full table"));
        }
        self.stations.insert(mac, station);
    }
}

/// `true` if `mac` is a multicast or broadcast address.
pub(in crate::lan) const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];
    const BROADCAST: Mac = [0xff; 6];

    fn packet(destination: Mac, source: Mac) -> Vec<u8> {
        [&destination[..], &source[..], &[0x08, 0x00, 1, 2, 3]].concat()
    }

    #[test]
    fn unknown_destinations_flood_and_known_ones_do_not() {
        let mut switch = Switch::default();
        assert_eq!(switch.forward(Port::Qemu(1), &packet(B, A)), Forwarding::Flood);
        assert_eq!(switch.forward(Port::Qemu(2), &packet(A, B)), Forwarding::To(Port::Qemu(1)));
        assert_eq!(switch.forward(Port::Qemu(1), &packet(B, A)), Forwarding::To(Port::Qemu(2)));
        assert_eq!(switch.forward(Port::Qemu(1), &packet(BROADCAST, A)), Forwarding::Flood);
    }

    #[test]
    fn a_station_that_moves_is_learned_anew() {
        let mut switch = Switch::default();
        switch.forward(Port::Qemu(1), &packet(BROADCAST, A));
        switch.forward(Port::Qemu(3), &packet(BROADCAST, A));
        assert_eq!(switch.forward(Port::Qemu(2), &packet(A, B)), Forwarding::To(Port::Qemu(3)));
    }

    #[test]
    fn a_packet_never_goes_back_where_it_came_from() {
        let mut switch = Switch::default();
        switch.forward(Port::Qemu(1), &packet(BROADCAST, A));
        switch.forward(Port::Qemu(1), &packet(BROADCAST, B));
        assert_eq!(switch.forward(Port::Qemu(1), &packet(B, A)), Forwarding::Drop(DropReason::Local));
    }

    #[test]
    fn a_pinned_address_cannot_be_taken() {
        let mut switch = Switch::default();
        switch.pin(A, Port::Vm(0));
        assert_eq!(switch.forward(Port::Qemu(1), &packet(BROADCAST, A)), Forwarding::Drop(DropReason::Forged));
        assert_eq!(switch.pinned(A), Some(Port::Vm(0)));
        assert_eq!(switch.forward(Port::Qemu(1), &packet(A, B)), Forwarding::To(Port::Vm(0)));
        switch.forget_port(Port::Vm(0));
        assert_eq!(switch.forward(Port::Qemu(1), &packet(BROADCAST, A)), Forwarding::Flood);
    }

    #[test]
    fn malformed_packets_are_dropped_at_every_length() {
        let mut switch = Switch::default();
        let whole = packet(BROADCAST, A);
        for length in 0..PACKET_BYTES_MIN {
            let forwarding = switch.forward(Port::Gateway, &whole[..length]);
            assert_eq!(forwarding, Forwarding::Drop(DropReason::Malformed), "{length} bytes");
        }
        let from_a_group = packet(A, BROADCAST);
        assert_eq!(switch.forward(Port::Gateway, &from_a_group), Forwarding::Drop(DropReason::Malformed));
    }

    #[test]
    fn a_flood_of_forged_sources_cannot_outgrow_the_table_or_evict_the_pinned() {
        let mut switch = Switch::default();
        switch.pin(A, Port::Vm(0));
        for n in 0..3 * u32::try_from(STATIONS_MAX).unwrap() {
            let [a, b, c, d] = n.to_le_bytes();
            switch.forward(Port::Qemu(1), &packet(BROADCAST, [4, 0, a, b, c, d]));
        }
        assert_eq!(switch.stations.len(), STATIONS_MAX);
        assert_eq!(switch.forward(Port::Qemu(1), &packet(A, B)), Forwarding::To(Port::Vm(0)));
        let oldest_forged = [4, 0, 0, 0, 0, 0];
        assert_eq!(switch.forward(Port::Vm(0), &packet(oldest_forged, A)), Forwarding::Flood);
    }
}
