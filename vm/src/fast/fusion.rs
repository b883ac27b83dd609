//! Handlers of single instructions and of pairs.
//!
//! Going from one handler to the next costs about as much as the work of a handler, so pairs of
//! common instructions have handlers of their own, which execute the instruction of their slot and
//! that of the next slot, from both slots. The second slot stays as it is: a jump to it goes there,
//! and if one of the two instructions can't be executed the hart leaves at its slot, so no pair is
//! a special case anywhere. Macros combine all first with all second instructions as types.

use super::access::{
    Byte, ByteUnsigned, Double, Half, HalfUnsigned, StoreByte, StoreDouble, StoreHalf, StoreWord, Word, WordUnsigned,
};
use super::dispatch::{go, x};
use super::ends::{
    Branch, End, Equal, FarBranch, FarJump, GreaterEqual, GreaterEqualUnsigned, Jump, JumpRegister, Less, LessUnsigned,
    NotEqual,
};
use super::env::Env;
use super::operations::{
    Add, AddW, And, Constant, Div, DivW, Divu, DivuW, Immediate, Move, Mul, MulW, Mulh, Mulhsu, Mulhu, NearPc, Nothing,
    Or, Registers, Rem, RemW, Remu, RemuW, Sll, SllW, Slt, Sltu, Sra, SraW, Srl, SrlW, Straight, Sub, SubW, Xor,
    execute, one,
};
use super::operations::{
    AddUw, Andn, Bclr, Bext, Binv, Bset, Clz, ClzW, Cpop, CpopW, Ctz, CtzW, Max, Maxu, Min, Minu, OrcB, Orn, Rev8, Rol,
    RolW, Ror, RorW, SextB, SextH, Sh1Add, Sh1AddUw, Sh2Add, Sh2AddUw, Sh3Add, Sh3AddUw, SllUw, Xnor, ZextH,
};
use super::slot::{Handler, Slot};
use crate::hart::Hart;

/// Executes the first of two instructions, and returns the second one's slot and the value of its
/// register `b`, which the first one has just set if they are `CHAINED`.
///
/// # Safety
/// As for handlers; the second slot is one of the same page, as the decoder has checked.
#[inline(always)]
unsafe fn lead<A: Straight, const CHAINED: bool, const LENGTH: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    env: *mut Env,
) -> Option<(*const Slot, u64)> {
    // SAFETY: by the caller's promise.
    unsafe {
        let b = x(hart, (*slot).b);
        let value = execute::<A>(hart, slot, env, b)?;
        let second = slot.add(LENGTH);
        Some((second, if CHAINED { value } else { x(hart, (*second).b) }))
    }
}

/// Executes two instructions.
unsafe fn two<A: Straight, B: Straight, const CHAINED: bool, const FIRST: usize, const SECOND: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as for handlers.
    unsafe {
        let Some((second, b)) = lead::<A, CHAINED, FIRST>(hart, slot, env) else {
            return A::miss(hart, slot, budget, env);
        };
        match execute::<B>(hart, second, env, b) {
            Some(_) => go(hart, second.add(SECOND), budget, env),
            None => B::miss(hart, second, budget, env),
        }
    }
}

/// Executes an instruction and the one that ends the run.
unsafe fn last_two<A: Straight, E: End, const CHAINED: bool, const FIRST: usize, const SECOND: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as for handlers.
    unsafe {
        match lead::<A, CHAINED, FIRST>(hart, slot, env) {
            Some((second, b)) => E::end::<SECOND>(hart, second, budget, env, b),
            None => A::miss(hart, slot, budget, env),
        }
    }
}

/// Executes the instruction that ends the run.
unsafe fn last<E: End, const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as for handlers.
    unsafe {
        let b = x(hart, (*slot).b);
        E::end::<LENGTH>(hart, slot, budget, env, b);
    }
}

/// The handler for an instruction of `length` halfwords.
const fn by_length(length: usize, short: Handler, long: Handler) -> Handler {
    if length == 1 { short } else { long }
}

/// The handler of two instructions of `$first` and `$second` halfwords.
macro_rules! by_lengths {
    ($first:expr, $second:expr, $handler:ident, $a:ty, $b:ty, $chained:ident) => {
        match ($first, $second) {
            (1, 1) => $handler::<$a, $b, $chained, 1, 1>,
            (1, _) => $handler::<$a, $b, $chained, 1, 2>,
            (_, 1) => $handler::<$a, $b, $chained, 2, 1>,
            (_, _) => $handler::<$a, $b, $chained, 2, 2>,
        }
    };
}

