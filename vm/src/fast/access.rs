//! Loads and stores of RAM by cached translations.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "narrowing and extending register values is what these instructions do; an offset in RAM is a usize"
)]

use super::dispatch::{extended, x};
use super::env::{Env, PAGE_MASK, TRANSLATIONS, Translation, translation_index};
use super::operations::Straight;
use super::refill;
use super::slot::Slot;
use crate::hart::Hart;

/// A load's width and what becomes of what it reads.
pub(super) trait Load {
    const BYTES: u64;
    /// # Safety
    /// `place` is in RAM, and aligned.
    unsafe fn read(place: *const u8) -> u64;
}

/// A store's width.
pub(super) trait Store {
    const BYTES: u64;
    /// # Safety
    /// `place` is in RAM, and aligned.
    unsafe fn write(place: *mut u8, value: u64);
}

macro_rules! access {
    ($($load:ident $type:ident $wide:ident),*; $($store:ident $stored:ident),*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $load;
            impl Load for $load {
                const BYTES: u64 = size_of::<$type>() as u64;
                #[inline(always)]
                unsafe fn read(place: *const u8) -> u64 {
                    // SAFETY: by the caller's promise.
                    let value = $type::from_le(unsafe { place.cast::<$type>().read() });
                    $wide::from(value) as u64
                }
            }
        )*
        $(
            #[derive(Debug)]
            pub(super) struct $store;
            impl Store for $store {
                const BYTES: u64 = size_of::<$stored>() as u64;
                #[inline(always)]
                unsafe fn write(place: *mut u8, value: u64) {
                    // SAFETY: by the caller's promise.
                    unsafe { place.cast::<$stored>().write((value as $stored).to_le()) }
                }
            }
        )*
    };
}

access!(
    Byte i8 i64, Half i16 i64, Word i32 i64, Double u64 u64, ByteUnsigned u8 u64, HalfUnsigned u16 u64, WordUnsigned u32 u64;
    StoreByte u8, StoreHalf u16, StoreWord u32, StoreDouble u64
);

/// Where in RAM the aligned `bytes` bytes at `address` are, if that is cached in `translations`.
#[inline(always)]
unsafe fn place(
    translations: *const [Translation; TRANSLATIONS],
    context: u64,
    address: u64,
    bytes: u64,
) -> Option<usize> {
    // SAFETY: the index is within the array, and the array in `Env`.
    let translation = unsafe { &(&*translations)[translation_index(address)] };
    // Low bits of a misaligned address make it another tag.
    if address & (PAGE_MASK | (bytes - 1)) | context == translation.tag {
        Some(address.wrapping_add(translation.delta) as usize)
    } else {
        None
    }
}

/// Where a load of `bytes` bytes reads, if it is quick.
#[inline(always)]
unsafe fn load_place(env: *mut Env, address: u64, bytes: u64) -> Option<*const u8> {
    // SAFETY: a cached translation leads to RAM.
    unsafe {
        let offset = place(&raw const (*env).loads, (*env).load_context, address, bytes)?;
        Some((*env).ram.add(offset).cast_const())
    }
}

/// Where a store of `bytes` bytes writes, if it is quick.
#[inline(always)]
unsafe fn store_place(env: *mut Env, address: u64, bytes: u64) -> Option<*mut u8> {
    // SAFETY: a cached translation leads to RAM.
    unsafe {
        let offset = place(&raw const (*env).stores, (*env).store_context, address, bytes)?;
        Some((*env).ram.add(offset))
    }
}

/// The address that a load or store computes from the value of its register `b`.
#[inline(always)]
unsafe fn effective(slot: *const Slot, b: u64) -> u64 {
    // SAFETY: as for handlers.
    unsafe { b.wrapping_add(extended((*slot).immediate)) }
}

macro_rules! access_kinds {
    ($($load:ident)*; $($store:ident)*) => {
        $(
            impl Straight for $load {
                const SETS: bool = true;

                #[inline(always)]
                unsafe fn execute(_: &mut Hart, slot: *const Slot, env: *mut Env, b: u64) -> Option<u64> {
                    // SAFETY: as for handlers, and `load_place` gives an aligned place in RAM.
                    unsafe { load_place(env, effective(slot, b), Self::BYTES).map(|place| Self::read(place)) }
                }

                #[inline(always)]
                unsafe fn miss(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
                    // SAFETY: as for handlers.
                    unsafe { refill::load(hart, slot, budget, env, effective(slot, x(hart, (*slot).b)), Self::BYTES) }
                }
            }
        )*
        $(
            impl Straight for $store {
                const SETS: bool = false;

                #[inline(always)]
                unsafe fn execute(hart: &mut Hart, slot: *const Slot, env: *mut Env, b: u64) -> Option<u64> {
                    // SAFETY: as for handlers, and `store_place` gives an aligned place in RAM.
                    unsafe {
                        let place = store_place(env, effective(slot, b), Self::BYTES)?;
                        Self::write(place, x(hart, (*slot).a));
                    }
                    Some(0)
                }

                #[inline(always)]
                unsafe fn miss(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
                    // SAFETY: as for handlers.
                    unsafe { refill::store(hart, slot, budget, env, effective(slot, x(hart, (*slot).b)), Self::BYTES) }
                }
            }
        )*
    };
}

access_kinds!(
    Byte Half Word Double ByteUnsigned HalfUnsigned WordUnsigned;
    StoreByte StoreHalf StoreWord StoreDouble
);
