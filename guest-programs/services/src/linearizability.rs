//! A linearizability check of a history of calls: it looks for an order of the calls in which each
//! takes effect between its beginning and its end and gets its answer.
//!
//! The method is that of Wing and Gong with memory, in the order of time (Lowe, *Testing for
//! Linearizability*, 2017): the check keeps every *configuration* that explains what was seen so
//! far, which is the service's state and which of the calls under way have taken effect. A call
//! that ends must have taken effect in one of them; all orders of the calls under way in which it
//! has are tried, and only then. A hundred thousand calls take about as many steps, as few calls
//! are under way at once.
//!
//! Calls of different objects don't matter to each other (linearizability is local): a history is
//! checked object by object.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// More configurations than this at once are too many to decide.
const CONFIGURATIONS_MAX: usize = 200_000;

/// The sequential behaviour of one object of a service.
pub trait Model {
    /// The object's state.
    type State: Clone + Ord;
    /// A call.
    type Call;
    /// An answer.
    type Answer;

    /// The initial state.
    fn initial(&self) -> Self::State;

    /// The state after `call`, if `answer` is right or wasn't received; `None` if it is wrong, or
    /// if the call can't take effect yet.
    fn step(&self, state: &Self::State, call: &Self::Call, answer: Option<&Self::Answer>) -> Option<Self::State>;
}

/// One call, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<C, A> {
    /// The client, which has one call at a time.
    pub client: u32,
    /// The call.
    pub call: C,
    /// The answer; `None` if none came: the call may have taken effect at any time after its
    /// beginning, or never.
    pub answer: Option<A>,
    /// When it began, in any unit that all clients share.
    pub began: u64,
    /// When its answer came; without one it has no meaning.
    pub ended: u64,
}

/// Why a history is not linearizable, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// No order explains the answer of this call, an index into the history.
    Unexplained {
        /// The first call, by the time of its answer, that no order explains.
        call: usize,
        /// The calls that were under way at that time, itself included.
        under_way: Vec<usize>,
    },
    /// There are too many orders to try.
    TooManyOrders {
        /// The call at whose answer the check gave up.
        call: usize,
    },
}

/// The service's state, and which of the calls under way have taken effect, in ascending order.
type Configuration<S> = (S, Vec<usize>);

/// Checks the calls of one object, in any order.
///
/// # Errors
/// [`Violation`] if no order explains what was seen.
pub fn check<M: Model>(model: &M, history: &[Seen<M::Call, M::Answer>]) -> Result<(), Violation> {
    let mut configurations = BTreeSet::from([(model.initial(), Vec::new())]);
    let mut under_way = BTreeSet::new();
    for (_, event, call) in events(history) {
        if event == Event::Begins {
            under_way.insert(call);
            continue;
        }
        configurations = explain(model, history, configurations, &under_way, call)?;
        under_way.remove(&call);
    }
    Ok(())
}

/// A call that begins at the time at which another ends is under way together with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Begins,
    Ends,
}

/// Beginnings and ends in the order of time. A call without an answer never ends.
fn events<C, A>(history: &[Seen<C, A>]) -> Vec<(u64, Event, usize)> {
    let begins = history.iter().enumerate().map(|(call, seen)| (seen.began, Event::Begins, call));
    let ended = history.iter().enumerate().filter(|(_, seen)| seen.answer.is_some());
    let mut events: Vec<_> = begins.chain(ended.map(|(call, seen)| (seen.ended, Event::Ends, call))).collect();
    events.sort_unstable();
    events
}

/// The configurations after the end of `call`, which has taken effect in each of them.
fn explain<M: Model>(
    model: &M,
    history: &[Seen<M::Call, M::Answer>],
    before: BTreeSet<Configuration<M::State>>,
    under_way: &BTreeSet<usize>,
    call: usize,
) -> Result<BTreeSet<Configuration<M::State>>, Violation> {
    let mut after = BTreeSet::new();
    let mut tried = BTreeSet::new();
    let mut open: Vec<_> = before.into_iter().collect();
    while let Some((state, effective)) = open.pop() {
        if let Ok(index) = effective.binary_search(&call) {
            let mut effective = effective;
            effective.remove(index);
            after.insert((state, effective));
            continue;
        }
        for next in under_way {
            let Err(index) = effective.binary_search(next) else { continue };
            let Seen { call, answer, .. } = &history[*next];
            if let Some(state) = model.step(&state, call, answer.as_ref()) {
                let mut effective = effective.clone();
                effective.insert(index, *next);
                if tried.insert((state.clone(), effective.clone())) {
                    open.push((state, effective));
                }
            }
        }
        if tried.len() > CONFIGURATIONS_MAX {
            return Err(Violation::TooManyOrders { call });
        }
    }
    if after.is_empty() {
        return Err(Violation::Unexplained { call, under_way: under_way.iter().copied().collect() });
    }
    Ok(after)
}

