//! A VM's network in a process: a thread keeps the VM attached to a LAN or a TAP interface.

use super::announce::Station;
use super::lan::{AttachmentConfig, AttachmentTiming, GuestDelivery, LanAttachment, LanUser, LossReports};
use super::sink::NetworkAndConsole;
use super::tap::{self, TapError, TapName, TapReceiver};
use crate::lan::client;
use crate::lan::port::FromLan;
use crate::node::channel::lock;
use crate::node::host::Host;
use crate::node::host::{Next, StepKind};
use crate::node::process::ProcessHost;
use crate::node::reports::NodeReport;
use crate::os::address::resolve;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long connecting to a LAN may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The times between the announcements of a guest that has moved: a switch may be slow to enable a
/// port.
const ANNOUNCEMENT_DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)];

/// Where a VM's packets go: `lan=HOST:PORT` or `tap=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkAddress {
    /// A LAN. It carries each packet once, whichever side of the VM is lost.
    Lan(SocketAddr),
    /// A TAP interface of this host. A failover may duplicate or lose packets, as any Ethernet may.
    Tap(TapName),
}

impl FromStr for NetworkAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("lan", address)) => resolve(address).map(Self::Lan),
            Some(("tap", name)) => name.parse().map(Self::Tap),
            Some(_) | None => Err(format!("`{text}` is not of the form lan=HOST:PORT or tap=NAME")),
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lan(address) => address.fmt(f),
            Self::Tap(name) => write!(f, "interface {name}"),
        }
    }
}

/// Connects to a LAN, and waits until the connection is made.
///
/// # Errors
/// Of the connection.
pub fn connect(lan: SocketAddr) -> io::Result<Arc<TcpStream>> {
    client::connect(lan, CONNECT_TIMEOUT).map(Arc::new)
}

/// A process's attachment to a LAN.
pub type TcpAttachment = LanAttachment<TcpStream>;

/// Starts the thread that keeps a VM attached to a LAN until the side ends. The guest doesn't wait
/// for it: outputs stay in flight in its gate until the LAN is attached.
///
/// # Errors
/// If the thread can't start.
pub fn start_lan(
    host: &ProcessHost,
    mut attachment: TcpAttachment,
    user: Arc<impl LanUser<Host: Host<Connection = TcpStream>> + Send + Sync + 'static>,
) -> io::Result<()> {
    host.spawn(StepKind::Lan, move || attachment.step(&*user))
}

/// An attachment with the usual timing. `last_packet` is the number of the last packet that the
/// guest got.
#[must_use]
pub fn attachment(config: AttachmentConfig, last_packet: u64) -> TcpAttachment {
    LanAttachment::new(config, AttachmentTiming::default(), last_packet)
}

/// A VM's attachment to a TAP interface.
#[derive(Debug)]
pub struct TapAttachment {
    /// The interface.
    pub name: TapName,
    /// The MAC address of the guest's network device.
    pub mac: [u8; 6],
    /// The sink whose packets go to the interface.
    pub sink: Arc<Mutex<NetworkAndConsole>>,
    /// `true` once the side has ended.
    pub over: Arc<AtomicBool>,
    /// The process, which gets packets for the guest and reports.
    pub host: ProcessHost,
}

impl TapAttachment {
    /// Opens the interface, and starts the thread that keeps the VM attached until the side ends.
    /// Opening it takes no time, and outputs from before would be lost.
    ///
    /// `last_packet` is the number of the last packet that the guest got. `has_moved` says that the
    /// guest wasn't reset by this owner: it is announced then, because the network can't know where
    /// it is.
    ///
    /// # Errors
    /// If a thread can't start.
    pub fn start(self, last_packet: u64, has_moved: bool) -> io::Result<()> {
        let first = self.attach(last_packet);
        if has_moved {
            self.announce()?;
        }
        let host = self.host.clone();
        let (mut opened, mut last_packet, mut losses) = (Some(first), last_packet, LossReports::default());
        host.spawn(StepKind::Lan, move || {
            let (lost, was_attached) = match opened.take().unwrap_or_else(|| self.attach(last_packet)) {
                Ok(receiver) => {
                    let lost = self.receive(receiver, &mut last_packet);
                    lock(&self.sink).set_tap(None);
                    (lost, true)
                }
                Err(error) => (Some(error), false),
            };
            let Some(lost) = lost.filter(|_| !self.over.load(Ordering::Acquire)) else { return Next::Done };
            if let Some(report) = losses.report(lost.to_string(), was_attached, false) {
                self.host.report(&report);
            }
            let pause_ns = if was_attached { 0 } else { AttachmentTiming::default().retry_ns };
            Next::Wait { until_ns: self.host.now_ns() + pause_ns }
        })
    }

    /// Gives the guest the packets that arrive. Returns why the interface was lost, or `None` if
    /// the guest has ended.
    fn receive(&self, mut receiver: TapReceiver, last_packet: &mut u64) -> Option<TapError> {
        loop {
            match receiver.receive() {
                Ok(FromLan::Packet { number, mut packet }) => {
                    *last_packet = number;
                    loop {
                        match self.host.deliver_packet(number, packet) {
                            GuestDelivery::Taken => break,
                            GuestDelivery::Full(back) => packet = back,
                            GuestDelivery::Gone => return None,
                        }
                    }
                }
                Ok(FromLan::Carried { .. } | FromLan::HeartbeatDue) => {}
                Err(error) => return Some(error),
            }
        }
    }

    fn attach(&self, last_packet: u64) -> Result<TapReceiver, TapError> {
        let (sender, receiver) = tap::open(&self.name, last_packet)?;
        lock(&self.sink).set_tap(Some((sender, Station::new(self.mac))));
        self.host.report(&NodeReport::LanAttached { lan: NetworkAddress::Tap(self.name.clone()).to_string() });
        Ok(receiver)
    }

    /// Announces the guest several times, on a thread of its own.
    fn announce(&self) -> io::Result<()> {
        let (sink, over) = (self.sink.clone(), self.over.clone());
        thread::Builder::new().name("announcement".into()).spawn(move || {
            for delay in ANNOUNCEMENT_DELAYS {
                thread::sleep(delay);
                if over.load(Ordering::Acquire) {
                    return;
                }
                lock(&sink).announce();
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_a_lan_or_an_interface() {
        let lan = "lan=127.0.0.1:7000".parse::<NetworkAddress>().unwrap();
        assert_eq!(lan, NetworkAddress::Lan("127.0.0.1:7000".parse().unwrap()));
        let tap = "tap=ft0".parse::<NetworkAddress>().unwrap();
        assert_eq!(tap, NetworkAddress::Tap("ft0".parse().unwrap()));
        for bad in ["", "lan", "lan=", "lan=7000", "tap=", "tap=a/b", "127.0.0.1:7000", "vde=x"] {
            assert!(bad.parse::<NetworkAddress>().is_err(), "{bad:?}");
        }
    }
}
