//! Where released outputs go: the network and the console.

use super::announce::Station;
use super::console_text::ConsoleText;
use super::tap::TapSender;
use crate::lan::client::PacketSender;
use crate::node::distribution::histogram_ns;
use crate::node::reports::NodeReport;
use crate::os::report::{self, Reporter};
use crate::os::writer;
use ft::output_gate::{CONSOLE_BYTES_MAX, Released};
use hdrhistogram::Histogram;
use std::io;
use vm::{OutputId, OutputOperation};

// A gate that is full for a reader that has stalled has room again when the rest is dropped.
const _: () = assert!(writer::CONSOLE_BYTES_KEPT < CONSOLE_BYTES_MAX, "dropping lets the guest go on");

/// The way to a network.
#[derive(Debug)]
pub enum Way {
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

impl Way {
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
pub struct Outlets {
    reporter: Reporter,
    is_on_lan: bool,
    way: Option<Way>,
    packets: u64,
    packets_without_lan: u64,
    hold_time: Histogram<u64>,
    first_output_told: bool,
    /// The console as text, for reports.
    text: ConsoleText,
    /// The last output of the console, which may only have begun a character.
    last_console: OutputId,
}

impl Outlets {
    /// Outlets whose network, if there is to be one, isn't connected yet. `is_on_lan` says that it
    /// is to be a LAN.
    #[must_use]
    pub fn new(reporter: Reporter, is_on_lan: bool) -> Self {
        Self {
            reporter,
            is_on_lan,
            way: None,
            packets: 0,
            packets_without_lan: 0,
            hold_time: histogram_ns(),
            first_output_told: false,
            text: ConsoleText::new(),
            last_console: OutputId(0),
        }
    }

    /// Connects or disconnects the network.
    pub fn set_way(&mut self, way: Option<Way>) {
        self.way = way;
    }

    /// Sends a LAN the heartbeat that is due.
    pub fn send_heartbeat(&mut self) {
        if let Some(Way::Lan(sender)) = &mut self.way
            && let Err(error) = sender.send_heartbeat()
        {
            self.lose_way(&error);
        }
    }

    /// Puts out a batch, in order. Packets without a network go nowhere, as on a network card
    /// without its cable.
    ///
    /// `true` if nobody will ever tell what became of them, so that they are as good as carried:
    /// only a LAN tells.
    pub fn put_out(&mut self, outputs: &[Released]) -> bool {
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
        if let Some(Way::Tap { sender, station }) = &self.way {
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
        let Some(way) = &mut self.way else {
            self.packets_without_lan += packets.len() as u64;
            return;
        };
        match way.send(packets) {
            Ok(lost) => self.packets_without_lan += lost,
            Err(error) => {
                self.packets_without_lan += packets.len() as u64;
                return self.lose_way(&error);
            }
        }
        if !self.first_output_told {
            self.first_output_told = true;
            self.reporter.tell(&NodeReport::FirstOutput);
        }
    }

    fn lose_way(&mut self, error: &io::Error) {
        tracing::warn!("the network took nothing: {error}");
        if let Some(way) = self.way.take() {
            way.shutdown();
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
        let mut outlets = Outlets::new(Reporter::new("test", true), true);
        outlets.put_out(&[Released::at_once(OutputId(0), OutputOperation::Packet(vec![0; 60]))]);
        outlets.put_out(&[Released::at_once(OutputId(1), OutputOperation::Console(b"word".to_vec()))]);
        assert_eq!(outlets.packets(), (1, 1));
    }

    #[test]
    fn only_a_lan_tells_what_it_has_carried() {
        let packet = [Released::at_once(OutputId(0), OutputOperation::Packet(vec![0; 60]))];
        assert!(!Outlets::new(Reporter::new("test", true), true).put_out(&packet));
        let mut outlets = Outlets::new(Reporter::new("test", true), false);
        assert!(outlets.put_out(&packet), "its backup would keep them for ever");
    }
}
