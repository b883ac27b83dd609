//! A LAN on real sockets, guests that are smoltcp echo servers, and their hosts.

use hypervisor::lan::client::{Attached, FromLan, PacketReceiver, PacketSender, attach};
use hypervisor::lan::fabric::PacketQueues;
use hypervisor::lan::server::{LanConfig, LanServer};
use hypervisor::lan::{Attachment, ConnectionLimits};
use hypervisor::os::report::Reporter;
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::sync::oneshot;
use vm::OutputId;

pub(crate) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
pub(crate) const ECHO_PORT: u16 = 7;
/// Bounds every wait, so that a broken LAN fails the test instead of hanging it; no test waits so
/// long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A LAN on a thread of its own, ended when dropped.
pub(crate) struct Lan {
    pub listen: SocketAddr,
    pub qemu: SocketAddr,
    /// The address of each forward.
    pub forwards: Vec<SocketAddr>,
    pub stop: Option<oneshot::Sender<()>>,
    pub thread: Option<JoinHandle<()>>,
}

impl Lan {
    pub(crate) fn start(forwards: &[&str]) -> Self {
        let forwards = forwards.iter().map(|spec| spec.parse().unwrap()).collect();
        let config =
            LanConfig { listen: loopback(), qemu: Some(loopback()), forwards, limits: ConnectionLimits::default() };
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = LanServer::bind(&config, Reporter::new("lan-test", false)).await.unwrap();
                let forwards: Vec<_> = server.forward_addresses().collect();
                tell.send((server.listen_address(), server.qemu_address().unwrap(), forwards)).unwrap();
                server.run(async { _ = stopped.await }).await;
            });
        });
        let (listen, qemu, forwards) = told.recv_timeout(PATIENCE).unwrap();
        Self { listen, qemu, forwards, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

pub(crate) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub(crate) fn attachment(generation: u64) -> Attachment {
    Attachment {
        vm: "guest".parse().unwrap(),
        node: NodeId(u128::from(generation) + 100),
        generation: Generation(generation),
        mac: GUEST_MAC,
        next_output: OutputId(0),
        output_end: OutputId(u64::MAX),
        last_packet: 0,
        booted: Generation(0),
    }
}

pub(crate) fn client(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The guest: an echo server for TCP and UDP that numbers its outputs.
pub(crate) struct Guest {
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    pub wire: PacketQueues,
    pub tcp: SocketHandle,
    pub udp: SocketHandle,
    /// Every output so far; an output's id is its index.
    pub outputs: Vec<Vec<u8>>,
    /// The number of outputs that the LAN was sent.
    pub released: usize,
    pub last_packet: u64,
}

impl Guest {
    pub(crate) fn boot() -> Self {
        let mut wire = PacketQueues::default();
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|ips| ips.push(IpCidr::new(Ipv4Address::new(10, 0, 2, 15).into(), 24)).unwrap());
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut tcp = tcp::Socket::new(buffer(), buffer());
        tcp.set_nagle_enabled(false);
        tcp.listen(ECHO_PORT).unwrap();
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 << 10]);
        let mut udp = udp::Socket::new(buffer(), buffer());
        udp.bind(ECHO_PORT).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let (tcp, udp) = (sockets.add(tcp), sockets.add(udp));
        Self { interface, sockets, wire, tcp, udp, outputs: Vec::new(), released: 0, last_packet: 0 }
    }

    pub(crate) fn now() -> Instant {
        Instant::from_micros(i64::try_from(hypervisor::os::clock::now_us()).unwrap())
    }

    /// Runs until the guest is idle; its new outputs are appended to `outputs`.
    pub(crate) fn run(&mut self) {
        loop {
            self.interface.poll(Self::now(), &mut self.wire, &mut self.sockets);
            let echoed = self.echo_tcp() | self.echo_udp();
            if self.wire.sent.is_empty() && !echoed {
                return;
            }
            self.outputs.extend(self.wire.sent.drain(..));
        }
    }

    pub(crate) fn echo_tcp(&mut self) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.tcp);
        if !socket.is_open() {
            socket.listen(ECHO_PORT).unwrap();
        }
        let room = socket.send_capacity() - socket.send_queue();
        let mut bytes = vec![0; room];
        let length = if socket.can_send() { socket.recv_slice(&mut bytes).unwrap_or(0) } else { 0 };
        if length > 0 {
            assert_eq!(socket.send_slice(&bytes[..length]), Ok(length));
        }
        if socket.state() == tcp::State::CloseWait && !socket.can_recv() && socket.send_queue() == 0 {
            socket.close();
        }
        length > 0
    }

    pub(crate) fn echo_udp(&mut self) -> bool {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(self.udp);
        let Ok((bytes, from)) = socket.recv().map(|(bytes, meta)| (bytes.to_vec(), meta.endpoint)) else {
            return false;
        };
        socket.send_slice(&bytes, from).unwrap();
        true
    }
}

