//! A pair whose arbiter is an etcd cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use tests::client::Load;
use tests::etcd::Etcd;
use tests::programs;
use tests::stage::{Node, Stage};

/// Starts a program at the stage's LAN, with etcd for its arbiter.
fn node(stage: &Stage, etcd: &Etcd, program: &str) -> Node {
    let mut options = stage.site.options();
    let spec = options.iter().position(|option| option == "--arbiter").unwrap() + 1;
    options[spec] = etcd.spec();
    let silence = ["--failure-timeout-ms", "60000"];
    let arguments: Vec<_> = options.iter().map(String::as_str).chain(silence).collect();
    stage.program(program, &arguments)
}

#[test]
fn a_backup_goes_live_though_an_etcd_member_dies_with_the_primary() {
    let Some(mut etcd) = Etcd::start(3) else { return };
    let stage = Stage::new(programs!());
    let mut primary = node(&stage, &etcd, "ft-primary");
    primary.told("listening");
    let mut backup = node(&stage, &etcd, "ft-backup");
    backup.told("protected");
    primary.told("console");
    let load = Load::on(stage.site.service);
    etcd.kill(0);
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    load.goes_on();
    load.lost_nothing();
}
