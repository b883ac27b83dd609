//! A VM's attachment to its network: kept up for as long as the VM runs here.

use super::announce::Station;
use super::inbox::InboxSender;
use super::sink::{NetworkAndConsole, NetworkSender};
use super::tap;
use super::tap::{TapError, TapName, TapReceiver};
use crate::lan::client::{Attached, FromLan, LanError, PacketReceiver, attach};
use crate::lan::{Attachment, pulse};
use crate::node::channel::lock;
use crate::node::reports::NodeReport;
use crate::os::address::resolve;
use crate::os::report::Reporter;
use crossbeam_channel::SendTimeoutError;
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vm::OutputId;

/// From one try to attach to a network that is away to the next.
const RETRY: Duration = Duration::from_millis(50);

/// The same with a LAN that refuses this side, as it serves another owner of the VM.
const RETRY_REFUSED: Duration = Duration::from_secs(1);

/// How long connecting to a LAN may take, and its answer: a LAN that is there answers at once, and
/// one that comes back is attached to by the next try.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(1);

/// When a guest that has moved is announced, from one time to the next: a switch may be slow to
/// enable a port.
const ANNOUNCEMENT_DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(700)];

/// Where a VM's packets go: `lan=HOST:PORT` or `tap=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkAddress {
    /// A LAN, which carries each packet once, whichever side of the VM is lost.
    Lan(SocketAddr),
    /// An interface of this host, where a failover may double packets or lose them, as on any
    /// Ethernet.
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

/// Who owns the VM here, as its network asks and tells.
pub trait NetworkEvents: Send + Sync {
    /// As which generation the VM runs here, and which of its outputs may come to a network that
    /// doesn't know the VM: the first, and the one behind those made so far.
    fn owner(&self) -> (Generation, Range<OutputId>);

    /// The network is there, and has carried all outputs with smaller ids than `next_output`. Those
    /// that were sent and not carried are to be sent again, before any other: the output sink is
    /// locked until this returns, so that no other overtakes them; it must not wait for the
    /// output sink.
    fn attached(&self, next_output: OutputId);

    /// The output sink is free again, after [`NetworkEvents::attached`] or a heartbeat: what is
    /// released may go.
    fn ready(&self);

    /// A LAN refuses this owner of the VM. That may be because there is another one, which is for
    /// the arbiter to say, or a mistake of the LAN's operator.
    fn refused(&self);

    /// The network has carried all outputs with smaller ids than `next_output`.
    fn carried(&self, next_output: OutputId);
}

/// A VM's network cable.
#[derive(Debug)]
pub struct Network {
    /// Where it leads.
    pub address: NetworkAddress,
    /// Whose cable it is.
    pub vm: VmId,
    /// Which incarnation's.
    pub node: NodeId,
    /// In which generation the guest was reset.
    pub booted: Generation,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Where to tell that it is plugged in or out.
    pub reporter: Reporter,
    /// Where packets from the network go.
    pub inbox: InboxSender,
    /// Where the way to the network is needed.
    pub sink: Arc<Mutex<NetworkAndConsole>>,
    /// When to stop.
    pub over: Arc<AtomicBool>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error(transparent)]
    Lan(#[from] LanError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("the guest is gone")]
    Over,
}

impl NetworkError {
    /// Whether a LAN doesn't want this attachment: trying again soon won't help.
    const fn is_refusal(&self) -> bool {
        matches!(self, Self::Lan(LanError::Refused { .. } | LanError::Fenced { .. }))
    }
}

/// Where packets for the guest come from.
enum Source {
    Lan(PacketReceiver),
    Tap(TapReceiver),
}

impl Source {
    fn receive(&mut self) -> Result<FromLan, NetworkError> {
        Ok(match self {
            Self::Lan(receiver) => receiver.receive()?,
            Self::Tap(receiver) => receiver.receive()?,
        })
    }

    /// Nothing was received for a while, because the guest took nothing.
    const fn excuse(&mut self) {
        match self {
            Self::Lan(receiver) => receiver.excuse(),
            Self::Tap(_) => {}
        }
    }
}

impl Network {
    /// Attaches, on a thread of its own, and keeps attached until it is over. The guest doesn't
    /// wait: what it sends before a LAN is attached stays in its output gate, in flight, and is
    /// sent then. An interface of this host is opened before this returns, because that takes no
    /// time, and what is sent before it is open would be lost.
    ///
    /// `last_packet` is the number of the last packet that the guest has had. A guest that was not
    /// reset by this owner has moved, and a network that can't know is told where it is now.
    ///
    /// # Errors
    /// If the thread can't start.
    pub fn start(self, last_packet: u64, events: Arc<dyn NetworkEvents>) -> io::Result<()> {
        let first = match self.address {
            NetworkAddress::Tap(_) => Some(self.attach(last_packet, &*events)),
            NetworkAddress::Lan(_) => None,
        };
        if first.is_some() && events.owner().0 > self.booted {
            self.announce()?;
        }
        self.spawn(first, last_packet, events)
    }

