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
    lan: Option<FrameSender>,
    frames: u64,
    frames_without_lan: u64,
    first_output_told: bool,
}

impl Outlets {
    /// Outlets without a LAN yet.
    #[must_use]
    pub const fn new(reporter: Reporter) -> Self {
        Self { reporter, lan: None, frames: 0, frames_without_lan: 0, first_output_told: false }
    }

    /// Connects or disconnects the LAN.
    pub fn set_lan(&mut self, lan: Option<FrameSender>) {
        self.lan = lan;
    }

    /// Puts out a batch, in order. Frames without a LAN are lost, as on a network card without its cable. `false` if that
    /// happened.
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
            return false;
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
