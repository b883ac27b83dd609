//! The sockets of the LAN: one thread, no locks, a task for each connection.
//!
//! Whatever arrives is taken through the whole LAN at once, by the task that read it; what it leads
//! to is written by the tasks of the connections concerned, before the thread sleeps again. So a
//! client's message passes with one wakeup of this process, and so does the guest's answer. A LAN
//! without VMs has no timer.

mod clients;
mod forward;
mod limits;

pub use forward::{Forward, ForwardError};
pub use limits::ConnectionLimits;

use self::clients::Clients;
use self::forward::{ForwardSocket, Protocol};
use super::attachment::Attachment;
use super::events::{Dropped, LanEvent};
use super::fabric::STREAM_PACKET_BYTES_MAX;
use super::fabric::{ConnectionId, Fabric, PortLost};
use super::wire::{ClientMessage, Cutter, MESSAGE_BYTES_MAX, Prefix, ServerMessage, WireError};
use crate::os::accept::AcceptTrouble;
use crate::os::address::advice;
use crate::os::clock;
use crate::os::rate_limit::{LeftOut, RateLimits};
use crate::os::report::Reporter;
use nix::sys::socket::{setsockopt, sockopt};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;

/// How long a connection to a VM port may take to attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a fenced connection may take to close.
const PART_TIMEOUT: Duration = Duration::from_secs(1);
/// How much is written at once.
const WRITE_BYTES: usize = 64 << 10;

/// What a LAN consists of.
#[derive(Clone, Debug)]
pub struct LanConfig {
    /// Where VMs attach. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where QEMU processes connect.
    pub qemu: Option<SocketAddr>,
    /// Which ports of guests are reachable from outside.
    pub forwards: Vec<Forward>,
    /// How many connections there may be.
    pub limits: ConnectionLimits,
}

/// Why a LAN can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened at.
    #[error("can't listen at {address} for {purpose}: {source}; {}", advice(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The host gives no random numbers.
    #[error("no entropy from the host: {0}")]
    Entropy(getrandom::Error),
}

/// A LAN whose sockets are bound.
#[derive(Debug)]
pub struct LanServer {
    shared: Rc<ServerState>,
    vms: TcpListener,
    listen: SocketAddr,
    qemus: Option<TcpListener>,
    qemu: Option<SocketAddr>,
    forwards: Vec<ForwardSocket>,
}

impl LanServer {
    /// Binds everything and tells where.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn bind(config: &LanConfig, reporter: Reporter) -> Result<Self, StartError> {
        let seed = getrandom::u64().map_err(StartError::Entropy)?;
        let (vms, listen) = listen(config.listen, "VMs").await?;
        let (qemus, qemu) = match config.qemu {
            Some(address) => {
                let (listener, address) = self::listen(address, "QEMU").await?;
                (Some(listener), Some(address))
            }
            None => (None, None),
        };
        let mut forwards = Vec::new();
        for &forward in &config.forwards {
            forwards.extend(forward::bind(forward).await?);
        }
        reporter.tell(&LanEvent::Listening {
            listen: listen.to_string(),
            qemu: qemu.map(|address| address.to_string()),
            forwards: forwards.iter().map(ForwardSocket::listening).collect(),
        });
        let fabric = Fabric::new(seed, clock::now_us());
        Ok(Self {
            shared: Rc::new(ServerState::new(fabric, config.limits, reporter)),
            vms,
            listen,
            qemus,
            qemu,
            forwards,
        })
    }

    /// Where VMs attach.
    #[must_use]
    pub const fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// Where QEMU processes connect.
    #[must_use]
    pub const fn qemu_address(&self) -> Option<SocketAddr> {
        self.qemu
    }

    /// Where the forwards are reachable, in the order of the configuration; one for TCP and UDP has
    /// the same address twice.
    pub fn forward_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.forwards.iter().map(ForwardSocket::address)
    }

    /// Serves until `shutdown` is done. Needs a current-thread runtime with I/O and time.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let tasks = LocalSet::new();
        let shared = self.shared;
        tasks.spawn_local(keep_time(shared.clone()));
        tasks.spawn_local(accept(shared.clone(), self.vms, PortKind::Vm));
        if let Some(qemus) = self.qemus {
            tasks.spawn_local(accept(shared.clone(), qemus, PortKind::Qemu));
        }
        for forward in self.forwards {
            tasks.spawn_local(forward.serve(shared.clone()));
        }
        tasks.run_until(shutdown).await;
        // Ends every connection, and tells so.
        drop(tasks);
        shared.tell_end();
    }
}

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { address, purpose, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// What all tasks share. Never borrowed across an await.
#[derive(Debug)]
pub(in crate::lan) struct ServerState {
    fabric: RefCell<Fabric>,
    port_connections: RefCell<BTreeMap<ConnectionId, ConnectionEntry>>,
    next_connection: Cell<u64>,
    /// When [`keep_time`] will call the gateway.
    deadline_us: Cell<Option<u64>>,
    deadline_sooner: Notify,
    reporter: Reporter,
    told_dropped: Cell<Dropped>,
    connections: RefCell<Clients>,
    flows: RefCell<Clients>,
    limits: ConnectionLimits,
    lines: RefCell<RateLimits<PeerLine>>,
}

/// A line or report that peers can cause as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lan) enum PeerLine {
    /// An attachment was refused.
    AttachmentRefused,
    /// There are too many connections to VM or QEMU ports.
    ConnectionRefused,
    /// A connection to a VM or QEMU port ended by a fault.
    ConnectionClosed,
    /// A client of a forward is beyond a limit.
    ClientRefused,
    /// A UDP flow has lost its place to another.
    FlowReplaced,
    /// The counters of what was dropped have changed.
    Dropped,
}

