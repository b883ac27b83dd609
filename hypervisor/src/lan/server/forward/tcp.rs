//! TCP forwards: a client's connection ends here, and another one leads on to the guest.

use crate::lan::fabric::Fabric;
use crate::lan::fabric::GUEST_TIMEOUT;
use crate::lan::server::connection::keep_alive;
use crate::lan::server::forward::Protocol;
use crate::lan::server::forward::client_entry::{ClientEntry, Lost};
use crate::lan::server::forward::waiting::Waiters;
use crate::lan::server::{PeerLine, ServerState};
use crate::os::accept::AcceptTrouble;
use crate::os::clock;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, RecvError};
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::task::Poll;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// How often a half-closed connection probes whether its guest is still there.
const HALF_CLOSED_PROBE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);

/// One TCP forward.
pub(in crate::lan) struct Forwarded {
    shared: Rc<ServerState>,
    listen: SocketAddr,
    guest: SocketAddrV4,
    waiters: Waiters,
}

impl Forwarded {
    pub(in crate::lan) fn new(shared: Rc<ServerState>, listen: SocketAddr, guest: SocketAddrV4) -> Self {
        let waiters = Waiters::new(shared.clone(), Protocol::Tcp, listen, guest);
        Self { shared, listen, guest, waiters }
    }

    /// Serves clients for ever.
    pub(in crate::lan) async fn serve(self, listener: TcpListener) {
        let forwarded = Rc::new(self);
        let mut trouble = AcceptTrouble::default();
        loop {
            match listener.accept().await {
                Ok((client, peer)) => {
                    let forwarded = forwarded.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(error) = forwarded.serve_client(client, peer).await {
                            tracing::debug!(%peer, %error, "a client's connection was cut");
                        }
                    });
                }
                Err(error) => {
                    let what = format!("the forward at {} can't accept clients", forwarded.listen);
                    tokio::time::sleep(trouble.failed(&what, &error)).await;
                }
            }
            // Lets the task of a refused client close it before the next one is accepted.
            tokio::task::yield_now().await;
        }
    }

    async fn serve_client(&self, mut client: TcpStream, peer: SocketAddr) -> Result<(), Cut> {
        client.set_nodelay(true)?;
        keep_alive(&client);
        let entry = match ClientEntry::take(&self.shared, Protocol::Tcp, self.listen, peer) {
            Ok((entry, evicted)) => {
                if !evicted.is_empty() {
                    self.shared.drive(|fabric| fabric.count_idle_clients(evicted.len() as u64));
                }
                entry
            }
            Err(full) => {
                if let Some(left_out) = self.shared.admit(PeerLine::ClientRefused) {
                    tracing::warn!(%peer, "a client is refused: {full}{left_out}");
                }
                self.shared.drive(Fabric::count_refused_client);
                return Ok(client.set_zero_linger()?);
            }
        };
        let handle = self.shared.drive(|fabric| fabric.gateway().connect_tcp(self.guest, clock::now_us()));
        let socket = GuestStream { shared: self.shared.clone(), handle, entry };
        let passed = tokio::select! {
            passed = self.pass(&socket, &mut client) => passed,
            lost = socket.entry.lost() => Err(self.lost(lost)),
        };
        match passed {
            Ok(()) => {
                drop(client);
                socket.closed().await;
            }
            // Closing with a zero linger time resets the client's connection.
            Err(Cut::Guest | Cut::Idle | Cut::Evicted) => client.set_zero_linger()?,
            // Dropping the guest's socket before its time resets the guest's connection.
            Err(Cut::Client(_)) => {}
        }
        passed
    }

    async fn pass(&self, socket: &GuestStream, client: &mut TcpStream) -> Result<(), Cut> {
        tokio::select! {
            connected = socket.connected() => connected?,
            never = self.waiters.tell() => match never {},
        }
        let (reader, mut writer) = client.split();
        tokio::try_join!(client_to_guest(&reader, socket), guest_to_client(socket, &mut writer))?;
        Ok(())
    }

    /// Counts and reports a client that has lost its entry.
    fn lost(&self, lost: Lost) -> Cut {
        match lost {
            Lost::Evicted => Cut::Evicted,
            Lost::Idle => {
                self.shared.drive(|fabric| fabric.count_idle_clients(1));
                Cut::Idle
            }
        }
    }
}

/// Why a connection was cut instead of ending in order.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("the guest reset it or could not be reached")]
    Guest,
    #[error("nothing has passed over it for too long")]
    Idle,
    #[error("nothing has passed over it for a while, and another client needed its place")]
    Evicted,
    #[error("the client cut it: {0}")]
    Client(#[from] io::Error),
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
    guest.entry.half_closed();
    Ok(client.shutdown().await?)
}

/// The gateway's end of a connection to a guest. Resets it when dropped, unless it has ended.
struct GuestStream {
    shared: Rc<ServerState>,
    handle: SocketHandle,
    entry: ClientEntry,
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

    /// Waits until the socket to the guest takes data.
    async fn writable(&self) -> Result<(), Cut> {
        let writable = self.until(|socket| (socket.can_send() || !socket.may_send()).then(|| socket.can_send())).await;
        if writable { Ok(()) } else { Err(Cut::Guest) }
    }

    /// Waits until nothing can be sent to the guest any more.
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

    /// Waits until both directions are closed.
    async fn closed(&self) {
        self.until(|socket| matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait).then_some(())).await;
    }

    /// Moves bytes from the client to the guest's socket. Returns how many: 0 at the client's end,
    /// `None` if there are none now.
    fn read_from(&self, client: &ReadHalf<'_>) -> Result<Option<usize>, Cut> {
        let read =
            self.shared.drive(|fabric| fabric.gateway().tcp(self.handle).send(|space| moved(client.try_read(space))));
        let read = read.map_err(|_| Cut::Guest)?;
        if let Ok(Some(1..)) = read {
            self.entry.used();
        }
        read
    }

    /// Moves bytes from the guest's socket to the client.
    fn write_to(&self, client: &WriteHalf<'_>) -> Result<(), Cut> {
        let written =
            self.shared.drive(|fabric| fabric.gateway().tcp(self.handle).recv(|bytes| moved(client.try_write(bytes))));
        if let Some(1..) = written.map_err(|_| Cut::Guest)?? {
            self.entry.used();
        }
        Ok(())
    }

    /// Tells the guest that the client will send no more. From here on a guest that is gone is
    /// noticed.
    fn close(&self) {
        self.entry.half_closed();
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

    /// Waits until `look` returns a value; it is called again whenever the socket has changed.
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

/// How many bytes were moved, for smoltcp; and the same, or why none were, for the caller.
fn moved(result: io::Result<usize>) -> (usize, Result<Option<usize>, Cut>) {
    match result {
        Ok(bytes) => (bytes, Ok(Some(bytes))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, Ok(None)),
        Err(error) => (0, Err(error.into())),
    }
}
