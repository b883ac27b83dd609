//! The output sink of a process: the network and the console.

use super::announce::Station;
use super::console_text::ConsoleText;
use super::lan::LanOutput;
use super::tap::TapSender;
use crate::node::distribution::histogram_ns;
use crate::node::reports::NodeReport;
use crate::os::clock;
use crate::os::report::{self, Reporter};
use crate::os::writer;
use ft::output_gate::{CONSOLE_HELD_BYTES_MAX, Released};
use hdrhistogram::Histogram;
use std::net::TcpStream;
use vm::{OutputId, OutputOperation};

// A gate that is full because of a stalled reader has room again once the excess is dropped.
const _: () = assert!(writer::CONSOLE_BYTES_KEPT < CONSOLE_HELD_BYTES_MAX, "dropping lets the guest go on");

/// The host's end of the one way out: it gets only what an
/// [`OutputGate`](ft::output_gate::OutputGate) has released.
#[derive(Debug)]
pub struct NetworkAndConsole {
    reporter: Reporter,
    is_on_lan: bool,
    lan: LanOutput<TcpStream>,
    /// The TAP interface, and the guest's addresses to announce there.
    tap: Option<(TapSender, Station)>,
    packets: u64,
    packets_without_lan: u64,
    hold_time: Histogram<u64>,
    first_output_reported: bool,
    /// Console output as text, for reports.
    text: ConsoleText,
    /// The last console output, which may have ended inside a character.
    last_console: OutputId,
}

impl NetworkAndConsole {
    /// A sink without a connection to its network yet. `is_on_lan` if that will be a LAN.
    #[must_use]
    pub fn new(reporter: Reporter, is_on_lan: bool) -> Self {
        Self {
            reporter,
            is_on_lan,
            lan: LanOutput::default(),
            tap: None,
            packets: 0,
            packets_without_lan: 0,
            hold_time: histogram_ns(),
            first_output_reported: false,
            text: ConsoleText::new(),
            last_console: OutputId(0),
        }
    }

    /// Connects the sink to a TAP interface, or disconnects it.
    pub fn set_tap(&mut self, tap: Option<(TapSender, Station)>) {
        self.tap = tap;
    }

    /// The packets' way to the LAN.
    pub const fn lan(&mut self) -> &mut LanOutput<TcpStream> {
        &mut self.lan
    }

    /// Writes outputs, in order. Without a network, packets are dropped as by a network card
    /// without its cable.
    ///
    /// `true` if no report will follow of what has become of them, so that they count as carried:
    /// only a LAN reports that.
    pub fn write(&mut self, outputs: &[Released]) -> bool {
        let mut packets: Vec<(OutputId, &[u8])> = Vec::with_capacity(outputs.len());
        for Released { id, operation, held_ns } in outputs {
            held_ns.iter().for_each(|ns| self.hold_time.saturating_record(*ns));
            match &**operation {
                OutputOperation::Packet(packet) => packets.push((*id, packet)),
                OutputOperation::Console(bytes) => self.write_console(*id, bytes),
            }
        }
        if !packets.is_empty() {
            self.write_packets(&packets);
        }
        !self.is_on_lan
    }

    /// Announces the guest on a TAP interface; a LAN knows where the guest is.
    pub fn announce(&self) {
        if let Some((sender, station)) = &self.tap {
            // The interface's receiver reports its loss.
            let _ = sender.send(station.announcement().iter().map(Vec::as_slice));
        }
    }

    /// The number of packets written, and how many of them were dropped without a network.
    #[must_use]
    pub const fn packets(&self) -> (u64, u64) {
        (self.packets, self.packets_without_lan)
    }

    /// How long the written outputs had been held, in nanoseconds.
    #[must_use]
    pub const fn hold_time_ns(&self) -> &Histogram<u64> {
        &self.hold_time
    }

    /// Writes the rest of an incomplete character. Call it after the guest's last output.
    pub fn finish_console(&mut self) {
        if let Some(piece) = self.text.finish() {
            self.reporter.tell_output(self.last_console, &NodeReport::Console(piece));
        }
    }

    fn write_packets(&mut self, packets: &[(OutputId, &[u8])]) {
        self.packets += packets.len() as u64;
        let lost = match &mut self.tap {
            None if self.lan.send(clock::now_ns(), packets) => 0,
            None => packets.len() as u64,
            Some((sender, station)) => {
                packets.iter().for_each(|(_, packet)| station.learn(packet));
                // The interface's receiver reports its loss.
                sender.send(packets.iter().map(|(_, packet)| *packet)).unwrap_or(packets.len() as u64)
            }
        };
        self.packets_without_lan += lost;
        if lost < packets.len() as u64 && !self.first_output_reported {
            self.first_output_reported = true;
            self.reporter.tell(&NodeReport::FirstOutput);
        }
    }

    /// Queues console output; the writer of standard output reports when it has left.
    fn write_console(&mut self, id: OutputId, bytes: &[u8]) {
        self.last_console = id;
        if self.reporter.is_json() {
            // An incomplete character has left when the line with its rest is written.
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
