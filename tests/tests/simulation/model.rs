//! The model checker goes through every order of events of small clusters.

use stateright::{Checker, HasDiscoveries, Model, Property};
use tests::model::{Cluster, story};

/// Goes through all of `cluster` and returns how many states it has. Everything interesting is seen
/// but `absent`.
fn go_through(cluster: Cluster, absent: &[&str]) -> usize {
    let restarts: &[&str] = if cluster.restarts == 0 { &RESTARTS } else { &[] };
    let absent = [absent, restarts].concat();
    let checker = cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut discoveries = checker.discoveries();
    for Property { expectation, name, .. } in checker.model().properties() {
        let path = discoveries.remove(name);
        if expectation.discovery_is_failure() {
            assert!(path.is_none(), "broken: {name}, by\n{}", path.map(story).unwrap_or_default());
        } else {
            assert_eq!(path.is_none(), absent.contains(&name), "never seen, or was not to be: {name}");
        }
    }
    println!("{} states, {} steps between them", checker.unique_state_count(), checker.state_count());
    checker.unique_state_count()
}

/// What only logs on disk show.
const RESTARTS: [&str; 2] = ["gone on from a log", "gone on from a log, and told the world"];

/// What only an arbiter that loses its claims shows.
const LOST_CLAIMS: [&str; 3] =
    ["claims lost and made again", "protected again after claims were lost", "a primary stands still"];

#[test]
fn no_order_of_events_breaks_a_pair() {
    let absent = [&["second failover", "redundancy restored"], &LOST_CLAIMS[..]].concat();
    assert!(go_through(Cluster::pair(), &absent) > 200_000);
}

#[test]
fn no_order_of_events_makes_two_owners_of_a_pair_whose_arbiter_loses_its_claims() {
    let absent = [
        "second failover",
        "redundancy restored",
        "protected again after claims were lost",
        "the guest ended in order",
    ];
    assert!(go_through(Cluster::lost_claims(), &absent) > 100_000);
}

#[test]
fn no_order_of_events_pairs_two_nodes_with_different_arbiters() {
    let checker =
        Cluster::two_arbiters().checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let failures = checker.model().properties().into_iter().filter(|rule| rule.expectation.discovery_is_failure());
    let discoveries = checker.discoveries();
    let broken: Vec<_> = failures.map(|rule| rule.name).filter(|name| discoveries.contains_key(name)).collect();
    assert!(broken.is_empty(), "{broken:?}");
    assert!(checker.unique_state_count() > 100, "{} states", checker.unique_state_count());
}

#[test]
fn no_order_of_events_takes_back_what_was_seen_when_both_sides_die() {
    let absent = [&["redundancy restored"], &LOST_CLAIMS[..]].concat();
    assert!(go_through(Cluster::logs(), &absent) > 500_000);
}

#[test]
fn no_order_of_events_breaks_a_backup_that_joins() {
    let absent = [&["second failover", "redundancy restored"], &LOST_CLAIMS[..]].concat();
    assert!(go_through(Cluster::joining(), &absent) > 300_000);
}

#[test]
fn no_order_of_events_breaks_a_chain_of_failover_and_rejoin() {
    let absent = [&["the guest ended in order"], &LOST_CLAIMS[..]].concat();
    assert!(go_through(Cluster::chain(), &absent) >= 1_000_000);
}

#[cfg(feature = "mutations")]
mod mutations {
    use super::*;
    use ft::mutation::Mutation;

    /// Those of the roles that break a rule without a machine's memory; `SnapshotTooEarly` costs
    /// redundancy, not safety.
    const FOUND: [Mutation; 23] = [
        Mutation::SkipOutputRule,
        Mutation::ReleaseOnSend,
        Mutation::AckBeforeReceive,
        Mutation::BackupSkipsTestAndSet,
        Mutation::PrimarySkipsTestAndSet,
        Mutation::ClaimUntold,
        Mutation::GoLiveBeforeLastEntry,
        Mutation::ReleaseWhenFenced,
        Mutation::TellBeforeHolding,
        Mutation::TellReleasedTooEarly,
        Mutation::ForgetUnsent,
        Mutation::ForgetUnsentInSnapshot,
        Mutation::OwnerNodeNotCompared,
        Mutation::UnreachableCountsAsChecked,
        Mutation::PredecessorNotCompared,
        Mutation::ClaimInDoubt,
        Mutation::FencedByAbsence,
        Mutation::RefillUnderOwnName,
        Mutation::ReleaseOnPromise,
        Mutation::ReleaseBeforeDisk,
        Mutation::AcceptOnPromise,
        Mutation::EndResumedOnPromise,
        Mutation::TrustLogOfWinner,
    ];

    /// Where to look for what `mutation` breaks, smallest first.
    fn clusters(mutation: Mutation) -> Vec<Cluster> {
        // It takes a backup that joins: the clusters without one would be gone through for nothing.
        if matches!(mutation, Mutation::ClaimUntold | Mutation::TellBeforeHolding | Mutation::ForgetUnsentInSnapshot) {
            return vec![Cluster::joining()];
        }
        if Mutation::OF_DISK_LOGS.contains(&mutation) || mutation == Mutation::TrustLogOfWinner {
            return vec![Cluster::logs()];
        }
        vec![Cluster::two_arbiters(), Cluster::lost_claims(), Cluster::pair(), Cluster::joining(), Cluster::chain()]
    }

    #[test]
    fn every_mutation_breaks_a_rule() {
        let missed: Vec<_> = FOUND
            .into_iter()
            .filter(|mutation| {
                let clusters = clusters(*mutation);
                let broken = clusters.iter().map(|cluster| broken_by(*mutation, cluster)).find(|it| !it.is_empty());
                println!("{mutation:?}: {broken:?}");
                broken.is_none()
            })
            .collect();
        assert!(missed.is_empty(), "no rule is broken by {missed:?}");
    }

    fn broken_by(mutation: Mutation, cluster: &Cluster) -> Vec<&'static str> {
        let cluster = Cluster { mutation: Some(mutation), ..cluster.clone() };
        let checker = cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let properties = checker.model().properties();
        let rules = properties.iter().filter(|property| property.expectation.discovery_is_failure());
        let discoveries = checker.discoveries();
        rules.map(|rule| rule.name).filter(|name| discoveries.contains_key(name)).collect()
    }
}
