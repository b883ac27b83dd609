//! Runs the benchmark that its boot arguments describe, prints the checksum, and powers off.
#![no_std]
#![no_main]

use guest_programs::bench::Task;
use guest_programs::platform::power::{self, Outcome};
use guest_programs::platform::{Boot, paging};
use guest_programs::println;

guest_programs::entry!(main);

fn main(boot: &Boot) -> ! {
    let Some(task) = Task::parse(boot.device_tree.command_line()) else {
        println!("bench: the boot arguments are program=sieve|calls|bytecode|hash size=N [paged]");
        power::power_off(Outcome::Failure)
    };
    if task.paged && !paging::start(boot) {
        println!("bench: the hart has no Sv39");
        power::power_off(Outcome::Failure)
    }
    println!("bench: {} {} checksum {:016x}", task.program.name(), task.size, task.program.run(task.size));
    power::power_off(Outcome::Success)
}
