//! The gateway and a guest.

use super::*;

const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 7);
const GUEST_MAC: Mac = [2, 0, 0, 0, 0, 0x15];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

fn checksum(bytes: &[u8], start: u32) -> [u8; 2] {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap().to_be_bytes()
}

/// Recomputes the checksums of a whole IPv4 packet without options.
fn repair(packet: &mut [u8]) {
    if packet.len() < 42 || packet[12..15] != [8, 0, 0x45] {
        return;
    }
    packet[24..26].fill(0);
    let header = checksum(&packet[14..34], 0);
    packet[24..26].copy_from_slice(&header);
    let (place, pseudo) = match packet[23] {
        6 => (50, true),
        17 => (40, true),
        1 => (36, false),
        _ => return,
    };
    let end = usize::from(u16::from_be_bytes([packet[16], packet[17]])) + 14;
    if end <= place + 2 || end > packet.len() {
        return;
    }
    packet[place..place + 2].fill(0);
    let addresses = packet[26..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let start = if pseudo { addresses + u32::from(packet[23]) + u32::try_from(end - 34).unwrap() } else { 0 };
    let sum = checksum(&packet[34..end], start);
    packet[place..place + 2].copy_from_slice(&sum);
}

/// A possible answer of a guest to a packet of the gateway: addresses and ports exchanged,
/// acknowledged, and then changed at random.
fn answer(random: &mut Random, packet: &[u8]) -> Vec<u8> {
    let mut answer = packet.to_vec();
    answer[..6].copy_from_slice(&packet[6..12]);
    answer[6..12].copy_from_slice(&GUEST_MAC);
    match packet[12..14] {
        [8, 6] => {
            answer[21] = 2;
            answer[22..28].copy_from_slice(&GUEST_MAC);
            answer[28..32].copy_from_slice(&packet[38..42]);
            answer[32..42].copy_from_slice(&packet[22..32]);
        }
        _ => {
            answer[26..30].copy_from_slice(&packet[30..34]);
            answer[30..34].copy_from_slice(&packet[26..30]);
            answer[34..36].copy_from_slice(&packet[36..38]);
            answer[36..38].copy_from_slice(&packet[34..36]);
            if packet[23] == 6 && packet.len() >= 54 {
                let theirs = u32::from_be_bytes([packet[38], packet[39], packet[40], packet[41]]);
                let syn = u32::from(packet[47] & 2 != 0);
                answer[38..42].copy_from_slice(&packet[42..46]);
                let payload = u32::try_from(packet.len() - 34 - usize::from(packet[46] >> 4) * 4).unwrap_or(0);
                answer[42..46].copy_from_slice(&theirs.wrapping_add(syn).wrapping_add(payload).to_be_bytes());
                answer[47] |= 0x10;
            }
        }
    }
    if random.below(3) > 0 {
        return answer;
    }
    for _ in 0..=random.below(4) {
        match random.below(4) {
            0 => answer.resize(14 + random.below(1500), 0),
            1 => {
                let length = u16::try_from(random.below(1600)).unwrap().to_be_bytes();
                answer[16..18].copy_from_slice(&length);
            }
            _ => {
                let place = random.below(answer.len());
                answer[place] = if random.below(2) == 0 { random.byte() } else { [0, 255][random.below(2)] };
            }
        }
        answer.resize(answer.len().max(42), 0);
    }
    answer
}

/// A client that opens flows, or connections to another port, without end must not bring back
/// the ports that a guest still remembers.
#[test]
fn connections_elsewhere_use_up_no_ports() {
    let mut gateway = Gateway::new(7, 0);
    let other = SocketAddrV4::new(*GUEST.ip(), GUEST.port() + 1);
    let ports = (0..4).map(|_| {
        let flow = gateway.open_udp(*GUEST.ip(), 0);
        gateway.remove_udp(flow);
        let handle = gateway.connect_tcp(other, 0);
        gateway.remove_tcp(handle);
        let handle = gateway.connect_tcp(GUEST, 0);
        let port = gateway.tcp(handle).local_endpoint().unwrap().port;
        gateway.remove_tcp(handle);
        port
    });
    assert_eq!(ports.collect::<Vec<_>>(), [1024, 1025, 1026, 1027]);
}

#[test]
fn a_guest_that_is_waited_for_is_asked_often_and_then_rarely_and_at_once_when_it_attaches() {
    let mut gateway = Gateway::new(7, 0);
    let asks = |packets: VecDeque<Vec<u8>>| packets.iter().filter(|packet| packet[12..14] == [8, 6]).count();
    assert_eq!(gateway.deadline_us(0), None, "nobody is waited for");
    gateway.connect_tcp(GUEST, 0);
    assert!(asks(gateway.poll(0)) > 0);
    // The requests in the following seconds are smoltcp's own.
    let quick = (1..u64::from(QUICK_ASKS)).map(|n| asks(gateway.poll(n * ASK_INTERVAL_US))).collect::<Vec<_>>();
    assert!(quick.iter().all(|&asks| asks >= 1), "{quick:?}");
    let now_us = u64::from(QUICK_ASKS) * ASK_INTERVAL_US;
    gateway.poll(now_us);
    assert!(gateway.deadline_us(now_us).is_some_and(|due_us| due_us > now_us));
    gateway.guest_attached();
    let packets = gateway.poll(now_us + 1);
    assert_eq!(asks(packets.clone()), 1);
    // The guest's answer lets the first segment go, before smoltcp would ask again.
    gateway.receive(&answer(&mut Random(0), &packets[0]));
    let sent = gateway.poll(now_us + 2);
    assert!(sent.iter().any(|packet| packet[12..14] == [8, 0] && packet[23] == 6), "{sent:?}");
}

#[test]
fn no_packet_of_a_guest_makes_the_gateway_panic_or_go_on_for_ever() {
    let (mut opened, mut answered) = (0, 0);
    for seed in 0..40 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut gateway = Gateway::new(seed, 0);
        let (tcp, udp) = (gateway.connect_tcp(GUEST, 0), gateway.open_udp(*GUEST.ip(), 0));
        let mut now_us = 0;
        for _ in 0..300 {
            now_us += random.next() % 2_000_000;
            let _ = gateway.udp(udp).send_slice(b"datagram", (*GUEST.ip(), GUEST.port()));
            let _ = gateway.tcp(tcp).send_slice(b"stream");
            for turn in 0.. {
                assert!(turn < 1000, "the gateway and a guest that answers each frame once never end");
                let packets = gateway.poll(now_us);
                if packets.is_empty() {
                    break;
                }
                answered += packets.len();
                for packet in packets.iter().filter(|_| turn < 20) {
                    let mut answer = answer(&mut random, packet);
                    if random.below(8) > 0 {
                        repair(&mut answer);
                    }
                    gateway.receive(&answer);
                }
            }
            let _ = gateway.deadline_us(now_us);
            let _ = gateway.udp(udp).recv();
            let socket = gateway.tcp(tcp);
            opened += u64::from(socket.state() == tcp::State::Established);
            let _ = socket.recv(|bytes| (bytes.len(), ()));
        }
    }
    println!("{opened} times open, {answered} frames answered");
    assert!(opened > 100 && answered > 1000, "too tame a run");
}
