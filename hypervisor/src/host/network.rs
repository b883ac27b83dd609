//! A VM's attachment to the LAN: kept up for as long as the VM runs here.

use super::channel::lock;
use super::inbox::{HostInput, InboxSender};
use super::outlets::Outlets;
use super::reports::NodeReport;
use crate::lan::Attachment;
use crate::lan::client::{FrameReceiver, LanError, attach};
use crate::report::Reporter;
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vm::OutputId;

/// From one try to attach to a LAN that is away to the next.
const RETRY: Duration = Duration::from_millis(100);

/// How long to wait for a LAN that accepts connections but doesn't answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A VM's network cable.
#[derive(Debug)]
pub struct Network {
    /// Where the LAN is.
    pub lan: SocketAddr,
    /// Whose cable it is.
    pub vm: VmId,
    /// Which incarnation's.
    pub node: NodeId,
    /// The guest's address.
    pub mac: [u8; 6],
    /// Where to tell that it is plugged in or out.
    pub reporter: Reporter,
    /// Where frames from the LAN go.
    pub inbox: InboxSender,
    /// Where the way to the LAN is needed.
    pub outlets: Arc<Mutex<Outlets>>,
    /// When to stop.
    pub over: Arc<AtomicBool>,
}

impl Network {
    /// Attaches, before it returns if the LAN is there, and keeps attached until the LAN serves a newer generation.
    ///
    /// `last_packet` is the number of the last frame that the guest has had; `boot` says that it has just been reset;
    /// `owner` tells as which generation it runs here, and which output comes next.
    ///
    /// Tells if the LAN refuses this VM at once; that is final.
    ///
    /// # Errors
    /// If the thread can't start.
    pub fn start(
        self,
        mut last_packet: u64,
        mut boot: bool,
        owner: impl Fn() -> (Generation, OutputId) + Send + 'static,
    ) -> io::Result<Option<String>> {
        let mut attached = self.attach(last_packet, boot, owner());
        let refused = match &attached {
            Err(LanError::Refused { reason }) => Some(reason.clone()),
            Ok(_) | Err(_) => None,
        };
        thread::Builder::new().name("lan".into()).spawn(move || {
            let mut is_away = false;
            loop {
                let lost = match attached {
                    Ok(frames) => {
                        (is_away, boot) = (false, false);
                        let lost = self.receive(frames, &mut last_packet);
                        lock(&self.outlets).set_lan(None);
                        lost
                    }
                    Err(error) => error,
                };
                if self.over.load(Ordering::Acquire) {
                    return;
                }
                let for_good = matches!(lost, LanError::Refused { .. } | LanError::Fenced { .. });
                if !is_away || for_good {
                    self.reporter.tell(&NodeReport::LanLost { reason: lost.to_string() });
                }
                is_away = true;
                if for_good {
                    return;
                }
                thread::sleep(RETRY);
                attached = self.attach(last_packet, boot, owner());
            }
        })?;
        Ok(refused)
    }

    /// Gives the guest what comes, until nothing comes any more; says why.
    fn receive(&self, mut frames: FrameReceiver, last_packet: &mut u64) -> LanError {
        loop {
            match frames.receive() {
                Ok((number, frame)) => {
                    *last_packet = number;
                    if !self.inbox.send(HostInput::Packet { number, frame }) {
                        return LanError::Closed;
                    }
                }
                Err(error) => return error,
            }
        }
    }

    fn attach(
        &self,
        last_packet: u64,
        boot: bool,
        (generation, next_output): (Generation, OutputId),
    ) -> Result<FrameReceiver, LanError> {
        let (vm, node, mac) = (self.vm.clone(), self.node, self.mac);
        let attachment = Attachment { vm, node, generation, mac, next_output, last_packet, boot };
        let (sender, receiver) = attach(self.lan, &attachment, TIMEOUT)?;
        lock(&self.outlets).set_lan(Some(sender));
        self.reporter.tell(&NodeReport::LanAttached { lan: self.lan.to_string() });
        Ok(receiver)
    }
}
