//! Checks the machine, prints the results, and powers off, with failure if a check failed.
#![no_std]
#![no_main]

use guest_programs::platform::Boot;
use guest_programs::platform::power::{self, Outcome};
use guest_programs::suite;

guest_programs::entry!(main);

fn main(_boot: &Boot) -> ! {
    power::power_off(if suite::run() { Outcome::Success } else { Outcome::Failure })
}
