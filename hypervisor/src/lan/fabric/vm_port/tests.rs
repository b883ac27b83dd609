//! The port of one VM.

use super::*;

fn attachment(generation: u64, node: u128, next_output: u64, last_packet: u64) -> Attachment {
    Attachment {
        vm: "echo".parse().unwrap(),
        node: NodeId(node),
        generation: Generation(generation),
        mac: [2, 0, 0, 0, 0, 1],
        next_output: OutputId(next_output),
        output_end: OutputId(u64::MAX),
        last_packet,
        booted: Generation(0),
    }
}

fn boot(generation: u64, node: u128) -> Attachment {
    Attachment { booted: Generation(generation), ..attachment(generation, node, 0, 0) }
}

/// A port that `attachment` has opened as connection 1.
fn opened(attachment: &Attachment) -> VmPort {
    let mut port = VmPort::adopt(attachment).unwrap();
    port.attach(ConnectionId(1), attachment).unwrap();
    port
}

fn attach(port: &mut VmPort, connection: u64, attachment: &Attachment) -> Attached {
    port.attach(ConnectionId(connection), attachment).unwrap()
}

fn packet(content: u8) -> Vec<u8> {
    vec![content; 60]
}

/// All packets that the port has to send: number, and the first byte.
fn pending(port: &mut VmPort) -> Vec<(u64, u8)> {
    let mut out = Vec::new();
    port.take_pending(&mut out, usize::MAX);
    let mut rest = &out[..];
    let mut packets = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let (message, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
        if let ServerMessage::Packet { number, packet } = ServerMessage::decode(message).unwrap() {
            packets.push((number, packet[0]));
        }
        rest = tail;
    }
    packets
}

#[test]
fn outputs_are_carried_once_and_ids_may_skip() {
    let mut port = opened(&boot(0, 1));
    let verdicts: Vec<_> = [0, 1, 1, 5, 4, 0, 6].map(|id| port.accept_output(OutputId(id))).into();
    assert_eq!(verdicts, [true, true, false, true, false, false, true]);
}

/// The next output that a Carried message of the port names, if there is one.
fn told(port: &mut VmPort, bytes: usize) -> Option<u64> {
    let mut out = Vec::new();
    port.take_pending(&mut out, bytes);
    // A message of a kind and one number.
    let message = out.last_chunk::<9>()?;
    match ServerMessage::decode(message) {
        Ok(ServerMessage::Carried { next_output }) => Some(next_output.0),
        Ok(_) | Err(_) => None,
    }
}

#[test]
fn outputs_carried_are_told_once_and_many_at_a_time() {
    let mut port = opened(&boot(0, 1));
    assert!(!port.owes_carried());
    (0..3).for_each(|id| _ = port.accept_output(OutputId(id)));
    assert!(port.owes_carried());
    assert_eq!(told(&mut port, 0), None, "no room");
    assert_eq!(told(&mut port, usize::MAX), Some(3));
    assert_eq!(told(&mut port, usize::MAX), None);
    port.accept_output(OutputId(1));
    assert!(!port.owes_carried(), "a duplicate changes nothing");
    port.accept_output(OutputId(5));
    port.deliver(&packet(1));
    assert_eq!(told(&mut port, usize::MAX), Some(6), "after the frames");
}

#[test]
fn what_the_old_connection_was_not_told_is_in_the_answer_to_the_new_one() {
    let mut port = opened(&boot(0, 1));
    (0..3).for_each(|id| _ = port.accept_output(OutputId(id)));
    port.detach(1);
    assert!(!port.owes_carried(), "nobody is there to be told");
    assert_eq!(attach(&mut port, 2, &attachment(0, 1, 0, 0)).next_output, OutputId(3));
    assert!(!port.owes_carried());
    assert_eq!(told(&mut port, usize::MAX), None);
}

#[test]
fn a_new_primary_may_send_again_what_the_old_one_had_sent() {
    let mut port = opened(&boot(0, 1));
    (0..10).for_each(|id| assert!(port.accept_output(OutputId(id))));
    let attached = attach(&mut port, 2, &attachment(1, 2, 7, 0));
    assert_eq!(attached.next_output, OutputId(10));
    let carried: Vec<_> = (7..13).filter(|&id| port.accept_output(OutputId(id))).collect();
    assert_eq!(carried, [10, 11, 12]);
}

#[test]
fn the_first_packet_has_number_one_and_each_comes_once() {
    let mut port = opened(&boot(0, 1));
    port.deliver(&packet(10));
    port.deliver(&packet(11));
    assert_eq!(pending(&mut port), [(1, 10), (2, 11)]);
    assert_eq!(pending(&mut port), []);
    port.deliver(&packet(12));
    assert_eq!(pending(&mut port), [(3, 12)]);
}

