//! An arbiter that is away when it is needed: no side goes on until it is back, and then exactly
//! one does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use crate::beginnings::{loaded_linked_pair, loaded_pair};
use ft::claim::{Claim, ClaimKind, Verdict};
use hypervisor::arbiter;
use hypervisor::arbiter::{Arbiter, TcpArbiter};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tests::client::Load;
use tests::etcd::Etcd;
use tests::programs;
use tests::random::{self, Random};
use tests::stage::{Node, Pair, Stage, wait_until};

/// Reports of unanswered claims after which a side that goes on by mistake would have done so.
/// Reports get rarer: the fifth one is of the sixteenth try.
const REPORTS: usize = 5;

/// A failure timeout long enough that a busy host causes no failover before the test does.
const ALERT: [&str; 2] = ["--failure-timeout-ms", "1000"];

/// Waits until `sides` have asked the arbiter in vain for a while, and checks that no output
/// reaches the clients meanwhile.
#[track_caller]
fn assert_no_side_goes_on(sides: &mut [&mut Node], load: &Load) {
    for side in &mut *sides {
        side.told("arbiter_unreachable");
    }
    let before = load.comes_to_rest();
    for side in sides {
        wait_until("unanswered claims", || side.count("arbiter_unreachable") >= REPORTS);
        assert!(!side.has_told("live") && !side.has_told("end"), "{:?}", side.reports().last());
        assert!(!side.owned().contains(&2));
    }
    assert_eq!(load.received(), before, "somebody answered without having won the flag");
}

