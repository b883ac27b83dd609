//! Announces to an Ethernet where the guest is now, for networks that don't know that they carry a
//! VM.
//!
//! Switches learn a station's port from the source of any packet. A reverse ARP request, which
//! nothing answers any more, is what hypervisors send after moving a VM whose IP addresses they
//! don't know. Hosts refresh their ARP caches from a gratuitous ARP request. That needs the guest's
//! IPv4 address, which is learned from the packets that it sends.

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Address, Ipv4Packet,
};

/// Ethernet's number for reverse ARP (RFC 903).
const RARP: EthernetProtocol = EthernetProtocol::Unknown(0x8035);

/// The shortest Ethernet frame, without its checksum.
const PACKET_BYTES: usize = 60;

/// The initial hop limits in use. A packet with another one may have been forwarded by the guest,
/// so its source may be another host's address.
const INITIAL_HOP_LIMITS: [u8; 3] = [64, 128, 255];

/// The guest's addresses, as far as its packets show them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    mac: EthernetAddress,
    ip: Option<Ipv4Address>,
}

impl Station {
    /// A station whose IP address isn't known yet.
    #[must_use]
    pub const fn new(mac: [u8; 6]) -> Self {
        Self { mac: EthernetAddress(mac), ip: None }
    }

    /// Learns the IPv4 address from a packet that the guest sends.
    pub fn learn(&mut self, packet: &[u8]) {
        self.ip = self.sender_of(packet).or(self.ip);
    }

    /// The packets that announce the station.
    #[must_use]
    pub fn announcement(&self) -> Vec<Vec<u8>> {
        let unknown = Ipv4Address::UNSPECIFIED;
        let reverse = self.request(RARP, ArpOperation::Unknown(3), self.mac, unknown);
        let gratuitous =
            self.ip.map(|ip| self.request(EthernetProtocol::Arp, ArpOperation::Request, EthernetAddress([0; 6]), ip));
        [reverse].into_iter().chain(gratuitous).collect()
    }

    /// The packet's source address, if the guest itself is the source.
    fn sender_of(&self, packet: &[u8]) -> Option<Ipv4Address> {
        let packet = EthernetFrame::new_checked(packet).ok().filter(|packet| packet.src_addr() == self.mac)?;
        let address = if packet.ethertype() == EthernetProtocol::Arp {
            let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. } =
                ArpRepr::parse(&ArpPacket::new_checked(packet.payload()).ok()?).ok()?
            else {
                return None;
            };
            Some(source_protocol_addr).filter(|_| source_hardware_addr == self.mac)
        } else if packet.ethertype() == EthernetProtocol::Ipv4 {
            let ip = Ipv4Packet::new_checked(packet.payload()).ok()?;
            Some(ip.src_addr()).filter(|_| INITIAL_HOP_LIMITS.contains(&ip.hop_limit()))
        } else {
            None
        };
        // ARP probes (RFC 5227) and DHCP requests come from no address.
        address.filter(|ip| !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() || ip.is_loopback()))
    }

    fn request(
        &self,
        protocol: EthernetProtocol,
        operation: ArpOperation,
        target_hardware_addr: EthernetAddress,
        ip: Ipv4Address,
    ) -> Vec<u8> {
        let mut bytes = vec![0; PACKET_BYTES];
        let mut packet = EthernetFrame::new_unchecked(&mut bytes);
        packet.set_dst_addr(EthernetAddress::BROADCAST);
        packet.set_src_addr(self.mac);
        packet.set_ethertype(protocol);
        let request = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: self.mac,
            source_protocol_addr: ip,
            target_hardware_addr,
            target_protocol_addr: ip,
        };
        request.emit(&mut ArpPacket::new_unchecked(packet.payload_mut()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
    const IP: [u8; 4] = [10, 0, 2, 15];

    fn ethernet(from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &from, &kind, payload].concat()
    }

    fn arp(from: [u8; 6], mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
        let payload = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac, &ip, &[0; 6], &[10, 0, 2, 2]].concat();
        ethernet(from, [8, 6], &payload)
    }

    fn ipv4_packet(hop_limit: u8, ip: [u8; 4]) -> Vec<u8> {
        let header = [&[0x45, 0, 0, 20, 0, 0, 0, 0, hop_limit, 17, 0, 0][..], &ip, &[10, 0, 2, 2]].concat();
        ethernet(MAC, [8, 0], &header)
    }

    fn learned(packets: &[Vec<u8>]) -> Option<[u8; 4]> {
        let mut station = Station::new(MAC);
        packets.iter().for_each(|packet| station.learn(packet));
        station.ip.map(|ip| ip.octets())
    }

    #[test]
    fn reverse_arp_is_these_bytes() {
        let announcement = Station::new(MAC).announcement();
        let body = [&[0, 1, 8, 0, 6, 4, 0, 3][..], &MAC, &[0; 4], &MAC, &[0; 4], &[0; 18]].concat();
        assert_eq!(announcement, [ethernet(MAC, [0x80, 0x35], &body)]);
    }

    #[test]
    fn gratuitous_arp_asks_for_the_stations_own_address() {
        let mut station = Station::new(MAC);
        station.learn(&arp(MAC, MAC, IP));
        let body = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC, &IP, &[0; 6], &IP, &[0; 18]].concat();
        assert_eq!(station.announcement()[1..], [ethernet(MAC, [8, 6], &body)]);
    }

    #[test]
    fn the_address_is_learned_from_what_the_guest_itself_sends() {
        assert_eq!(learned(&[arp(MAC, MAC, IP)]), Some(IP));
        assert_eq!(learned(&[ipv4_packet(64, IP)]), Some(IP));
        assert_eq!(
            learned(&[ipv4_packet(64, IP), arp(MAC, MAC, [10, 0, 2, 16])]),
            Some([10, 0, 2, 16]),
            "the latest counts"
        );
        assert_eq!(learned(&[ipv4_packet(64, IP), vec![0; 60]]), Some(IP));
    }

    #[test]
    fn foreign_and_unusable_addresses_are_not_announced() {
        let other = [2, 9, 9, 9, 9, 9];
        assert_eq!(learned(&[arp(MAC, other, IP)]), None, "an answer for somebody else");
        assert_eq!(learned(&[arp(other, MAC, IP)]), None, "not from this network device");
        assert_eq!(learned(&[ipv4_packet(63, IP)]), None, "a guest that routes is not where this came from");
        for ip in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
            assert_eq!(learned(&[arp(MAC, MAC, ip), ipv4_packet(64, ip)]), None, "{ip:?}");
        }
    }

    #[test]
    fn packets_cut_anywhere_teach_nothing() {
        for whole in [arp(MAC, MAC, IP), ipv4_packet(64, IP)] {
            (0..whole.len())
                .for_each(|length| assert_eq!(learned(&[whole[..length].to_vec()]), None, "{length} bytes"));
        }
    }
}