#[test]
fn only_the_first_of_many_packets_wakes_the_connection() {
    let mut port = opened(&boot(0, 1));
    assert!(port.deliver(&packet(1)).wake);
    assert!(!port.deliver(&packet(2)).wake);
    pending(&mut port);
    assert!(port.deliver(&packet(3)).wake);
    port.detach(1);
    pending(&mut port);
    assert!(!port.deliver(&packet(4)).wake, "nobody is there to be woken");
}

#[test]
fn packets_that_the_old_primary_had_not_logged_are_delivered_again() {
    let mut port = opened(&boot(0, 1));
    (1..=5).for_each(|n| _ = port.deliver(&packet(n)));
    assert_eq!(pending(&mut port).len(), 5);
    let attached = attach(&mut port, 2, &attachment(1, 2, 0, 3));
    assert_eq!(
        attached,
        Attached { first_packet: 4, next_output: OutputId(0), lost: 0, replaced: Some(ConnectionId(1)) }
    );
    assert_eq!(pending(&mut port), [(4, 4), (5, 5)]);
}

#[test]
fn packets_that_arrive_while_no_owner_is_attached_are_retained() {
    let mut port = opened(&boot(0, 1));
    port.deliver(&packet(1));
    pending(&mut port);
    port.detach(1);
    port.deliver(&packet(2));
    port.deliver(&packet(3));
    let attached = attach(&mut port, 2, &attachment(1, 2, 0, 1));
    assert_eq!(attached, Attached { first_packet: 2, next_output: OutputId(0), lost: 0, replaced: None });
    assert_eq!(pending(&mut port), [(2, 2), (3, 3)]);
}

#[test]
fn older_generations_and_other_nodes_are_refused() {
    let mut port = opened(&boot(4, 1));
    let older = port.attach(ConnectionId(2), &boot(3, 2));
    assert_eq!(older, Err(Refusal::OlderGeneration { asked: Generation(3), current: Generation(4) }));
    let other = port.attach(ConnectionId(2), &attachment(4, 2, 0, 0));
    assert_eq!(other, Err(Refusal::OtherNode(Generation(4))));
    assert_eq!(port.connection(), Some(ConnectionId(1)), "a refused attachment changes nothing");
    port.detach(1);
    assert_eq!(
        port.attach(ConnectionId(3), &boot(3, 2)),
        Err(Refusal::OlderGeneration { asked: Generation(3), current: Generation(4) })
    );
    assert_eq!(attach(&mut port, 4, &attachment(4, 1, 0, 0)).replaced, None);
}

#[test]
fn an_unknown_vm_brings_its_numbering_along() {
    let mut port = opened(&attachment(7, 1, 100, 41));
    assert!(!port.accept_output(OutputId(99)));
    assert!(port.accept_output(OutputId(100)));
    port.deliver(&packet(9));
    assert_eq!(pending(&mut port), [(42, 9)]);
}

#[test]
fn a_vm_that_knows_more_than_the_lan_never_gets_a_number_twice() {
    let mut port = opened(&boot(0, 1));
    port.deliver(&packet(1));
    let attached = attach(&mut port, 2, &attachment(1, 2, 0, 50));
    assert_eq!((attached.first_packet, attached.lost), (51, 0));
    port.deliver(&packet(2));
    assert_eq!(pending(&mut port), [(51, 2)]);
}

#[test]
fn a_boot_begins_a_new_run_but_only_with_a_new_generation() {
    let mut port = opened(&boot(0, 1));
    (0..9).for_each(|id| _ = port.accept_output(OutputId(id)));
    port.deliver(&packet(1));
    attach(&mut port, 2, &boot(0, 1));
    assert!(!port.accept_output(OutputId(0)), "the same generation attaching again is the same run");
    assert_eq!(pending(&mut port), [(1, 1)]);

    let attached = attach(&mut port, 3, &boot(1, 2));
    assert_eq!(
        attached,
        Attached { first_packet: 1, next_output: OutputId(0), lost: 0, replaced: Some(ConnectionId(2)) }
    );
    assert_eq!(pending(&mut port), []);
    assert!(port.accept_output(OutputId(0)));
}

#[test]
fn the_ring_is_bounded_in_packets_and_loss_is_counted() {
    let mut port = opened(&boot(0, 1));
    let overflowed: u64 = (0..KEPT_PACKETS_MAX + 10).map(|_| port.deliver(&packet(1)).overflowed).sum();
    assert_eq!(overflowed, 10);
    let packets = pending(&mut port);
    assert_eq!((packets.len(), packets[0].0), (KEPT_PACKETS_MAX, 11));
    assert_eq!(port.deliver(&packet(1)).overflowed, 0, "the oldest was sent already, so nothing is lost yet");
    let attached = attach(&mut port, 2, &attachment(1, 2, 0, 5));
    assert_eq!((attached.first_packet, attached.lost), (12, 6), "frames 6 to 11 are not kept any more");
}

