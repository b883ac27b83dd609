//! Where released outputs go: the network and the console.

use super::announce::Station;
use super::console_text::ConsoleText;
use super::tap::TapSender;
use crate::lan::client::PacketSender;
use crate::node::distribution::histogram_ns;
use crate::node::reports::NodeReport;
use crate::os::report::{self, Reporter};
use crate::os::writer;
use ft::output_gate::{CONSOLE_HELD_BYTES_MAX, Released};
use hdrhistogram::Histogram;
use std::io;
use vm::{OutputId, OutputOperation};

// A gate that is full for a reader that has stalled has room again when the rest is dropped.
const _: () = assert!(writer::CONSOLE_BYTES_KEPT < CONSOLE_HELD_BYTES_MAX, "dropping lets the guest go on");

/// Sends packets to the network that a VM is attached to.
#[derive(Debug)]
pub enum NetworkSender {
    /// To a LAN, which tells what it has carried.
    Lan(PacketSender),
    /// To an interface of this host.
    Tap {
        /// The interface.
        sender: TapSender,
        /// What of the guest can be told there.
        station: Station,
    },
}

impl NetworkSender {
    /// Sends packets, in order. Returns how many were lost on the way.
    fn send(&mut self, packets: &[(OutputId, &[u8])]) -> io::Result<u64> {
        match self {
            Self::Lan(sender) => sender.send_batch(packets).map(|()| 0),
            Self::Tap { sender, station } => {
                packets.iter().for_each(|(_, packet)| station.learn(packet));
                sender.send(packets.iter().map(|(_, packet)| *packet))
            }
        }
    }

    /// Makes whoever receives from the network attach again.
    fn shutdown(&self) {
        match self {
            Self::Lan(sender) => sender.shutdown(),
            // Its receiver finds out by itself.
            Self::Tap { .. } => {}
        }
    }
}

/// The host's side of the one way out. Only what an [`OutputGate`](ft::output_gate::OutputGate)
/// released comes here.
#[derive(Debug)]
pub struct NetworkAndConsole {
    reporter: Reporter,
    is_on_lan: bool,
    network: Option<NetworkSender>,
    packets: u64,
    packets_without_lan: u64,
    hold_time: Histogram<u64>,
    first_output_told: bool,
    /// The console as text, for reports.
    text: ConsoleText,
    /// The last output of the console, which may only have begun a character.
    last_console: OutputId,
}

impl NetworkAndConsole {
    /// A sink whose network, if there is to be one, isn't connected yet. `is_on_lan` says that it
    /// is to be a LAN.
    #[must_use]
    pub fn new(reporter: Reporter, is_on_lan: bool) -> Self {
        Self {
            reporter,
            is_on_lan,
            network: None,
            packets: 0,
            packets_without_lan: 0,
            hold_time: histogram_ns(),
            first_output_told: false,
            text: ConsoleText::new(),
            last_console: OutputId(0),
        }
    }

    /// Connects or disconnects the network.
    pub fn set_network(&mut self, network: Option<NetworkSender>) {
        self.network = network;
    }

    /// Sends a LAN the heartbeat that is due.
    pub fn send_heartbeat(&mut self) {
        if let Some(NetworkSender::Lan(sender)) = &mut self.network
            && let Err(error) = sender.send_heartbeat()
        {
            self.lose_network(&error);
        }
    }

    /// Puts out a batch, in order. Packets without a network go nowhere, as on a network card
    /// without its cable.
    ///
    /// `true` if nobody will ever tell what became of them, so that they are as good as carried:
    /// only a LAN tells.
    pub fn write(&mut self, outputs: &[Released]) -> bool {
        let mut packets: Vec<(OutputId, &[u8])> = Vec::with_capacity(outputs.len());
        for Released { id, operation, held_ns } in outputs {
            held_ns.iter().for_each(|ns| self.hold_time.saturating_record(*ns));
            match &**operation {
                OutputOperation::Packet(packet) => packets.push((*id, packet)),
                OutputOperation::Console(bytes) => self.put_on_console(*id, bytes),
            }
        }
        if !packets.is_empty() {
            self.put_on_network(&packets);
        }
        !self.is_on_lan
    }

    /// Tells everybody on the network where the guest is. Only for a network that isn't told
    /// otherwise.
    pub fn announce(&self) {
        if let Some(NetworkSender::Tap { sender, station }) = &self.network {
            // An interface that is gone is reported by its receiver.
            let _ = sender.send(station.announcement().iter().map(Vec::as_slice));
        }
    }

    /// Packets put out, and how many of them found no network.
    #[must_use]
    pub const fn packets(&self) -> (u64, u64) {
        (self.packets, self.packets_without_lan)
    }

    /// How long the outputs had been held that were put out, in nanoseconds.
    #[must_use]
    pub const fn hold_time_ns(&self) -> &Histogram<u64> {
        &self.hold_time
    }

    /// Puts out what is left of a character that the guest has not completed. Call it when the
    /// guest writes no more.
    pub fn finish_console(&mut self) {
        if let Some(piece) = self.text.finish() {
            self.reporter.tell_output(self.last_console, &NodeReport::Console(piece));
        }
    }

    fn put_on_network(&mut self, packets: &[(OutputId, &[u8])]) {
        self.packets += packets.len() as u64;
        let Some(network) = &mut self.network else {
            self.packets_without_lan += packets.len() as u64;
            return;
        };
        match network.send(packets) {
            Ok(lost) => self.packets_without_lan += lost,
            Err(error) => {
                self.packets_without_lan += packets.len() as u64;
                return self.lose_network(&error);
            }
        }
        if !self.first_output_told {
            self.first_output_told = true;
            self.reporter.tell(&NodeReport::FirstOutput);
        }
    }

    fn lose_network(&mut self, error: &io::Error) {
        tracing::warn!("the network took nothing: {error}");
        if let Some(network) = self.network.take() {
            network.shutdown();
        }
    }

    /// When it has left, the writer of standard output says.
    fn put_on_console(&mut self, id: OutputId, bytes: &[u8]) {
        self.last_console = id;
        if self.reporter.is_json() {
            // A character that is only begun has left when the line with its rest is written.
            if let Some(piece) = self.text.push(bytes) {
                self.reporter.tell_output(id, &NodeReport::Console(piece));
            }
        } else {
            report::console_shown(bytes);
            writer::stdout().push_console(id, bytes.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_without_a_network_are_counted() {
        let mut sink = NetworkAndConsole::new(Reporter::new("test", true), true);
        sink.write(&[Released::at_once(OutputId(0), OutputOperation::Packet(vec![0; 60]))]);
        sink.write(&[Released::at_once(OutputId(1), OutputOperation::Console(b"word".to_vec()))]);
        assert_eq!(sink.packets(), (1, 1));
    }

    #[test]
    fn only_a_lan_tells_what_it_has_carried() {
        let packet = [Released::at_once(OutputId(0), OutputOperation::Packet(vec![0; 60]))];
        assert!(!NetworkAndConsole::new(Reporter::new("test", true), true).write(&packet));
        let mut sink = NetworkAndConsole::new(Reporter::new("test", true), false);
        assert!(sink.write(&packet), "its backup would keep them for ever");
    }
}
