//! The LAN over real sockets: a server, clients that connect through forwards, and VMs that are
//! smoltcp echo servers.
//!
//! The "VM" here retains what a backup would have: its TCP state, which outputs it has sent, and
//! its last packet. So it can be cut from its host and attached again as the next generation, as in
//! a failover.

use hypervisor::lan::client::{FromLan, LanError, attach};
use hypervisor::lan::server::{LanConfig, LanServer};
use hypervisor::lan::{Attachment, ConnectionLimits};
use hypervisor::os::report::Reporter;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self};
use std::time::Duration;
use vm::OutputId;

use super::guest::*;

#[test]
fn a_client_comes_through_a_forward_and_closes_in_order() {
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:7"]);
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    for _ in 0..3 {
        let mut stream = client(lan.forwards[0]);
        echo(&stream, &pattern(300_000), |_| ());
        // Half-close: the guest still echoes what was sent before, then closes too.
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"last words");
    }
    host.kill();
}

#[test]
fn a_connection_survives_its_hosts_with_no_byte_lost_or_doubled() {
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:7"]);
    let mut host = Some(Host::run(lan.listen, Guest::boot(), 0, 0));
    let stream = client(lan.forwards[0]);
    let bytes = pattern(4 << 20);
    let mut generation = 0;
    echo(&stream, &bytes, |returned| {
        if returned > (generation + 1) * (bytes.len() / 6) {
            generation += 1;
            let guest = host.take().unwrap().kill();
            // The successor doesn't know whether the last outputs have left, and sends them again.
            let next_output = guest.released.saturating_sub(20);
            host = Some(Host::run(lan.listen, guest, generation as u64, next_output));
        }
    });
    assert!(generation >= 5, "only {generation} failovers happened");
    host.take().unwrap().kill();
}

#[test]
fn datagrams_that_come_while_the_host_is_away_are_answered_once() {
    let lan = Lan::start(&["udp:127.0.0.1:0=10.0.2.15:7"]);
    let socket = UdpSocket::bind(loopback()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(lan.forwards[0]).unwrap();
    let mut buffer = [0; 2000];
    let mut ask = |text: &str| {
        socket.send(text.as_bytes()).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), text);
    };
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    (0..20).for_each(|n| ask(&format!("datagram {n}")));
    let guest = host.kill();
    let carried = guest.outputs.len();

    (20..40).for_each(|n| _ = socket.send(format!("datagram {n}").as_bytes()).unwrap());
    // The successor sends all its predecessor's outputs again.
    let host = Host::run(lan.listen, guest, 1, 0);
    for n in 20..40 {
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("datagram {n}"));
    }
    // A duplicate answer would arrive before this one.
    socket.send(b"the end").unwrap();
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"the end");
    assert!(host.kill().outputs.len() > carried);
}

#[test]
fn older_owners_are_fenced_and_refused() {
    let lan = Lan::start(&[]);
    let mut old = attach(lan.listen, &attachment(3), PATIENCE).unwrap();
    let mut new = attach(lan.listen, &attachment(4), PATIENCE).unwrap();
    let fenced = old.receiver.receive();
    assert!(matches!(fenced, Err(LanError::Fenced { by: Generation(4) })), "{fenced:?}");
    let refused = attach(lan.listen, &attachment(3), PATIENCE);
    assert!(matches!(&refused, Err(LanError::Refused { reason }) if reason.contains("generation 4")), "{refused:?}");
    let rival = Attachment { node: NodeId(1), ..attachment(4) };
    let refused = attach(lan.listen, &rival, PATIENCE);
    assert!(matches!(&refused, Err(LanError::Refused { reason }) if reason.contains("another process")), "{refused:?}");

    // The LAN drops what the fenced owner still sends: the next packet to arrive is the successor's
    // own.
    let _ = old.sender.send(OutputId(0), &[&[0xff; 6][..], &GUEST_MAC, &[0x88, 0xb5, 1]].concat());
    let mut qemu = TcpStream::connect(lan.qemu).unwrap();
    let packet = [&GUEST_MAC[..], &[2, 9, 9, 9, 9, 9], &[0x88, 0xb5, 2]].concat();
    qemu.write_all(&u32::try_from(packet.len()).unwrap().to_be_bytes()).unwrap();
    qemu.write_all(&packet).unwrap();
    assert_eq!(new.receiver.receive().unwrap(), FromLan::Packet { number: 1, packet });
}

