//! The queue of outputs that the hypervisor hasn't taken yet.

use crate::event::{CONSOLE_BYTES_MAX, OutputId, OutputOperation};
use crate::state::{RestoreError, StateReader, StateWriter};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Single console bytes are gathered up to this many before they become an output.
const CONSOLE_GATHER_BYTES_MAX: usize = 256;

/// Single console bytes wait at most this many steps for the rest of their line.
const CONSOLE_GATHER_STEPS_MAX: u64 = 100_000;

/// The queue of outputs, and the console bytes that are being gathered into the next one.
///
/// An output is a log entry that the backup has to acknowledge, so one for each byte would be
/// expensive. When the gathered bytes become an output is a function of the guest's execution and
/// the instruction count, never of how the machine is driven.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    queue: VecDeque<OutputOperation>,
    next_id: u64,
    gathered: Vec<u8>,
    /// The count at which the gathered bytes become an output; set by [`Self::settle`].
    deadline: Option<u64>,
}

impl Outputs {
    /// `true` if there is no output to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the oldest output.
    pub(crate) fn take(&mut self) -> Option<(OutputId, OutputOperation)> {
        let id = OutputId(self.next_id - self.queue.len() as u64);
        Some((id, self.queue.pop_front()?))
    }

    /// The id of the next output.
    pub(crate) const fn next_id(&self) -> OutputId {
        OutputId(self.next_id)
    }

    /// Adds a packet that the guest sends.
    pub(crate) fn push_packet(&mut self, packet: Vec<u8>) {
        self.push(OutputOperation::Packet(packet));
    }

    /// Adds one byte that the guest writes to its console.
    pub(crate) fn push_console_byte(&mut self, byte: u8) {
        self.gathered.push(byte);
        if byte == b'\n' || self.gathered.len() >= CONSOLE_GATHER_BYTES_MAX {
            self.flush_console();
        }
    }

    /// Adds at most [`CONSOLE_BYTES_MAX`] bytes that the guest writes to its console at once.
    pub(crate) fn push_console_bytes(&mut self, bytes: Vec<u8>) {
        assert!(bytes.len() <= CONSOLE_BYTES_MAX, "the caller bounds what it copies out of RAM");
        self.flush_console();
        if !bytes.is_empty() {
            self.push(OutputOperation::Console(bytes));
        }
    }

    /// Makes an output of the gathered bytes.
    pub(crate) fn flush_console(&mut self) {
        self.deadline = None;
        if !self.gathered.is_empty() {
            let bytes = core::mem::take(&mut self.gathered);
            self.push(OutputOperation::Console(bytes));
        }
    }

    /// The count at which [`Self::settle`] has to be called at the latest.
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline.unwrap_or(u64::MAX)
    }

    /// Makes an output of bytes gathered for long enough at `count`; sets the deadline of a line
    /// just begun.
    pub(crate) fn settle(&mut self, count: u64) {
        match self.deadline {
            Some(deadline) if count >= deadline => self.flush_console(),
            None if !self.gathered.is_empty() => self.deadline = Some(count.saturating_add(CONSOLE_GATHER_STEPS_MAX)),
            Some(_) | None => {}
        }
    }

    pub(crate) fn write_to(&self, writer: &mut StateWriter) {
        // The queue is not state: it depends on when the hypervisor takes outputs.
        let Self { queue: _, next_id, gathered, deadline } = self;
        writer.u64(*next_id);
        writer.bytes(gathered.iter().copied());
        writer.optional_u64(*deadline);
    }

    /// Reads an empty queue, at `count`.
    pub(crate) fn read_from(reader: &mut StateReader<'_>, count: u64) -> Result<Self, RestoreError> {
        let next_id = reader.counter()?;
        let gathered = reader.bytes(CONSOLE_GATHER_BYTES_MAX - 1)?.to_vec();
        reader.require(!gathered.contains(&b'\n'), "a whole line of the console is still being gathered")?;
        let deadline = reader.optional_u64()?;
        reader.require(deadline.is_some() != gathered.is_empty(), "a deadline for the console without a line begun")?;
        let steps_left = deadline.map(|deadline| deadline.wrapping_sub(count));
        let in_time = steps_left.is_none_or(|steps| (1..=CONSOLE_GATHER_STEPS_MAX).contains(&steps));
        reader.require(in_time, "the deadline for the console has passed, or is too far away")?;
        Ok(Self { queue: VecDeque::new(), next_id, gathered, deadline })
    }

    fn push(&mut self, output: OutputOperation) {
        self.queue.push_back(output);
        self.next_id += 1;
    }
}
