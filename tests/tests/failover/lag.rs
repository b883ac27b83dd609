//! Scales et al. 2010, §3.2: a slow backup slows its primary, so that a failover has little log to
//! replay.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use hypervisor::program::site::cluster::PATIENCE;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;
use tests::programs;
use tests::stage::{Pair, Stage};

/// The lag at which the guest is slowed, in milliseconds.
const BOUND: &str = "50";

/// How many times slower the backup replays.
const SLOWDOWN: &str = "10";

/// Bound of the first lag, in microseconds: twice the time that the backup needs, at a tenth of the
/// speed, for what the guest did until the lag was noticed.
const FIRST_LAG_US: u64 = 2_000_000;

/// Bound of the lag afterwards, in microseconds: four times [`BOUND`], where the guest stops, and
/// as much again for a busy host.
const LAG_US: u64 = 400_000;

fn ask(service: std::net::SocketAddr) -> String {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(service).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(b"?").unwrap();
    let mut buffer = [0; 200];
    let length = client.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn a_backup_ten_times_slower_slows_its_primary_and_the_lag_stays_bounded() {
    let stage = Stage::new(programs!());
    let Pair { mut primary, mut backup } =
        stage.pair(&["--guest", "counter", "--lag-bound-ms", BOUND], &["--inject-slowdown", SLOWDOWN]);
    for _ in 0..30 {
        thread::sleep(Duration::from_millis(200));
        assert!(ask(stage.site.service).contains("count"), "the guest computes on and answers");
    }
    assert!(!primary.has_told("backup_lost"));
    // A primary that hands over reports its figures.
    primary.interrupt();
    let lag_us = primary.told_number("figures", "lag_max_us");
    assert!(lag_us > 50_000, "the backup was never behind: {lag_us} us");
    assert!(lag_us < FIRST_LAG_US, "{lag_us} us");
    let lag_us = primary.told_number("figures", "lag_us");
    assert!(lag_us < LAG_US, "{lag_us} us at the end");
    backup.told("live");
    assert!(ask(stage.site.service).contains("count"));
}