/// A packet to an address that no port of the LAN has.
fn to_unknown_station() -> Vec<u8> {
    [&[2, 8, 8, 8, 8, 8][..], &GUEST_MAC, &[0x88, 0xb5], &[0; 46]].concat()
}

#[test]
fn outputs_that_were_carried_are_told_though_nothing_else_is_said() {
    let lan = Lan::start(&[]);
    let mut port = attach(lan.listen, &attachment(0), PATIENCE).unwrap();
    assert_eq!(port.next_output, OutputId(0));
    let packet = to_unknown_station();
    let batch: Vec<_> = (0..100).map(|id| (OutputId(id), &packet[..])).collect();
    port.sender.send_batch(&batch).unwrap();
    let mut told = Vec::new();
    while told.last() != Some(&100) {
        match port.receiver.receive().unwrap() {
            FromLan::Carried { next_output } => told.push(next_output.0),
            FromLan::HeartbeatDue => {}
            packet @ FromLan::Packet { .. } => panic!("{packet:?}"),
        }
    }
    assert!(told.is_sorted_by(|a, b| a < b) && told.len() < 100, "one word is for many: {told:?}");
}

#[test]
fn a_vm_that_falls_silent_is_detached_and_one_that_reads_nothing_is_not() {
    let lan = Lan::start(&[]);
    let mut silent = attach(lan.listen, &attachment(0), PATIENCE).unwrap();
    let other = Attachment { vm: "other".parse().unwrap(), mac: [2, 0, 0, 0, 0, 0x16], ..attachment(0) };
    let mut deaf = attach(lan.listen, &other, PATIENCE).unwrap();
    let flood = vec![0; vm::PACKET_BYTES_MAX];
    let mut qemu = client(lan.qemu);
    let lost = loop {
        // More packets for the port that doesn't read than its connection takes.
        let packet = [&other.mac[..], &[2, 9, 9, 9, 9, 9], &[0x88, 0xb5], &flood[14..]].concat();
        for _ in 0..100 {
            let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
            qemu.write_all(&[&length[..], &packet].concat()).unwrap();
        }
        match silent.receiver.receive() {
            Ok(_) => deaf.sender.send_heartbeat().unwrap(),
            Err(lost) => break lost,
        }
    };
    assert!(matches!(lost, LanError::Closed | LanError::Io(_)), "{lost}");
    // It is still attached, and its outputs are carried.
    deaf.sender.send(OutputId(0), &to_unknown_station()).unwrap();
    while deaf.receiver.receive().unwrap() != (FromLan::Carried { next_output: OutputId(1) }) {}
}

#[test]
fn an_owner_that_attaches_again_learns_which_outputs_were_lost() {
    let lan = Lan::start(&[]);
    let mut port = attach(lan.listen, &attachment(0), PATIENCE).unwrap();
    let packet = to_unknown_station();
    (0..7).for_each(|id| port.sender.send(OutputId(id), &packet).unwrap());
    while port.receiver.receive().unwrap() != (FromLan::Carried { next_output: OutputId(7) }) {}
    // The connection ends with packets on it; its owner can't know which have been carried.
    port.sender.shutdown();
    assert_eq!(attach(lan.listen, &attachment(0), PATIENCE).unwrap().next_output, OutputId(7));
    // Another LAN doesn't know the VM, so it accepts what the VM says of its outputs.
    let other = Lan::start(&[]);
    let attachment = Attachment { next_output: OutputId(5), ..attachment(0) };
    assert_eq!(attach(other.listen, &attachment, PATIENCE).unwrap().next_output, OutputId(5));
}

