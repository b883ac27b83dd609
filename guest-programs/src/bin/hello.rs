//! Prints a few lines and powers off.
#![no_std]
#![no_main]

use guest_programs::platform::Boot;
use guest_programs::platform::power::{self, Outcome};
use guest_programs::println;

guest_programs::entry!(main);

fn main(boot: &Boot) -> ! {
    println!("hello from the guest");
    println!("hart {}, {:?}", boot.hart_id, boot.device_tree.boot_arguments());
    for number in [1_u64, 10, 20, 50] {
        println!("{number}! mod 2^64 = {}", (1..=number).fold(1, u64::wrapping_mul));
    }
    println!("goodbye");
    power::power_off(Outcome::Success)
}
