//! The inbox as an event source: what waits for the guest, and what doesn't.

use ft::event_source::EventSource;
use ft::guest_clock::GuestClock;
use hypervisor::node::io::inbox::HostEventSource;
use hypervisor::node::io::lan::GuestDelivery;
use hypervisor::os::clock;
use hypervisor::program::guest::Guest;
use std::thread;
use std::time::Duration;
use vm::{Event, Machine, MachineConfig};

/// Bounds every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine at its reset: its console takes input, and its network device has no driver yet.
fn machine() -> Machine {
    let machine = Machine::new(&MachineConfig::default(), &Guest::load("hello").unwrap().image).unwrap();
    assert!(!machine.can_receive_packet() && machine.console_room() > 0);
    machine
}

#[test]
fn packets_that_the_guest_cannot_take_neither_keep_it_awake_nor_hold_up_its_console() {
    let machine = machine();
    let (mut source, sender) = HostEventSource::new(GuestClock::standing(0)).unwrap();
    let network = {
        let sender = sender.clone();
        // Many more than the inbox holds, so this waits until the source is dropped.
        thread::spawn(move || {
            (1..=10_000)
                .take_while(|number| sender.deliver_packet(*number, vec![0; 60], PATIENCE) == GuestDelivery::Taken)
                .count()
        })
    };
    assert!(sender.send_console(b"ls\n".to_vec()));
    assert!(source.has_input(&machine));
    assert_eq!(source.poll(&machine), Some(Event::ConsoleInput { bytes: b"ls\n".to_vec() }));
    assert_eq!(source.poll(&machine), None);
    assert!(!source.has_input(&machine), "a guest that waits for its console must not spin because of its network");
    drop(source);
    assert!(network.join().unwrap() < 10_000, "not without bound");
}

#[test]
fn console_input_beyond_the_machines_room_waits_for_it_in_order() {
    let machine = machine();
    let (mut source, sender) = HostEventSource::new(GuestClock::standing(0)).unwrap();
    let text: Vec<u8> = (0..2000_u32).map(|at| at.to_le_bytes()[0]).collect();
    for piece in text.chunks(700) {
        assert!(sender.send_console(piece.to_vec()));
    }
    // No event is applied, so the room stays the same.
    let mut found = Vec::new();
    while let Some(Event::ConsoleInput { bytes }) = source.poll(&machine) {
        assert!(!bytes.is_empty() && bytes.len() <= machine.console_room());
        found.extend(bytes);
    }
    assert_eq!(found, text);
    assert!(!source.has_input(&machine));
}

#[test]
fn a_clock_taken_over_goes_on_from_where_it_was_and_saturates() {
    let (mut source, _sender) = HostEventSource::new(GuestClock::standing(1_000_000)).unwrap();
    source.set_clock_running(true);
    let first = source.ticks();
    assert!(first >= 1_000_000);
    assert!(source.ticks() >= first);
    let (mut source, _sender) = HostEventSource::new(GuestClock::standing(u64::MAX)).unwrap();
    source.set_clock_running(true);
    assert_eq!(source.ticks(), u64::MAX);
}

/// A stopped guest takes neither the input nor the due timer: its vCPU thread would wake again and
/// again.
#[test]
fn a_guest_that_may_not_run_is_not_woken_by_input_or_timers() {
    let machine = machine();
    let (source, sender) = HostEventSource::new(GuestClock::standing(0)).unwrap();
    assert!(sender.send_console(b"ls\n".to_vec()));
    let sleeps_ns = 30_000_000;
    for _ in 0..3 {
        let began_ns = clock::now_ns();
        source.sleep(None, None, began_ns + sleeps_ns);
        assert!(clock::now_ns() - began_ns >= sleeps_ns, "it comes back at once");
        // Input that arrives meanwhile doesn't wake it either.
        assert!(sender.send_console(b"x".to_vec()));
    }
    // A guest that may run takes the input at once, and a wake ends the sleep in both cases.
    source.sleep(Some(&machine), None, u64::MAX);
    sender.wake();
    source.sleep(None, None, u64::MAX);
}
