//! Outputs that the primary may not have sent when it is lost.

use crate::mutation::{Mutation, mutated};
use crate::output_gate::{GATE_BYTES_MAX, cost};
use alloc::collections::VecDeque;
use logchannel::message::Left;
use vm::{OutputId, OutputOperation};

/// The most bytes of unsent outputs that a backup keeps. The primary tells it which outputs have
/// left, so that it can drop them; beyond this limit it drops the oldest and counts it.
const UNSENT_BYTES_MAX: usize = 64 << 20;

// A backup keeps all that its primary's gate can hold.
const _: () = assert!(UNSENT_BYTES_MAX >= GATE_BYTES_MAX);

/// The outputs that this backup has to send first if it goes live.
#[derive(Clone, Debug, Hash)]
pub(super) struct UnsentOutputs {
    /// In the order of their ids.
    outputs: VecDeque<(OutputId, OutputOperation)>,
    bytes: usize,
    dropped: u64,
    /// The outputs that the primary says have left.
    released: Left,
    /// The id of the next output.
    next: OutputId,
}

impl UnsentOutputs {
    pub(super) fn new() -> Self {
        Self { outputs: VecDeque::new(), bytes: 0, dropped: 0, released: Left::default(), next: OutputId(0) }
    }

    /// Keeps an output until the primary says that it has left.
    pub(super) fn keep(&mut self, id: OutputId, operation: OutputOperation) {
        self.next = OutputId(id.0.saturating_add(1));
        if self.released.has(id, &operation) {
            return;
        }
        self.bytes += cost(&operation);
        self.outputs.push_back((id, operation));
        while self.bytes > UNSENT_BYTES_MAX {
            self.drop_first();
            self.dropped += 1;
        }
    }

    /// Drops the outputs that have left, as the primary says.
    pub(super) fn forget(&mut self, left: Left) {
        self.released.packets = self.released.packets.max(left.packets);
        self.released.console = self.released.console.max(left.console);
        let released = self.released;
        // Usually the outputs that have left are all at the front.
        while self.outputs.front().is_some_and(|(id, operation)| released.has(*id, operation)) {
            self.drop_first();
        }
        if self.outputs.front().is_some_and(|(id, _)| *id < released.packets.max(released.console)) {
            self.outputs.retain(|(id, operation)| !released.has(*id, operation));
            self.bytes = self.outputs.iter().map(|(_, operation)| cost(operation)).sum();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, operation)) = self.outputs.pop_front() {
            self.bytes -= cost(&operation);
        }
    }

    pub(super) fn take(&mut self) -> VecDeque<(OutputId, OutputOperation)> {
        self.bytes = 0;
        if mutated(Mutation::ForgetUnsent) {
            self.outputs.clear();
        }
        core::mem::take(&mut self.outputs)
    }

    pub(super) fn outputs(&self) -> impl Iterator<Item = &(OutputId, OutputOperation)> {
        self.outputs.iter()
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) const fn next(&self) -> OutputId {
        self.next
    }

    /// The machine that goes on makes this output next.
    pub(super) const fn set_next(&mut self, next: OutputId) {
        self.next = next;
    }
}