    /// The same for a guest that has just been reset and whose packets are not kept to be sent
    /// again: it attaches before it returns, if the network answers.
    ///
    /// Returns why, if a LAN refuses this VM.
    ///
    /// # Errors
    /// If the thread can't start.
    pub fn start_attached(self, events: Arc<dyn NetworkEvents>) -> io::Result<Option<String>> {
        let first = self.attach(0, &*events);
        let refused = first.as_ref().err().filter(|error| error.is_refusal()).map(ToString::to_string);
        self.spawn(Some(first), 0, events)?;
        Ok(refused)
    }

    fn spawn(
        self,
        first: Option<Result<Source, NetworkError>>,
        last_packet: u64,
        events: Arc<dyn NetworkEvents>,
    ) -> io::Result<()> {
        thread::Builder::new().name("lan".into()).spawn(move || self.keep_attached(first, last_packet, &*events))?;
        Ok(())
    }

    /// `attached` is the outcome of the first try to attach, if one was made.
    fn keep_attached(
        &self,
        mut attached: Option<Result<Source, NetworkError>>,
        mut last_packet: u64,
        events: &dyn NetworkEvents,
    ) {
        let mut told = None;
        loop {
            let (lost, was_attached) = match attached.take().unwrap_or_else(|| self.attach(last_packet, events)) {
                Ok(source) => {
                    let lost = self.receive(source, &mut last_packet, events);
                    lock(&self.sink).set_network(None);
                    (lost, true)
                }
                Err(error) => (error, false),
            };
            if self.over.load(Ordering::Acquire) {
                return;
            }
            let reason = match lost.is_refusal() {
                true => format!("{lost}; the arbiter is asked who owns the VM, and the LAN again every second"),
                false => lost.to_string(),
            };
            // Of tries that fail one after the other, only the first is told, and one that a LAN
            // refuses.
            let is_news = was_attached || told.is_none() || (lost.is_refusal() && told.as_ref() != Some(&reason));
            if is_news {
                self.reporter.tell(&NodeReport::LanLost { reason: reason.clone() });
                told = Some(reason);
            }
            if lost.is_refusal() {
                events.refused();
                thread::sleep(RETRY_REFUSED);
            } else if !was_attached {
                thread::sleep(RETRY);
            }
        }
    }

    /// Passes on what comes, until nothing comes any more; says why.
    fn receive(&self, mut source: Source, last_packet: &mut u64, events: &dyn NetworkEvents) -> NetworkError {
        loop {
            match source.receive() {
                Ok(FromLan::Packet { number, packet }) => {
                    *last_packet = number;
                    if !self.pass_on(number, packet, &mut source, events) {
                        return NetworkError::Over;
                    }
                }
                Ok(FromLan::Carried { next_output }) => events.carried(next_output),
                Ok(FromLan::HeartbeatDue) => self.send_heartbeat(events),
                Err(error) => return error,
            }
        }
    }

    /// Gives the guest a packet, however long it takes none: the LAN hears that this side is alive.
    /// `false` if the guest is gone.
    fn pass_on(&self, number: u64, packet: Vec<u8>, source: &mut Source, events: &dyn NetworkEvents) -> bool {
        let mut packet = (number, packet);
        loop {
            match self.inbox.send_packet(packet.0, packet.1, Duration::from_micros(pulse::INTERVAL_US)) {
                Ok(()) => return true,
                Err(SendTimeoutError::Disconnected(_)) => return false,
                Err(SendTimeoutError::Timeout(back)) => packet = back,
            }
            self.send_heartbeat(events);
            source.excuse();
        }
    }

    /// If another thread holds the output sink, it is sending packets, which say as much.
    fn send_heartbeat(&self, events: &dyn NetworkEvents) {
        {
            let Ok(mut sink) = self.sink.try_lock() else { return };
            sink.send_heartbeat();
        }
        // What was released meanwhile found the output sink taken.
        events.ready();
    }

    fn attach(&self, last_packet: u64, events: &dyn NetworkEvents) -> Result<Source, NetworkError> {
        let (generation, outputs) = events.owner();
        let (next_output, output_end) = (outputs.start, outputs.end);
        let (network, source, next_output) = match &self.address {
            NetworkAddress::Lan(address) => {
                let (vm, node, booted, mac) = (self.vm.clone(), self.node, self.booted, self.mac);
                let attachment = Attachment { vm, node, generation, mac, next_output, output_end, last_packet, booted };
                let Attached { sender, receiver, next_output } = attach(*address, &attachment, ATTACH_TIMEOUT)?;
                (NetworkSender::Lan(sender), Source::Lan(receiver), next_output)
            }
            NetworkAddress::Tap(name) => {
                let (sender, receiver) = tap::open(name, last_packet)?;
                (NetworkSender::Tap { sender, station: Station::new(self.mac) }, Source::Tap(receiver), next_output)
            }
        };
        {
            let mut sink = lock(&self.sink);
            events.attached(next_output);
            sink.set_network(Some(network));
        }
        self.reporter.tell(&NodeReport::LanAttached { lan: self.address.to_string() });
        events.ready();
        Ok(source)
    }

    /// Tells everybody on the interface, some times, that the guest is here.
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
