//! A stock Debian Linux boots, takes input at its console, serves redis and powers off; its
//! recording replays bit for bit.

use hypervisor::program::cli::exit;
use hypervisor::program::client::redis::{Redis, Reply};
use serde_json::Value;
use std::io::{self, Write};
use std::net::SocketAddr;
use tests::linux::{GREETING, LinuxGuest, PATIENCE, REDIS_READY, REDIS_SERVICE, wait_for_console};
use tests::programs;
use tests::stage::Node;

const OK: Option<i32> = Some(exit::OK as i32);

/// Waits for the node's orderly end; returns its summary.
#[track_caller]
fn ends_in_order(node: &mut Node, summary: &str) -> Value {
    node.wait(PATIENCE).expect("it ends by itself");
    let end = node.end();
    assert_eq!(end.code, OK, "{end:?} {} {}", node.stderr(), node.console());
    node.told(summary)
}

#[test]
fn linux_boots_to_a_shell_and_redis_and_replays_to_the_same_console_and_state() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("linux.ftlog");
    let forward = format!("127.0.0.1:0={REDIS_SERVICE}");
    let mut lan =
        Node::start(&programs!(), directory.path(), "ft-lan", &["--listen", "127.0.0.1:0", "--forward", &forward]);
    let listening = lan.told("listening");
    let service: SocketAddr = listening["forwards"][0]["listen"].as_str().unwrap().parse().unwrap();

    let options = guest.options(&["--lan", listening["listen"].as_str().unwrap(), "--output", log.to_str().unwrap()]);
    let (input, mut keyboard) = io::pipe().unwrap();
    let mut recorder = Node::start_with_input(&programs!(), directory.path(), "ft-record", &options, input.into());
    for text in [GREETING, REDIS_READY, "/ # "] {
        wait_for_console(&mut recorder, text);
    }
    // Input longer than the serial port's buffer must not be lost. The shell's echo of it doesn't
    // contain the sum.
    let long = "typed".repeat(60);
    writeln!(keyboard, "echo $((6 * 7)) {long}; cat /proc/cpuinfo").unwrap();
    wait_for_console(&mut recorder, &format!("42 {long}"));
    wait_for_console(&mut recorder, "rv64imafdc");

    let mut redis = Redis::connect(service).unwrap();
    assert_eq!(redis.ask("PING").unwrap(), Reply::Simple("PONG".into()));
    for number in 1..=100 {
        assert_eq!(redis.ask("INCR visits").unwrap(), Reply::Integer(number));
    }
    // Floating point, in redis and in the C library.
    assert_eq!(redis.ask("INCRBYFLOAT third 0.1").unwrap(), Reply::Bulk(Some("0.1".into())));
    assert_eq!(redis.ask("INCRBYFLOAT third 0.2").unwrap(), Reply::Bulk(Some("0.3".into())));
    writeln!(keyboard, "redis-cli get visits").unwrap();
    wait_for_console(&mut recorder, "\"100\"");
    writeln!(keyboard, "poweroff -f").unwrap();
    let recorded = ends_in_order(&mut recorder, "recorded");

    let mut replayer = Node::start(&programs!(), directory.path(), "ft-replay", &[log.to_str().unwrap()]);
    let replayed = ends_in_order(&mut replayer, "replayed");
    assert_eq!(replayed["ending"], "complete");
    assert_eq!(replayer.console(), recorder.console());
    for field in ["entries", "instruction_count", "outputs"] {
        assert_eq!(replayed[field].as_u64().unwrap(), recorded[field].as_u64().unwrap(), "{field}");
    }
    // There is a digest every 20 million instructions and every second, and booting takes hundreds
    // of millions.
    assert!(replayed["digests_checked"].as_u64().unwrap() > 20, "{replayed}");
    println!("{replayed}");
}
