//! From the firmware's jump to the guest's main function.

use super::{DeviceTree, heap, power, trap};
use crate::println;
use core::arch::global_asm;
use core::panic::PanicInfo;

/// What the firmware passes to a guest at its start.
#[derive(Debug)]
pub struct Boot {
    /// The id of the hart that runs the guest.
    pub hart_id: usize,
    /// The description of the machine.
    pub device_tree: DeviceTree,
}

/// Declares the guest's main function: `fn(&Boot) -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(boot: &$crate::platform::Boot) -> ! {
            let main: fn(&$crate::platform::Boot) -> ! = $main;
            main(boot)
        }
    };
}

unsafe extern "Rust" {
    fn guest_main(boot: &Boot) -> !;
}

// a0 (hart id) and a1 (device tree) are left unchanged: they are the arguments of `start`.
global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".global _start",
    "_start:",
    "    .option push",
    "    .option norelax",
    "    la gp, __global_pointer",
    "    .option pop",
    "    csrw sie, zero",
    "    la sp, __stack_top",
    "    la t0, __bss_start",
    "    la t1, __bss_end",
    "1:  bgeu t0, t1, 2f",
    "    sd zero, 0(t0)",
    "    addi t0, t0, 8",
    "    j 1b",
    "2:  tail {start}",
    ".popsection",
    start = sym start,
);

extern "C" fn start(hart_id: usize, device_tree: *const u8) -> ! {
    trap::install();
    heap::init();
    // SAFETY: the firmware passes the address of a device tree in a1 (RISC-V boot protocol), and
    // nothing overwrites it: it lies outside the image, which includes stack and heap.
    let device_tree = unsafe { DeviceTree::from_ptr(device_tree) };
    // SAFETY: `entry!` defines the function with this signature.
    unsafe { guest_main(&Boot { hart_id, device_tree }) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("guest {info}");
    power::power_off(power::Outcome::Failure)
}
