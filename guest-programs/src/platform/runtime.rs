//! The main loop of a guest with a network.

use super::{Boot, Clock, Nic, plic};
use crate::network::{Service, Stack};
use riscv::interrupt;
use riscv::register::time;
use smoltcp::iface::SocketSet;
use smoltcp::time::Instant;

/// Serves the network for ever; `build` adds the service's sockets.
///
/// Whenever there is nothing to do for the network, `idle` is called with the time (at most one tick late). If it
/// returns `true` it has computed something and wants to go on; with `false` the hart sleeps until an interrupt.
///
/// # Panics
/// If the device tree tells of no clock, interrupt controller or network device.
pub fn run<S: Service>(
    boot: &Boot,
    build: impl FnOnce(&mut SocketSet<'static>) -> S,
    mut idle: impl FnMut(Instant, &mut S) -> bool,
) -> ! {
    let tree = &boot.device_tree;
    let mut clock = Clock::start(tree.timebase_hz().expect("the device tree tells the clock's frequency"));
    let mut nic = Nic::find(tree).expect("there is a virtio-net device");
    let controller = tree.interrupt_controller().expect("there is a PLIC");
    // SAFETY: the device tree says that it is a PLIC, and nobody else uses it.
    unsafe { plic::enable(controller.registers, boot.hart_id, nic.interrupt()) };

    let random_seed = tree.random_seed().unwrap_or_else(time::read64);
    let mac = nic.mac_address();
    let mut stack = Stack::new(&mut nic, mac, random_seed, clock.read());
    let mut service = build(stack.sockets_mut());
    let mut next_poll = Some(Instant::ZERO);
    // SAFETY: the handlers of the interrupts enabled above are in place.
    unsafe { interrupt::enable() };
    loop {
        if plic::has_claimed() {
            // Acknowledged before the queues are looked at: whatever comes after that interrupts again.
            nic.acknowledge_interrupt();
            plic::complete();
        }
        if is_due(next_poll, &mut clock) || nic.has_frame() {
            nic.want_interrupts(false);
            next_poll = stack.poll(clock.read(), &mut nic, &mut service);
            nic.want_interrupts(true);
        } else if !idle(clock.estimate(), &mut service) {
            interrupt::free(|| {
                // Looked at again with interrupts off: one that came in between has set what is seen here, and one that
                // comes from here on stays pending and ends the wait.
                if !plic::has_claimed() && !nic.has_frame() && !is_due(next_poll, &mut clock) {
                    riscv::asm::wfi();
                }
            });
        }
    }
}

fn is_due(next_poll: Option<Instant>, clock: &mut Clock) -> bool {
    next_poll.is_some_and(|next_poll| next_poll <= clock.estimate())
}
