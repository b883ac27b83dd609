//! Echo server on TCP and UDP port 7; with the boot argument `busy` it computes instead of
//! sleeping.
#![no_std]
#![no_main]

use guest_programs::echo::{EchoServer, PORT};
use guest_programs::network::ADDRESS;
use guest_programs::platform::{self, Boot};
use guest_programs::println;
use guest_programs::workload::Workload;

guest_programs::entry!(main);

fn main(boot: &Boot) -> ! {
    let mut workload = boot.device_tree.boot_arguments().busy.then(Workload::new);
    let mut announced = false;
    platform::run(
        boot,
        |sockets| EchoServer::new(sockets, |event| println!("echo: {event}")),
        |_, _| {
            if !announced {
                println!("echo: listening on {ADDRESS}:{PORT} (tcp, udp)");
                announced = true;
            }
            workload.as_mut().map(Workload::advance).is_some()
        },
    )
}
