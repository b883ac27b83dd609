//! Contexts: the circumstances in which a cached translation is valid.
//!
//! The same address means different things in user and supervisor mode, in another address space,
//! and with SUM or MXR set. Each combination that occurs gets a number, which is part of the tags
//! of what is cached in it. So traps and context switches invalidate nothing, and everything is
//! invalidated by taking new numbers.

use super::env::{Env, FETCHES, Fetch, TRANSLATIONS, Translation};
use crate::hart::Hart;
use crate::hart::mmu::Accessor;

/// The number's position in a tag: above the bits that alignment needs, below the page number.
const SHIFT: u32 = 3;
/// The greatest number. 0 is the number of an empty cache entry.
const NUMBER_MAX: u64 = (1 << (12 - SHIFT)) - 1;

/// The number of contexts that are remembered.
const CONTEXTS: usize = 24;

/// The kind of access that a cached translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fetch,
    Load,
    Store,
}

/// What a translation depends on beside the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    satp: u64,
    /// The mode of fetches.
    fetch: u64,
    /// The mode of loads and stores, with SUM and MXR.
    data: u64,
}

impl Circumstances {
    pub(super) fn of(hart: &Hart) -> Self {
        let Accessor { privilege, sum, mxr } = hart.data_accessor();
        let data = u64::from(privilege.level()) | u64::from(sum) << 8 | u64::from(mxr) << 9;
        Self { satp: hart.satp(), fetch: u64::from(hart.privilege().level()), data }
    }
}

/// A combination that has a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    kind: Kind,
    satp: u64,
    mode: u64,
}

/// The contexts that have a number.
#[derive(Debug)]
pub(super) struct Contexts {
    known: [Option<(Context, u64)>; CONTEXTS],
    /// The index of the entry that the next new context replaces.
    turn: usize,
    /// The number assigned last.
    last: u64,
    current: Option<Circumstances>,
}

impl Contexts {
    pub(super) const fn new() -> Self {
        Self { known: [None; CONTEXTS], turn: 0, last: 0, current: None }
    }

    /// Makes the cache entries of these circumstances the ones that are used.
    #[inline]
    pub(super) fn select(&mut self, now: Circumstances, env: &mut Env) {
        if self.current != Some(now) {
            self.switch(now, env);
        }
    }

    /// Invalidates all cached translations.
    pub(super) fn forget(&mut self, env: &mut Env) {
        self.known = [None; CONTEXTS];
        self.again(env);
    }

    /// Invalidates all cached translations for stores.
    pub(super) fn forget_stores(&mut self, env: &mut Env) {
        for known in &mut self.known {
            if matches!(known, Some((Context { kind: Kind::Store, .. }, _))) {
                *known = None;
            }
        }
        self.again(env);
    }

    fn again(&mut self, env: &mut Env) {
        if let Some(now) = self.current {
            self.switch(now, env);
        }
    }

    #[inline(never)]
    fn switch(&mut self, now: Circumstances, env: &mut Env) {
        let Circumstances { satp, fetch, data } = now;
        if self.last + 3 > NUMBER_MAX {
            env.loads = [Translation::EMPTY; TRANSLATIONS];
            env.stores = [Translation::EMPTY; TRANSLATIONS];
            env.fetches = [Fetch::EMPTY; FETCHES];
            self.known = [None; CONTEXTS];
            self.last = 0;
        }
        env.fetch_context = self.tag(Context { kind: Kind::Fetch, satp, mode: fetch });
        env.load_context = self.tag(Context { kind: Kind::Load, satp, mode: data });
        env.store_context = self.tag(Context { kind: Kind::Store, satp, mode: data });
        self.current = Some(now);
    }

    /// The tag bits of this context, which gets a number if it has none.
    fn tag(&mut self, context: Context) -> u64 {
        let known = self.known.iter().flatten().find(|(known, _)| *known == context).map(|(_, number)| *number);
        let number = known.unwrap_or_else(|| self.number(context));
        number << SHIFT
    }

    /// Assigns a number to a context that has none.
    fn number(&mut self, context: Context) -> u64 {
        self.last += 1;
        self.known[self.turn] = Some((context, self.last));
        self.turn = (self.turn + 1) % CONTEXTS;
        self.last
    }
}
