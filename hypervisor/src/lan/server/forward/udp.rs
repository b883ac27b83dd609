//! UDP forwards: each client has a flow, with a port of its own at the gateway.

use crate::lan::fabric::UDP_PAYLOAD_BYTES_MAX;
use crate::lan::server::clients::Limit;
use crate::lan::server::forward::Protocol;
use crate::lan::server::forward::client_entry::ClientEntry;
use crate::lan::server::forward::waiting::Waiters;
use crate::lan::server::{PeerLine, ServerState};
use crate::os::accept::AcceptTrouble;
use crate::os::clock;
use smoltcp::iface::SocketHandle;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::task::Poll;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// One UDP forward.
pub(in crate::lan) struct Forwarded {
    shared: Rc<ServerState>,
    listen: SocketAddr,
    guest: SocketAddrV4,
    /// The flows by client. An evicted one may still be here.
    flows: RefCell<BTreeMap<SocketAddr, Rc<Flow>>>,
    waiters: Waiters,
}

impl Forwarded {
    pub(in crate::lan) fn new(shared: Rc<ServerState>, listen: SocketAddr, guest: SocketAddrV4) -> Self {
        let waiters = Waiters::new(shared.clone(), Protocol::Udp, listen, guest);
        Self { shared, listen, guest, flows: RefCell::default(), waiters }
    }

    /// Serves clients for ever.
    pub(in crate::lan) async fn serve(self, socket: UdpSocket) {
        let (forwarded, socket) = (Rc::new(self), Rc::new(socket));
        let mut datagram = vec![0; 1 << 16];
        let mut trouble = AcceptTrouble::default();
        loop {
            let (bytes, client) = match socket.recv_from(&mut datagram).await {
                Ok(received) => received,
                Err(error) => {
                    let what = format!("the forward at {} can't receive from clients", forwarded.listen);
                    tokio::time::sleep(trouble.failed(&what, &error)).await;
                    continue;
                }
            };
            let known = forwarded.flows.borrow().get(&client).filter(|flow| !flow.entry.is_evicted()).cloned();
            let is_known = known.is_some();
            let flow = known.unwrap_or_else(|| forwarded.open(client, &socket));
            flow.send(&datagram[..bytes], forwarded.guest);
            if !is_known {
                // Lets the evicted flow's task close it before the next datagram is taken.
                tokio::task::yield_now().await;
            }
        }
    }

    /// A flow for a new client.
    fn open(self: &Rc<Self>, client: SocketAddr, socket: &Rc<UdpSocket>) -> Rc<Flow> {
        let (entry, evicted) = ClientEntry::take(&self.shared, Protocol::Udp, self.listen, client)
            .expect("however many flows there are, the longest silent makes room at once");
        self.tell_replaced(client, &evicted);
        let flow = Rc::new(Flow::open(&self.shared, entry, self.guest));
        self.flows.borrow_mut().insert(client, flow.clone());
        let (forwarded, socket, served) = (self.clone(), socket.clone(), flow.clone());
        tokio::task::spawn_local(async move {
            tokio::select! {
                never = answer(&served, &socket, client) => match never {},
                never = forwarded.tell_waiting(&served) => match never {},
                _ = served.entry.lost() => {}
            }
            forwarded.forget(client, &served);
        });
        flow
    }

    /// Counts and reports flows that were evicted for that of `client`.
    fn tell_replaced(&self, client: SocketAddr, evicted: &[Limit]) {
        let Some(limit) = evicted.first() else { return };
        self.shared.drive(|fabric| fabric.count_replaced_flows(evicted.len() as u64));
        if let Some(left_out) = self.shared.admit(PeerLine::FlowReplaced) {
            tracing::warn!(%client, "a UDP flow makes room for another: the limit of {limit} is reached{left_out}");
        }
    }

    /// Removes a flow that is over; its client may have a later one already.
    fn forget(&self, client: SocketAddr, flow: &Rc<Flow>) {
        let mut flows = self.flows.borrow_mut();
        if flows.get(&client).is_some_and(|known| Rc::ptr_eq(known, flow)) {
            flows.remove(&client);
        }
    }

    /// Reports, after a while and then rarely, that datagrams of a flow wait for the guest.
    async fn tell_waiting(&self, flow: &Flow) -> Infallible {
        loop {
            flow.delayed.notified().await;
            tokio::select! {
                () = flow.drained() => {}
                never = self.waiters.tell() => match never {},
            }
        }
    }
}

/// Passes what the guest sends on a flow to its client.
async fn answer(flow: &Flow, socket: &UdpSocket, client: SocketAddr) -> Infallible {
    let mut datagram = vec![0; UDP_PAYLOAD_BYTES_MAX];
    loop {
        let bytes = flow.receive(&mut datagram).await;
        if let Err(error) = socket.send_to(&datagram[..bytes], client).await {
            tracing::debug!(%client, %error, "an answer could not be sent");
        }
    }
}

/// One client's flow, which the guest sees as one UDP peer.
struct Flow {
    shared: Rc<ServerState>,
    handle: SocketHandle,
    entry: ClientEntry,
    /// A datagram couldn't be sent to the guest at once.
    delayed: Notify,
}

impl Flow {
    fn open(shared: &Rc<ServerState>, entry: ClientEntry, guest: SocketAddrV4) -> Self {
        let handle = shared.with(|fabric| fabric.gateway().open_udp(*guest.ip(), clock::now_us()));
        Self { shared: shared.clone(), handle, entry, delayed: Notify::new() }
    }

    /// Sends a datagram to the guest, or counts it as refused.
    fn send(&self, datagram: &[u8], guest: SocketAddrV4) {
        self.entry.used();
        self.shared.drive(|fabric| {
            let fits = datagram.len() <= UDP_PAYLOAD_BYTES_MAX;
            let to = (*guest.ip(), guest.port());
            if !fits || fabric.gateway().udp(self.handle).send_slice(datagram, to).is_err() {
                fabric.count_refused_client();
            }
        });
        if self.is_waiting() {
            self.delayed.notify_one();
        }
    }

    /// Whether datagrams wait for the guest.
    fn is_waiting(&self) -> bool {
        self.shared.with(|fabric| fabric.gateway().udp(self.handle).send_queue() > 0)
    }

    /// Waits until no datagram waits for the guest.
    async fn drained(&self) {
        poll_fn(|context| {
            self.shared.with(|fabric| {
                let socket = fabric.gateway().udp(self.handle);
                if socket.send_queue() == 0 {
                    return Poll::Ready(());
                }
                socket.register_send_waker(context.waker());
                Poll::Pending
            })
        })
        .await;
    }

    /// Waits for a datagram of the guest. Returns its length.
    async fn receive(&self, datagram: &mut [u8]) -> usize {
        let bytes = poll_fn(|context| {
            self.shared.with(|fabric| {
                let socket = fabric.gateway().udp(self.handle);
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
        self.entry.used();
        bytes
    }
}

impl Drop for Flow {
    /// Removes the flow's socket, which frees its port.
    fn drop(&mut self) {
        self.shared.with(|fabric| fabric.gateway().remove_udp(self.handle));
    }
}
