//! What executes decoded instructions: one function per operation and length.
//!
//! A handler ends with a call of the next slot's handler. Optimised builds make a jump of it, because all handlers have the
//! same signature and nothing to do afterwards; so the host predicts a jump per instruction, and not one for all. In builds
//! that aren't optimised (and under Miri) such calls would pile up: there a handler gives the next slot back, and a loop
//! calls its handler ([`TAIL_CALLS`]).
//!
//! Only what is common is done here. Everything else, and everything that may trap or reach a device, leaves decoded code
//! for the plain interpreter, which does that one step ([`Left::Step`]). So there is no second implementation of anything
//! that is hard.

use super::env::{Env, Left, PAGE_MASK, Translation, fetch_index, translation_index};
use super::slot::{Handler, Slot};
use super::{code, refill};
use crate::hart::Hart;
use crate::hart::alu::{self, AluOp};
use crate::hart::decode::Condition;
use crate::hart::execute;

/// Whether handlers call each other.
const TAIL_CALLS: bool = !cfg!(any(miri, debug_assertions));

/// Executes `slot`.
#[inline(always)]
pub(super) unsafe fn go(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: the caller passes on what it was called with, and a slot of the page of code that is executed.
    unsafe {
        if TAIL_CALLS {
            ((*slot).handler)(hart, slot, budget, env);
        } else {
            (*env).next = slot;
            (*env).budget = budget;
        }
    }
}

/// Begins a run at `slot`: pays for it, or leaves.
#[inline(always)]
pub(super) unsafe fn enter(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe {
        let left = budget - i64::from((*slot).run);
        if left < 0 { leave(hart, slot, budget, env, Left::Budget) } else { go(hart, slot, left, env) }
    }
}

/// Leaves before the run at `slot`, which has not been paid for.
#[cold]
#[inline(never)]
unsafe fn leave(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env, left: Left) {
    // SAFETY: as in `go`.
    unsafe {
        hart.pc = address_of(slot, env);
        (*env).leave(budget, left);
    }
}

/// Leaves in the middle of a run, before the instruction at `slot`, which is for the plain interpreter.
#[cold]
#[inline(never)]
pub(super) unsafe fn step(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe { leave(hart, slot, budget + i64::from((*slot).run), env, Left::Step) }
}

/// Leaves in the middle of a run, before the instruction at `slot`: what is cached is no longer right.
#[cold]
#[inline(never)]
pub(super) unsafe fn look_up(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe { leave(hart, slot, budget + i64::from((*slot).run), env, Left::Fetch) }
}

