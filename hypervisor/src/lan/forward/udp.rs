//! UDP: each client has a flow, with a port of its own at the gateway.

use super::super::fabric::Fabric;
use super::super::gateway::UDP_PAYLOAD_BYTES_MAX;
use super::super::server::Shared;
use crate::host::accept::AcceptTrouble;
use crate::host::clock;
use smoltcp::iface::SocketHandle;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::Notify;

/// A UDP flow that is silent this long both ways loses its port at the gateway.
const FLOW_IDLE_US: u64 = 120_000_000;

/// The flows of one UDP forward, by client.
type Flows = RefCell<BTreeMap<SocketAddr, Rc<Flow>>>;

/// Serves the clients of one UDP forward for ever.
pub(super) async fn serve(shared: Rc<Shared>, socket: UdpSocket, guest: SocketAddrV4) {
    let socket = Rc::new(socket);
    let flows = Rc::new(Flows::default());
    let mut datagram = vec![0; 1 << 16];
    let mut trouble = AcceptTrouble::default();
    loop {
        let (bytes, client) = match socket.recv_from(&mut datagram).await {
            Ok(received) => received,
            Err(error) => {
                tokio::time::sleep(trouble.failed("a UDP forward can't receive from clients", &error)).await;
                continue;
            }
        };
        let known = flows.borrow().get(&client).cloned();
        let flow = match known {
            Some(flow) => flow,
            None => match Flow::open(&shared, guest).or_else(|| replace_oldest(&shared, &flows, guest)) {
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
fn replace_oldest(shared: &Rc<Shared>, flows: &Flows, guest: SocketAddrV4) -> Option<Rc<Flow>> {
    let mut flows = flows.borrow_mut();
    let (&client, _) = flows.iter().min_by_key(|(_, flow)| flow.used_at_us.get())?;
    flows.remove(&client)?.close();
    Flow::open(shared, guest)
}

/// Passes what the guest sends on a flow to its client, until the flow is idle or closed.
async fn answer(flow: Rc<Flow>, socket: Rc<UdpSocket>, client: SocketAddr, flows: Rc<Flows>) {
    let mut datagram = vec![0; UDP_PAYLOAD_BYTES_MAX];
    loop {
        let idle_us = clock::now_us().saturating_sub(flow.used_at_us.get());
        let left = Duration::from_micros(FLOW_IDLE_US.saturating_sub(idle_us));
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
    fn open(shared: &Rc<Shared>, guest: SocketAddrV4) -> Option<Rc<Self>> {
        let handle = shared.drive(|fabric| fabric.gateway().open_udp(*guest.ip())).ok()?;
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
