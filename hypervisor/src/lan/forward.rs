//! Ports of guests made reachable for ordinary clients.
//!
//! A client's TCP ends in this process, and another one, the gateway's, leads on to the guest. So the client's connection
//! survives the host under the guest. Bytes pass with flow control both ways: what the one side doesn't take, the other
//! isn't asked for. Half-close passes as half-close, a reset as a reset.

use super::events::ForwardListening;
use super::fabric::Fabric;
use super::gateway::{GATEWAY_IP, GUEST_TIMEOUT, PREFIX_BITS, UDP_PAYLOAD_BYTES_MAX};
use super::server::{ACCEPT_RETRY, Shared, StartError, keep_alive};
use crate::host::clock;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, RecvError};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::str::FromStr;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Notify;

/// A UDP flow that is silent this long both ways loses its port at the gateway.
const UDP_FLOW_IDLE_US: u64 = 120_000_000;
/// How often a half-closed connection asks whether its guest is still there.
const HALF_CLOSED_PROBE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);
/// How often to look for a port that is free for both TCP and UDP.
const SAME_PORT_ATTEMPTS: usize = 16;

/// Makes a guest's port reachable at an address of this host: `[tcp:|udp:]HOST:PORT=GUEST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    protocols: Protocols,
    listen: SocketAddr,
    guest: SocketAddrV4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocols {
    Tcp,
    Udp,
    Both,
}

/// What is wrong with the text of a [`Forward`].
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ForwardError {
    /// Not of the form.
    #[error("'{0}' is not of the form [tcp:|udp:]HOST:PORT=GUEST:PORT, for example 127.0.0.1:7007=10.0.2.15:7")]
    Form(String),
    /// The guest's address is not on the LAN.
    #[error("guest {0} is not on the LAN: use an address in 10.0.2.0/24 other than 10.0.2.0, .2 and .255, and a port")]
    Guest(SocketAddrV4),
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (protocols, addresses) = match text.split_once(':') {
            Some(("tcp", rest)) => (Protocols::Tcp, rest),
            Some(("udp", rest)) => (Protocols::Udp, rest),
            _ => (Protocols::Both, text),
        };
        let parsed = addresses
            .split_once('=')
            .and_then(|(listen, guest)| Some((listen.parse().ok()?, guest.parse::<SocketAddrV4>().ok()?)));
        let (listen, guest) = parsed.ok_or_else(|| ForwardError::Form(text.to_owned()))?;
        if is_guest(*guest.ip()) && guest.port() != 0 {
            Ok(Self { protocols, listen, guest })
        } else {
            Err(ForwardError::Guest(guest))
        }
    }
}

/// Whether a guest may have this address.
fn is_guest(ip: Ipv4Addr) -> bool {
    let host_mask = u32::MAX >> PREFIX_BITS;
    let (gateway, guest) = (GATEWAY_IP.to_bits(), ip.to_bits());
    let host = guest & host_mask;
    guest & !host_mask == gateway & !host_mask && host != 0 && host != host_mask && guest != gateway
}

/// A forward whose socket is bound.
#[derive(Debug)]
pub(super) struct ForwardSocket {
    socket: Socket,
    address: SocketAddr,
    guest: SocketAddrV4,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Binds a forward; to the same port for both protocols if it is for both.
///
/// # Errors
/// [`StartError::Bind`]
pub(super) async fn bind(forward: Forward) -> Result<Vec<ForwardSocket>, StartError> {
    let Forward { protocols, listen, guest } = forward;
    let failed = |source| StartError::Bind { address: listen, purpose: "a forward", source };
    let tcp = async |address| -> io::Result<ForwardSocket> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(ForwardSocket { socket: Socket::Tcp(listener), address, guest })
    };
    let udp = async |address| -> io::Result<ForwardSocket> {
        let socket = UdpSocket::bind(address).await?;
        let address = socket.local_addr()?;
        Ok(ForwardSocket { socket: Socket::Udp(socket), address, guest })
    };
    match protocols {
        Protocols::Tcp => Ok(vec![tcp(listen).await.map_err(failed)?]),
        Protocols::Udp => Ok(vec![udp(listen).await.map_err(failed)?]),
        Protocols::Both => {
            let mut attempts = if listen.port() == 0 { SAME_PORT_ATTEMPTS } else { 1 };
            loop {
                let tcp = tcp(listen).await.map_err(failed)?;
                attempts -= 1;
                match udp(tcp.address).await {
                    Ok(udp) => return Ok(vec![tcp, udp]),
                    Err(error) if attempts == 0 => return Err(failed(error)),
                    Err(_) => {}
                }
            }
        }
    }
}