/// Goes on at `target`, which is even.
#[inline(always)]
unsafe fn go_to(hart: &mut Hart, target: u64, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`; the offset in the page is that of a slot.
    unsafe {
        let page_address = target & PAGE_MASK;
        if page_address != (*env).page_address {
            let fetch = &(&(*env).fetches)[fetch_index(target)];
            let Some(page) = fetch.page.filter(|_| fetch.tag == page_address | (*env).fetch_context) else {
                return lost(hart, target, budget, env);
            };
            (*env).page_address = page_address;
            (*env).page_slots = page.slot(0);
        }
        enter(hart, (*env).page_slots.add((target & !PAGE_MASK) as usize / 2), budget, env)
    }
}

/// Leaves because nobody knows where the code at `target` is.
#[cold]
#[inline(never)]
unsafe fn lost(hart: &mut Hart, target: u64, budget: i64, env: *mut Env) {
    hart.pc = target;
    // SAFETY: as in `go`.
    unsafe { (*env).leave(budget, Left::Fetch) }
}

/// The address of the instruction at `slot`.
#[inline(always)]
unsafe fn address_of(slot: *const Slot, env: *const Env) -> u64 {
    // SAFETY: as in `go`.
    unsafe { (*env).page_address.wrapping_add(offset_of(slot, env)) }
}

/// Where in its page the instruction at `slot` is.
#[inline(always)]
unsafe fn offset_of(slot: *const Slot, env: *const Env) -> u64 {
    // SAFETY: as in `go`.
    unsafe { (slot.addr() - (*env).page_slots.addr()) as u64 / (size_of::<Slot>() as u64 / 2) }
}

/// Register number `number`, which is that of a slot.
#[inline(always)]
unsafe fn x(hart: &Hart, number: u8) -> u64 {
    debug_assert!(number < 32, "a register number");
    // SAFETY: slots are made with register numbers below 32.
    unsafe { *hart.x.get_unchecked(usize::from(number)) }
}

/// Sets a register that isn't x0.
#[inline(always)]
unsafe fn set_x(hart: &mut Hart, number: u8, value: u64) {
    debug_assert!((1..32).contains(&number), "a register that can be written");
    // SAFETY: as in `x`.
    unsafe { *hart.x.get_unchecked_mut(usize::from(number)) = value }
}

#[inline(always)]
const fn extended(immediate: i32) -> u64 {
    (immediate as i64).cast_unsigned()
}

/// The slot is not decoded: decodes its run and begins it.
#[cold]
#[inline(never)]
pub(super) unsafe fn undecoded(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe {
        code::decode_run(env, offset_of(slot, env) as usize / 2);
        // Stores to this page have to be seen from now on.
        if (*(*env).bus).ram.watches_mut().has_news() {
            leave(hart, slot, budget, env, Left::Fetch)
        } else {
            enter(hart, slot, budget, env)
        }
    }
}

/// The run goes on in the next page.
#[cold]
pub(super) unsafe fn page_end(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as in `go`.
    unsafe { go_to(hart, address_of(slot, env), budget, env) }
}

/// An operation of two operands.
pub(super) trait Alu {
    const OP: AluOp;
}

/// When a branch is taken.
pub(super) trait Branch {
    const CONDITION: Condition;
}

macro_rules! marker {
    ($trait:ident, $constant:ident: $type:ident, $($name:ident)*) => {
        $(
            #[derive(Debug)]
            pub(super) struct $name;
            impl $trait for $name {
                const $constant: $type = $type::$name;
            }
        )*
    };
}

marker!(Alu, OP: AluOp, Add Sub Sll Slt Sltu Xor Srl Sra Or And AddW SubW SllW SrlW SraW
    Mul Mulh Mulhsu Mulhu Div Divu Rem Remu MulW DivW DivuW RemW RemuW);
marker!(Branch, CONDITION: Condition, Equal NotEqual Less GreaterEqual LessUnsigned GreaterEqualUnsigned);

/// Defines handlers of straight-line instructions, `LENGTH` halfwords long: what they do, and then the next slot.
macro_rules! straight {
    ($(#[$doc:meta])* $name:ident [$($generic:ident: $bound:ident)?] |$hart:ident, $slot:ident, $env:ident| $body:block) => {
        $(#[$doc])*
        pub(super) unsafe fn $name<$($generic: $bound,)? const LENGTH: usize>(
            $hart: &mut Hart, $slot: *const Slot, budget: i64, $env: *mut Env,
        ) {
            // SAFETY: as in `go`; the slot after an instruction is one of the same page, or its end.
            unsafe {
                $body
                go($hart, $slot.add(LENGTH), budget, $env)
            }
        }
    };
}

straight!(nothing [] |_hart, slot, env| {});

straight!(load_immediate [] |hart, slot, env| {
    set_x(hart, (*slot).a, extended((*slot).immediate));
});

straight!(add_to_pc [] |hart, slot, env| {
    // The offset in the page is in the immediate already.
    set_x(hart, (*slot).a, (*env).page_address.wrapping_add(extended((*slot).immediate)));
});

straight!(move_register [] |hart, slot, env| {
    set_x(hart, (*slot).a, x(hart, (*slot).b));
});

straight!(alu_immediate [O: Alu] |hart, slot, env| {
    set_x(hart, (*slot).a, alu::compute(O::OP, x(hart, (*slot).b), extended((*slot).immediate)));
});

straight!(alu_register [O: Alu] |hart, slot, env| {
    set_x(hart, (*slot).a, alu::compute(O::OP, x(hart, (*slot).b), x(hart, (*slot).immediate as u8)));
});

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
    translations: *const [Translation; super::env::TRANSLATIONS],
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
pub(super) unsafe fn load_place(env: *mut Env, address: u64, bytes: u64) -> Option<*const u8> {
    // SAFETY: a cached translation leads to RAM.
    unsafe {
        let offset = place(&raw const (*env).loads, (*env).load_context, address, bytes)?;
        Some((*env).ram.add(offset).cast_const())
    }
}

/// Where a store of `bytes` bytes writes, if it is quick.
#[inline(always)]
pub(super) unsafe fn store_place(env: *mut Env, address: u64, bytes: u64) -> Option<*mut u8> {
    // SAFETY: a cached translation leads to RAM.
    unsafe {
        let offset = place(&raw const (*env).stores, (*env).store_context, address, bytes)?;
        Some((*env).ram.add(offset))
    }
}

/// The address that a load or store computes.
#[inline(always)]
unsafe fn effective(hart: &Hart, slot: *const Slot) -> u64 {
    // SAFETY: as in `go`.
    unsafe { x(hart, (*slot).b).wrapping_add(extended((*slot).immediate)) }
}

pub(super) unsafe fn load<L: Load, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`, and `load_place` gives an aligned place in RAM.
    unsafe {
        let address = effective(hart, slot);
        let Some(place) = load_place(env, address, L::BYTES) else {
            return refill::load(hart, slot, budget, env, address, L::BYTES);
        };
        set_x(hart, (*slot).a, L::read(place));
        go(hart, slot.add(LENGTH), budget, env)
    }
}

