//! A VM on TAP interfaces, one for each side, on a bridge; the clients use the kernel's TCP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::client::echo;
use hypervisor::program::site::cluster::PATIENCE;
use std::net::SocketAddr;
use tempfile::TempDir;
use tests::netns::{in_own_network, make_bridge, run, stations};
use tests::programs;
use tests::stage::{Node, Pair, wait_until};

/// The address of the guest's gateway, which the bridge gets.
const HOST: &str = "10.0.2.2/24";

/// The echo guest's service.
const SERVICE: ([u8; 4], u16) = ([10, 0, 2, 15], 7);

/// The guest's Ethernet address.
const MAC: &str = "52:54:00:00:00:15";

const TAPS: [&str; 2] = ["ft-tap0", "ft-tap1"];

/// Replies that a client must get between two checks.
const REPLIES: u64 = 300;

/// A directory for the arbiter's claims and the nodes' files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn node(&self, program: &str, tap: &str, options: &[&str]) -> Node {
        let arbiter = format!("file:{}", self.0.path().join("claims").display());
        let network = format!("tap={tap}");
        // A failure timeout so long that a busy host causes no failover.
        let common = ["--arbiter", &arbiter, "--listen", "127.0.0.1:0", "--failure-timeout-ms", "60000"];
        let arguments = [&common[..], &["--net", &network], options].concat();
        Node::start(&programs!(), self.0.path(), program, &arguments)
    }

    fn pair(&self) -> Pair {
        let mut primary = self.node("ft-primary", TAPS[0], &["--mac", MAC]);
        let channel = primary.told_text("listening", "channel");
        let mut backup = self.node("ft-backup", TAPS[1], &["--primary", &channel]);
        backup.told("protected");
        primary.told("console");
        Pair { primary, backup }
    }
}

/// The interface to which the bridge forwards packets for the guest.
fn interface_of_guest() -> Option<String> {
    let stations = stations();
    let line = stations.lines().find(|line| line.starts_with(MAC))?;
    line.split(' ').skip_while(|word| *word != "dev").nth(1).map(Into::into)
}

#[test]
fn a_kernels_tcp_connection_survives_the_kill_of_the_primary() {
    in_own_network(|| {
        make_bridge(HOST, &TAPS);
        let place = Place::new();
        let Pair { mut primary, mut backup } = place.pair();
        let client = echo::tcp(SocketAddr::from(SERVICE)).unwrap();
        assert!(client.wait_for_replies(REPLIES, PATIENCE), "{:?}", client.finish());
        assert_eq!(interface_of_guest().as_deref(), Some(TAPS[0]));
        assert!(!backup.has_told("lan_attached"), "a backup has no interface");
        primary.kill();
        assert_eq!(backup.told_number("live", "generation"), 2);
        assert!(client.wait_for_replies(REPLIES, PATIENCE), "{:?}", client.finish());
        assert_eq!(interface_of_guest().as_deref(), Some(TAPS[1]));
        let result = client.finish();
        println!("{result:?}");
        assert!(result.is_perfect(), "{result:?}");
        assert_eq!(backup.interrupt().code, Some(0));
    });
}

#[test]
fn a_silent_guest_is_announced_when_it_goes_live() {
    in_own_network(|| {
        make_bridge(HOST, &TAPS);
        // No host sends the guest a packet.
        run("ip", "link set dev ft-bridge arp off");
        let place = Place::new();
        let Pair { mut primary, mut backup } = place.pair();
        primary.kill();
        backup.told("live");
        wait_until("the bridge knowing where the guest is", || interface_of_guest().as_deref() == Some(TAPS[1]));
    });
}

#[test]
fn a_missing_or_busy_tap_interface_is_named_and_waited_for() {
    in_own_network(|| {
        make_bridge(HOST, &TAPS[..1]);
        let place = Place::new();
        let mut first = place.node("ft-primary", TAPS[0], &["--unprotected"]);
        first.told("lan_attached");
        let mut second = place.node("ft-primary", TAPS[0], &["--unprotected", "--vm", "other"]);
        let reason = second.told_text("lan_lost", "reason");
        assert!(reason.contains("ft-tap0 is in use by another process"), "{reason}");
        first.kill();
        second.told("lan_attached");

        let mut third = place.node("ft-primary", TAPS[1], &["--unprotected", "--vm", "third"]);
        let reason = third.told_text("lan_lost", "reason");
        assert!(reason.contains("ip tuntap add dev ft-tap1 mode tap"), "{reason}");
        run("ip", "tuntap add dev ft-tap1 mode tap");
        third.told("lan_attached");
        // The interface is deleted, and made again.
        run("ip", "link delete ft-tap1");
        wait_until("the loss of the interface", || third.count("lan_lost") == 2);
        run("ip", "tuntap add dev ft-tap1 mode tap");
        wait_until("the interface being back", || third.count("lan_attached") == 2);
    });
}