impl ForwardSocket {
    /// Where clients come.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to tell of it.
    pub(super) fn listening(&self) -> ForwardListening {
        let protocol = match self.socket {
            Socket::Tcp(_) => "tcp",
            Socket::Udp(_) => "udp",
        };
        ForwardListening { protocol, listen: self.address.to_string(), guest: self.guest.to_string() }
    }

    /// Serves clients for ever.
    pub(super) async fn serve(self, shared: Rc<Shared>) {
        match self.socket {
            Socket::Tcp(listener) => serve_tcp(shared, listener, self.guest).await,
            Socket::Udp(socket) => serve_udp(shared, socket, self.guest).await,
        }
    }
}

async fn serve_tcp(shared: Rc<Shared>, listener: TcpListener, guest: SocketAddrV4) {
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve_client(shared, client, guest).await {
                        tracing::debug!(%peer, %error, "a client's connection was cut");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a client failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// A connection did not end in order.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the guest reset it or could not be reached")]
    Guest,
    #[error("the client cut it: {0}")]
    Client(#[from] io::Error),
}

async fn serve_client(shared: Rc<Shared>, mut client: TcpStream, guest: SocketAddrV4) -> Result<(), Cut> {
    client.set_nodelay(true)?;
    keep_alive(&client);
    let opened = shared.drive(|fabric| {
        let opened = fabric.gateway().connect_tcp(guest);
        if opened.is_err() {
            fabric.count_refused_client();
        }
        opened
    });
    let handle = match opened {
        Ok(handle) => handle,
        Err(full) => {
            tracing::warn!("a client is refused: {full}");
            return Ok(client.set_zero_linger()?);
        }
    };
    let socket = GuestStream { shared, handle };
    let passed = pass(&socket, &mut client).await;
    match passed {
        Ok(()) => {
            drop(client);
            socket.closed().await;
        }
        // Closing with a zero linger time resets the client's connection.
        Err(Cut::Guest) => client.set_zero_linger()?,
        // Dropping the guest's socket before its time resets the guest's connection.
        Err(Cut::Client(_)) => {}
    }
    passed
}

async fn pass(socket: &GuestStream, client: &mut TcpStream) -> Result<(), Cut> {
    socket.connected().await?;
    let (reader, mut writer) = client.split();
    tokio::try_join!(client_to_guest(&reader, socket), guest_to_client(socket, &mut writer))?;
    Ok(())
}

async fn client_to_guest(client: &ReadHalf<'_>, guest: &GuestStream) -> Result<(), Cut> {
    loop {
        guest.writable().await?;
        tokio::select! {
            readable = client.readable() => readable?,
            () = guest.lost() => return Err(Cut::Guest),
        }
        if guest.read_from(client)? == Some(0) {
            guest.close();
            return Ok(());
        }
    }
}

async fn guest_to_client(guest: &GuestStream, client: &mut WriteHalf<'_>) -> Result<(), Cut> {
    while guest.readable().await? {
        client.writable().await?;
        guest.write_to(client)?;
    }
    Ok(client.shutdown().await?)
}

/// The gateway's end of a connection to a guest. Resets it when dropped, unless it has ended.
struct GuestStream {
    shared: Rc<Shared>,
    handle: SocketHandle,
}

impl GuestStream {
    /// Waits until the guest has accepted.
    async fn connected(&self) -> Result<(), Cut> {
        let connecting = |state| matches!(state, tcp::State::SynSent | tcp::State::SynReceived);
        let state = self.until(|socket| Some(socket.state()).filter(|&state| !connecting(state))).await;
        if state == tcp::State::Closed {
            return Err(Cut::Guest);
        }
        self.with(|socket| socket.set_timeout(None));
        Ok(())
    }

    /// Waits until the guest can be sent something.
    async fn writable(&self) -> Result<(), Cut> {
        let writable = self.until(|socket| (socket.can_send() || !socket.may_send()).then(|| socket.can_send())).await;
        if writable { Ok(()) } else { Err(Cut::Guest) }
    }

    /// Waits until the guest can't be sent anything any more.
    async fn lost(&self) {
        self.until(|socket| (!socket.may_send()).then_some(())).await;
    }

    /// Waits until the guest has sent something (`true`) or will send no more (`false`).
    async fn readable(&self) -> Result<bool, Cut> {
        self.until(|socket| match socket.recv(|bytes| (0, !bytes.is_empty())) {
            Ok(true) => Some(Ok(true)),
            Ok(false) => None,
            Err(RecvError::Finished) => Some(Ok(false)),
            Err(RecvError::InvalidState) => Some(Err(Cut::Guest)),
        })
        .await
    }

    /// Waits until nothing is left to be said.
    async fn closed(&self) {
        self.until(|socket| matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait).then_some(())).await;
    }

    /// Moves what the client has sent towards the guest. Returns how much; 0 is its end, `None` nothing for now.
    fn read_from(&self, client: &ReadHalf<'_>) -> Result<Option<usize>, Cut> {
        let read =
            self.shared.drive(|fabric| fabric.gateway().tcp(self.handle).send(|space| moved(client.try_read(space))));
        read.map_err(|_| Cut::Guest)?
    }

    /// Moves what the guest has sent towards the client.
    fn write_to(&self, client: &WriteHalf<'_>) -> Result<(), Cut> {
        let written =
            self.shared.drive(|fabric| fabric.gateway().tcp(self.handle).recv(|bytes| moved(client.try_write(bytes))));
        written.map_err(|_| Cut::Guest)?.map(|_| ())
    }

    /// Tells the guest that the client will send no more. From here on a guest that is gone is noticed.
    fn close(&self) {
        self.shared.drive(|fabric| {
            let socket = fabric.gateway().tcp(self.handle);
            socket.set_keep_alive(Some(HALF_CLOSED_PROBE));
            socket.set_timeout(Some(GUEST_TIMEOUT));
            socket.close();
        });
    }

    fn with<R>(&self, act: impl FnOnce(&mut tcp::Socket<'static>) -> R) -> R {
        self.shared.with(|fabric| act(fabric.gateway().tcp(self.handle)))
    }

    /// Waits until `look` sees something; it looks again whenever the socket has changed.
    async fn until<R>(&self, mut look: impl FnMut(&mut tcp::Socket<'static>) -> Option<R>) -> R {
        poll_fn(|context| {
            self.with(|socket| match look(socket) {
                Some(seen) => Poll::Ready(seen),
                None => {
                    socket.register_recv_waker(context.waker());
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
            })
        })
        .await
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        self.shared.drive(|fabric| {
            let socket = fabric.gateway().tcp(self.handle);
            if socket.state() != tcp::State::TimeWait {
                socket.abort();
            }
        });
        self.shared.with(|fabric| fabric.gateway().remove_tcp(self.handle));
    }
}

/// For smoltcp, how many bytes were moved; for us, the same or why none were.
fn moved(result: io::Result<usize>) -> (usize, Result<Option<usize>, Cut>) {
    match result {
        Ok(bytes) => (bytes, Ok(Some(bytes))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Ok(None)),
        Err(error) => (0, Err(error.into())),
    }
}

/// The flows of one UDP forward, by client.
type Flows = RefCell<BTreeMap<SocketAddr, Rc<Flow>>>;

async fn serve_udp(shared: Rc<Shared>, socket: UdpSocket, guest: SocketAddrV4) {
    let socket = Rc::new(socket);
    let flows = Rc::new(Flows::default());
    let mut datagram = vec![0; 1 << 16];
    loop {
        let (bytes, client) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "receiving from clients failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let known = flows.borrow().get(&client).cloned();
        let flow = match known {
            Some(flow) => flow,
            None => match Flow::open(&shared).or_else(|| replace_oldest(&shared, &flows)) {
                Some(flow) => {
                    flows.borrow_mut().insert(client, flow.clone());
                    tokio::task::spawn_local(answer(flow.clone(), socket.clone(), client, flows.clone()));
                    flow
                }
                None => {
                    tracing::debug!(%client, "a datagram is dropped: other forwards have all UDP flows");
                    shared.with(Fabric::count_refused_client);
                    continue;
                }
            },
        };
        flow.send(&datagram[..bytes], guest);
    }
}

/// Gives the flow that was silent longest to a new client: those that come and go must not keep others out.
fn replace_oldest(shared: &Rc<Shared>, flows: &Flows) -> Option<Rc<Flow>> {
    let mut flows = flows.borrow_mut();
    let (&client, _) = flows.iter().min_by_key(|(_, flow)| flow.used_at_us.get())?;
    flows.remove(&client)?.close();
    Flow::open(shared)
}

/// Passes what the guest sends on a flow to its client, until the flow is idle or closed.
async fn answer(flow: Rc<Flow>, socket: Rc<UdpSocket>, client: SocketAddr, flows: Rc<Flows>) {
    let mut datagram = vec![0; UDP_PAYLOAD_BYTES_MAX];
    loop {
        let idle_us = clock::now_us().saturating_sub(flow.used_at_us.get());
        let left = Duration::from_micros(UDP_FLOW_IDLE_US.saturating_sub(idle_us));
        tokio::select! {
            bytes = flow.receive(&mut datagram) => {
                if let Err(error) = socket.send_to(&datagram[..bytes], client).await {
                    tracing::debug!(%client, %error, "an answer could not be sent");
                }
            }
            // Its client's place belongs to nobody or to a later flow.
            () = flow.closed.notified() => return,
            () = tokio::time::sleep(left), if !left.is_zero() => {}
            else => {
                flows.borrow_mut().remove(&client);
                return;
            }
        }
    }
}

/// What the guest sees as one UDP peer.
struct Flow {
    shared: Rc<Shared>,
    /// `None` once closed.
    handle: Cell<Option<SocketHandle>>,
    closed: Notify,
    used_at_us: Cell<u64>,
}

impl Flow {
    /// A flow with a port of its own, unless there are too many.
    fn open(shared: &Rc<Shared>) -> Option<Rc<Self>> {
        let handle = shared.drive(|fabric| fabric.gateway().open_udp()).ok()?;
        Some(Rc::new(Self {
            shared: shared.clone(),
            handle: Cell::new(Some(handle)),
            closed: Notify::new(),
            used_at_us: Cell::new(clock::now_us()),
        }))
    }

    /// Gives the port back at once.
    fn close(&self) {
        if let Some(handle) = self.handle.take() {
            self.shared.with(|fabric| fabric.gateway().remove_udp(handle));
            self.closed.notify_one();
        }
    }

    /// Sends a datagram to the guest, or counts it as refused.
    fn send(&self, datagram: &[u8], guest: SocketAddrV4) {
        let Some(handle) = self.handle.get() else { return };
        self.used_at_us.set(clock::now_us());
        self.shared.drive(|fabric| {
            let fits = datagram.len() <= UDP_PAYLOAD_BYTES_MAX;
            let to = (*guest.ip(), guest.port());
            if !fits || fabric.gateway().udp(handle).send_slice(datagram, to).is_err() {
                fabric.count_refused_client();
            }
        });
    }

    /// Waits for a datagram of the guest. Returns its length.
    async fn receive(&self, datagram: &mut [u8]) -> usize {
        let bytes = poll_fn(|context| {
            let Some(handle) = self.handle.get() else { return Poll::Pending };
            self.shared.with(|fabric| {
                let socket = fabric.gateway().udp(handle);
                match socket.recv_slice(datagram) {
                    Ok((bytes, _)) => Poll::Ready(bytes),
                    Err(_) => {
                        socket.register_recv_waker(context.waker());
                        Poll::Pending
                    }
                }
            })
        })
        .await;
        self.used_at_us.set(clock::now_us());
        bytes
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_for_both_protocols_unless_one_is_chosen() {
        let both: Forward = "127.0.0.1:7007=10.0.2.15:7".parse().unwrap();
        assert_eq!(
            both,
            Forward {
                protocols: Protocols::Both,
                listen: ([127, 0, 0, 1], 7007).into(),
                guest: SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 7),
            }
        );
        assert_eq!("tcp:127.0.0.1:7007=10.0.2.15:7".parse(), Ok(Forward { protocols: Protocols::Tcp, ..both }));
        assert_eq!("udp:127.0.0.1:7007=10.0.2.15:7".parse(), Ok(Forward { protocols: Protocols::Udp, ..both }));
        let ipv6: Forward = "tcp:[::1]:0=10.0.2.15:7".parse().unwrap();
        assert!(ipv6.listen.is_ipv6());
    }

    #[test]
    fn other_texts_are_refused_with_an_example() {
        for text in ["", "7007=10.0.2.15:7", "127.0.0.1:7007", "sctp:127.0.0.1:1=10.0.2.15:7", "127.0.0.1:1=[::1]:7"] {
            let error = text.parse::<Forward>().unwrap_err();
            assert_eq!(error, ForwardError::Form(text.to_owned()));
            assert!(error.to_string().contains("127.0.0.1:7007=10.0.2.15:7"));
        }
    }

    #[test]
    fn only_guests_on_the_lan_can_be_forwarded_to() {
        for guest in ["10.0.2.0:7", "10.0.2.2:7", "10.0.2.255:7", "10.0.3.15:7", "127.0.0.1:7", "10.0.2.15:0"] {
            let refused = format!("127.0.0.1:0={guest}").parse::<Forward>();
            assert_eq!(refused, Err(ForwardError::Guest(guest.parse().unwrap())));
        }
    }
}
