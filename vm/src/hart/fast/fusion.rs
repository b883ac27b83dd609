//! Which handler executes an instruction, or two at once.
//!
//! Going from one handler to the next costs about as much as what it does, so pairs of common instructions have handlers of
//! their own, which execute the instruction of their slot and then that of the next one, from both slots. All slots stay what they are: a jump
//! to the second goes to its own slot, and if one of the two can't be executed the hart leaves at its slot, so that no pair is a
//! special case anywhere. The pairs are made of types by macros, all first ones with all second ones.

use super::access::{
    Byte, ByteUnsigned, Double, Half, HalfUnsigned, StoreByte, StoreDouble, StoreHalf, StoreWord, Word, WordUnsigned,
};
use super::dispatch::go;
use super::ends::{
    Branch, End, Equal, FarBranch, FarJump, GreaterEqual, GreaterEqualUnsigned, Jump, JumpRegister, Less, LessUnsigned,
    NotEqual,
};
use super::env::Env;
use super::operations::{
    Add, AddW, And, Constant, Div, DivW, Divu, DivuW, Immediate, Move, Mul, MulW, Mulh, Mulhsu, Mulhu, NearPc, Nothing,
    Or, Registers, Rem, RemW, Remu, RemuW, Sll, SllW, Slt, Sltu, Sra, SraW, Srl, SrlW, Straight, Sub, SubW, Xor, one,
};
use super::slot::{Handler, Slot};
use crate::hart::Hart;

/// Executes two instructions.
unsafe fn two<A: Straight, B: Straight, const FIRST: usize, const SECOND: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as for handlers; the second slot is one of the same page, as the decoder has seen.
    unsafe {
        if !A::execute(hart, slot, env) {
            return A::miss(hart, slot, budget, env);
        }
        let second = slot.add(FIRST);
        if !B::execute(hart, second, env) {
            return B::miss(hart, second, budget, env);
        }
        go(hart, second.add(SECOND), budget, env);
    }
}

/// Executes an instruction and the one that ends the run.
unsafe fn last_two<A: Straight, E: End, const FIRST: usize, const SECOND: usize>(
    hart: &mut Hart,
    slot: *const Slot,
    budget: i64,
    env: *mut Env,
) {
    // SAFETY: as in `two`.
    unsafe {
        if A::execute(hart, slot, env) {
            E::end::<SECOND>(hart, slot.add(FIRST), budget, env);
        } else {
            A::miss(hart, slot, budget, env);
        }
    }
}

/// Executes the instruction that ends the run.
unsafe fn last<E: End, const LENGTH: usize>(hart: &mut Hart, slot: *const Slot, budget: i64, env: *mut Env) {
    // SAFETY: as for handlers.
    unsafe { E::end::<LENGTH>(hart, slot, budget, env) }
}

/// The handler for an instruction of `length` halfwords.
const fn by_length(length: usize, short: Handler, long: Handler) -> Handler {
    if length == 1 { short } else { long }
}

/// Defines the kinds of instructions that decoded code knows, the handler of each, and those of pairs.
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

            /// The handler of such an instruction with one of `second` behind it, if there is one for both.
            pub(super) const fn pair(self, length: usize, second: Self, second_length: usize) -> Option<Handler> {
                match self {
                    $(Self::$common => second.behind::<$common_type>(length, second_length),)*
                    _ => None,
                }
            }

            const fn behind<A: Straight>(self, first: usize, length: usize) -> Option<Handler> {
                Some(match self {
                    $(Self::$common => by_length(
                        first,
                        by_length(length, two::<A, $common_type, 1, 1>, two::<A, $common_type, 1, 2>),
                        by_length(length, two::<A, $common_type, 2, 1>, two::<A, $common_type, 2, 2>),
                    ),)*
                    $(Self::$end => by_length(
                        first,
                        by_length(length, last_two::<A, $end_type, 1, 1>, last_two::<A, $end_type, 1, 2>),
                        by_length(length, last_two::<A, $end_type, 2, 1>, last_two::<A, $end_type, 2, 2>),
                    ),)*
                    _ => return None,
                })
            }
        }
    };
}

kinds! {
    common {
    Constant = Constant, Move = Move, AddImmediate = Immediate<Add>, AndImmediate = Immediate<And>,
    ShiftLeft = Immediate<Sll>, ShiftRight = Immediate<Srl>, AddWordImmediate = Immediate<AddW>,
    Add = Registers<Add>, Sub = Registers<Sub>, And = Registers<And>, Or = Registers<Or>, Xor = Registers<Xor>,
    AddWord = Registers<AddW>, Mul = Registers<Mul>,
    LoadByteUnsigned = ByteUnsigned, LoadWord = Word, LoadDouble = Double,
    StoreByte = StoreByte, StoreWord = StoreWord, StoreDouble = StoreDouble,
    }
    other {
    Nothing = Nothing, NearPc = NearPc,
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
    LoadByte = Byte, LoadHalf = Half, LoadHalfUnsigned = HalfUnsigned, LoadWordUnsigned = WordUnsigned,
    StoreHalf = StoreHalf,
    }
    common_ends {
    BranchEqual = Branch<Equal>, BranchNotEqual = Branch<NotEqual>, BranchLess = Branch<Less>,
    BranchGreaterEqual = Branch<GreaterEqual>, BranchLessUnsigned = Branch<LessUnsigned>,
    BranchGreaterEqualUnsigned = Branch<GreaterEqualUnsigned>, Jump = Jump<false>, JumpRegister = JumpRegister<false>,
    }
    other_ends {
    FarEqual = FarBranch<Equal>, FarNotEqual = FarBranch<NotEqual>, FarLess = FarBranch<Less>,
    FarGreaterEqual = FarBranch<GreaterEqual>, FarLessUnsigned = FarBranch<LessUnsigned>,
    FarGreaterEqualUnsigned = FarBranch<GreaterEqualUnsigned>,
    Call = Jump<true>, FarJump = FarJump<false>, FarCall = FarJump<true>, CallRegister = JumpRegister<true>,
    }
}
