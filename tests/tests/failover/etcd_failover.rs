//! A pair whose arbiter is an etcd cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use ft::claim::{Claim, ClaimKind};
use hypervisor::arbiter::Arbiter;
use logchannel::entry::Generation;
use nix::sys::signal::Signal;
use std::time::Duration;
use tests::client::Load;
use tests::etcd::Etcd;
use tests::http_proxy::{HttpProxy, Mode};
use tests::programs;
use tests::stage::{Node, Stage, wait_until};

/// Starts a program with the stage's LAN and this arbiter.
fn node(stage: &Stage, arbiter: &str, program: &str) -> Node {
    let mut options = stage.site.options();
    let spec = options.iter().position(|option| option == "--arbiter").unwrap() + 1;
    options[spec] = arbiter.into();
    let silence = ["--failure-timeout-ms", "60000"];
    let arguments: Vec<_> = options.iter().map(String::as_str).chain(silence).collect();
    stage.program(program, &arguments)
}

#[test]
fn a_backup_goes_live_though_an_etcd_member_dies_with_the_primary() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let stage = Stage::new(programs!());
    let mut primary = node(&stage, &etcd.spec(), "ft-primary");
    primary.told("listening");
    let mut backup = node(&stage, &etcd.spec(), "ft-backup");
    backup.told("protected");
    primary.told("console");
    let load = Load::on(stage.site.service);
    etcd.kill(0);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();
}

/// The VM's latest claim, read from etcd.
fn latest(etcd: &Etcd) -> Option<(Generation, Claim)> {
    etcd.arbiter(Duration::from_secs(10)).latest(&"vm0".parse().unwrap()).unwrap()
}

/// Waits until `node` has asked in vain for a while, and checks that it neither ended nor owns
/// another generation.
#[track_caller]
fn asks_in_vain(node: &mut Node, status: &str) {
    let (told, owned) = (node.count("arbiter_unreachable"), node.owned());
    node.told_again("arbiter_unreachable", 3);
    assert!(!node.has_told("end") && node.owned() == owned, "{:?}", node.reports().last());
    let reports = node.reports();
    let unreachable = reports.iter().filter(|report| report["event"] == "arbiter_unreachable").skip(told);
    for report in unreachable {
        assert!(report["reason"].as_str().unwrap().contains(&status[..3]), "{report}");
    }
}

/// None of these answers may end a start or a backup.
#[test]
fn errors_of_a_proxy_before_etcd_are_retried_and_leave_a_claim_undecided() {
    let Some(etcd) = Etcd::start(1) else { return };
    let stage = Stage::new(programs!());
    let proxy = HttpProxy::to(etcd.client_address(0));
    let arbiter = format!("etcd://{}", proxy.address());

    // First the start's read of the latest claim fails, then its claim is recorded and answered
    // with an error.
    proxy.set(Mode::Away("502 Bad Gateway"));
    let mut primary = node(&stage, &arbiter, "ft-primary");
    asks_in_vain(&mut primary, "502 Bad Gateway");
    assert_eq!(latest(&etcd), None);
    proxy.set(Mode::Pass);
    primary.told("listening");
    assert_eq!(primary.owned(), [1]);

    // The search for the primary, and the check that it is the owner.
    proxy.set(Mode::Away("503 Service Unavailable"));
    let mut backup = node(&stage, &arbiter, "ft-backup");
    wait_until("a backup that waits", || backup.count("waiting") > 0);
    assert!(backup.told_text("waiting", "reason").contains("503"));
    assert!(!backup.has_told("end"));
    proxy.set(Mode::Pass);
    backup.told("protected");
    primary.told("console");
    let load = Load::on(stage.site.service);

    // The claim of a failover: it is recorded, and answered with an error.
    proxy.set(Mode::TooLate("504 Gateway Timeout"));
    primary.kill();
    asks_in_vain(&mut backup, "504 Gateway Timeout");
    assert!(!backup.has_told("live"), "a claim whose answer isn't known was taken for won");
    assert_eq!(latest(&etcd).map(|(flag, _)| flag.0), Some(1), "the claim has passed");
    proxy.set(Mode::Pass);
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();

    // The end mark.
    proxy.set(Mode::Away("429 Too Many Requests"));
    backup.signal(Signal::SIGTERM);
    backup.told_again("arbiter_unreachable", 1);
    proxy.set(Mode::Pass);
    assert_eq!(backup.end().code, Some(0));
    assert_eq!(latest(&etcd).map(|(_, claim)| claim.kind), Some(ClaimKind::Ended));
}

/// A start's claim is recorded at etcd, and every answer is lost. The start must not end: it would
/// leave a VM that has an owner and runs nowhere.
#[test]
fn a_start_whose_claim_was_recorded_without_an_answer_asks_until_it_is_told() {
    let Some(etcd) = Etcd::start(1) else { return };
    let stage = Stage::new(programs!());
    let proxy = HttpProxy::to(etcd.client_address(0));
    let arbiter = format!("etcd://{}", proxy.address());
    proxy.set(Mode::LateForClaims("504 Gateway Timeout"));
    let mut primary = node(&stage, &arbiter, "ft-primary");
    asks_in_vain(&mut primary, "504 Gateway Timeout");
    proxy.set(Mode::Pass);
    primary.told("listening");
    assert_eq!(primary.owned(), [1]);
    assert_eq!(latest(&etcd).map(|(flag, _)| flag.0), Some(0), "it was claimed once");
}