/// The host of a guest: attaches it and moves its packets, until killed.
pub(crate) struct Host {
    pub killed: Arc<AtomicBool>,
    pub thread: JoinHandle<Guest>,
}

impl Host {
    /// Attaches `guest` under `generation`, and sends its outputs from `next_output` on, perhaps
    /// again.
    pub(crate) fn run(lan: SocketAddr, mut guest: Guest, generation: u64, next_output: usize) -> Self {
        guest.released = next_output;
        let attachment = Attachment {
            next_output: OutputId(next_output as u64),
            last_packet: guest.last_packet,
            ..attachment(generation)
        };
        let Attached { sender, receiver, .. } = attach(lan, &attachment, PATIENCE).unwrap();
        let killed = Arc::new(AtomicBool::new(false));
        let (packets, received) = mpsc::channel();
        thread::spawn(move || receive(receiver, &packets));
        let thread = thread::spawn({
            let killed = killed.clone();
            move || serve(guest, sender, &received, &killed)
        });
        Self { killed, thread }
    }

    /// Kills the host. Packets that the guest hasn't been given are lost, and so are outputs that
    /// haven't been sent. Returns the guest as a backup would have it.
    pub(crate) fn kill(self) -> Guest {
        self.killed.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

pub(crate) fn receive(mut receiver: PacketReceiver, packets: &Sender<(u64, Vec<u8>)>) {
    while let Ok(received) = receiver.receive() {
        if let FromLan::Packet { number, packet } = received
            && packets.send((number, packet)).is_err()
        {
            break;
        }
    }
}

pub(crate) fn serve(
    mut guest: Guest,
    mut sender: PacketSender,
    packets: &Receiver<(u64, Vec<u8>)>,
    killed: &AtomicBool,
) -> Guest {
    loop {
        guest.run();
        if killed.load(Ordering::SeqCst) {
            sender.shutdown();
            return guest;
        }
        for (id, packet) in guest.outputs.iter().enumerate().skip(guest.released) {
            sender.send(OutputId(id as u64), packet).unwrap();
        }
        guest.released = guest.outputs.len();
        if let Ok((number, packet)) = packets.recv_timeout(Duration::from_millis(5)) {
            assert!(number > guest.last_packet, "frame {number} after {}", guest.last_packet);
            guest.last_packet = number;
            guest.wire.received.push_back(packet.into());
        } else {
            // More often than is due. The connection may be closed, which its receiver notices.
            let _ = sender.send_heartbeat();
        }
    }
}

/// Sends `bytes` and checks that they are echoed; `each` is called periodically with how many have
/// been.
pub(crate) fn echo(stream: &TcpStream, bytes: &[u8], mut each: impl FnMut(usize)) {
    thread::scope(|scope| {
        scope.spawn(|| (&*stream).write_all(bytes).unwrap());
        let mut returned = vec![0; bytes.len()];
        let mut length = 0;
        while length < bytes.len() {
            let end = bytes.len().min(length + 64 * 1024);
            match (&*stream).read(&mut returned[length..end]) {
                Ok(0) => panic!("closed after {length} bytes"),
                Ok(read) => length += read,
                Err(error) => panic!("after {length} bytes: {error}"),
            }
            each(length);
        }
        assert!(returned == bytes, "the echo differs from what was sent");
    });
}

pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 251).to_le_bytes()[0]).collect()
}