impl ServerState {
    fn new(fabric: Fabric, limits: ConnectionLimits, reporter: Reporter) -> Self {
        Self {
            fabric: RefCell::new(fabric),
            port_connections: RefCell::default(),
            next_connection: Cell::new(1),
            deadline_us: Cell::new(None),
            deadline_sooner: Notify::new(),
            reporter,
            told_dropped: Cell::default(),
            connections: RefCell::new(Clients::connections(limits.clients)),
            flows: RefCell::new(Clients::flows(limits.flows)),
            limits,
            lines: RefCell::default(),
        }
    }

    /// The clients of forwards that come over `protocol`.
    fn clients(&self, protocol: Protocol) -> RefMut<'_, Clients> {
        match protocol {
            Protocol::Tcp => self.connections.borrow_mut(),
            Protocol::Udp => self.flows.borrow_mut(),
        }
    }

    /// Tells what happened to a forward.
    pub(in crate::lan) fn tell(&self, event: &LanEvent) {
        self.reporter.tell(event);
    }

    /// Whether a line that peers can cause is to be told now.
    pub(in crate::lan) fn admit(&self, line: PeerLine) -> Option<LeftOut> {
        self.lines.borrow_mut().admit(line, clock::now_ns())
    }

    /// Tells what happened on the LAN.
    fn tell_happened(&self, mut event: LanEvent) {
        if let LanEvent::Refused { left_out, .. } = &mut event {
            let Some(LeftOut(count)) = self.admit(PeerLine::AttachmentRefused) else { return };
            *left_out = count;
        }
        self.reporter.tell(&event);
    }

    /// Does something with the LAN and sees to everything that it leads to.
    pub(in crate::lan) fn drive<R>(&self, act: impl FnOnce(&mut Fabric) -> R) -> R {
        let now_us = clock::now_us();
        let (result, settled, dropped) = {
            let mut fabric = self.fabric.borrow_mut();
            let result = act(&mut fabric);
            (result, fabric.settle(now_us), fabric.dropped())
        };
        let connections = self.port_connections.borrow();
        settled
            .woken
            .iter()
            .filter_map(|connection| connections.get(connection))
            .for_each(|entry| entry.waker.notify_one());
        settled.events.into_iter().for_each(|event| self.tell_happened(event));
        if settled.deadline_us.is_some_and(|new| self.deadline_us.get().is_none_or(|old| new < old)) {
            self.deadline_us.set(settled.deadline_us);
            self.deadline_sooner.notify_one();
        }
        if dropped != self.told_dropped.get() && self.admit(PeerLine::Dropped).is_some() {
            self.told_dropped.set(dropped);
            self.reporter.tell(&LanEvent::Dropped(dropped));
        }
        result
    }

    /// Looks at the LAN without sending anything through it.
    pub(in crate::lan) fn with<R>(&self, look: impl FnOnce(&mut Fabric) -> R) -> R {
        look(&mut self.fabric.borrow_mut())
    }

    fn tell_end(&self) {
        let dropped = self.with(|fabric| fabric.dropped());
        // A program gets the counters in any case, a person only if there is something to say.
        if self.reporter.is_json() || dropped != Dropped::default() {
            self.reporter.tell(&LanEvent::Dropped(dropped));
        }
    }

    /// A new connection and what wakes it, unless there are too many of its kind.
    fn enter(self: &Rc<Self>, kind: PortKind) -> Option<Entered> {
        let mut connections = self.port_connections.borrow_mut();
        let most = match kind {
            PortKind::Vm => self.limits.vms,
            PortKind::Qemu => self.limits.qemus,
        };
        if connections.values().filter(|entry| entry.kind == kind).count() >= most {
            let (&oldest, _) = connections.iter().find(|(_, entry)| entry.kind == kind && !entry.attached)?;
            // Its task, which waits for an Attach, ends by this.
            connections.remove(&oldest)?.waker.notify_one();
        }
        let id = ConnectionId(self.next_connection.replace(self.next_connection.get() + 1));
        let waker = Rc::new(Notify::new());
        connections.insert(id, ConnectionEntry { waker: waker.clone(), kind, attached: kind == PortKind::Qemu });
        Some(Entered { shared: self.clone(), id, waker })
    }

    /// The connection has attached, and keeps its place. `false` if it has lost it already.
    fn keep(&self, id: ConnectionId) -> bool {
        self.port_connections.borrow_mut().get_mut(&id).map(|entry| entry.attached = true).is_some()
    }
}