#[test]
fn backup_of_a_killed_primary_waits_for_the_arbiter() {
    let (mut stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    stage.kill_arbiter();
    // While both sides live, neither needs the arbiter.
    load.goes_on();
    primary.kill();
    assert_no_side_goes_on(&mut [&mut backup], &load);
    stage.restart_arbiter();
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn primary_of_a_killed_backup_waits_for_the_arbiter() {
    let (mut stage, Pair { mut primary, mut backup }, load) = loaded_pair(&[], &[]);
    stage.kill_arbiter();
    backup.kill();
    assert_no_side_goes_on(&mut [&mut primary], &load);
    stage.restart_arbiter();
    primary.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}

#[test]
fn sides_that_lose_each_other_both_wait_and_exactly_one_goes_on() {
    let (mut stage, Pair { mut primary, mut backup }, link, load) = loaded_linked_pair(&ALERT, &ALERT);
    stage.kill_arbiter();
    link.silence();
    assert_no_side_goes_on(&mut [&mut primary, &mut backup], &load);
    stage.restart_arbiter();
    wait_until("one side's end", || primary.has_told("end") || backup.has_told("end"));
    let (mut fenced, mut winner) = if primary.has_told("end") { (primary, backup) } else { (backup, primary) };
    assert_eq!(fenced.end().code, Some(3));
    assert!(!fenced.owned().contains(&2));
    winner.comes_to_own(2);
    load.goes_on();
    load.lost_nothing();
}

/// How long a call to the arbiter may take: longer than any outage in these tests.
const TIMEOUT: Duration = Duration::from_secs(10);

fn vm() -> VmId {
    "alpha".parse().unwrap()
}

fn claim(node: u128) -> Claim {
    Claim { node: NodeId(node), kind: ClaimKind::Owner, address: None }
}

/// The address of a proxy before `server` that forwards the first request and loses its answer;
/// later connections are forwarded whole.
fn losing_the_first_answer(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (mut from_client, mut to_server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
            let (mut to_client, mut from_server) = (from_client.try_clone().unwrap(), to_server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
            thread::spawn(move || {
                let mut answer = [0; 4096];
                while let Ok(length @ 1..) = from_server.read(&mut answer) {
                    if number == 0 || to_client.write_all(&answer[..length]).is_err() {
                        break;
                    }
                }
                let _ = to_client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

/// Checks that a node whose first claim was recorded, and its answer lost, still has the flag when
/// it asks again.
#[track_caller]
fn a_lost_answer_is_given_again(scheme: &str, server: &str) {
    let open = |address: &str| arbiter::open(&format!("{scheme}{address}"), TIMEOUT).unwrap();
    let (lossy, direct) = (open(&losing_the_first_answer(server.into())), open(server));
    let error = lossy.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert_eq!(direct.test_and_set(&vm(), Generation(0), &claim(2), None).unwrap(), Verdict::Lost(claim(1)));
    assert_eq!(lossy.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    assert_eq!(lossy.latest(&vm()).unwrap(), Some((Generation(0), claim(1))));
}

#[test]
fn a_lost_answer_of_ft_arbiter_is_given_again() {
    let stage = Stage::new(programs!());
    a_lost_answer_is_given_again("tcp:", stage.site.arbiter_address());
}

#[test]
fn a_lost_answer_of_etcd_is_given_again() {
    let Some(etcd) = Etcd::start(1) else { return };
    a_lost_answer_is_given_again("etcd://", etcd.client_address(0));
}

/// Stops the claimers when the test ends, also by a failure.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The verdict that a claimer got for each generation, from 0 on.
type Verdicts = Vec<Verdict>;

/// Claims one generation after the other until `stop`, and asks again if there is no answer.
/// `decided` counts answers, `unanswered` counts calls without one.
fn claim_on(
    arbiter: &TcpArbiter,
    node: u128,
    stop: &AtomicBool,
    decided: &AtomicU64,
    unanswered: &AtomicU64,
) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let mut predecessor = None;
    while !stop.load(Ordering::Relaxed) {
        let generation = Generation(verdicts.len().try_into().unwrap());
        match arbiter.test_and_set(&vm(), generation, &claim(node), predecessor) {
            Ok(verdict) => {
                predecessor = match &verdict {
                    Verdict::Won => Some(NodeId(node)),
                    Verdict::Lost(holder) => Some(holder.node),
                    Verdict::NotSuccessor(_) => panic!("{verdict:?}"),
                };
                verdicts.push(verdict);
                decided.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert!(error.is_unreachable(), "{error}");
                unanswered.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    verdicts
}

#[test]
fn an_arbiter_killed_repeatedly_grants_each_generation_once() {
    const CLAIMERS: u128 = 6;
    const KILLS: u32 = 20;
    let seed = random::seed();
    let mut random = Random::new(seed);
    let mut stage = Stage::new(programs!());
    let address = stage.site.arbiter_address().to_owned();
    let (stop, decided, unanswered) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let told: Mutex<Vec<(u128, Verdicts)>> = Mutex::default();
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for node in 1..=CLAIMERS {
            let arbiter = TcpArbiter::new(&address, TIMEOUT);
            let (told, stop, decided, unanswered) = (&told, &stop, &decided, &unanswered);
            scope.spawn(move || {
                let verdicts = claim_on(&arbiter, node, stop, decided, unanswered);
                told.lock().unwrap().push((node, verdicts));
            });
        }
        for _ in 0..KILLS {
            let target = decided.load(Ordering::Relaxed) + u64::from(random.below(40)) + 1;
            wait_until("claims", || decided.load(Ordering::Relaxed) >= target);
            stage.kill_arbiter();
            stage.restart_arbiter();
        }
    });
    assert!(unanswered.into_inner() > 0, "no claimer noticed a kill");

    let arbiter = TcpArbiter::new(&address, TIMEOUT);
    let told = told.into_inner().unwrap();
    let generations = told.iter().map(|(_, verdicts)| verdicts.len()).max().unwrap();
    for generation in 0..generations {
        let flag = Generation(generation.try_into().unwrap());
        // A node that never claimed gets the holder; the others get the same verdicts again.
        let Verdict::Lost(holder) = arbiter.test_and_set(&vm(), flag, &claim(CLAIMERS + 1), None).unwrap() else {
            panic!("generation {generation} was forgotten");
        };
        for (node, verdicts) in &told {
            let expected = if holder == claim(*node) { Verdict::Won } else { Verdict::Lost(holder.clone()) };
            assert_eq!(arbiter.test_and_set(&vm(), flag, &claim(*node), None).unwrap(), expected, "{flag}, again");
            assert!(
                verdicts.get(generation).is_none_or(|verdict| *verdict == expected),
                "{flag}, node {node}: {verdicts:?}"
            );
        }
    }
}