#[test]
fn a_lan_that_was_started_again_adopts_the_vm() {
    let lan = Lan::start(&[]);
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    let mut guest = host.kill();
    drop(lan);
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:7"]);
    guest.last_packet = 1000;
    let host = Host::run(lan.listen, guest, 0, 0);
    echo(&client(lan.forwards[0]), b"hello", |_| ());
    assert!(host.kill().last_packet > 1000);
}

#[test]
fn a_guest_that_resets_resets_the_client() {
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:9"]);
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    let error = client(lan.forwards[0]).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "nobody listens at port 9");
    host.kill();
}

#[test]
fn garbage_closes_its_own_connection_and_no_other() {
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:7"]);
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0xff; 64], &[5, 0, 0, 0, 1, b'F', b'T', b'L', b'A']] {
        for address in [lan.listen, lan.qemu] {
            let mut stream = client(address);
            // The LAN may have closed the connection before everything was written.
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    echo(&client(lan.forwards[0]), b"still there", |_| ());
    host.kill();
}

#[test]
fn connections_that_say_nothing_keep_no_vm_out() {
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:7"]);
    let silent: Vec<TcpStream> =
        [lan.qemu, lan.listen].into_iter().flat_map(|port| (0..300).map(move |_| client(port))).collect();
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    let later: Vec<TcpStream> = (0..300).map(|_| client(lan.listen)).collect();
    echo(&client(lan.forwards[0]), b"hello", |_| ());
    host.kill();
    drop((silent, later));
}

#[test]
fn datagrams_of_many_clients_keep_no_other_client_out() {
    let lan = Lan::start(&["udp:127.0.0.1:0=10.0.2.15:7"]);
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    let clients: Vec<UdpSocket> = (0..300).map(|_| UdpSocket::bind(loopback()).unwrap()).collect();
    let mut buffer = [0; 64];
    for (number, socket) in (0_u32..).zip(&clients).chain([(300, &clients[0])]) {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&number.to_le_bytes(), lan.forwards[0]).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], number.to_le_bytes(), "client {number}");
    }
    host.kill();
}

/// A client with ever new ports gets as many flows as one address may have, and takes none of
/// another client's. All these datagrams wait for a guest, and an evicted flow would lose its
/// datagram.
#[test]
fn a_client_that_opens_flows_without_end_takes_only_its_own() {
    let lan = Lan::start(&["udp:127.0.0.1:0=10.0.2.15:7"]);
    let send = |from: Ipv4Addr| {
        let client = UdpSocket::bind((from, 0)).unwrap();
        client.send_to(b"hello", lan.forwards[0]).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    };
    let other = send(Ipv4Addr::new(127, 0, 0, 2));
    let many: Vec<_> = (0..300)
        .map(|n| {
            // Not faster than the forward's socket can take them.
            thread::sleep(Duration::from_millis(u64::from(n % 50 == 49) * 50));
            send(Ipv4Addr::LOCALHOST)
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    assert_eq!(other.recv(&mut [0; 20]).unwrap(), 5);
    many[299].recv(&mut [0; 20]).unwrap();
    let answered = many[..299].iter().filter(|client| {
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        client.recv(&mut [0; 20]).is_ok()
    });
    assert_eq!(answered.count() + 1, 192);
    host.kill();
}

#[test]
fn datagrams_of_every_length_pass_both_ways() {
    let lan = Lan::start(&["udp:127.0.0.1:0=10.0.2.15:7"]);
    let host = Host::run(lan.listen, Guest::boot(), 0, 0);
    let client = UdpSocket::bind(loopback()).unwrap();
    client.connect(lan.forwards[0]).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = vec![0; 1 << 16];
    for length in [1, 1471, 1472, 1473, 2000, 2953, 8000, 32_768, 65_507] {
        client.send(&pattern(length)).unwrap();
        let answered = client.recv(&mut answer).unwrap();
        assert!(answer[..answered] == pattern(length), "{length} bytes: {answered} came back");
    }
    host.kill();
}

/// smoltcp asks for the guest's address, and without an answer sends nothing for a second. A guest
/// that attaches in that second must be found sooner.
#[test]
fn a_client_that_comes_before_its_guest_is_served_as_soon_as_the_guest_is_there() {
    let waited = (0..5).map(|_| {
        let lan = Lan::start(&["127.0.0.1:0=10.0.2.15:7"]);
        let early = client(lan.forwards[0]);
        let datagram = UdpSocket::bind(loopback()).unwrap();
        datagram.set_read_timeout(Some(PATIENCE)).unwrap();
        datagram.send_to(b"early too", lan.forwards[1]).unwrap();
        thread::sleep(Duration::from_millis(150));
        let came = std::time::Instant::now();
        let host = Host::run(lan.listen, Guest::boot(), 0, 0);
        echo(&early, b"early", |_| ());
        assert_eq!(datagram.recv(&mut [0; 20]).unwrap(), 9);
        let waited = came.elapsed();
        host.kill();
        waited
    });
    let waited: Vec<_> = waited.collect();
    assert!(waited.iter().any(|&waited| waited < Duration::from_millis(500)), "{waited:?}");
}

/// Connects from one of this host's own addresses.
fn client_from(address: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let stream = socket.connect(to).await.unwrap().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    })
}