/// A connection in the books.
#[derive(Debug)]
struct ConnectionEntry {
    /// Tells an attached connection that there is something to do, and another one that it has to
    /// go.
    waker: Rc<Notify>,
    kind: PortKind,
    attached: bool,
}

/// A connection's place in the books; leaves when dropped.
struct Entered {
    shared: Rc<ServerState>,
    id: ConnectionId,
    waker: Rc<Notify>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shared.port_connections.borrow_mut().remove(&self.id);
        self.shared.drive(|fabric| fabric.leave(self.id));
    }
}

/// Calls the gateway when it wants to be called.
async fn keep_time(shared: Rc<ServerState>) {
    loop {
        let sooner = shared.deadline_sooner.notified();
        let Some(deadline_us) = shared.deadline_us.get() else {
            sooner.await;
            continue;
        };
        let delay = Duration::from_micros(deadline_us.saturating_sub(clock::now_us()));
        tokio::select! {
            () = sooner => {}
            () = tokio::time::sleep(delay) => {
                shared.deadline_us.set(None);
                shared.drive(|_| ());
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortKind {
    Vm,
    Qemu,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the peer")]
    Closed,
    #[error("no Attach within {} s", ATTACH_TIMEOUT.as_secs())]
    Silent,
    #[error("no Attach before others needed the place")]
    Crowded,
    #[error("refused")]
    Refused,
    #[error("its port was taken by a later connection, or it was silent")]
    PortLost(PortLost),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// After so many seconds of silence the kernel asks a peer whether it is still there.
const KEEP_ALIVE_IDLE_S: u32 = 30;
/// From one of these questions to the next, in seconds.
const KEEP_ALIVE_INTERVAL_S: u32 = 10;
/// After so many unanswered questions the connection is closed.
const KEEP_ALIVE_PROBES: u32 = 3;

/// Lets the kernel find out within a minute that a silent peer's host was lost: it would keep its
/// place for ever.
pub(in crate::lan) fn keep_alive(stream: &TcpStream) {
    let set = setsockopt(stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_S))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL_S))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &KEEP_ALIVE_PROBES));
    if let Err(error) = set {
        tracing::debug!(%error, "a connection has no keep-alive");
    }
}

