//! The guest: a function of its log, and a machine that writes its memory, so that there is
//! something to copy.

use crate::world::{STEPS_PER_PAGE, machine, writing_guest};
use logchannel::entry::{EntryBody, Generation, LogEntry};
use logchannel::session::NodeId;
use std::hash::{DefaultHasher, Hash, Hasher};
use vm::{Event, Machine, OutputId, OutputOperation, StopReason};

/// The number of the guest's steps.
pub(super) const STEPS: usize = 240;

/// The pages that it writes: a copy of them takes more than one piece.
const PAGES: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    PacketIn,
    PacketOut,
    Word,
    Clock,
    Progress,
    Timer,
    Entropy,
    Digest,
}

/// The steps that it repeats.
const ROUND: [Step; 15] = {
    use Step::{Clock, Digest, Entropy, PacketIn as In, PacketOut as Out, Progress, Timer, Word};
    [In, Out, Clock, Word, In, Progress, Out, Out, Timer, Word, Digest, Word, In, Entropy, Out]
};

/// The guest's history according to the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    /// The digest of the log up to and including each entry.
    log: Vec<u64>,
    steps: usize,
    /// For each output the position of its entry, and its digest.
    outputs: Vec<(usize, u64)>,
    /// The number of packets among them.
    packets: u64,
    /// The number of the next packet to the guest.
    pub(super) next_packet: u64,
    pub(super) is_stopped: bool,
}

impl Story {
    pub(super) fn entries(&self) -> usize {
        self.log.len()
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    pub(super) fn outputs(&self) -> impl Iterator<Item = u64> {
        self.outputs.iter().map(|(_, digest)| *digest)
    }

    pub(super) fn next_output(&self) -> OutputId {
        OutputId(self.outputs.len() as u64)
    }

    /// The position of an output's entry.
    pub(super) fn position_of(&self, id: OutputId, digest: u64) -> usize {
        let (position, expected) = self.outputs[usize::try_from(id.0).unwrap()];
        assert_eq!(digest, expected, "output {} isn't the guest's, or another on its way", id.0);
        position
    }

    /// The digest of the first `entries` entries.
    pub(super) fn digest(&self, entries: usize) -> u64 {
        entries.checked_sub(1).map_or(0, |last| self.log[last])
    }

    fn step(&self) -> Step {
        ROUND[self.steps % ROUND.len()]
    }

    /// The output of this step: its index among its kind, and a digest of the log so far.
    fn output(&self) -> OutputOperation {
        let is_packet = self.step() == Step::PacketOut;
        let position = if is_packet { self.packets } else { self.outputs.len() as u64 - self.packets };
        let bytes = [position.to_le_bytes(), self.digest(self.log.len()).to_le_bytes()].concat();
        if is_packet { OutputOperation::Packet(bytes) } else { OutputOperation::Console(bytes) }
    }

    /// Appends the next entry; returns its output.
    fn go_on(&mut self, entry: &LogEntry) -> Option<(OutputId, OutputOperation)> {
        let is_of_end = matches!(entry.body, EntryBody::Generation(_) | EntryBody::Stopped(_));
        assert!(is_of_end || !self.is_stopped, "something after the guest's end: {entry:?}");
        let mut sent = None;
        match &entry.body {
            EntryBody::Event(Event::Packet { number, .. }) => {
                assert_eq!(*number, self.next_packet, "a packet is lost or comes again");
                self.next_packet += 1;
            }
            EntryBody::Output { id, digest } => {
                let output = self.output();
                let expected = (self.next_output(), output.digest());
                assert_eq!((*id, *digest), expected, "the guest sends something else");
                self.outputs.push((self.log.len(), *digest));
                self.packets += u64::from(matches!(output, OutputOperation::Packet(_)));
                sent = Some((*id, output));
            }
            EntryBody::Stopped(_) => self.is_stopped = true,
            EntryBody::Event(_)
            | EntryBody::Progress
            | EntryBody::Digest(_)
            | EntryBody::PartDigest { .. }
            | EntryBody::Generation(_) => {}
        }
        self.steps += usize::from(!is_of_end);
        let mut hasher = DefaultHasher::new();
        (self.digest(self.log.len()), entry).hash(&mut hasher);
        self.log.push(hasher.finish());
        sent
    }
}

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) story: Story,
    pub(super) machine: Machine,
}

impl Guest {
    pub(super) fn new() -> Self {
        let mut machine = machine(&writing_guest(PAGES));
        machine.run(machine.instruction_count().plus(STEPS_PER_PAGE * u64::from(PAGES + 1)));
        Self { story: Story::default(), machine }
    }

    /// The guest takes its next step under `owner`; `packet` is in its inbox. Returns the entry.
    pub(super) fn live(
        &mut self,
        owner: NodeId,
        packet: Option<u64>,
    ) -> (LogEntry, Option<(OutputId, OutputOperation)>) {
        self.machine.run(self.machine.instruction_count().plus(STEPS_PER_PAGE));
        let position = self.story.log.len() as u64;
        let by_owner = u64::try_from(owner.0).unwrap();
        let body = match (self.story.step(), packet) {
            _ if self.story.steps == STEPS => EntryBody::Stopped(StopReason::PowerOff { code: 0 }),
            (Step::PacketIn, Some(number)) => EntryBody::Event(Event::Packet { number, packet: vec![7; 60] }),
            (Step::PacketIn, None) | (Step::Progress, _) => EntryBody::Progress,
            (Step::PacketOut | Step::Word, _) => {
                EntryBody::Output { id: self.story.next_output(), digest: self.story.output().digest() }
            }
            // Inputs differ by owner and position, because they don't depend on the guest's state.
            (Step::Clock, _) => EntryBody::Event(Event::ClockRead { ticks: position << 8 | by_owner }),
            (Step::Entropy, _) => {
                EntryBody::Event(Event::Entropy { bits: u16::try_from((position << 4 | by_owner) & 0xffff).unwrap() })
            }
            (Step::Timer, _) => EntryBody::Event(Event::TimerInterrupt),
            (Step::Digest, _) => EntryBody::Digest(self.machine.digest()),
        };
        self.log(body)
    }

    /// The entry that records the guest's new owner.
    pub(super) fn owned(&mut self, generation: Generation) -> LogEntry {
        self.log(EntryBody::Generation(generation)).0
    }

    fn log(&mut self, body: EntryBody) -> (LogEntry, Option<(OutputId, OutputOperation)>) {
        let entry = LogEntry { count: self.machine.instruction_count(), body };
        let output = self.story.go_on(&entry);
        (entry, output)
    }

    /// Replays an entry; returns its output.
    pub(super) fn replay(&mut self, entry: &LogEntry) -> Option<(OutputId, OutputOperation)> {
        assert!(self.machine.instruction_count() <= entry.count, "an entry of the past: {entry:?}");
        self.machine.run(entry.count);
        if let EntryBody::Digest(expected) = &entry.body {
            assert_eq!(self.machine.digest(), *expected, "divergence");
        }
        self.story.go_on(entry)
    }
}