#[test]
fn the_ring_is_bounded_in_bytes() {
    let mut port = opened(&boot(0, 1));
    let packet = vec![1; PACKET_BYTES_MAX];
    (0..KEPT_PACKETS_MAX).for_each(|_| _ = port.deliver(&packet));
    let kept = KEPT_BYTES_MAX.min(KEPT_PACKETS_MAX * (PACKET_BYTES_MAX + PACKET_OVERHEAD_BYTES));
    assert_eq!(port.kept.len(), kept / (PACKET_BYTES_MAX + PACKET_OVERHEAD_BYTES));
    assert!(port.kept_bytes <= KEPT_BYTES_MAX);
}

#[test]
fn a_batch_is_bounded_and_goes_on_where_it_ended() {
    let mut port = opened(&boot(0, 1));
    (1..=100).for_each(|n| _ = port.deliver(&packet(n)));
    let mut out = Vec::new();
    port.take_pending(&mut out, 1000);
    assert!((1000..1100).contains(&out.len()), "{}", out.len());
    let rest = pending(&mut port);
    assert!(rest[0].0 > 10 && rest.len() as u64 == 100 - rest[0].0 + 1);
}

#[test]
fn numbers_at_the_end_of_their_range_are_refused() {
    for last_packet in [u64::MAX, u64::MAX - 1, LAST_PACKET_MAX + 1] {
        let refusal = VmPort::adopt(&attachment(0, 1, 0, last_packet)).map(|_| ());
        assert_eq!(refusal, Err(Refusal::Number(last_packet)));
        let mut port = opened(&boot(0, 1));
        let refusal = port.attach(ConnectionId(2), &attachment(1, 1, 0, last_packet));
        assert_eq!(refusal, Err(Refusal::Number(last_packet)));
    }
    let mut port = opened(&attachment(0, 1, u64::MAX, LAST_PACKET_MAX));
    port.deliver(&packet(1));
    assert!(port.accept_output(OutputId(u64::MAX)));
}

#[test]
fn a_guest_that_went_on_from_an_older_log_is_heard_again() {
    let mut port = VmPort::adopt(&attachment(0, 1, 0, 0)).unwrap();
    attach(&mut port, 1, &attachment(0, 1, 0, 0));
    for id in 0..10 {
        assert!(port.accept_output(OutputId(id)));
    }
    // The resumed VM has made outputs up to 6, and doesn't know whether its predecessor has
    // sent the last two.
    let resumed = Attachment { output_end: OutputId(7), ..attachment(1, 2, 5, 0) };
    assert_eq!(attach(&mut port, 2, &resumed).next_output, OutputId(7));
    assert!(!port.accept_output(OutputId(6)) && port.accept_output(OutputId(7)));
}

/// The LAN was away while the VM ended and was started afresh. The first that it hears of the
/// new run is a backup that has gone live, with output ids that the LAN has carried for the run
/// before.
#[test]
fn another_run_of_the_guest_is_heard_though_its_boot_was_not() {
    let mut port = opened(&boot(0, 1));
    (0..10).for_each(|id| assert!(port.accept_output(OutputId(id))));
    (0..3).for_each(|content| _ = port.deliver(&packet(content)));
    port.detach(1);
    let live = Attachment { booted: Generation(1), output_end: OutputId(20), ..attachment(2, 3, 4, 1) };
    assert_eq!(
        attach(&mut port, 2, &live),
        Attached { first_packet: 2, next_output: OutputId(4), lost: 0, replaced: None }
    );
    assert!((4..20).all(|id| port.accept_output(OutputId(id))));
    assert_eq!(pending(&mut port), [], "the frames were for the guest before");
    // Its next owner goes on with the same run.
    assert_eq!(attach(&mut port, 3, &Attachment { generation: Generation(3), ..live }).next_output, OutputId(20));
}

#[test]
fn an_attachment_of_the_same_life_that_comes_late_makes_nothing_be_carried_again() {
    let mut port = VmPort::adopt(&attachment(0, 1, 0, 0)).unwrap();
    attach(&mut port, 1, &attachment(0, 1, 0, 0));
    for id in 0..10 {
        assert!(port.accept_output(OutputId(id)));
    }
    let late = Attachment { output_end: OutputId(7), ..attachment(0, 1, 5, 0) };
    assert_eq!(attach(&mut port, 2, &late).next_output, OutputId(10));
    assert!(!port.accept_output(OutputId(9)));
}