async fn accept(shared: Rc<ServerState>, listener: TcpListener, kind: PortKind) {
    let mut trouble = AcceptTrouble::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match shared.enter(kind) {
                Some(entered) => {
                    keep_alive(&stream);
                    tokio::task::spawn_local(async move {
                        let ended = match kind {
                            PortKind::Vm => serve_vm(&entered, stream).await,
                            PortKind::Qemu => serve_qemu(&entered, stream).await,
                        };
                        entered.shared.log_end(peer, &ended);
                    });
                }
                None => {
                    if let Some(left_out) = shared.admit(PeerLine::ConnectionRefused) {
                        tracing::warn!(%peer, ?kind, "refused: too many connections are open{left_out}");
                    }
                }
            },
            Err(error) => {
                let what = match kind {
                    PortKind::Vm => "the port for VMs can't accept connections",
                    PortKind::Qemu => "the port for QEMU can't accept connections",
                };
                tokio::time::sleep(trouble.failed(what, &error)).await;
            }
        }
        // The connection that has lost its place to this one is closed before the next is accepted.
        tokio::task::yield_now().await;
    }
}

impl ServerState {
    fn log_end(&self, peer: SocketAddr, ended: &Ended) {
        match ended {
            Ended::Wire(_) | Ended::Silent | Ended::Crowded => {
                if let Some(left_out) = self.admit(PeerLine::ConnectionClosed) {
                    tracing::warn!(%peer, "connection closed: {ended}{left_out}");
                }
            }
            Ended::Closed | Ended::Refused | Ended::PortLost(_) | Ended::Io(_) => {
                tracing::debug!(%peer, "connection closed: {ended}");
            }
        }
    }
}

async fn serve_vm(entered: &Entered, mut stream: TcpStream) -> Ended {
    let mut outbox = Outbox::default();
    let mut cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
    let (mut reader, mut writer) = stream.split();
    let attaching = tokio::time::timeout(ATTACH_TIMEOUT, read_attachment(&mut reader, &mut cutter));
    let attaching = tokio::select! {
        attaching = attaching => attaching,
        () = entered.waker.notified() => return Ended::Crowded,
    };
    let attachment = match attaching {
        Ok(Ok(_)) if !entered.shared.keep(entered.id) => return Ended::Crowded,
        Ok(Ok(attachment)) => attachment,
        Ok(Err(error)) => {
            let reason = error.to_string();
            ServerMessage::Refused { reason: &reason }.append(&mut outbox.bytes);
            outbox.write_what_fits(&writer);
            return error;
        }
        Err(_) => return Ended::Silent,
    };
    match entered.shared.drive(|fabric| fabric.attach(entered.id, &attachment)) {
        Ok(answer) => answer.append(&mut outbox.bytes),
        Err(refusal) => {
            let reason = refusal.to_string();
            ServerMessage::Refused { reason: &reason }.append(&mut outbox.bytes);
            outbox.write_what_fits(&writer);
            return Ended::Refused;
        }
    }
    let reading = read_messages(&mut reader, &mut cutter, |cutter| {
        entered.shared.drive(|fabric| {
            while let Some(message) = cutter.next_message()? {
                match ClientMessage::decode(message)? {
                    ClientMessage::Output { id, packet } => {
                        fabric.output(entered.id, id, packet).map_err(Ended::PortLost)?;
                    }
                    ClientMessage::Heartbeat => fabric.hear(entered.id).map_err(Ended::PortLost)?,
                    ClientMessage::Attach(_) => return Err(WireError::Field("a second Attach").into()),
                }
            }
            Ok(())
        })
    });
    let ended = tokio::select! {
        ended = reading => ended,
        ended = write_pending(entered, &mut writer, &mut outbox) => ended,
    };
    if let Ended::PortLost(PortLost { fenced_by: Some(by) }) = ended
        && outbox.is_between_messages()
    {
        outbox.clear();
        ServerMessage::Fenced { by }.append(&mut outbox.bytes);
        outbox.write_what_fits(&writer);
        part(&mut reader, &mut writer).await;
    }
    ended
}