pub(super) unsafe fn store<S: Store, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`, and `store_place` gives an aligned place in RAM.
    unsafe {
        let address = effective(hart, slot);
        let Some(place) = store_place(env, address, S::BYTES) else {
            return refill::store(hart, slot, budget, env, address, S::BYTES);
        };
        S::write(place, x(hart, (*slot).a));
        go(hart, slot.add(LENGTH), budget, env)
    }
}

/// A branch within the page: the immediate counts slots.
pub(super) unsafe fn branch<B: Branch, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`; the decoder has seen that the target is in the page.
    unsafe {
        if execute::holds(B::CONDITION, x(hart, (*slot).b), x(hart, (*slot).a)) {
            enter(hart, slot.offset((*slot).immediate as isize), budget, env)
        } else {
            enter(hart, slot.add(LENGTH), budget, env)
        }
    }
}

/// A branch to another page: the immediate counts bytes from the page's start.
pub(super) unsafe fn far_branch<B: Branch, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`.
    unsafe {
        if execute::holds(B::CONDITION, x(hart, (*slot).b), x(hart, (*slot).a)) {
            let target = (*env).page_address.wrapping_add(extended((*slot).immediate));
            go_to(hart, target, budget, env)
        } else {
            enter(hart, slot.add(LENGTH), budget, env)
        }
    }
}

/// A jump within the page: the immediate counts slots.
pub(super) unsafe fn jump<const LINK: bool, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`; the decoder has seen that the target is in the page.
    unsafe {
        if LINK {
            set_x(hart, (*slot).a, address_of(slot.add(LENGTH), env));
        }
        enter(hart, slot.offset((*slot).immediate as isize), budget, env)
    }
}

/// A jump to another page: the immediate counts bytes from the page's start.
pub(super) unsafe fn far_jump<const LINK: bool, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`.
    unsafe {
        let target = (*env).page_address.wrapping_add(extended((*slot).immediate));
        if LINK {
            set_x(hart, (*slot).a, address_of(slot.add(LENGTH), env));
        }
        go_to(hart, target, budget, env)
    }
}

/// A jump to where a register says.
pub(super) unsafe fn jump_register<const LINK: bool, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `go`.
    unsafe {
        let target = effective(hart, slot) & !1;
        if LINK {
            set_x(hart, (*slot).a, address_of(slot.add(LENGTH), env));
        }
        go_to(hart, target, budget, env)
    }
}

/// The handler of both lengths, by that of the instruction in halfwords.
pub(super) const fn by_length(length: usize, short: Handler, long: Handler) -> Handler {
    if length == 1 { short } else { long }
}