/// `true` if the LAN has refused this client, perhaps before the client's `connect` has returned.
fn is_reset(client: &io::Result<TcpStream>, patience: Duration) -> bool {
    let turned_away = |error: &io::Error| error.kind() == ErrorKind::ConnectionReset;
    match client {
        Ok(stream) => {
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut stream: &TcpStream = stream;
            stream.read(&mut [0]).is_err_and(|error| turned_away(&error))
        }
        Err(error) => turned_away(error),
    }
}

/// A client with many idle connections gets as many as one address may have. Other clients are
/// served, by the same forward and by others. All of these wait for a guest.
#[test]
fn a_client_that_takes_all_it_can_keeps_no_other_out() {
    let lan = Lan::start(&["tcp:127.0.0.1:0=10.0.2.15:7", "tcp:127.0.0.1:0=10.0.2.15:9"]);
    let idle: Vec<_> = (0..300).map(|_| TcpStream::connect(lan.forwards[0])).collect();
    assert!(is_reset(&idle[299], PATIENCE), "beyond the limit of an address");
    let refused = idle[..299].iter().filter(|client| is_reset(client, Duration::from_millis(1))).count();
    assert_eq!(refused, 299 - 192);
    let others = lan.forwards.iter().map(|&forward| client_from(Ipv4Addr::new(127, 0, 0, 2), forward));
    for other in others.collect::<Vec<_>>() {
        assert!(!is_reset(&Ok(other), Duration::from_millis(300)));
    }
    assert!(is_reset(&TcpStream::connect(lan.forwards[1]), PATIENCE), "the address is at its limit by every forward");
}

#[test]
fn one_port_number_serves_tcp_and_udp() {
    let lan = Lan::start(&["127.0.0.1:0=10.0.2.15:7"]);
    assert_eq!(lan.forwards.len(), 2);
    assert_eq!(lan.forwards[0], lan.forwards[1]);
}

#[test]
fn an_address_in_use_is_named() {
    let taken = TcpListener::bind(loopback()).unwrap();
    let listen = taken.local_addr().unwrap();
    let config = LanConfig { listen, qemu: None, forwards: vec![], limits: ConnectionLimits::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(LanServer::bind(&config, Reporter::new("lan-test", false))).unwrap_err();
    assert!(error.to_string().contains(&listen.to_string()), "{error}");
}
