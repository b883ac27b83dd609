//! Where a simulated process's outputs go: its LAN, and a console whose reader is slow now and
//! then.

use super::connection::SimConnection;
use super::env::Env;
use super::host::SimHost;
use super::sightings::Sighting;
use super::trace::{Kind, Lane};
use ft::output_gate::Released;
use hypervisor::node::host::{Host, OutputSink};
use hypervisor::node::io::lan::LanOutput;
use std::collections::VecDeque;
use vm::{OutputId, OutputOperation};

/// How long the console's reader takes nothing, at most.
const SLOW_READER_NS: u32 = 30_000_000;

/// Held for longer than this, an output counts as held.
const HELD_NS: u64 = 1_000_000;

/// A process's sink.
pub(super) struct SimSink {
    host: SimHost,
    lan: LanOutput<SimConnection>,
    /// Console output that waits for its reader, who takes it at this time.
    console: VecDeque<(u64, OutputId, u64)>,
}

impl SimSink {
    pub(super) fn new(host: SimHost) -> Self {
        Self { host, lan: LanOutput::default(), console: VecDeque::new() }
    }

    /// When there is something to do that no arrival announces.
    pub(super) fn due_ns(&self) -> u64 {
        self.console.front().map_or(u64::MAX, |(due_ns, ..)| *due_ns)
    }

    /// The reader takes all that waits.
    pub(super) fn drain(&mut self) {
        self.console.iter_mut().for_each(|(due_ns, ..)| *due_ns = 0);
    }

    /// Writes what the console's reader takes. Returns the output behind it, if there was any.
    pub(super) fn print(&mut self, env: &mut Env) -> Option<OutputId> {
        let mut next = None;
        while let Some((_, id, digest)) = self.console.pop_front_if(|(due_ns, ..)| *due_ns <= env.now_ns) {
            if env.is_dying(self.host.me().host) {
                return next;
            }
            env.judge_of(self.host.me().host).prints(self.host.me().node, id, digest);
            next = Some(id.next());
        }
        next
    }

    /// Lets outputs leave; `false` if this process has sent its last.
    fn leave(&mut self, env: &mut Env, outputs: &[Released]) -> bool {
        let node = self.host.me().node;
        for Released { id, operation, held_ns } in outputs {
            if env.is_dying(self.host.me().host) {
                return false;
            }
            let digest = operation.digest();
            env.note(Lane::Host(self.host.me().host), Kind::Detail, "output {} leaves the gate", &[id.0]);
            env.judge_of(self.host.me().host).leaves(
                node,
                self.host.generation(),
                self.host.place_of(*id),
                (*id, digest),
            );
            if *held_ns > Some(HELD_NS) {
                env.saw(Sighting::OutputHeld);
            }
            if matches!(**operation, OutputOperation::Console(_)) {
                let delay_ns = if env.random.one_in(8) { u64::from(env.random.below(SLOW_READER_NS)) } else { 0 };
                let due_ns = self.console.back().map_or(0, |(due_ns, ..)| *due_ns).max(env.now_ns + delay_ns);
                self.console.push_back((due_ns, *id, digest));
            }
        }
        if let Some(last) = outputs.last() {
            self.host.has_sent(last.id.next());
        }
        true
    }
}

impl OutputSink for SimSink {
    type Connection = SimConnection;

    fn write(&mut self, outputs: &[Released]) -> bool {
        let host = self.host.clone();
        if self.leave(&mut host.env(), outputs) {
            let packets: Vec<_> = outputs
                .iter()
                .filter_map(|released| match &*released.operation {
                    OutputOperation::Packet(packet) => Some((released.id, &packet[..])),
                    OutputOperation::Console(_) => None,
                })
                .collect();
            if !packets.is_empty() {
                self.lan.send(host.now_ns(), &packets);
            }
        }
        false
    }

    fn lan(&mut self) -> &mut LanOutput<SimConnection> {
        &mut self.lan
    }
}
