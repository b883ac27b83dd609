//! etcd as the arbiter: one member, and a cluster that loses members.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use ft::claim::{Claim, ClaimKind, Verdict};
use hypervisor::arbiter::{Arbiter, ArbiterError, EtcdArbiter};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;
use tests::etcd::Etcd;
use tests::stage::wait_until;

/// Long enough for a busy machine; no test waits this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// For calls that a test expects to fail.
const SHORT: Duration = Duration::from_millis(300);

fn vm(name: &str) -> VmId {
    name.parse().unwrap()
}

fn claim(node: u128) -> Claim {
    Claim { node: NodeId(node), kind: ClaimKind::Owner, address: Some(format!("10.0.0.{node}:7200")) }
}

/// The holder of the flag before `generation`: in these tests node 1 has flag 0 and node 2 flag 1.
fn holder_before(generation: u64) -> Option<NodeId> {
    (generation > 0).then_some(NodeId(generation.into()))
}

/// Claims until there is an answer, as the roles do.
#[track_caller]
fn decided(arbiter: &EtcdArbiter, vm: &VmId, generation: u64, node: u128) -> Verdict {
    let mut verdict = None;
    wait_until("a verdict", || {
        match arbiter.test_and_set(vm, Generation(generation), &claim(node), holder_before(generation)) {
            Ok(answer) => {
                verdict = Some(answer);
                true
            }
            Err(error) => {
                assert!(error.is_unreachable(), "{error}");
                false
            }
        }
    });
    verdict.unwrap()
}

#[test]
fn one_etcd_member_stores_the_claims_of_many_vms() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    let arbiter = etcd.arbiter(TIMEOUT);
    let alpha = vm("alpha");
    assert_eq!(arbiter.latest(&alpha).unwrap(), None);
    for _ in 0..3 {
        assert_eq!(arbiter.test_and_set(&alpha, Generation(0), &claim(1), None).unwrap(), Verdict::Won);
        assert_eq!(arbiter.test_and_set(&alpha, Generation(0), &claim(2), None).unwrap(), Verdict::Lost(claim(1)));
    }
    let moved = Claim { address: None, ..claim(1) };
    assert_eq!(arbiter.test_and_set(&alpha, Generation(0), &moved, None).unwrap(), Verdict::Won, "it is the same node");
    assert_eq!(arbiter.latest(&alpha).unwrap(), Some((Generation(0), claim(1))), "a claim stays as it was made");

    let end = Claim { kind: ClaimKind::Ended, address: None, ..claim(1) };
    for generation in 1..10 {
        let won = arbiter.test_and_set(&alpha, Generation(generation), &claim(1), Some(NodeId(1)));
        assert_eq!(won.unwrap(), Verdict::Won);
    }
    assert_eq!(arbiter.test_and_set(&alpha, Generation(10), &end, Some(NodeId(1))).unwrap(), Verdict::Won);
    assert_eq!(arbiter.latest(&alpha).unwrap(), Some((Generation(10), end)), "10 is behind 9");

    // Names that are prefixes of others, or continue as keys do.
    let names = ["vm1", "vm10", "vm1.0", "vm1-", "vm", "VM1", "vm1_00000000000000000000"];
    for (node, name) in (1..).zip(names) {
        assert_eq!(arbiter.latest(&vm(name)).unwrap(), None, "{name}");
        for generation in 0..u64::try_from(node).unwrap() {
            let predecessor = (generation > 0).then_some(NodeId(node));
            let won = arbiter.test_and_set(&vm(name), Generation(generation), &claim(node), predecessor);
            assert_eq!(won.unwrap(), Verdict::Won);
        }
    }
    let assert_latest = |arbiter: &EtcdArbiter| {
        for (node, name) in (1..).zip(names) {
            let last = Generation(u64::try_from(node - 1).unwrap());
            assert_eq!(arbiter.latest(&vm(name)).unwrap(), Some((last, claim(node))), "{name}");
        }
    };
    assert_latest(&arbiter);
    let long = Claim { address: Some("x".repeat(257)), ..claim(1) };
    let error = arbiter.test_and_set(&vm("long"), Generation(0), &long, None).unwrap_err();
    assert!(matches!(error, ArbiterError::AddressTooLong { bytes: 257 }), "{error}");
    assert_eq!(arbiter.latest(&vm("long")).unwrap(), None);

    etcd.kill(0);
    assert!(arbiter.latest(&alpha).unwrap_err().is_unreachable());
    etcd.restart(0);
    assert_eq!(decided(&arbiter, &alpha, 0, 3), Verdict::Lost(claim(1)));
    assert_latest(&arbiter);
}

