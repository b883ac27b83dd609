//! The sockets of the LAN: one thread, no locks, a task for each connection.
//!
//! Bytes that arrive pass through the whole LAN at once, in the task that read them; the tasks of
//! the connections that get something write it before the thread sleeps again. So a client's
//! message passes with one wakeup of this process, and so does the guest's answer. A LAN without
//! VMs has no timer.

mod clients;
mod connection;
mod forward;
mod limits;

pub use forward::{Forward, ForwardError};
pub use limits::ConnectionLimits;

use self::clients::Clients;
use self::connection::{PortKind, accept};
use self::forward::{ForwardSocket, Protocol};
use super::events::{Dropped, LanEvent};
use super::fabric::{ConnectionId, Fabric};
use crate::os::address::advice;
use crate::os::clock;
use crate::os::rate_limit::{LeftOut, RateLimits};
use crate::os::report::Reporter;
use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::LocalSet;

/// A LAN's configuration.
#[derive(Clone, Debug)]
pub struct LanConfig {
    /// Where VMs attach. Port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where QEMU processes connect.
    pub qemu: Option<SocketAddr>,
    /// The ports of guests to make reachable for clients.
    pub forwards: Vec<Forward>,
    /// How many connections there may be.
    pub limits: ConnectionLimits,
}

/// Why a LAN can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The server can't listen at an address.
    #[error("can't listen at {address} for {purpose}: {source}; {}", advice(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the address was for, for people.
        purpose: &'static str,
        /// The operating system's error.
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
    /// Binds all sockets and reports their addresses.
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
        // Ends every connection, and reports that.
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

/// The state that all tasks share. Never borrowed across an await.
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

/// Kinds of lines and reports that peers can cause as often as they like, so that each is
/// rate-limited.
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
    /// A UDP flow was evicted for another.
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

    /// Reports an event of a forward.
    pub(in crate::lan) fn tell(&self, event: &LanEvent) {
        self.reporter.tell(event);
    }

    /// Whether a rate-limited line is to be reported now; it then says how many were left out
    /// before.
    pub(in crate::lan) fn admit(&self, line: PeerLine) -> Option<LeftOut> {
        self.lines.borrow_mut().admit(line, clock::now_ns())
    }

    /// Reports an event of the fabric.
    fn tell_happened(&self, mut event: LanEvent) {
        if let LanEvent::Refused { left_out, .. } = &mut event {
            let Some(LeftOut(count)) = self.admit(PeerLine::AttachmentRefused) else { return };
            *left_out = count;
        }
        self.reporter.tell(&event);
    }

    /// Calls `act` on the fabric, then reports and wakes as [`Fabric::settle`] says.
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

    /// Calls `look` on the fabric; it must not send anything through it.
    pub(in crate::lan) fn with<R>(&self, look: impl FnOnce(&mut Fabric) -> R) -> R {
        look(&mut self.fabric.borrow_mut())
    }

    fn tell_end(&self) {
        let dropped = self.with(|fabric| fabric.dropped());
        // The JSON form always has the counters; people see them only if there are any.
        if self.reporter.is_json() || dropped != Dropped::default() {
            self.reporter.tell(&LanEvent::Dropped(dropped));
        }
    }

    /// Enters a new connection, unless there are too many of its kind.
    fn enter(self: &Rc<Self>, kind: PortKind) -> Option<Entered> {
        let mut connections = self.port_connections.borrow_mut();
        let most = match kind {
            PortKind::Vm => self.limits.vms,
            PortKind::Qemu => self.limits.qemus,
        };
        if connections.values().filter(|entry| entry.kind == kind).count() >= most {
            let (&oldest, _) = connections.iter().find(|(_, entry)| entry.kind == kind && !entry.attached)?;
            // This ends its task, which waits for an Attach.
            connections.remove(&oldest)?.waker.notify_one();
        }
        let id = ConnectionId(self.next_connection.replace(self.next_connection.get() + 1));
        let waker = Rc::new(Notify::new());
        connections.insert(id, ConnectionEntry { waker: waker.clone(), kind, attached: kind == PortKind::Qemu });
        Some(Entered { shared: self.clone(), id, waker })
    }

    /// The connection has attached and can't be evicted any more. `false` if it has been evicted
    /// already.
    fn keep(&self, id: ConnectionId) -> bool {
        self.port_connections.borrow_mut().get_mut(&id).map(|entry| entry.attached = true).is_some()
    }
}

/// A connection to a VM or QEMU port.
#[derive(Debug)]
struct ConnectionEntry {
    /// Wakes the connection's task: to fetch its bytes or, if it was evicted, to end.
    waker: Rc<Notify>,
    kind: PortKind,
    attached: bool,
}

/// A connection's hold on its entry, which is removed when this is dropped.
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

/// Calls [`Fabric::settle`] at each deadline.
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
