//! The whole LAN without its sockets.

use super::*;
use logchannel::session::NodeId;

const ONE: ConnectionId = ConnectionId(1);
const TWO: ConnectionId = ConnectionId(2);
const QEMU: ConnectionId = ConnectionId(3);
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const QEMU_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn fabric() -> Fabric {
    Fabric::new(7, 0)
}

fn attachment(vm: &str, generation: u64) -> Attachment {
    Attachment {
        vm: vm.parse().unwrap(),
        node: NodeId(u128::from(generation)),
        generation: Generation(generation),
        mac: GUEST_MAC,
        next_output: OutputId(0),
        output_end: OutputId(u64::MAX),
        last_packet: 0,
        booted: Generation(0),
    }
}

fn packet(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from[..], &[0x88, 0xb5], &[0; 46]].concat()
}

fn arp_request(from_mac: [u8; 6], from_ip: [u8; 4], for_ip: [u8; 4]) -> Vec<u8> {
    let header = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &from_mac, &header, &from_mac, &from_ip, &[0; 6], &for_ip].concat()
}

fn pending(fabric: &mut Fabric, connection: ConnectionId) -> Vec<u8> {
    let mut out = Vec::new();
    fabric.take_pending(connection, &mut out, usize::MAX).unwrap();
    out
}