/// Defines the kinds of instructions that have handlers, the handler of each, and those of pairs.
macro_rules! kinds {
    (
        common { $($common:ident = $common_type:ty,)* }
        other { $($other:ident = $other_type:ty,)* }
        common_ends { $($end:ident = $end_type:ty,)* }
        other_ends { $($other_end:ident = $other_end_type:ty,)* }
    ) => {
        /// A kind of instruction that has handlers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind {
                $(#[doc = "Pairs with others."] $common,)*
            $(#[doc = "Stands alone."] $other,)*
            $(#[doc = "Ends a run, and may do so in a pair."] $end,)*
            $(#[doc = "Ends a run."] $other_end,)*
        }

        impl Kind {
            pub(super) const fn ends_run(self) -> bool {
                match self {
                    $(Self::$common)|* | $(Self::$other)|* => false,
                    $(Self::$end)|* | $(Self::$other_end)|* => true,
                }
            }

            /// The handler of such an instruction of `length` halfwords.
            pub(super) const fn handler(self, length: usize) -> Handler {
                match self {
                    $(Self::$common => by_length(length, one::<$common_type, 1>, one::<$common_type, 2>),)*
                    $(Self::$other => by_length(length, one::<$other_type, 1>, one::<$other_type, 2>),)*
                    $(Self::$end => by_length(length, last::<$end_type, 1>, last::<$end_type, 2>),)*
                    $(Self::$other_end => by_length(length, last::<$other_end_type, 1>, last::<$other_end_type, 2>),)*
                }
            }

            /// `true` if such an instruction sets its register `a`.
            const fn sets(self) -> bool {
                match self {
                    $(Self::$common => <$common_type>::SETS,)*
                    _ => false,
                }
            }

            const fn behind<A: Straight, const CHAINED: bool>(self, first: usize, length: usize) -> Option<Handler> {
                Some(match self {
                    $(Self::$common => by_lengths!(first, length, two, A, $common_type, CHAINED),)*
                    $(Self::$end => by_lengths!(first, length, last_two, A, $end_type, CHAINED),)*
                    _ => return None,
                })
            }

            const fn pair_at<const CHAINED: bool>(self, first: usize, second: Self, length: usize) -> Option<Handler> {
                match self {
                    $(Self::$common => second.behind::<$common_type, CHAINED>(first, length),)*
                    _ => None,
                }
            }
        }
    };
}

/// A decoded instruction: its kind, its length in halfwords, and its slot.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) kind: Kind,
    pub(super) length: usize,
    pub(super) slot: &'a Slot,
}

impl Kind {
    /// `true` if its operands, register `b` and the one in the immediate, may be exchanged.
    const fn commutes(self) -> bool {
        matches!(self, Self::Add | Self::And | Self::Or | Self::Xor | Self::AddWord | Self::Mul)
    }
}

/// The handler of two adjacent instructions, if they have one, and the second one's slot as that
/// handler needs it: what the first has computed is passed on as the value of register `b`.
pub(super) fn pair(first: Member<'_>, second: Member<'_>) -> Option<(Handler, Slot)> {
    let mut slot = *second.slot;
    let computed = first.slot.a;
    if first.kind.sets() && second.kind.commutes() && slot.b != computed && slot.second() == computed {
        slot.immediate = slot.b.into();
        slot.b = computed;
    }
    let handler = if first.kind.sets() && slot.b == computed {
        first.kind.pair_at::<true>(first.length, second.kind, second.length)
    } else {
        first.kind.pair_at::<false>(first.length, second.kind, second.length)
    };
    Some((handler?, slot))
}

kinds! {
    common {
    Constant = Constant, NearPc = NearPc, Move = Move, AddImmediate = Immediate<Add>, AndImmediate = Immediate<And>,
    ShiftLeft = Immediate<Sll>, ShiftRight = Immediate<Srl>, AddWordImmediate = Immediate<AddW>,
    Add = Registers<Add>, Sub = Registers<Sub>, And = Registers<And>, Or = Registers<Or>, Xor = Registers<Xor>,
    AddWord = Registers<AddW>, Mul = Registers<Mul>,
    LoadByteUnsigned = ByteUnsigned, LoadWord = Word, LoadDouble = Double,
    StoreByte = StoreByte, StoreWord = StoreWord, StoreDouble = StoreDouble,
    }
    other {
    Nothing = Nothing,
    LessImmediate = Immediate<Slt>, LessUnsignedImmediate = Immediate<Sltu>, XorImmediate = Immediate<Xor>,
    OrImmediate = Immediate<Or>, ShiftRightSigned = Immediate<Sra>, ShiftLeftWordImmediate = Immediate<SllW>,
    ShiftRightWordImmediate = Immediate<SrlW>, ShiftRightSignedWordImmediate = Immediate<SraW>,
    ShiftLeftRegister = Registers<Sll>, ShiftRightRegister = Registers<Srl>, ShiftRightSignedRegister = Registers<Sra>,
    Less = Registers<Slt>, LessUnsigned = Registers<Sltu>,
    SubWord = Registers<SubW>, ShiftLeftWord = Registers<SllW>, ShiftRightWord = Registers<SrlW>,
    ShiftRightSignedWord = Registers<SraW>,
    MulHigh = Registers<Mulh>, MulHighSignedUnsigned = Registers<Mulhsu>, MulHighUnsigned = Registers<Mulhu>,
    Div = Registers<Div>, DivUnsigned = Registers<Divu>, Rem = Registers<Rem>, RemUnsigned = Registers<Remu>,
    MulWord = Registers<MulW>, DivWord = Registers<DivW>, DivUnsignedWord = Registers<DivuW>,
    RemWord = Registers<RemW>, RemUnsignedWord = Registers<RemuW>,
    AddUnsignedWord = Registers<AddUw>, Shift1Add = Registers<Sh1Add>, Shift2Add = Registers<Sh2Add>,
    Shift3Add = Registers<Sh3Add>, Shift1AddUnsignedWord = Registers<Sh1AddUw>,
    Shift2AddUnsignedWord = Registers<Sh2AddUw>, Shift3AddUnsignedWord = Registers<Sh3AddUw>,
    AndNot = Registers<Andn>, OrNot = Registers<Orn>, XorNot = Registers<Xnor>, Max = Registers<Max>,
    MaxUnsigned = Registers<Maxu>, Min = Registers<Min>, MinUnsigned = Registers<Minu>,
    ExtendHalfUnsigned = Registers<ZextH>, RotateLeft = Registers<Rol>, RotateRight = Registers<Ror>,
    RotateLeftWord = Registers<RolW>, RotateRightWord = Registers<RorW>, BitClear = Registers<Bclr>,
    BitExtract = Registers<Bext>, BitInvert = Registers<Binv>, BitSet = Registers<Bset>,
    ShiftLeftUnsignedWord = Immediate<SllUw>, LeadingZeros = Immediate<Clz>, TrailingZeros = Immediate<Ctz>,
    CountOnes = Immediate<Cpop>, LeadingZerosWord = Immediate<ClzW>, TrailingZerosWord = Immediate<CtzW>,
    CountOnesWord = Immediate<CpopW>, ExtendByte = Immediate<SextB>, ExtendHalf = Immediate<SextH>,
    RotateRightImmediate = Immediate<Ror>, RotateRightWordImmediate = Immediate<RorW>,
    OrCombineBytes = Immediate<OrcB>, ReverseBytes = Immediate<Rev8>, BitClearImmediate = Immediate<Bclr>,
    BitExtractImmediate = Immediate<Bext>, BitInvertImmediate = Immediate<Binv>, BitSetImmediate = Immediate<Bset>,
    LoadByte = Byte, LoadHalf = Half, LoadHalfUnsigned = HalfUnsigned, LoadWordUnsigned = WordUnsigned,
    StoreHalf = StoreHalf,
    }
    common_ends {
    BranchEqual = Branch<Equal>, BranchNotEqual = Branch<NotEqual>, BranchLess = Branch<Less>,
    BranchGreaterEqual = Branch<GreaterEqual>, BranchLessUnsigned = Branch<LessUnsigned>,
    BranchGreaterEqualUnsigned = Branch<GreaterEqualUnsigned>, Jump = Jump<false>, Call = Jump<true>, JumpRegister = JumpRegister<false>,
    CallRegister = JumpRegister<true>,
    }
    other_ends {
    FarEqual = FarBranch<Equal>, FarNotEqual = FarBranch<NotEqual>, FarLess = FarBranch<Less>,
    FarGreaterEqual = FarBranch<GreaterEqual>, FarLessUnsigned = FarBranch<LessUnsigned>,
    FarGreaterEqualUnsigned = FarBranch<GreaterEqualUnsigned>,
    FarJump = FarJump<false>, FarCall = FarJump<true>,
    }
}
