//! The model checker goes through every order of events of a small cluster.

use std::time::Instant;
use stateright::{Checker, HasDiscoveries, Model};
use tests::model::{Cluster, story};

#[test]
fn no_order_of_events_breaks_a_rule() {
    let e = |n: &str, d: u8| std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let cluster = Cluster { nodes: e("NODES", 3).into(), is_protected: e("PROT", 1)==1, outputs: e("OUTPUTS", 2), crashes: e("CRASHES", 2), cuts: e("CUTS", 1), retirements: e("RET", 0),
    #[cfg(feature = "mutations")]
     mutation: None };
    let start = Instant::now();
    let checker = cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).target_state_count(usize::from(e("MAXM", 200)) * 100_000).spawn_bfs().join();
    println!("{} states, {} unique, depth {}, {:?}", checker.state_count(), checker.unique_state_count(), checker.max_depth(), start.elapsed());
    let d = checker.discoveries();
    let names: Vec<_> = d.keys().collect();
    println!("{names:?}");
    for (name, path) in checker.discoveries() {
        if checker.model().property(name).expectation.discovery_is_failure() {
            println!("{name}:\n{}", story(path));
        }
    }
}
