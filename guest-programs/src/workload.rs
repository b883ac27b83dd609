//! The workload of a busy guest: a small computation whose result can be checked.

use alloc::{boxed::Box, vec};

const BUFFER_BYTES: usize = 16 * 1024;
const CHUNK_BYTES: usize = 512;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// Hashes a buffer chunk by chunk, for ever.
///
/// The state after `n` chunks is a function of `n`, so a client that is told both can check the
/// machine's computation.
#[derive(Debug)]
pub struct Workload {
    buffer: Box<[u8]>,
    next_chunk: usize,
    chunks: u64,
    state: u64,
}

impl Workload {
    /// A workload before its first chunk.
    #[must_use]
    pub fn new() -> Self {
        let mut buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        let mut state = FNV_OFFSET_BASIS;
        for byte in &mut buffer {
            state = state.wrapping_mul(FNV_PRIME) ^ (state >> 29);
            *byte = state.to_le_bytes()[7];
        }
        Self { buffer, next_chunk: 0, chunks: 0, state: FNV_OFFSET_BASIS }
    }

    /// Hashes one more chunk (FNV-1a) and writes the result back into the buffer.
    ///
    /// A chunk takes about two thousand instructions: few enough that a guest which polls its
    /// devices between two chunks answers at once.
    pub fn advance(&mut self) {
        let chunk = &mut self.buffer[self.next_chunk..self.next_chunk + CHUNK_BYTES];
        for byte in chunk.iter() {
            self.state = (self.state ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
        chunk[..8].copy_from_slice(&self.state.to_le_bytes());
        self.next_chunk = (self.next_chunk + CHUNK_BYTES) % BUFFER_BYTES;
        self.chunks += 1;
    }

    /// Chunks hashed so far.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The hash over all chunks so far.
    #[must_use]
    pub fn state(&self) -> u64 {
        self.state
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFER_BYTES, CHUNK_BYTES, Workload};

    #[test]
    fn state_is_a_function_of_the_chunk_count() {
        let (mut left, mut right) = (Workload::new(), Workload::new());
        let chunks = 3 * BUFFER_BYTES / CHUNK_BYTES + 5;
        for chunk in 1..=chunks {
            let before = left.state();
            left.advance();
            assert_ne!(left.state(), before, "chunk {chunk} left the state as it was");
        }
        (0..chunks).for_each(|_| right.advance());
        assert_eq!((left.chunks(), left.state()), (right.chunks(), right.state()));
    }

    #[test]
    fn a_flipped_bit_in_the_buffer_shows() {
        let (mut good, mut bad) = (Workload::new(), Workload::new());
        bad.buffer[BUFFER_BYTES - 1] ^= 0x10;
        let chunks = BUFFER_BYTES / CHUNK_BYTES;
        (0..chunks).for_each(|_| {
            good.advance();
            bad.advance();
        });
        assert_ne!(good.state(), bad.state());
    }
}
