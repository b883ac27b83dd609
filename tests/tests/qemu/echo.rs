//! The `echo` guest, from the same file that our machine runs, on QEMU's `virt` board with OpenSBI
//! and real clients.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::client::echo;
use hypervisor::program::guest::Guest;
use hypervisor::program::site::cluster::PATIENCE;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use tempfile::{NamedTempFile, TempDir};
use tests::programs;
use tests::qemu::{Qemu, is_installed};
use tests::stage::Node;

const REPLIES: u64 = 200;

/// QEMU's options for a network device like our machine's: virtio 1 over MMIO.
const DEVICE: [&str; 4] =
    ["-device", "virtio-net-device,netdev=n0,mac=52:54:00:12:34:56", "-global", "virtio-mmio.force-legacy=false"];

fn start_echo(netdev: &str) -> (Qemu, NamedTempFile) {
    let mut kernel = NamedTempFile::new().unwrap();
    kernel.write_all(&Guest::load("echo").unwrap().image).unwrap();
    let arguments = [&["-netdev", netdev], &DEVICE[..]].concat();
    let mut qemu = Qemu::start(kernel.path(), &arguments).unwrap();
    let up = qemu.wait_for_line("echo: listening on 10.0.2.15:7 (tcp, udp)", PATIENCE);
    assert!(up, "the guest does not serve; it printed {:?}", qemu.console());
    (qemu, kernel)
}

/// Runs a TCP and a UDP client at the same time.
fn echo_through(service: SocketAddr) {
    let stream = echo::tcp(service).unwrap();
    // By then the host has resolved the guest's address, so no datagram waits for that.
    assert!(stream.wait_for_replies(REPLIES, PATIENCE), "{:?}", stream.finish());
    let datagrams = echo::udp(service).unwrap();
    assert!(datagrams.wait_for_replies(REPLIES, PATIENCE), "{:?}", datagrams.finish());
    assert!(stream.wait_for_replies(REPLIES, PATIENCE), "{:?}", stream.finish());
    let (stream, datagrams) = (stream.finish(), datagrams.finish());
    println!("TCP: {stream:?}\nUDP: {datagrams:?}");
    assert!(stream.is_perfect(), "TCP: {stream:?}");
    assert!(datagrams.is_perfect(), "UDP: {datagrams:?}");
}

/// A port that is free for both protocols: QEMU can't report a port that it chose itself.
fn free_port() -> u16 {
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free for TCP and UDP");
}

#[test]
fn echo_serves_through_qemus_own_network() {
    if !is_installed() {
        return;
    }
    let port = free_port();
    let forward = |protocol| format!("hostfwd={protocol}:127.0.0.1:{port}-10.0.2.15:7");
    let (_qemu, _kernel) = start_echo(&format!("user,id=n0,{},{}", forward("tcp"), forward("udp")));
    let service = SocketAddr::from(([127, 0, 0, 1], port));
    echo_through(service);
}

#[test]
fn echo_on_qemu_serves_through_our_lan() {
    if !is_installed() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--qemu", "127.0.0.1:0", "--forward", "127.0.0.1:0=10.0.2.15:7"];
    let mut lan = Node::start(&programs!(), directory.path(), "ft-lan", &arguments);
    let listening = lan.told("listening");
    let at: SocketAddr = listening["qemu"].as_str().unwrap().parse().unwrap();
    let (host, port) = (at.ip(), at.port());
    let netdev = format!("stream,id=n0,server=off,addr.type=inet,addr.host={host},addr.port={port}");
    let (_qemu, _kernel) = start_echo(&netdev);
    lan.told("qemu_joined");
    // TCP and UDP have the same port.
    let service = listening["forwards"][0]["listen"].as_str().unwrap().parse().unwrap();
    echo_through(service);
    assert_eq!(lan.interrupt().code, Some(0));
}
