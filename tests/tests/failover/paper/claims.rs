//! §2.3: sides that die while they claim, and what clients did meanwhile.

use super::{ALERT, connect, echoes};
use hypervisor::arbiter;
use hypervisor::program::site::cluster::PATIENCE;
use logchannel::entry::Generation;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::Shutdown;
use tests::client::Load;
use tests::programs;
use tests::stage::{Pair, Stage, pause, wait_until, wake};

/// Checks that neither side lives, that a dead node owns the VM as `generation`, and that it starts
/// as the next generation only with `--force-new`.
#[track_caller]
fn assert_owned_by_a_dead_node(stage: &Stage, generation: u64) {
    let mut again = stage.node("ft-primary", &[]);
    let ended = again.end();
    assert_eq!(ended.code, Some(1), "{}", ended.reason);
    for words in ["is owned by node", &format!("as generation {generation}"), "--force-new"] {
        assert!(ended.reason.contains(words), "{words:?} is not in {:?}", ended.reason);
    }
    assert!(!again.has_told("owner"));
    let Pair { mut primary, backup: _backup } = stage.pair(&["--force-new"], &[]);
    assert_eq!(primary.owned(), [generation + 1]);
    echoes(&connect(stage), "a new machine");
}

#[test]
fn a_vm_whose_backup_dies_before_its_claim_is_recorded_has_no_live_side() {
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    stage.kill_arbiter();
    primary.kill();
    backup.told("arbiter_unreachable");
    backup.kill();
    stage.restart_arbiter();
    assert_owned_by_a_dead_node(&stage, 1);
    assert!(!backup.has_told("live"));
}

#[test]
fn a_vm_whose_backup_dies_after_its_claim_is_recorded_has_no_live_side() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    // The arbiter gets the claim, and answers only after the backup has died.
    pause(&stage.site.arbiter);
    primary.kill();
    backup.told("arbiter_unreachable");
    backup.kill();
    wake(&stage.site.arbiter);
    let arbiter = arbiter::open(&format!("tcp:{}", stage.site.arbiter_address()), PATIENCE).unwrap();
    let claimed = || arbiter.latest(&"vm0".parse().unwrap()).unwrap().is_some_and(|(flag, _)| flag == Generation(1));
    wait_until("the claim's record", claimed);
    assert_owned_by_a_dead_node(&stage, 2);
    assert!(!backup.has_told("live"));
}

#[test]
fn the_surviving_one_of_two_claimers_goes_on() {
    for primary_dies in [true, false] {
        let mut stage = Stage::new(programs!());
        let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&ALERT, &ALERT);
        let load = Load::on(stage.site.service);
        stage.kill_arbiter();
        link.silence();
        primary.told("arbiter_unreachable");
        backup.told("arbiter_unreachable");
        let (dies, lives) = if primary_dies { (&mut primary, &mut backup) } else { (&mut backup, &mut primary) };
        dies.kill();
        stage.restart_arbiter();
        lives.comes_to_own(2);
        assert!(!dies.owned().contains(&2));
        load.goes_on();
        load.lost_nothing();
    }
}

#[test]
fn connections_opened_and_closed_during_an_outage_reach_the_new_primary() {
    /// Connections that the echo guest accepts at once.
    const CONNECTIONS: usize = 64;
    let mut stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } = stage.pair(&[], &[]);
    let [closes, resets, ends, stays] = [(); 4].map(|()| connect(&stage));
    for client in [&closes, &resets, &ends, &stays] {
        echoes(client, "before");
    }
    // Neither side serves until the arbiter is back.
    stage.kill_arbiter();
    primary.kill();
    backup.told("arbiter_unreachable");
    drop(closes);
    setsockopt(&resets, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(resets);
    (&ends).write_all(b"last words").unwrap();
    ends.shutdown(Shutdown::Write).unwrap();
    let comes = connect(&stage);
    assert!(!backup.has_told("live"));
    stage.restart_arbiter();
    assert_eq!(backup.told_number("live", "generation"), 2);

    let mut answer = String::new();
    (&ends).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "last words");
    for client in [&stays, &comes] {
        echoes(client, "after");
    }
    wait_until("the guest's word of the three that left", || backup.console().matches("echo: closed").count() == 3);
    // The closed connections have freed their sockets: the guest accepts as many as before.
    let crowd: Vec<_> = (2..CONNECTIONS).map(|_| connect(&stage)).collect();
    for client in crowd.iter().chain([&stays, &comes]) {
        echoes(client, "in a crowd");
    }
}
