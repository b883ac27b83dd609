//! The invariants, and what must happen in some run so that the invariants mean something.

use super::Cluster;
use super::node::{End, Node, Owner};
use super::state::{Rule, State};
use ft::claim::ClaimKind;
use stateright::Property;

/// All properties.
pub(super) fn all() -> Vec<Property<Cluster>> {
    let mut properties = safety();
    properties.extend(sightings());
    properties
}

fn safety() -> Vec<Property<Cluster>> {
    vec![
        Property::always("at most one owner of a generation", |_, state: &State| {
            let generations: Vec<_> = state.owners().map(|(_, owner)| owner.role.generation()).collect();
            generations.iter().enumerate().all(|(index, generation)| !generations[..index].contains(generation))
        }),
        Property::always("at most one node alone", |_, state: &State| {
            state.owners().filter(|(_, owner)| owner.is_alone).count() <= 1
        }),
        Property::always("nobody owns without a won claim", |_, state: &State| state.broken != Some(Rule::TestAndSet)),
        Property::always("the fenced put out nothing", |_, state: &State| state.broken != Some(Rule::Fencing)),
        Property::always("Output Rule", |_, state: &State| state.broken != Some(Rule::OutputRule)),
        Property::always("the LAN carries every output in order", |_, state: &State| state.broken != Some(Rule::NoGap)),
        Property::always("a pair has one arbiter", |_, state: &State| state.broken != Some(Rule::OneArbiter)),
        Property::always("absence fences nobody", |_, state: &State| state.broken != Some(Rule::FencedByNobody)),
        Property::always("virtual lockstep", |_, state: &State| state.broken != Some(Rule::Lockstep)),
        Property::always("what has left is in the log on disk", |_, state: &State| state.broken != Some(Rule::Promise)),
        Property::always("an interrupted restart ends no VM", |_, state: &State| {
            state.broken != Some(Rule::Interrupted)
        }),
        Property::always("what has been seen is in a log that isn't refused for good", |_, state: &State| {
            !state.can_restart_be_needed()
                || (0..state.nodes.len()).any(|log| state.may_restart(log) || state.is_operators_to_decide(log))
        }),
        Property::always("the owner has all that the LAN hasn't carried", |_, state: &State| {
            state.rightful_owner().is_none_or(|owner| owner.role.gate().next_to_leave() <= state.lan.next_output())
        }),
        Property::always("what the LAN has carried is the owner's history", |_, state: &State| {
            state.rightful_owner().is_none_or(|owner| {
                let mut carried = state.lan.carried.iter().enumerate();
                carried.all(|(index, bytes)| owner.guest.output(index) == Some(bytes))
            })
        }),
    ]
}

fn sightings() -> Vec<Property<Cluster>> {
    vec![
        Property::sometimes("failover", |_, state: &State| state.owners().any(|(node, _)| node != 0)),
        Property::sometimes("second failover", |_, state: &State| {
            state.owners().any(|(node, owner)| node > 1 && owner.role.generation().0 == 3)
        }),
        Property::sometimes("both claim", |_, state: &State| {
            let asked: Vec<_> = state.nodes.iter().filter_map(|node| Some(node.asking()?.generation)).collect();
            asked.iter().enumerate().any(|(index, flag)| asked[..index].contains(flag))
        }),
        Property::sometimes("fenced primary", |_, state: &State| state.has_ended(End::PrimaryFenced)),
        Property::sometimes("fenced backup", |_, state: &State| state.has_ended(End::BackupFenced)),
        Property::sometimes("backup lost, primary alone", |_, state: &State| {
            state.owners().any(|(node, owner)| node == 0 && owner.is_alone && owner.role.generation().0 == 2)
        }),
        Property::sometimes("redundancy restored", |_, state: &State| {
            state.owners().any(|(_, owner)| owner.role.is_protected() && owner.role.generation().0 == 2)
        }),
        Property::sometimes("unsent outputs to send after a failover", |_, state: &State| {
            state.owners().any(|(node, owner)| node != 0 && owner.role.gate().unsent().next().is_some())
        }),
        Property::sometimes("outputs held when the pair breaks", |_, state: &State| {
            state.owners().any(|(_, owner)| owner.asking.is_some() && owner.role.gate().held() > 0)
        }),
        Property::sometimes("the guest ended in order", |_, state: &State| {
            state.arbiter.latest().is_some_and(|(_, kind)| kind == ClaimKind::Ended)
        }),
        Property::sometimes("claims lost and made again", |_, state: &State| {
            state.arbiter.has_forgotten && state.arbiter.latest().is_some()
        }),
        Property::sometimes("protected again after claims were lost", |_, state: &State| {
            let has_joined = |owner: &Owner| owner.role.is_protected() && owner.role.generation().0 == 2;
            state.arbiter.has_forgotten && state.owners().any(|(_, owner)| has_joined(owner))
        }),
        Property::sometimes("a primary stands still", |_, state: &State| {
            state.owners().any(|(_, owner)| owner.role.is_stranded())
        }),
        Property::sometimes("gone on from a log", |_, state: &State| state.has_restarted()),
        Property::sometimes("gone on from a log, and told the world", |_, state: &State| {
            state.has_restarted() && state.lan.carried.iter().any(|bytes| bytes.last() == Some(&2))
        }),
        Property::sometimes("a dead node won", |_, state: &State| {
            let latest = state.arbiter.latest().and_then(|(generation, _)| state.arbiter.claim_of(generation));
            let winner = latest.and_then(|(node, _)| state.nodes.get(node));
            winner.is_some_and(|node| matches!(**node, Node::Gone(End::Crashed)))
        }),
    ]
}

impl State {
    /// The nodes that run the guest, as far as they know.
    fn owners(&self) -> impl Iterator<Item = (usize, &Owner)> {
        let owners = self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.owner()?)));
        owners.filter(|(_, owner)| owner.end.is_none())
    }

    /// The owner to which the arbiter has given the VM, if it knows that already.
    fn rightful_owner(&self) -> Option<&Owner> {
        if self.arbiter.has_forgotten {
            // The arbiter's latest claim may be one that a fenced owner has made again.
            let latest = |(_, owner): &(usize, &Owner)| owner.role.generation().0 == self.faults.latest_owned;
            return self.owners().find(latest).map(|(_, owner)| owner);
        }
        let (latest, kind) = self.arbiter.latest()?;
        let mut owners = self.owners().filter(|_| kind == ClaimKind::Owner);
        owners.find(|(_, owner)| owner.role.generation().0 == latest + 1).map(|(_, owner)| owner)
    }

    fn has_ended(&self, end: End) -> bool {
        self.nodes.iter().any(|node| matches!(**node, Node::Gone(found) if found == end))
    }
}