async fn serve_qemu(entered: &Entered, mut stream: TcpStream) -> Ended {
    if let Err(error) = stream.set_nodelay(true) {
        return error.into();
    }
    entered.shared.drive(|fabric| fabric.join_qemu(entered.id));
    let mut outbox = Outbox::default();
    let mut cutter = Cutter::new(Prefix::BigEndian, STREAM_PACKET_BYTES_MAX);
    let (mut reader, mut writer) = stream.split();
    let reading = read_messages(&mut reader, &mut cutter, |cutter| {
        entered.shared.drive(|fabric| {
            while let Some(packet) = cutter.next_message()? {
                fabric.qemu_packet(entered.id, packet);
            }
            Ok(())
        })
    });
    tokio::select! {
        ended = reading => ended,
        ended = write_pending(entered, &mut writer, &mut outbox) => ended,
    }
}

async fn read_attachment(reader: &mut ReadHalf<'_>, cutter: &mut Cutter) -> Result<Attachment, Ended> {
    reader.as_ref().set_nodelay(true)?;
    loop {
        if let Some(message) = cutter.next_message()? {
            return match ClientMessage::decode(message)? {
                ClientMessage::Attach(attachment) => Ok(attachment),
                ClientMessage::Output { .. } | ClientMessage::Heartbeat => {
                    Err(WireError::Field("a message before Attach").into())
                }
            };
        }
        fill(reader, cutter).await?;
    }
}

/// Reads until the connection ends; `take` takes the whole messages out of the cutter.
async fn read_messages(
    reader: &mut ReadHalf<'_>,
    cutter: &mut Cutter,
    mut take: impl FnMut(&mut Cutter) -> Result<(), Ended>,
) -> Ended {
    loop {
        // The bytes after Attach may be there already.
        if let Err(ended) = take(cutter) {
            return ended;
        }
        if let Err(ended) = fill(reader, cutter).await {
            return ended;
        }
    }
}

async fn fill(reader: &mut ReadHalf<'_>, cutter: &mut Cutter) -> Result<(), Ended> {
    match reader.read(cutter.space()).await? {
        0 => Err(Ended::Closed),
        bytes => {
            cutter.filled(bytes);
            Ok(())
        }
    }
}

/// Lets the peer read the last words: closing with bytes unread would reset the connection and lose
/// them.
async fn part(reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) {
    let mut ignored = [0; 4096];
    let drain = async {
        writer.shutdown().await?;
        while reader.read(&mut ignored).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // Whether the peer closes in time or in order doesn't matter any more.
    let _ = tokio::time::timeout(PART_TIMEOUT, drain).await;
}

/// Writes what the LAN has for the connection until that ends. A peer that doesn't read holds up
/// nobody but itself.
async fn write_pending(entered: &Entered, writer: &mut WriteHalf<'_>, outbox: &mut Outbox) -> Ended {
    loop {
        if outbox.is_empty() {
            outbox.clear();
        }
        // Also while the last bytes are unsent: losing the port must be noticed then, too.
        let room = if outbox.is_empty() { WRITE_BYTES } else { 0 };
        let taken = entered.shared.with(|fabric| fabric.take_pending(entered.id, &mut outbox.bytes, room));
        if let Err(lost) = taken {
            return Ended::PortLost(lost);
        }
        if !outbox.is_empty() {
            match writer.try_write(outbox.unwritten()) {
                Ok(bytes) => {
                    outbox.written += bytes;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return error.into(),
            }
        }
        let unwritten = !outbox.is_empty();
        tokio::select! {
            () = entered.waker.notified() => {}
            writable = writer.writable(), if unwritten => {
                if let Err(error) = writable {
                    return error.into();
                }
            }
        }
    }
}

/// Messages on their way into a socket.
#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// So many of them are in the socket.
    written: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Whether a message that is written next would not begin inside another.
    fn is_between_messages(&self) -> bool {
        self.written == 0 || self.is_empty()
    }

    fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }

    /// Last words: whoever doesn't read them finds the connection closed.
    fn write_what_fits(&mut self, writer: &WriteHalf<'_>) {
        let _ = writer.try_write(self.unwritten());
    }
}
