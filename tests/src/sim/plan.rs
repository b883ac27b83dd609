//! Which faults a run has. Each fault has a name, by which a run of the same seed can leave it out:
//! so a failing run is shrunk, and the smaller run can be run again.

use super::trace::Event;
use crate::random::Random;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Something that goes wrong, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Goes on all the time (`slow-disks`).
    Habit(Habit),
    /// The one of this number in the seed's plan (`7`). Its time and all that it draws don't depend
    /// on the others.
    Planned(u32),
    /// Strikes at a short moment that processes come to, as the so manieth of its run (`a7`).
    Aimed(u32),
}

/// What goes wrong all the time, in some runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Habit {
    /// Another VM runs on hosts of its own.
    SecondVm,
    /// There is a third host.
    ThirdHost,
    /// There is more than one client.
    Clients,
    /// Disks take long for everything.
    SlowDisks,
    /// Replay is slower than the primary's guest.
    SlowReplay,
    /// Questions to the arbiter and answers are lost, heard twice, or can't be decided.
    DeafArbiter,
    /// Some processes have another arbiter.
    Mistaken,
    /// Connections take less than there is to be sent.
    ShortWrites,
    /// All connections to the LAN are cut when the guest ends.
    LastCut,
}

impl Habit {
    const ALL: [(Self, &'static str); 9] = [
        (Self::SecondVm, "second-vm"),
        (Self::ThirdHost, "third-host"),
        (Self::Clients, "clients"),
        (Self::SlowDisks, "slow-disks"),
        (Self::SlowReplay, "slow-replay"),
        (Self::DeafArbiter, "deaf-arbiter"),
        (Self::Mistaken, "mistaken"),
        (Self::ShortWrites, "short-writes"),
        (Self::LastCut, "last-cut"),
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Habit(habit) => f.pad(Habit::ALL.iter().find(|(it, _)| it == habit).map_or("", |(_, name)| name)),
            Self::Planned(number) => f.pad(&number.to_string()),
            Self::Aimed(number) => f.pad(&format!("a{number}")),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        let habit = Habit::ALL.iter().find(|(_, name)| *name == text).map(|(habit, _)| Self::Habit(*habit));
        let aimed = text.strip_prefix('a').and_then(number).map(Self::Aimed);
        habit.or(aimed).or_else(|| number(text).map(Self::Planned)).ok_or_else(|| {
            let names = Habit::ALL.map(|(_, name)| name).join(", ");
            format!("no fault has this name: a number as in 7, a7, or one of {names}")
        })
    }
}

/// Which run: that of a seed, or a smaller one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSpec {
    /// The seed from which all is drawn.
    pub seed: u64,
    /// Faults that are left out.
    pub without: BTreeSet<Fault>,
    /// Everything works from this time on, in milliseconds.
    pub until_ms: Option<u64>,
    /// A rule of the protocol that is removed.
    #[cfg(feature = "mutations")]
    pub mutation: Option<ft::mutation::Mutation>,
}

impl RunSpec {
    /// The whole run of `seed`.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// The command that shows it.
    #[must_use]
    pub fn command(&self) -> String {
        let features = if cfg!(feature = "mutations") { " --features mutations" } else { "" };
        format!("cargo run --release -p tests{features} --bin ft-sim -- --trace {self}")
    }
}

/// Its arguments.
impl fmt::Display for RunSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        if !self.without.is_empty() {
            let names: Vec<_> = self.without.iter().map(Fault::to_string).collect();
            write!(f, " --without {}", names.join(","))?;
        }
        if let Some(until_ms) = self.until_ms {
            write!(f, " --until {until_ms}")?;
        }
        #[cfg(feature = "mutations")]
        if let Some(mutation) = self.mutation {
            write!(f, " --mutation {mutation:?}")?;
        }
        Ok(())
    }
}

/// What is known of a run, also when it ends with a panic.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// All that happened, if it is kept.
    pub(super) events: Option<Mutex<Vec<Event>>>,
    now_ns: AtomicU64,
    struck: Mutex<BTreeSet<Fault>>,
}

impl Record {
    /// The record of a run whose events are kept.
    pub(super) fn with_events() -> Self {
        Self { events: Some(Mutex::default()), ..Self::default() }
    }

    /// The run's clock.
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    pub(super) fn set_now_ns(&self, now_ns: u64) {
        self.now_ns.store(now_ns, Ordering::Relaxed);
    }

    /// All that went wrong.
    pub(super) fn struck(&self) -> BTreeSet<Fault> {
        self.struck.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Salts of the numbers that faults draw.
const PLAN: u64 = 0x706c_616e;
const AIMED: u64 = 0x6169_6d65_6400_0000;

/// The faults of a run: what is to come, and what is left out.
#[derive(Debug)]
pub(super) struct Faults {
    spec: RunSpec,
    pub(super) record: Arc<Record>,
    /// For the plan only, so that it doesn't depend on what the run comes to.
    plan: Random,
    planned: u32,
    aimed: u32,
    /// The one that strikes at the moment.
    pub(super) current: Option<Fault>,
}

impl Faults {
    pub(super) fn new(spec: RunSpec, record: Arc<Record>) -> Self {
        let plan = Random::new(spec.seed ^ PLAN);
        Self { spec, record, plan, planned: 0, aimed: 0, current: None }
    }

    /// How long it is to the next planned fault, in nanoseconds.
    pub(super) fn pause_ns(&mut self) -> u64 {
        u64::from(self.plan.below(160)) * 1_000_000 + u64::from(self.plan.below(1_000_000))
    }

    /// The next fault of the plan, with its own numbers; `None` if it is left out.
    pub(super) fn next_planned(&mut self) -> Option<(Fault, Random)> {
        let (fault, random) = (Fault::Planned(self.planned), Random::new(self.plan.next_u64()));
        self.planned += 1;
        self.strikes(fault).then_some((fault, random))
    }

    /// A fault at a moment that has come; `None` if it is left out.
    pub(super) fn next_aimed(&mut self) -> Option<(Fault, Random)> {
        let (fault, random) = (Fault::Aimed(self.aimed), Random::new(self.spec.seed ^ AIMED ^ u64::from(self.aimed)));
        self.aimed += 1;
        self.strikes(fault).then_some((fault, random))
    }

    /// Whether `habit` isn't left out, in a run that has it.
    pub(super) fn has(&self, habit: Habit) -> bool {
        self.strikes(Fault::Habit(habit))
    }

    fn strikes(&self, fault: Fault) -> bool {
        let strikes = !self.spec.without.contains(&fault);
        if strikes {
            self.record.struck.lock().unwrap_or_else(PoisonError::into_inner).insert(fault);
        }
        strikes
    }

    /// When everything works again, if it would at `until_ns`.
    pub(super) fn end_ns(&self, until_ns: u64) -> u64 {
        self.spec.until_ms.map_or(until_ns, |until_ms| until_ns.min(until_ms.saturating_mul(1_000_000)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Habit, RunSpec};

    #[test]
    fn faults_have_names_that_are_read_again() {
        let habits = Habit::ALL.map(|(habit, _)| Fault::Habit(habit));
        for fault in habits.into_iter().chain([Fault::Planned(0), Fault::Aimed(12)]) {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        for wrong in ["", "a", "-1", "a+1", "slow", "4294967296"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_run_says_how_it_is_run_again() {
        let without = [Fault::Aimed(2), Fault::Planned(3)].into();
        let spec = RunSpec { without, until_ms: Some(412), ..RunSpec::of(7) };
        assert!(spec.command().ends_with("--trace 7 --without 3,a2 --until 412"), "{}", spec.command());
    }
}
