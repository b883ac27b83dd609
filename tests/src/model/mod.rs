//! A model of the cluster for the model checker, which explores every order of events.
//!
//! The nodes are the production roles ([`PrimaryRole`](ft::role::PrimaryRole),
//! [`BackupRole`](ft::role::BackupRole)) with a driver like the production's; arbiter, LAN, network
//! and guest are abstract. What the driver decides alone is an action that is possible whenever a
//! thread could do it: flush, write outputs, replay, attach. The model has no time: a side may take
//! the other for lost at any moment, as after silence, and a pause is only other actions coming
//! first.
//!
//! ```text
//!   nodes     spare ──► backup ──► owner          crash at any time (a bounded number)
//!   channel   a stream until the pair is protected; then unbounded loss, duplication and reordering
//!   arbiter   requests and answers are lost and asked again; a request outlives its node
//!   LAN       packets in flight are lost when the connection is cut or the node loses the port
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

/// The bounds of an exploration.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The nodes, at least 2: an owner, and backups.
    pub nodes: usize,
    /// Begins with a protected pair; otherwise with an owner alone. The other nodes are spares.
    pub is_protected: bool,
    /// The last generation of an owner that a backup may join.
    pub last_pair: Generation,
    /// The guest's outputs.
    pub outputs: u8,
    /// The guest powers off after its outputs; otherwise it sleeps.
    pub powers_off: bool,
    /// The number of nodes that crash.
    pub crashes: u8,
    /// How often the LAN's connection is cut.
    pub cuts: u8,
    /// The number of primaries that their operator stops.
    pub retirements: u8,
    /// How often the arbiter loses its claims.
    pub vanishings: u8,
    /// Both sides have logs on disk, and this often the VM is resumed from one of them, on the last
    /// node, which has no other part.
    pub restarts: u8,
    /// The last node has another arbiter, which knows a stranger as the VM's owner of the same
    /// generation.
    pub is_last_mistaken: bool,
    /// A rule that the roles break.
    #[cfg(feature = "mutations")]
    pub mutation: Option<ft::mutation::Mutation>,
}

impl Cluster {
    /// A protected pair, with as many events as can be explored.
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

    /// A pair and a spare, which joins the survivor. Cuts of the LAN's connection are in
    /// [`Cluster::joining`], because they would make this one four times as large.
    #[must_use]
    pub const fn chain() -> Self {
        Self { nodes: 3, last_pair: Generation(2), outputs: 1, powers_off: false, crashes: 2, ..Self::pair() }
    }

    /// A pair whose arbiter loses its claims at any moment.
    #[must_use]
    pub const fn lost_claims() -> Self {
        Self { outputs: 1, powers_off: false, vanishings: 1, ..Self::pair() }
    }

    /// An owner alone and a backup that joins it, both with logs on disk. When both are dead, the
    /// VM is resumed from one of the logs.
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

    /// Activates the mutation on the calling thread: mutations are per thread, and the checker has
    /// several.
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
        // The initial pair comes about without the mutation.
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

/// The actions that lead to a state, one a line.
#[must_use]
pub fn story(path: Path<State, Action>) -> String {
    let steps = path.into_vec();
    let line = |(state, action): &(State, Option<Action>)| action.map(|action| state.describe(action) + "\n");
    steps.iter().filter_map(line).collect()
}
