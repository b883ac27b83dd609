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

/// A load instruction: its width, and how it extends the value.
pub(super) trait Load {
    const BYTES: u64;
    /// # Safety
    /// `host` points into RAM, and is aligned.
    unsafe fn read(host: *const u8) -> u64;
}

/// A store instruction: its width.
pub(super) trait Store {
    const BYTES: u64;
    /// # Safety
    /// `host` points into RAM, and is aligned.
    unsafe fn write(host: *mut u8, value: u64);
}

macro_rules! access {
    ($($load:ident $type:ident $wide:ident),*; $($store:ident $stored:ident),*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $load;
            impl Load for $load {
                const BYTES: u64 = size_of::<$type>() as u64;
                #[inline(always)]
                unsafe fn read(host: *const u8) -> u64 {
                    // SAFETY: by the caller's promise.
                    let value = $type::from_le(unsafe { host.cast::<$type>().read() });
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
                unsafe fn write(host: *mut u8, value: u64) {
                    // SAFETY: by the caller's promise.
                    unsafe { host.cast::<$stored>().write((value as $stored).to_le()) }
                }
            }
        )*
    };
}

access!(
    Byte i8 i64, Half i16 i64, Word i32 i64, Double u64 u64, ByteUnsigned u8 u64, HalfUnsigned u16 u64, WordUnsigned u32 u64;
    StoreByte u8, StoreHalf u16, StoreWord u32, StoreDouble u64
);

/// The offset in RAM of the aligned `bytes` bytes at `address`; `None` if `translations` doesn't
/// have it.
#[inline(always)]
unsafe fn ram_offset(
    translations: *const [Translation; TRANSLATIONS],
    context: u64,
    address: u64,
    bytes: u64,
) -> Option<usize> {
    // SAFETY: the index is within the array, and the array in `Env`.
    let translation = unsafe { &(&*translations)[translation_index(address)] };
    // A misaligned address keeps low bits, so it matches no tag.
    if address & (PAGE_MASK | (bytes - 1)) | context == translation.tag {
        Some(address.wrapping_add(translation.delta) as usize)
    } else {
        None
    }
}

/// A pointer to what a load of `bytes` bytes reads; `None` if its translation isn't cached.
#[inline(always)]
unsafe fn load_pointer(env: *mut Env, address: u64, bytes: u64) -> Option<*const u8> {
    // SAFETY: a cached translation leads to RAM.
    unsafe {
        let offset = ram_offset(&raw const (*env).loads, (*env).load_context, address, bytes)?;
        Some((*env).ram.add(offset).cast_const())
    }
}

/// A pointer to what a store of `bytes` bytes writes; `None` if its translation isn't cached.
#[inline(always)]
unsafe fn store_pointer(env: *mut Env, address: u64, bytes: u64) -> Option<*mut u8> {
    // SAFETY: a cached translation leads to RAM.
    unsafe {
        let offset = ram_offset(&raw const (*env).stores, (*env).store_context, address, bytes)?;
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
                    // SAFETY: as for handlers; the pointer is aligned and into RAM.
                    unsafe { load_pointer(env, effective(slot, b), Self::BYTES).map(|host| Self::read(host)) }
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
                    // SAFETY: as for handlers; the pointer is aligned and into RAM.
                    unsafe {
                        let host = store_pointer(env, effective(slot, b), Self::BYTES)?;
                        Self::write(host, x(hart, (*slot).a));
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
