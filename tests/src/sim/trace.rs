//! What happened in a run, as a hash, and in words if somebody wants to read it.

/// Every step of a run goes into the hash: two runs with the same hash did the same.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    is_printed: bool,
}

impl Trace {
    pub(super) const fn new(is_printed: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, is_printed }
    }

    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Notes that `what` happened. Dear words go into `detail`, which is only called if it is
    /// printed: it must say nothing that the numbers don't.
    pub(super) fn note(&mut self, now_ns: u64, what: &str, numbers: &[u64], detail: impl FnOnce() -> String) {
        for byte in what.bytes() {
            self.fold(byte.into());
        }
        self.fold(now_ns);
        for number in numbers {
            self.fold(*number);
        }
        if self.is_printed {
            let (ms, ns) = (now_ns / 1_000_000, now_ns % 1_000_000);
            eprintln!("{ms:6}.{ns:06} ms  {what} {numbers:?} {}", detail());
        }
    }

    const fn fold(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}
