//! Where released outputs go: the LAN and the console.

use super::reports::NodeReport;
use crate::lan::client::FrameSender;
use crate::report::Reporter;
use std::io::Write;
use vm::{OutputId, OutputOperation};

/// The host's side of the one way out. Only what an [`OutputGate`](crate::output_gate::OutputGate) released comes here.
#[derive(Debug)]
pub struct Outlets {
    reporter: Reporter,
    /// Whether this VM is to be on a LAN, connected or not.
    has_lan: bool,
    lan: Option<FrameSender>,
    frames: u64,
    frames_without_lan: u64,
    first_output_told: bool,
}

impl Outlets {
    /// Outlets whose LAN, if there is to be one, isn't connected yet.
    #[must_use]
    pub const fn new(reporter: Reporter, has_lan: bool) -> Self {
        Self { reporter, has_lan, lan: None, frames: 0, frames_without_lan: 0, first_output_told: false }
    }

    /// Connects or disconnects the LAN.
    pub fn set_lan(&mut self, lan: Option<FrameSender>) {
        self.lan = lan;
    }

    /// Puts out a batch, in order. Frames without a LAN are lost, as on a network card without its cable. `false` if the LAN
    /// should have taken them; a VM that is on no LAN loses nothing that anybody waits for.
    pub fn put_out(&mut self, outputs: &[(OutputId, OutputOperation)]) -> bool {
        let mut frames: Vec<(OutputId, &[u8])> = Vec::with_capacity(outputs.len());
        for (id, output) in outputs {
            match output {
                OutputOperation::Frame(frame) => frames.push((*id, frame)),
                OutputOperation::Console(bytes) => self.put_on_console(bytes),
            }
        }
        if frames.is_empty() {
            return true;
        }
        self.frames += frames.len() as u64;
        let Some(lan) = &mut self.lan else {
            self.frames_without_lan += frames.len() as u64;
            return !self.has_lan;
        };
        if let Err(error) = lan.send_batch(&frames) {
            tracing::warn!("the LAN took no frames: {error}");
            // Whoever receives from this LAN attaches again.
            lan.shutdown();
            self.lan = None;
            return false;
        }
        if !self.first_output_told {
            self.first_output_told = true;
            self.reporter.tell(&NodeReport::FirstOutput);
        }
        true
    }

    /// Frames put out, and how many of them found no LAN.
    #[must_use]
    pub const fn frames(&self) -> (u64, u64) {
        (self.frames, self.frames_without_lan)
    }

    fn put_on_console(&self, bytes: &[u8]) {
        if self.reporter.is_json() {
            self.reporter.tell(&NodeReport::Console { text: String::from_utf8_lossy(bytes).into_owned() });
        } else {
            let mut out = std::io::stdout().lock();
            // A terminal that went away must not take the guest with it.
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> [(OutputId, OutputOperation); 1] {
        [(OutputId(0), OutputOperation::Frame(vec![0; 60]))]
    }

    #[test]
    fn frames_for_a_lan_that_is_away_have_not_left() {
        let mut outlets = Outlets::new(Reporter::new("test", true), true);
        assert!(!outlets.put_out(&frame()));
        assert_eq!(outlets.frames(), (1, 1));
    }

    #[test]
    fn frames_of_a_vm_on_no_lan_are_done_with() {
        let mut outlets = Outlets::new(Reporter::new("test", true), false);
        assert!(outlets.put_out(&frame()), "its backup would keep them for ever");
        assert_eq!(outlets.frames(), (1, 1));
    }

    #[test]
    fn the_console_needs_no_lan() {
        let mut outlets = Outlets::new(Reporter::new("test", true), true);
        assert!(outlets.put_out(&[(OutputId(0), OutputOperation::Console(b"word".to_vec()))]));
    }
}
