//! A lock service on UDP port 7; prints every few seconds what it has, if that has changed.
#![no_std]
#![no_main]

use guest_programs::network::ADDRESS;
use guest_programs::platform::{self, Boot};
use guest_programs::println;
use guest_programs::rpc_server::{PORT, RpcServer};
use services::lock::Locks;
use smoltcp::time::{Duration, Instant};

guest_programs::entry!(main);

const REPORT_INTERVAL: Duration = Duration::from_secs(5);

fn main(boot: &Boot) -> ! {
    let mut next_report = None;
    let mut told = 0;
    platform::run(
        boot,
        |sockets| RpcServer::new(sockets, Locks::default()),
        |now: Instant, rpc| {
            let Some(due) = next_report else {
                println!("lock: listening on {ADDRESS}:{PORT} (udp)");
                next_report = Some(now + REPORT_INTERVAL);
                return false;
            };
            if now >= due && rpc.datagrams() != told {
                told = rpc.datagrams();
                let server = rpc.server();
                println!(
                    "lock: locks held: {}, sessions: {}, datagrams: {}",
                    server.service().held(),
                    server.sessions(),
                    told
                );
                next_report = Some(now + REPORT_INTERVAL);
            }
            false
        },
    )
}
