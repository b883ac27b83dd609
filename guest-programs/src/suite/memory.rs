//! Loads and stores of all widths at all alignments, also across a page boundary.

use super::checker::{Checker, Random};
use alloc::boxed::Box;
use core::arch::asm;

const SEED: u64 = 0x5eed_0002;
const PAGE_BYTES: usize = 4096;
const WINDOW_BYTES: usize = 32;

#[repr(align(4096))]
struct Pages([u8; 2 * PAGE_BYTES]);

macro_rules! load {
    ($instruction:literal) => {
        ($instruction, |address| {
            let value: u64;
            // SAFETY: the caller passes the address of eight bytes that it owns.
            unsafe { asm!(concat!($instruction, " {}, 0({})"), out(reg) value, in(reg) address, options(nostack, readonly)) };
            value
        })
    };
}

macro_rules! store {
    ($instruction:literal) => {
        ($instruction, |address, value| {
            // SAFETY: the caller passes the address of eight bytes that it owns.
            unsafe { asm!(concat!($instruction, " {}, 0({})"), in(reg) value, in(reg) address, options(nostack)) };
        })
    };
}

type Load = (&'static str, fn(*const u8) -> u64);
type Store = (&'static str, fn(*mut u8, u64));

/// Signed and unsigned load and store of 1, 2, 4 and 8 bytes.
const LOADS: [(Load, Load); 4] =
    [(load!("lb"), load!("lbu")), (load!("lh"), load!("lhu")), (load!("lw"), load!("lwu")), (load!("ld"), load!("ld"))];
const STORES: [Store; 4] = [store!("sb"), store!("sh"), store!("sw"), store!("sd")];

pub(super) fn run(checker: &mut Checker) {
    let mut pages = Box::new(Pages([0; 2 * PAGE_BYTES]));
    let mut random = Random::new(SEED);
    for start in [0, PAGE_BYTES - WINDOW_BYTES / 2] {
        let window = &mut pages.0[start..start + WINDOW_BYTES];
        for offset in 0..WINDOW_BYTES - 8 {
            for byte in window.iter_mut() {
                *byte = random.next().to_le_bytes()[0];
            }
            check_loads(checker, window, offset);
            check_stores(checker, window, offset, random.next());
        }
    }
}

fn check_loads(checker: &mut Checker, window: &[u8], offset: usize) {
    for (width_log2, ((signed_name, signed), (unsigned_name, unsigned))) in LOADS.into_iter().enumerate() {
        let width = 1 << width_log2;
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&window[offset..offset + width]);
        let value = u64::from_le_bytes(bytes);
        let unused_bits = 64 - 8 * width;
        let sign_extended = ((value << unused_bits).cast_signed() >> unused_bits).cast_unsigned();
        let address = window[offset..].as_ptr();
        checker.check(format_args!("{signed_name} at offset {offset}"), signed(address), sign_extended);
        checker.check(format_args!("{unsigned_name} at offset {offset}"), unsigned(address), value);
    }
}

fn check_stores(checker: &mut Checker, window: &mut [u8], offset: usize, value: u64) {
    for (width_log2, (name, store)) in STORES.into_iter().enumerate() {
        let width = 1 << width_log2;
        let mut expected = [0; WINDOW_BYTES];
        expected.copy_from_slice(window);
        expected[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
        store(window[offset..].as_mut_ptr(), value);
        checker.check(format_args!("{name} at offset {offset}"), u64::from(*window == expected), 1);
    }
}