/// The predecessor is checked in the claim's transaction, whatever this client has seen before.
#[test]
fn a_flag_is_granted_only_behind_its_predecessor() {
    let Some(etcd) = Etcd::start(1) else { return };
    let alpha = vm("alpha");
    // A client that has read the last claim remembers it; another one reads it first.
    for (first, has_looked) in [(0, false), (2, true)] {
        let arbiter = etcd.arbiter(TIMEOUT);
        let flag = |flag: u64, node, predecessor: Option<u128>| {
            if has_looked {
                arbiter.latest(&alpha).unwrap();
            }
            arbiter.test_and_set(&alpha, Generation(flag), &claim(node), predecessor.map(NodeId)).unwrap()
        };
        let owner = (first > 0).then_some(2);
        assert_eq!(flag(first + 1, 3, Some(1)), Verdict::NotSuccessor(None), "the flag before is free");
        assert_eq!(flag(first, 1, owner), Verdict::Won);
        assert_eq!(flag(first + 1, 2, Some(9)), Verdict::NotSuccessor(Some(claim(1))));
        assert_eq!(flag(first + 1, 2, None), Verdict::NotSuccessor(Some(claim(1))));
        assert_eq!(flag(first + 1, 2, Some(1)), Verdict::Won);
        assert_eq!(flag(first + 1, 2, Some(9)), Verdict::Won, "its holder may have been told nothing");
        assert_eq!(flag(first + 1, 3, Some(1)), Verdict::Lost(claim(2)));
    }
}

#[test]
fn one_of_many_concurrent_claimers_wins() {
    const GENERATIONS: u64 = 20;
    let Some(etcd) = Etcd::start(1) else { return };
    let nodes: Vec<u128> = (1..=8).collect();
    let (vm, barrier) = (vm("alpha"), Barrier::new(nodes.len()));
    let verdicts: Vec<Vec<Verdict>> = thread::scope(|scope| {
        let racers: Vec<_> = nodes
            .iter()
            .map(|&node| {
                let (vm, barrier, arbiter) = (&vm, &barrier, etcd.arbiter(TIMEOUT));
                scope.spawn(move || {
                    let mut predecessor = None;
                    let ask = |generation| {
                        barrier.wait();
                        let verdict =
                            arbiter.test_and_set(vm, Generation(generation), &claim(node), predecessor).unwrap();
                        predecessor = match &verdict {
                            Verdict::Won => Some(NodeId(node)),
                            Verdict::Lost(holder) => Some(holder.node),
                            Verdict::NotSuccessor(_) => panic!("{verdict:?}"),
                        };
                        verdict
                    };
                    (0..GENERATIONS).map(ask).collect()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    for generation in 0..usize::try_from(GENERATIONS).unwrap() {
        let of_generation: Vec<_> = verdicts.iter().map(|verdicts| verdicts[generation].clone()).collect();
        assert_one_winner(&nodes, &of_generation);
    }
}

/// Checks that exactly one of `nodes` has won, and that the others got its name.
#[track_caller]
fn assert_one_winner(nodes: &[u128], verdicts: &[Verdict]) {
    let won: Vec<_> = nodes.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Won).collect();
    let &[(&winner, _)] = won.as_slice() else { panic!("won by {won:?}") };
    let lost = verdicts.iter().filter(|verdict| **verdict == Verdict::Lost(claim(winner))).count();
    assert_eq!(lost, nodes.len() - 1, "not all losers name node {winner}: {verdicts:?}");
}

#[test]
fn an_etcd_cluster_decides_without_one_member_and_not_without_two() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let alpha = vm("alpha");
    let (first, second) = (etcd.arbiter(TIMEOUT), etcd.arbiter(TIMEOUT));
    assert_eq!(decided(&first, &alpha, 0, 1), Verdict::Won);
    assert_eq!(decided(&second, &alpha, 0, 2), Verdict::Lost(claim(1)));

    // The member that both clients have asked so far.
    etcd.kill(0);
    assert_eq!(decided(&second, &alpha, 1, 2), Verdict::Won);
    assert_eq!(decided(&first, &alpha, 1, 1), Verdict::Lost(claim(2)));
    assert_eq!(decided(&etcd.arbiter(TIMEOUT), &alpha, 0, 2), Verdict::Lost(claim(1)));

    etcd.kill(1);
    let arbiters = [etcd.arbiter(SHORT), etcd.arbiter(SHORT)];
    for _ in 0..2 {
        for (node, arbiter) in (1..).zip(&arbiters) {
            let error = arbiter.test_and_set(&alpha, Generation(2), &claim(node), holder_before(2)).unwrap_err();
            assert!(error.is_unreachable(), "{error}");
            assert!(arbiter.latest(&alpha).unwrap_err().is_unreachable(), "a lone member decides nothing");
        }
    }

    etcd.restart(0);
    let verdicts = [decided(&first, &alpha, 2, 1), decided(&second, &alpha, 2, 2)];
    assert_one_winner(&[1, 2], &verdicts);
    assert_eq!(decided(&second, &alpha, 0, 2), Verdict::Lost(claim(1)));
    assert_eq!(decided(&first, &alpha, 1, 1), Verdict::Lost(claim(2)));
    assert_eq!(first.latest(&alpha).unwrap().unwrap().0, Generation(2));
}