/// Sorts the calls of a service by their object; `split` gives a call's object, and what was asked
/// of it.
pub fn by_object<C, A, K: Ord, O>(
    history: impl IntoIterator<Item = Seen<C, A>>,
    split: impl Fn(C) -> (K, O),
) -> BTreeMap<K, Vec<Seen<O, A>>> {
    let mut objects: BTreeMap<K, Vec<_>> = BTreeMap::new();
    for Seen { client, call, answer, began, ended } in history {
        let (object, call) = split(call);
        objects.entry(object).or_default().push(Seen { client, call, answer, began, ended });
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::{Model, Seen, Violation, check};
    use alloc::vec;
    use alloc::vec::Vec;

    /// A register that is written and read.
    struct Register;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Call {
        Write(u32),
        Read,
    }

    impl Model for Register {
        type State = u32;
        type Call = Call;
        type Answer = u32;

        fn initial(&self) -> u32 {
            0
        }

        fn step(&self, state: &u32, call: &Call, answer: Option<&u32>) -> Option<u32> {
            match *call {
                Call::Write(value) => Some(value),
                Call::Read => answer.is_none_or(|answer| answer == state).then_some(*state),
            }
        }
    }

    type History = Vec<Seen<Call, u32>>;

    /// A call and its time; an end of 0 means that no answer came.
    fn seen(client: u32, call: Call, answer: u32, began: u64, ended: u64) -> Seen<Call, u32> {
        Seen { client, call, answer: (ended > 0).then_some(answer), began, ended }
    }

    /// Tries all orders of all calls: what the check must agree with.
    fn by_all_orders(history: &History) -> bool {
        fn extend(history: &History, taken: &mut Vec<usize>, state: u32) -> bool {
            let is_open = |index: &usize| !taken.contains(index);
            let open: Vec<_> = (0..history.len()).filter(is_open).collect();
            if open.iter().all(|index| history[*index].answer.is_none()) {
                return true;
            }
            let first_end =
                open.iter().filter(|index| history[**index].answer.is_some()).map(|index| history[*index].ended).min();
            open.into_iter().any(|index| {
                let Seen { call, answer, began, .. } = &history[index];
                if first_end.is_some_and(|end| *began > end) {
                    return false;
                }
                let Some(state) = Register.step(&state, call, answer.as_ref()) else { return false };
                taken.push(index);
                let is_explained = extend(history, taken, state);
                taken.pop();
                is_explained
            })
        }
        extend(history, &mut Vec::new(), 0)
    }

    #[test]
    fn reads_beside_a_write_may_see_it_or_not_but_not_go_back() {
        let write = seen(1, Call::Write(7), 0, 1, 10);
        let reads =
            |first, second| vec![write.clone(), seen(2, Call::Read, first, 2, 3), seen(2, Call::Read, second, 4, 5)];
        for (first, second) in [(0, 0), (0, 7), (7, 7)] {
            assert_eq!(check(&Register, &reads(first, second)), Ok(()));
        }
        let back = Violation::Unexplained { call: 2, under_way: vec![0, 2] };
        assert_eq!(check(&Register, &reads(7, 0)), Err(back));
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_found() {
        let history =
            vec![seen(1, Call::Write(7), 0, 1, 2), seen(1, Call::Write(8), 0, 3, 4), seen(2, Call::Read, 7, 5, 6)];
        assert_eq!(check(&Register, &history), Err(Violation::Unexplained { call: 2, under_way: vec![2] }));
    }

    #[test]
    fn a_call_without_an_answer_may_have_happened_late_or_never() {
        let write = seen(1, Call::Write(7), 0, 1, 0);
        for answers in [[0, 0], [0, 7], [7, 7]] {
            let history =
                vec![write.clone(), seen(2, Call::Read, answers[0], 5, 6), seen(3, Call::Read, answers[1], 7, 8)];
            assert_eq!(check(&Register, &history), Ok(()), "{answers:?}");
        }
        let twice = vec![write, seen(2, Call::Read, 7, 5, 6), seen(3, Call::Read, 0, 7, 8)];
        assert!(check(&Register, &twice).is_err(), "and not twice");
    }

    #[test]
    fn random_histories_are_judged_as_by_all_orders() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut judged = [0, 0];
        for _ in 0..3_000 {
            let history: History = (0..6)
                .map(|client| {
                    let value = u32::try_from(random(3)).unwrap();
                    let call = if random(2) == 0 { Call::Write(value) } else { Call::Read };
                    let began = 1 + random(12);
                    let ended = if random(8) == 0 { 0 } else { began + 1 + random(8) };
                    seen(client, call, value, began, ended)
                })
                .collect();
            let expected = by_all_orders(&history);
            assert_eq!(check(&Register, &history).is_ok(), expected, "{history:?}");
            judged[usize::from(expected)] += 1;
        }
        assert!(judged.iter().all(|count| *count > 300), "{judged:?}");
    }

    #[test]
    fn a_hundred_thousand_calls_are_checked_in_a_moment() {
        let mut history = History::new();
        for round in 0..12_500_u64 {
            // Eight clients at once: one writes, and the others read it or what was there before.
            let began = round * 10;
            let value = |round: u64| u32::try_from(round).unwrap();
            history.push(seen(0, Call::Write(value(round + 1)), 0, began, began + 9));
            for client in 1..8 {
                let sees_it = client > 3;
                let ended = if sees_it { began + 9 } else { began + 5 };
                history.push(seen(client, Call::Read, value(round) + u32::from(sees_it), began + 1, ended));
            }
        }
        assert_eq!(check(&Register, &history), Ok(()));
        let last = history.len() - 1;
        history[last].answer = Some(0);
        assert!(matches!(check(&Register, &history), Err(Violation::Unexplained { .. })));
    }
}
