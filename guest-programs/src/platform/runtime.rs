//! The main loop of a guest with a network device.

use super::{Boot, Clock, Nic, plic};
use crate::network::{Service, Stack};
use riscv::interrupt;
use riscv::register::time;
use smoltcp::iface::SocketSet;
use smoltcp::time::Instant;

/// A program with a network device.
pub trait Program {
    /// Called when a packet has arrived, or the time that it returned last has come. Returns when
    /// to call it again if no packet arrives before; `None` for not before a packet.
    fn poll(&mut self, clock: &mut Clock, nic: &mut Nic) -> Option<Instant>;

    /// Called when the network needs nothing; `now` is at most one tick late. Returns `true` to be
    /// called again; otherwise the hart sleeps until an interrupt.
    fn idle(&mut self, now: Instant) -> bool;
}

/// Runs the program that `build` returns, for ever.
///
/// # Panics
/// If the device tree has no clock, no interrupt controller or no network device.
pub fn run_program<P: Program>(boot: &Boot, build: impl FnOnce(&mut Clock, &mut Nic) -> P) -> ! {
    let tree = &boot.device_tree;
    let mut clock = Clock::start(tree.timebase_hz().expect("the device tree tells the clock's frequency"));
    let mut nic = Nic::find(tree).expect("there is a virtio-net device");
    let controller = tree.interrupt_controller().expect("there is a PLIC");
    // SAFETY: the device tree says that it is a PLIC, and no other code uses it.
    unsafe { plic::enable(controller.registers, boot.hart_id, nic.interrupt()) };
    let mut program = build(&mut clock, &mut nic);
    let mut next_poll = Some(Instant::ZERO);
    // SAFETY: the handlers of the interrupts enabled above are in place.
    unsafe { interrupt::enable() };
    loop {
        if plic::has_claimed() {
            // Acknowledged before the queues are read, so that a later packet interrupts again.
            nic.acknowledge_interrupt();
            plic::complete();
        }
        if is_due(next_poll, &mut clock) || nic.has_packet() {
            nic.want_interrupts(false);
            next_poll = program.poll(&mut clock, &mut nic);
            nic.want_interrupts(true);
        } else if !program.idle(clock.estimate()) {
            interrupt::free(|| {
                // Checked again with interrupts off: an earlier interrupt is seen here, and a later
                // one stays pending and ends the wait.
                if !plic::has_claimed() && !nic.has_packet() && !is_due(next_poll, &mut clock) {
                    riscv::asm::wfi();
                }
            });
        }
    }
}

/// Serves the network for ever; `build` adds the service's sockets.
///
/// `idle` is called like [`Program::idle`].
///
/// # Panics
/// Like [`run_program`].
pub fn run<S: Service>(
    boot: &Boot,
    build: impl FnOnce(&mut SocketSet<'static>) -> S,
    idle: impl FnMut(Instant, &mut S) -> bool,
) -> ! {
    let random_seed = boot.device_tree.random_seed().unwrap_or_else(time::read64);
    run_program(boot, |clock, nic| {
        let mac = nic.mac_address();
        let mut stack = Stack::new(nic, mac, random_seed, clock.read());
        let service = build(stack.sockets_mut());
        NetworkProgram { stack, service, idle }
    })
}

struct NetworkProgram<S, F> {
    stack: Stack,
    service: S,
    idle: F,
}

impl<S: Service, F: FnMut(Instant, &mut S) -> bool> Program for NetworkProgram<S, F> {
    fn poll(&mut self, clock: &mut Clock, nic: &mut Nic) -> Option<Instant> {
        self.stack.poll(clock.read(), nic, &mut self.service)
    }

    fn idle(&mut self, now: Instant) -> bool {
        (self.idle)(now, &mut self.service)
    }
}

fn is_due(next_poll: Option<Instant>, clock: &mut Clock) -> bool {
    next_poll.is_some_and(|next_poll| next_poll <= clock.estimate())
}