#[test]
fn a_newer_generation_takes_the_port_and_the_older_one_is_fenced() {
    let mut fabric = fabric();
    fabric.join_qemu(QEMU);
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.attach(TWO, &attachment("vm", 1)).unwrap();
    let settled = fabric.settle(0);
    assert!(settled.woken.contains(&ONE), "the fenced connection must learn of it at once");
    assert!(settled.events.contains(&LanEvent::Fenced { vm: "vm".into(), generation: 0, by: 1 }));

    let lost = PortLost { fenced_by: Some(Generation(1)) };
    assert_eq!(fabric.output(ONE, OutputId(0), &packet(QEMU_MAC, GUEST_MAC)), Err(lost));
    assert_eq!(fabric.take_pending(ONE, &mut Vec::new(), 1), Err(lost));
    assert!(pending(&mut fabric, QEMU).is_empty(), "nothing of the fenced generation is carried");
    fabric.output(TWO, OutputId(0), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
    assert!(!pending(&mut fabric, QEMU).is_empty());

    fabric.leave(ONE);
    fabric.output(TWO, OutputId(1), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
    assert!(!pending(&mut fabric, QEMU).is_empty(), "the fenced connection's end leaves the port alone");
}

#[test]
fn the_same_process_attaching_again_is_not_told_that_it_is_fenced() {
    let mut fabric = fabric();
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.attach(TWO, &attachment("vm", 0)).unwrap();
    assert_eq!(fabric.take_pending(ONE, &mut Vec::new(), 1), Err(PortLost { fenced_by: None }));
    assert!(pending(&mut fabric, TWO).is_empty());
}

#[test]
fn outputs_already_carried_are_dropped_and_counted() {
    let mut fabric = fabric();
    fabric.join_qemu(QEMU);
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    for id in [0, 1, 1, 0] {
        fabric.output(ONE, OutputId(id), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
    }
    assert_eq!(pending(&mut fabric, QEMU).len(), 2 * (4 + 60));
    assert_eq!(fabric.dropped(), Dropped { duplicates: 2, ..Dropped::default() });
}

#[test]
fn the_gateway_answers_arp_through_the_switch() {
    let mut fabric = fabric();
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.output(ONE, OutputId(0), &arp_request(GUEST_MAC, [10, 0, 2, 15], [10, 0, 2, 2])).unwrap();
    let settled = fabric.settle(1_000);
    assert!(settled.woken.contains(&ONE));
    let answer = pending(&mut fabric, ONE);
    assert_eq!(answer[13..19], GUEST_MAC);
    assert_eq!(answer[19..25], GATEWAY_MAC);
    assert_eq!(fabric.settle(1_000).deadline_us, Some(1_000 + pulse::INTERVAL_US), "only heartbeats are due");
}

#[test]
fn a_silent_vm_is_detached_and_may_come_back() {
    let mut fabric = fabric();
    assert_eq!(fabric.settle(0).deadline_us, None, "a LAN without VMs has no timer");
    let other = Attachment { mac: [2, 0, 0, 0, 0, 2], ..attachment("other", 0) };
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.attach(TWO, &other).unwrap();
    let mut heartbeat = Vec::new();
    ServerMessage::Heartbeat.append(&mut heartbeat);
    let mut now_us = fabric.settle(0).deadline_us.unwrap();
    // The first host falls silent after a while; the second never does.
    for interval in 0..4 {
        if interval < 2 {
            fabric.hear(ONE).unwrap();
        }
        fabric.hear(TWO).unwrap();
        let settled = fabric.settle(now_us);
        assert_eq!(settled.events, [], "interval {interval}");
        assert_eq!(settled.woken, [ONE, TWO]);
        assert_eq!(pending(&mut fabric, ONE), heartbeat);
        now_us = settled.deadline_us.unwrap();
    }
    fabric.hear(TWO).unwrap();
    let settled = fabric.settle(now_us);
    assert_eq!(settled.events, [LanEvent::Silent { vm: "vm".into(), generation: 0 }]);
    assert!(settled.woken.contains(&ONE), "its connection is to be closed");
    let lost = Err(PortLost { fenced_by: None });
    assert_eq!(fabric.take_pending(ONE, &mut Vec::new(), 0), lost);
    assert_eq!(fabric.hear(ONE), lost);
    fabric.leave(ONE);
    fabric.attach(ConnectionId(9), &attachment("vm", 0)).unwrap();
    assert_eq!(fabric.settle(now_us).events.len(), 1, "nothing but the attachment");
    fabric.leave(ConnectionId(9));
    fabric.leave(TWO);
    fabric.settle(now_us + pulse::INTERVAL_US);
    assert_eq!(fabric.settle(now_us + pulse::INTERVAL_US).deadline_us, None);
}

#[test]
fn outputs_carried_are_told_with_the_next_packet_or_after_a_while() {
    let mut fabric = fabric();
    fabric.join_qemu(QEMU);
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    let mut word = Vec::new();
    ServerMessage::Carried { next_output: OutputId(1) }.append(&mut word);
    fabric.settle(0);

    fabric.output(ONE, OutputId(0), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
    let settled = fabric.settle(1_000);
    assert!(!settled.woken.contains(&ONE), "a message of its own would double the cost of an echo");
    assert_eq!(settled.deadline_us, Some(1_000 + CARRIED_DELAY_US));
    fabric.qemu_packet(QEMU, &packet(GUEST_MAC, QEMU_MAC));
    assert_eq!(fabric.settle(2_000).woken, [QEMU, ONE][1..]);
    assert!(pending(&mut fabric, ONE).ends_with(&word));
    assert_eq!(fabric.settle(1_000 + CARRIED_DELAY_US).woken, [], "it has been told");

    fabric.output(ONE, OutputId(6), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
    assert_eq!(fabric.settle(10_000).deadline_us, Some(10_000 + CARRIED_DELAY_US));
    fabric.output(ONE, OutputId(7), &packet(QEMU_MAC, GUEST_MAC)).unwrap();
    let due_us = 10_000 + CARRIED_DELAY_US;
    assert_eq!(fabric.settle(12_000).deadline_us, Some(due_us), "later outputs don't put it off");
    let settled = fabric.settle(due_us);
    assert_eq!((settled.woken, settled.deadline_us), (vec![ONE], Some(pulse::INTERVAL_US)));
    word.clear();
    ServerMessage::Carried { next_output: OutputId(8) }.append(&mut word);
    assert_eq!(pending(&mut fabric, ONE), word);
}

#[test]
fn no_thread_is_woken_for_the_outputs_of_a_closed_connection() {
    let mut fabric = fabric();
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.output(ONE, OutputId(0), &packet([0xff; 6], GUEST_MAC)).unwrap();
    fabric.settle(0);
    fabric.leave(ONE);
    assert_eq!(fabric.settle(1).deadline_us, Some(pulse::INTERVAL_US), "for heartbeats, if there is somebody");
    let answer = ServerMessage::Attached { first_packet: 1, next_output: OutputId(1) };
    assert_eq!(fabric.attach(TWO, &attachment("vm", 1)), Ok(answer));
    assert_eq!(fabric.settle(CARRIED_DELAY_US).woken, [TWO], "for the answer");
    assert!(pending(&mut fabric, TWO).is_empty());
}

#[test]
fn packets_for_a_vm_without_a_connection_wait_for_the_next() {
    let mut fabric = fabric();
    fabric.join_qemu(QEMU);
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.leave(ONE);
    fabric.qemu_packet(QEMU, &packet(GUEST_MAC, QEMU_MAC));
    let answer = ServerMessage::Attached { first_packet: 1, next_output: OutputId(0) };
    assert_eq!(fabric.attach(TWO, &attachment("vm", 1)), Ok(answer));
    assert_eq!(pending(&mut fabric, TWO).len(), 4 + 9 + 60);
}

#[test]
fn addresses_of_others_can_be_neither_used_nor_claimed() {
    let mut fabric = fabric();
    fabric.join_qemu(QEMU);
    fabric.attach(ONE, &attachment("vm", 0)).unwrap();
    fabric.qemu_packet(QEMU, &packet([0xff; 6], GUEST_MAC));
    fabric.qemu_packet(QEMU, &packet([0xff; 6], GATEWAY_MAC));
    assert_eq!(fabric.dropped().forged, 2);
    assert_eq!(fabric.attach(TWO, &attachment("other", 0)), Err(Refusal::MacTaken));
    let group = Attachment { mac: [1, 0, 0, 0, 0, 0], ..attachment("other", 0) };
    assert_eq!(fabric.attach(TWO, &group), Err(Refusal::InvalidMac));
    let gateway = Attachment { mac: GATEWAY_MAC, ..attachment("other", 0) };
    assert_eq!(fabric.attach(TWO, &gateway), Err(Refusal::MacTaken));
    let events = fabric.settle(0).events;
    assert_eq!(events.iter().filter(|event| matches!(event, LanEvent::Refused { .. })).count(), 3);
}

#[test]
fn the_vm_that_was_away_longest_makes_room_and_attached_ones_never_do() {
    let mut fabric = fabric();
    let vm = |n: u64| {
        let [a, b, ..] = n.to_le_bytes();
        Attachment { mac: [2, 7, 0, 0, a, b], ..attachment(&format!("vm{n}"), 0) }
    };
    let full = VMS_MAX as u64;
    for n in 0..full {
        fabric.attach(ConnectionId(100 + n), &vm(n)).unwrap();
    }
    assert_eq!(fabric.attach(ONE, &vm(full)), Err(Refusal::Full(VMS_MAX)));
    fabric.leave(ConnectionId(107));
    fabric.leave(ConnectionId(105));
    fabric.attach(ONE, &vm(full)).unwrap();
    let events = fabric.settle(0).events;
    assert!(events.contains(&LanEvent::Forgotten { vm: "vm7".into() }), "{events:?}");
    assert_eq!(fabric.vms.len(), VMS_MAX);
}

#[test]
fn packets_that_are_too_short_or_too_long_for_the_lan_are_counted() {
    let mut fabric = fabric();
    fabric.join_qemu(QEMU);
    fabric.qemu_packet(QEMU, &[0; 13]);
    fabric.qemu_packet(QEMU, &[0; 1515]);
    assert_eq!(fabric.dropped().malformed, 2);
}
