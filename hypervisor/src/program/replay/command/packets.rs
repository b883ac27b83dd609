//! Which packets a search looks for.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

const ETHERNET_BYTES: usize = 14;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_ARP: u16 = 0x0806;
const TYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// What a packet must be, word by word, as in `out tcp host 10.0.2.2 port 6379`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PacketFilter {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In,
    Out,
    Type(u16),
    Protocol(u8),
    Host(Ipv4Addr),
    Port(u16),
}

impl FromStr for PacketFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let mut terms = Vec::new();
        while let Some(word) = words.next() {
            let term = match word {
                "in" => Term::In,
                "out" => Term::Out,
                "ip" => Term::Type(TYPE_IPV4),
                "arp" => Term::Type(TYPE_ARP),
                "ip6" => Term::Type(TYPE_IPV6),
                "icmp" => Term::Protocol(PROTOCOL_ICMP),
                "tcp" => Term::Protocol(PROTOCOL_TCP),
                "udp" => Term::Protocol(PROTOCOL_UDP),
                "host" => Term::Host(words.next().and_then(|next| next.parse().ok()).ok_or("`host` needs an address")?),
                "port" => Term::Port(words.next().and_then(|next| next.parse().ok()).ok_or("`port` needs a number")?),
                "all" => continue,
                word => {
                    return Err(format!(
                        "`{word}` is unknown; the words are in, out, ip, ip6, arp, icmp, tcp, udp, host ADDRESS, port N, all"
                    ));
                }
            };
            terms.push(term);
        }
        Ok(Self { terms })
    }
}

impl PacketFilter {
    /// `true` if a packet is what is looked for; `is_out` if the guest sent it.
    pub(super) fn matches(&self, packet: &[u8], is_out: bool) -> bool {
        let headers = Headers::of(packet);
        self.terms.iter().all(|term| match term {
            Term::In => !is_out,
            Term::Out => is_out,
            Term::Type(wanted) => headers.kind == Some(*wanted),
            Term::Protocol(wanted) => headers.protocol == Some(*wanted),
            Term::Host(wanted) => headers.hosts.is_some_and(|hosts| hosts.contains(wanted)),
            Term::Port(wanted) => headers.ports.is_some_and(|ports| ports.contains(wanted)),
        })
    }
}

/// What the headers of a packet say, as far as they are there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Headers {
    kind: Option<u16>,
    protocol: Option<u8>,
    hosts: Option<[Ipv4Addr; 2]>,
    ports: Option<[u16; 2]>,
    flags: Option<u8>,
    bytes: usize,
}

impl Headers {
    pub(super) fn of(packet: &[u8]) -> Self {
        let half = |at: usize| packet.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        let mut headers = Self { kind: half(12), bytes: packet.len(), ..Self::default() };
        let Some(ip) = packet.get(ETHERNET_BYTES..).filter(|_| headers.kind == Some(TYPE_IPV4)) else { return headers };
        let address =
            |at: usize| ip.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from);
        headers.protocol = ip.get(9).copied();
        headers.hosts = address(12).zip(address(16)).map(|(from, to)| [from, to]);
        // Only the first fragment has the ports.
        let is_first = half(ETHERNET_BYTES + 6).is_some_and(|field| field & 0x1fff == 0);
        let transport = ETHERNET_BYTES + 4 * usize::from(ip.first().copied().unwrap_or(0) & 0xf);
        let has_ports = matches!(headers.protocol, Some(PROTOCOL_TCP | PROTOCOL_UDP));
        if is_first && has_ports {
            headers.ports = half(transport).zip(half(transport + 2)).map(|(from, to)| [from, to]);
        }
        if headers.protocol == Some(PROTOCOL_TCP) && headers.ports.is_some() {
            headers.flags = packet.get(transport + 13).copied();
        }
        headers
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (self.kind, self.protocol) {
            (Some(TYPE_IPV4), Some(PROTOCOL_TCP)) => "tcp",
            (Some(TYPE_IPV4), Some(PROTOCOL_UDP)) => "udp",
            (Some(TYPE_IPV4), Some(PROTOCOL_ICMP)) => "icmp",
            (Some(TYPE_IPV4), _) => "ip",
            (Some(TYPE_ARP), _) => "arp",
            (Some(TYPE_IPV6), _) => "ip6",
            _ => "ethernet",
        };
        write!(f, "{name}")?;
        match (self.hosts, self.ports) {
            (Some([from, to]), Some([from_port, to_port])) => write!(f, " {from}:{from_port} > {to}:{to_port}")?,
            (Some([from, to]), None) => write!(f, " {from} > {to}")?,
            (None, _) => {}
        }
        if let Some(flags) = self.flags {
            let letters = [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (16, '.')];
            let set: String = letters.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter).collect();
            write!(f, " [{set}]")?;
        }
        write!(f, ", {} bytes", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{Headers, PacketFilter};

    fn packet() -> Vec<u8> {
        let mut packet = vec![0; 54];
        packet[12..14].copy_from_slice(&[8, 0]);
        packet[14] = 0x45;
        packet[23] = 6;
        packet[26..34].copy_from_slice(&[10, 0, 2, 15, 10, 0, 2, 2]);
        packet[34..38].copy_from_slice(&[0x18, 0xeb, 0xc3, 0x50]);
        packet[47] = 0x12;
        packet
    }

    #[test]
    fn every_word_must_hold() {
        let matches = |text: &str, is_out| text.parse::<PacketFilter>().unwrap().matches(&packet(), is_out);
        for text in ["", "all", "tcp", "ip port 6379", "port 50000", "host 10.0.2.15 tcp out", "host 10.0.2.2"] {
            assert!(matches(text, true), "{text}");
        }
        for text in ["in", "udp", "arp", "tcp port 80", "host 10.0.2.3", "icmp", "ip6"] {
            assert!(!matches(text, true), "{text}");
        }
        assert!(["tpc", "port", "port x", "host 1.2.3"].iter().all(|bad| bad.parse::<PacketFilter>().is_err()));
        assert_eq!(Headers::of(&packet()).to_string(), "tcp 10.0.2.15:6379 > 10.0.2.2:50000 [S.], 54 bytes");
    }

    #[test]
    fn a_packet_that_is_cut_anywhere_has_the_headers_that_are_there() {
        for length in 0..54 {
            let _ = Headers::of(&packet()[..length]).to_string();
            let _ = "tcp port 1 host 1.2.3.4".parse::<PacketFilter>().unwrap().matches(&packet()[..length], false);
        }
    }
}
