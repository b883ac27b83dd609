//! A model of the cluster for the model checker: every order of events, not some of them.
//!
//! The nodes are the production roles ([`PrimaryRole`](ft::role::PrimaryRole),
//! [`BackupRole`](ft::role::BackupRole)) with a driver as `host/` has it; arbiter, LAN, network and
//! guest are abstract. What is the driver's alone to decide is an action that may be taken whenever
//! a thread could: flush, put out, replay, attach. Time is no part of it: a side may take the other
//! for lost at any moment, as after a silence, and pauses are nothing but other actions coming
//! first.
//!
//! ```text
//!   nodes     spare ──► backup ──► owner          crash at any time (a bounded number)
//!   channel   a stream until the pair is protected; then loss, duplication and overtaking without bound
//!   arbiter   requests and answers are lost and asked again; a request outlives its node
//!   LAN       packets under way are lost when the cable is cut or the node loses the port
//! ```
//! Deliberately absent: packets to the guest (the simulator has them), heartbeats and lag (they
//! need time).

mod actions;
mod disk;
mod environment;
mod guest;
mod node;
mod properties;
mod restart;
mod shared;
mod state;

pub use actions::Action;
pub use state::{Rule, State};

use logchannel::entry::Generation;
use stateright::{Model, Path, Property};

/// What is explored.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Nodes: an owner, and backups; at least 2.
    pub nodes: usize,
    /// Whether it begins with a protected pair, or with an owner alone; the other nodes are spare
    /// backups.
    pub is_protected: bool,
    /// The last generation of an owner that is joined by a backup.
    pub last_pair: Generation,
    /// Outputs that the guest makes.
    pub outputs: u8,
    /// Whether it powers off then.
    pub powers_off: bool,
    /// How many nodes crash.
    pub crashes: u8,
    /// How often the LAN's cable is cut.
    pub cuts: u8,
    /// How many primaries are stopped by their operator.
    pub retirements: u8,
    /// How often the arbiter loses its claims.
    pub vanishings: u8,
    /// Both sides keep logs on disk, and so often the VM goes on from one of them on the host of
    /// the last node, on which nothing else runs.
    pub restarts: u8,
    /// The last node has another arbiter, which knows a stranger as the VM's owner of the same
    /// generation.
    pub is_last_mistaken: bool,
    /// A rule that the roles don't keep.
    #[cfg(feature = "mutations")]
    pub mutation: Option<ft::mutation::Mutation>,
}

impl Cluster {
    /// A protected pair, as busy as can be gone through.
    #[must_use]
    pub const fn pair() -> Self {
        Self {
            nodes: 2,
            is_protected: true,
            last_pair: Generation(0),
            outputs: 2,
            powers_off: true,
            crashes: 1,
            cuts: 0,
            retirements: 0,
            vanishings: 0,
            restarts: 0,
            is_last_mistaken: false,
            #[cfg(feature = "mutations")]
            mutation: None,
        }
    }

    /// An owner alone and a backup that joins it, again and again until the pair is protected.
    #[must_use]
    pub const fn joining() -> Self {
        Self { is_protected: false, last_pair: Generation(1), outputs: 1, cuts: 1, retirements: 1, ..Self::pair() }
    }

    /// A pair and a spare backup, which joins whoever is left. Cuts of the cable, which would make
    /// it four times as large, are in [`Cluster::joining`].
    #[must_use]
    pub const fn chain() -> Self {
        Self { nodes: 3, last_pair: Generation(2), outputs: 1, powers_off: false, crashes: 2, ..Self::pair() }
    }

    /// A pair whose arbiter loses its claims at any moment.
    #[must_use]
    pub const fn lost_claims() -> Self {
        Self { outputs: 1, powers_off: false, vanishings: 1, ..Self::pair() }
    }

    /// An owner alone and a backup that joins it, both with logs on disk; when both are dead, the
    /// VM goes on from one of the logs.
    #[must_use]
    pub const fn logs() -> Self {
        Self {
            nodes: 3,
            is_protected: false,
            last_pair: Generation(1),
            outputs: 1,
            powers_off: false,
            crashes: 2,
            retirements: 1,
            restarts: 1,
            ..Self::pair()
        }
    }

    /// An owner alone, and a backup with another arbiter that wants to join it.
    #[must_use]
    pub const fn two_arbiters() -> Self {
        Self { is_protected: false, last_pair: Generation(1), outputs: 1, is_last_mistaken: true, ..Self::pair() }
    }

    /// Mutations are a thread's, and the checker has threads of its own.
    #[cfg(feature = "mutations")]
    fn take_rule_away(&self) {
        ft::mutation::activate(self.mutation);
    }

    #[cfg(not(feature = "mutations"))]
    const fn take_rule_away(&self) {}
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // The pair to begin with has come about by all the rules.
        #[cfg(feature = "mutations")]
        ft::mutation::activate(None);
        vec![State::initial(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(self, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        self.take_rule_away();
        last.after(action).filter(|next| next != last)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

/// The actions that lead to a state, a line each.
#[must_use]
pub fn story(path: Path<State, Action>) -> String {
    let steps = path.into_vec();
    let line = |(state, action): &(State, Option<Action>)| action.map(|action| state.describe(action) + "\n");
    steps.iter().filter_map(line).collect()
}
