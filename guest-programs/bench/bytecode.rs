//! The `bytecode` program: an interpreter of a small bytecode, and a quicksort in it.

use super::{Random, mix};
use alloc::{vec, vec::Vec};
use core::hint::black_box;

/// Words that one unit of work sorts.
const WORDS: usize = 512;
/// Words after them for return addresses and saved registers.
const STACK_WORDS: usize = 3 * WORDS;
const REGISTERS: usize = 8;

/// A register's number.
type Register = u8;
/// An index into the bytecode.
type Target = u8;

/// An instruction of the bytecode. All values are unsigned 64-bit words.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// Copies the second register to the first.
    Copy(Register, Register),
    /// Adds a constant to the second register and puts the sum into the first.
    Add(Register, Register, i8),
    /// Loads the first register from the memory word whose index is in the second.
    Load(Register, Register),
    /// Stores the first register to the memory word whose index is in the second.
    Store(Register, Register),
    /// Goes to the target if the first register is less than the second.
    JumpIfLess(Register, Register, Target),
    Jump(Target),
    /// Pushes the index of the next instruction and goes to the target.
    Call(Target),
    /// Pops the index of the next instruction; with nothing pushed the program ends.
    Return,
    Push(Register),
    Pop(Register),
}

/// The first word to sort, and one past the last.
const LOW: Register = 0;
const END: Register = 1;
const LAST: Register = 2;
const PIVOT: Register = 3;
/// Words before this one are less than the pivot.
const MIDDLE: Register = 4;
const AT: Register = 5;
const X: Register = 6;
const Y: Register = 7;

const SORT: Target = 0;
const PARTITION: Target = 3;
const LOOP: Target = 7;
const COMPARE: Target = 9;
const NEXT: Target = 15;
const RECURSE: Target = 17;

/// Quicksort with the last word as the pivot.
const QUICKSORT: [Op; 28] = [
    // SORT: nothing to do for less than two words.
    Op::Add(LAST, LOW, 1),
    Op::JumpIfLess(LAST, END, PARTITION),
    Op::Return,
    // PARTITION
    Op::Add(LAST, END, -1),
    Op::Load(PIVOT, LAST),
    Op::Copy(MIDDLE, LOW),
    Op::Copy(AT, LOW),
    // LOOP
    Op::JumpIfLess(AT, LAST, COMPARE),
    Op::Jump(RECURSE),
    // COMPARE: swaps a word that is less than the pivot with the middle one.
    Op::Load(X, AT),
    Op::JumpIfLess(PIVOT, X, NEXT),
    Op::Load(Y, MIDDLE),
    Op::Store(X, MIDDLE),
    Op::Store(Y, AT),
    Op::Add(MIDDLE, MIDDLE, 1),
    // NEXT
    Op::Add(AT, AT, 1),
    Op::Jump(LOOP),
    // RECURSE: moves the pivot to the middle, then sorts what is left and what is right of it.
    Op::Load(Y, MIDDLE),
    Op::Store(PIVOT, MIDDLE),
    Op::Store(Y, LAST),
    Op::Push(MIDDLE),
    Op::Push(END),
    Op::Copy(END, MIDDLE),
    Op::Call(SORT),
    Op::Pop(END),
    Op::Pop(MIDDLE),
    Op::Add(LOW, MIDDLE, 1),
    Op::Jump(SORT),
];

/// Interprets `code` from its start to the last return; returns the number of operations.
///
/// The stack begins at index `stack` of `memory`.
fn interpret(code: &[Op], registers: &mut [u64; REGISTERS], memory: &mut [u64], stack: usize) -> u64 {
    let mut next = 0;
    let mut top = stack;
    let mut operations = 0;
    loop {
        let op = code[next];
        next += 1;
        operations += 1;
        match op {
            Op::Copy(to, from) => registers[slot(to)] = registers[slot(from)],
            Op::Add(to, from, constant) => {
                registers[slot(to)] = registers[slot(from)].wrapping_add_signed(constant.into());
            }
            Op::Load(to, at) => registers[slot(to)] = memory[word_index(registers[slot(at)])],
            Op::Store(from, at) => memory[word_index(registers[slot(at)])] = registers[slot(from)],
            Op::JumpIfLess(left, right, target) => {
                if registers[slot(left)] < registers[slot(right)] {
                    next = target.into();
                }
            }
            Op::Jump(target) => next = target.into(),
            Op::Call(target) => {
                memory[top] = next as u64;
                top += 1;
                next = target.into();
            }
            Op::Return => {
                if top == stack {
                    return operations;
                }
                top -= 1;
                next = word_index(memory[top]);
            }
            Op::Push(from) => {
                memory[top] = registers[slot(from)];
                top += 1;
            }
            Op::Pop(to) => {
                top -= 1;
                registers[slot(to)] = memory[top];
            }
        }
    }
}

fn slot(register: Register) -> usize {
    usize::from(register) % REGISTERS
}

/// An index into memory; one that is no `usize` is out of range for any memory.
fn word_index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Sorts new words for each unit of work.
pub(super) fn run(size: u64) -> u64 {
    // Hidden from the compiler, which might otherwise evaluate the interpreter away.
    let code: &[Op] = black_box(&QUICKSORT);
    let mut random = Random(3);
    let mut memory: Vec<u64> = vec![0; WORDS + STACK_WORDS];
    let mut checksum = 3;
    for _ in 0..size {
        memory[..WORDS].fill_with(|| random.next());
        let operations = sort(code, &mut memory);
        let words = memory[..WORDS].iter().fold(0_u64, |sum, word| sum.rotate_left(1) ^ word);
        checksum = mix(checksum ^ words).wrapping_add(operations);
    }
    checksum
}

fn sort(code: &[Op], memory: &mut [u64]) -> u64 {
    let mut registers = [0; REGISTERS];
    registers[slot(END)] = WORDS as u64;
    interpret(code, &mut registers, memory, WORDS)
}

#[cfg(test)]
mod tests {
    use super::{QUICKSORT, Random, STACK_WORDS, WORDS, sort};
    use alloc::{vec, vec::Vec};

    /// Sorted words need the deepest recursion, for which the stack must have room.
    #[test]
    fn sorts() {
        let mut random = Random(17);
        let any: Vec<u64> = (0..WORDS).map(|_| random.next()).collect();
        let few: Vec<u64> = any.iter().map(|word| word % 7).collect();
        let sorted: Vec<u64> = (0..WORDS as u64).collect();
        for words in [any, few, sorted] {
            let mut expected = words.clone();
            expected.sort_unstable();
            let mut memory = words;
            memory.extend(vec![0; STACK_WORDS]);
            assert!(sort(&QUICKSORT, &mut memory) > WORDS as u64);
            assert_eq!(memory[..WORDS], expected);
        }
    }
}
