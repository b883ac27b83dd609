//! Dirties memory faster than it can be copied: it writes one word to each page of as many MiB as
//! its boot arguments say (`mib=512`), over and over. Every second it prints the number of pages
//! and the longest time between two clock reads, which shows how long copying stops it.
#![no_std]
#![no_main]

use guest_programs::platform::Boot;
use guest_programs::platform::power::{self, Outcome};
use guest_programs::println;
use riscv::register::time;

guest_programs::entry!(main);

/// Address of the first page written: after the program and its heap. The machine needs 32 MiB more
/// RAM than are written.
const FIRST_PAGE: usize = 0x8180_0000;
const PAGE_BYTES: usize = 4096;
const PAGES_PER_MIB: usize = (1 << 20) / PAGE_BYTES;

/// Pages written between two clock reads.
const PAGES_PER_LOOK: usize = 64;

fn main(boot: &Boot) -> ! {
    let mut words = boot.device_tree.command_line().split_whitespace();
    let mib = words.find_map(|word| word.strip_prefix("mib=")?.parse::<usize>().ok());
    let (Some(mib @ 1..=4096), Some(timebase_hz)) = (mib, boot.device_tree.timebase_hz()) else {
        println!("rewrite: the boot arguments are mib=1 to mib=4096");
        power::power_off(Outcome::Failure)
    };
    let ticks_per_us = (timebase_hz / 1_000_000).max(1);
    let mut last = time::read64();
    let mut reported = last;
    let (mut pages, mut longest) = (0_u64, 0);
    for round in 1.. {
        for page in 0..mib * PAGES_PER_MIB {
            // SAFETY: nothing else uses this memory; in a machine with too little RAM it is a fault
            // that the guest reports.
            unsafe { ((FIRST_PAGE + page * PAGE_BYTES) as *mut u64).write_volatile(round) };
            if page % PAGES_PER_LOOK == 0 {
                let now = time::read64();
                longest = longest.max(now - last);
                last = now;
            }
        }
        pages += (mib * PAGES_PER_MIB) as u64;
        if last - reported >= timebase_hz {
            let per_second = pages * timebase_hz / (last - reported);
            println!("rewrite: {per_second} pages a second, at most {} us between two looks", longest / ticks_per_us);
            (reported, pages, longest) = (last, 0, 0);
            last = time::read64();
        }
    }
    unreachable!("a round for every value of a u64")
}
