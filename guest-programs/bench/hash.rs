//! The `hash` program: a hash table with open addressing, and an unpredictable walk through it.

use super::{Random, index, mix};
use alloc::{vec, vec::Vec};

/// Slots of the table: 16 bytes each, 2 MiB together.
const SLOTS: usize = 1 << 17;
/// The number of different keys, which use more than half of the slots.
const KEYS: u64 = 80_000;
/// Steps of the walk in one unit of work.
const STEPS: u64 = 22_000;

/// A key and its value. Key 0 marks an empty slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: u64,
    value: u64,
}

#[derive(Debug)]
struct Table {
    slots: Vec<Slot>,
}

impl Table {
    fn new() -> Self {
        Self { slots: vec![Slot::default(); SLOTS] }
    }

    /// The slot of `key`, which is added if it is new.
    fn entry(&mut self, key: u64) -> &mut Slot {
        let mut slot_index = index(mix(key), SLOTS);
        while self.slots[slot_index].key != key && self.slots[slot_index].key != 0 {
            slot_index = (slot_index + 1) % SLOTS;
        }
        let slot = &mut self.slots[slot_index];
        slot.key = key;
        slot
    }
}

/// Walks a number of steps for each unit of work.
pub(super) fn run(size: u64) -> u64 {
    let mut table = Table::new();
    let mut random = Random(2);
    let mut checksum = 2;
    for _ in 0..size {
        checksum = walk(&mut table, &mut random, checksum);
    }
    checksum
}

/// Walks through the table; each step's key depends on the value that the last one found.
fn walk(table: &mut Table, random: &mut Random, from: u64) -> u64 {
    let mut at = from;
    for _ in 0..STEPS {
        let slot = table.entry(1 + (at ^ random.next()) % KEYS);
        slot.value = slot.value.wrapping_add(at >> 3 | 1);
        at = slot.value ^ slot.key;
    }
    mix(at)
}

#[cfg(test)]
mod tests {
    use super::{KEYS, Table, mix};
    use std::collections::BTreeMap;

    #[test]
    fn table_is_a_map() {
        let (mut table, mut model) = (Table::new(), BTreeMap::new());
        for step in 0..300_000 {
            let key = 1 + mix(step) % KEYS;
            let slot = table.entry(key);
            slot.value += step;
            let value: &mut u64 = model.entry(key).or_default();
            *value += step;
            assert_eq!((slot.key, slot.value), (key, *value), "step {step}");
        }
        assert!(model.len() > 70_000, "{} keys", model.len());
    }
}
