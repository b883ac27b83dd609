//! Counts for ever, prints the count every second, and answers datagrams to UDP port 7 with it.
#![no_std]
#![no_main]

use guest_programs::counter::Counter;
use guest_programs::platform::{self, Boot};
use guest_programs::println;
use smoltcp::time::{Duration, Instant};

guest_programs::entry!(main);

const REPORT_INTERVAL: Duration = Duration::from_secs(1);

fn main(boot: &Boot) -> ! {
    let mut next_report = Instant::ZERO;
    platform::run(boot, Counter::new, |now, counter| {
        if now >= next_report {
            println!("counter: {}", counter.text());
            next_report = now + REPORT_INTERVAL;
        }
        counter.advance();
        true
    })
}
