//! Parts of a state that many states share.

use ahash::RandomState;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

/// A shared value whose hash is computed once. Values with the same hash count as equal, as states
/// do for the checker.
#[derive(Clone, Debug)]
pub(super) struct Shared<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        // Fixed seeds, so that a state has the same fingerprint in each run. The standard library's
        // hasher would take a quarter of the checker's time.
        let hash = RandomState::with_seeds(1, 2, 3, 4).hash_one(&value);
        Self { value: Arc::new(value), hash }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.hash.hash(hasher);
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}
