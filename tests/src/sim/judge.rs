//! The judge sees what no process can: both sides' logs, the arbiter's flags, and all that leaves.
//! A rule broken is a panic.

use super::arbiter::SimArbiter;
use super::client::Reply;
use super::guest_time::GuestTime;
use ft::replay::{Consumed, Replayer};
use ft::role::stand_in;
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::session::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use vm::{Event, Machine, OutputId, OutputOperation};

/// A backup, as far as it got.
#[derive(Clone, Copy, Debug)]
struct Follower {
    /// All entries below are in its log buffer.
    received: LogSeq,
    /// The generation in which it was told that it protects the VM.
    told: Option<Generation>,
    /// It has entries of a dead owner that the log from which the VM was resumed lacked.
    is_of_another_history: bool,
}

/// The VM's one history, and what is known of everybody who makes it.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// The log of the owner.
    log: Vec<LogEntry>,
    /// Whose log it is.
    writer: Option<NodeId>,
    /// The outputs in the log, by id: the place of their entry, and their digest.
    outputs: Vec<(LogSeq, u64)>,
    /// How long the log was when a writer was succeeded.
    succeeded: BTreeMap<NodeId, LogSeq>,
    followers: BTreeMap<NodeId, Follower>,
    owners: BTreeMap<Generation, NodeId>,
    alive: BTreeSet<NodeId>,
    /// Those with another arbiter.
    mistaken: BTreeSet<NodeId>,
    /// The greatest generation that had the VM's port.
    attached: Generation,
    /// Packets that the LAN has carried, in order.
    carried: Vec<(OutputId, u64)>,
    /// The VM has gone on from a log on disk, and the first position at which it did.
    resumed_at: Option<LogSeq>,
    /// What clients have seen may be undone: an operator has accepted it.
    has_accepted_loss: bool,
    /// What was written to a console, by id, and what each node wrote last.
    printed: BTreeMap<OutputId, u64>,
    last_printed: BTreeMap<NodeId, OutputId>,
    history: History,
    pub(super) guest_time: GuestTime,
}

/// What the stations know of the guest by its replies.
#[derive(Debug, Default)]
struct History {
    count: u64,
    hash: u64,
    clock: u64,
    /// How many parts of the last answer have come, and how many it has.
    parts: (u16, u16),
    last: Option<Reply>,
    /// The number of the last request answered, by client.
    answered: BTreeMap<u32, u32>,
}

impl Judge {
    pub(super) fn process_begins(&mut self, node: NodeId, is_mistaken: bool) {
        self.alive.insert(node);
        if is_mistaken {
            self.mistaken.insert(node);
        }
    }

    pub(super) fn process_ends(&mut self, node: NodeId) {
        self.alive.remove(&node);
    }

    /// A node owns the VM as `generation` from now on.
    ///
    /// With `has_forgotten`, the claim may have been lost since it was won.
    pub(super) fn owns(&mut self, arbiter: &SimArbiter, has_forgotten: bool, node: NodeId, generation: Generation) {
        let earlier = self.owners.insert(generation, node);
        assert!(earlier.is_none_or(|earlier| earlier == node), "generation {generation} has two live owners");
        let flag = Generation(generation.0 - 1);
        let holder = arbiter.holder(flag);
        assert!(
            holder == Some(node) || (has_forgotten && holder.is_none()),
            "generation {generation} is owned by {node} without flag {flag}, which is {holder:?}'s"
        );
    }

    /// A node goes on from a log on disk, which ends before `entries`; `may_lack` is what it says
    /// itself.
    pub(super) fn resumes(&mut self, node: NodeId, entries: LogSeq, may_lack: bool) {
        self.resumed_at = Some(self.resumed_at.map_or(entries, |earlier| earlier.min(entries)));
        self.has_accepted_loss |= may_lack;
        self.guest_time.restarts();
        if !may_lack && let Some((seq, id)) = self.last_seen() {
            assert!(
                seq < entries,
                "{node} goes on from a log of {entries} entries, and output {} of entry {seq} has been seen",
                id.0
            );
        }
    }

    /// The last output that anybody outside has seen, and the entry that it is of.
    pub(super) fn last_seen(&self) -> Option<(LogSeq, OutputId)> {
        let carried = self.carried.last().map(|(id, _)| *id);
        let printed = self.printed.last_key_value().map(|(id, _)| *id);
        let id = carried.max(printed)?;
        self.outputs.get(index(id.0)).map(|(seq, _)| (*seq, id))
    }

    /// Whether an operator has accepted that what was seen is undone: nothing can be compared then.
    pub(super) const fn has_accepted_loss(&self) -> bool {
        self.has_accepted_loss
    }

    /// A node starts the VM, or goes live with a log of `entries`.
    pub(super) fn takes_over(&mut self, node: NodeId, entries: LogSeq) {
        let is_of_another_history = self.followers.get(&node).is_some_and(|follower| follower.is_of_another_history);
        assert!(!is_of_another_history, "{node} goes on with what the VM's resumed log lacked");
        assert!(entries.0 <= self.log.len() as u64, "live with {entries} entries, of {} written", self.log.len());
        if let Some(predecessor) = self.writer.replace(node) {
            self.succeeded.insert(predecessor, entries);
            self.guest_time.goes_live(node);
        }
        self.log.truncate(index(entries.0));
        let kept = self.outputs.partition_point(|(seq, _)| *seq < entries);
        self.outputs.truncate(kept);
    }

    /// A primary appends an entry to its log.
    pub(super) fn appends(&mut self, now_ns: u64, node: NodeId, seq: LogSeq, entry: &LogEntry) {
        if self.writer != Some(node) {
            assert!(self.succeeded.contains_key(&node), "{node} writes a log that isn't its own");
            return;
        }
        assert_eq!(seq.0, self.log.len() as u64, "the log of {node} has a hole");
        if let EntryBody::Output { id, digest } = entry.body {
            assert_eq!(id.0, self.outputs.len() as u64, "output ids have a hole at entry {seq}");
            self.outputs.push((seq, digest));
        }
        if let EntryBody::Event(Event::ClockRead { ticks }) = entry.body {
            self.guest_time.reads(now_ns, ticks);
        }
        self.log.push(entry.clone());
    }

    /// The guest couldn't run at `node` for `pause_ns`, and its clock has to stand.
    pub(super) fn pauses(&mut self, node: NodeId, pause_ns: u64) {
        if self.writer == Some(node) {
            self.guest_time.pauses(pause_ns);
        }
    }

    /// A backup has a snapshot that stands at `seq`.
    pub(super) fn joins(&mut self, node: NodeId, seq: LogSeq) {
        self.followers.insert(node, Follower { received: seq, told: None, is_of_another_history: false });
    }

    /// A backup has entries in its log buffer.
    pub(super) fn receives(&mut self, node: NodeId, entries: impl Iterator<Item = LogEntry>) {
        let Some(follower) = self.followers.get_mut(&node) else { panic!("{node} receives a log without a snapshot") };
        for entry in entries {
            let seq = follower.received;
            // What a predecessor wrote after it was succeeded is nobody's.
            if let Some(written) = self.log.get(index(seq.0))
                && !follower.is_of_another_history
                && *written != entry
            {
                // What a dead owner had sent may arrive after the VM was resumed from a log without
                // it.
                let may_differ = self.resumed_at.is_some_and(|resumed_at| seq >= resumed_at);
                assert!(may_differ, "entry {seq} arrives at {node} as another one: {entry:?}, not {written:?}");
                follower.is_of_another_history = true;
            }
            follower.received = seq.next();
        }
    }

    /// A backup is told that outputs are held for it.
    pub(super) fn is_told(&mut self, node: NodeId, generation: Generation) {
        let Some(follower) = self.followers.get_mut(&node) else { panic!("{node} is told without a snapshot") };
        assert!(!self.mistaken.contains(&node), "{node} protects the VM, and its arbiter isn't the primary's");
        follower.told = Some(generation);
    }

    /// An output leaves a node that runs the VM as `generation`. `seq` is the place of its entry,
    /// if the node wrote it itself.
    ///
    /// The Output Rule: whoever may still take the VM over has the entry.
    pub(super) fn leaves(
        &mut self,
        node: NodeId,
        generation: Generation,
        seq: Option<LogSeq>,
        output: (OutputId, u64),
    ) {
        assert_eq!(self.owners.get(&generation), Some(&node), "an output leaves {node}, who isn't the owner");
        let Some(seq) = seq else { return };
        if let Some(succeeded_at) = self.succeeded.get(&node) {
            assert!(
                seq < *succeeded_at,
                "output {} of {node} is of entry {seq}; its successor has {succeeded_at}",
                output.0.0
            );
        }
        for (backup, follower) in &self.followers {
            let is_heir = follower.told == Some(generation);
            assert!(
                !is_heir || follower.received > seq,
                "output {} leaves {node} at entry {seq}; its backup {backup} has {} entries",
                output.0.0,
                follower.received
            );
        }
        assert_eq!(self.outputs.get(index(output.0.0)), Some(&(seq, output.1)), "output {} is another one", output.0.0);
    }

    /// The LAN gives the VM's port to an owner.
    pub(super) fn attaches(&mut self, generation: Generation) {
        assert!(generation >= self.attached, "the LAN serves generation {generation} after {}", self.attached);
        self.attached = generation;
    }

    /// Whether the LAN has ever heard of the VM: before, it keeps no packets for it.
    pub(super) fn is_on_lan(&self) -> bool {
        self.attached > Generation(0)
    }

    /// The LAN carries an output of the port's owner for the first time.
    pub(super) fn carries(&mut self, owner: Generation, id: OutputId, packet: &[u8]) {
        assert_eq!(owner, self.attached, "the LAN carries an output of a generation that it has fenced");
        let digest = OutputOperation::Packet(packet.to_vec()).digest();
        assert!(self.carried.last().is_none_or(|(last, _)| *last < id), "output {} is carried out of order", id.0);
        self.carried.push((id, digest));
    }

    /// A node writes to its console. Its successor may write the same once more: a console keeps no
    /// account.
    pub(super) fn prints(&mut self, node: NodeId, id: OutputId, digest: u64) {
        let last = self.last_printed.insert(node, id);
        assert!(last.is_none_or(|last| last < id), "console output {} of {node} comes after {last:?}", id.0);
        let earlier = self.printed.insert(id, digest);
        assert!(earlier.is_none_or(|earlier| earlier == digest), "console output {} comes in two kinds", id.0);
    }

    /// A station gets a reply.
    pub(super) fn replies(&mut self, reply: &Reply) {
        self.history.add(reply);
    }

    /// Whether somebody owns the VM, or may still claim it, without the nodes of `dead`.
    pub(super) fn survives(&self, arbiter: &SimArbiter, dead: &[NodeId]) -> bool {
        let lives = |node: &NodeId| self.alive.contains(node) && !dead.contains(node);
        let Some((flag, claim)) = arbiter.last() else { return true };
        let pair = Some(flag.next());
        lives(&claim.node) || self.followers.iter().any(|(node, follower)| follower.told == pair && lives(node))
    }

    /// A primary is told that another node owns the VM.
    pub(super) fn is_fenced(&self, node: NodeId, generation: Generation, holder: NodeId) {
        assert!(holder != node && holder != stand_in(node), "{node} is fenced by nobody");
        // The flag may have been made again by the owner of a later generation.
        let is_known = self
            .owners
            .iter()
            .any(|(owned, owner)| *owned >= generation && (*owner == holder || stand_in(*owner) == holder));
        // One whose claim was decided may not know yet that it has won.
        assert!(
            is_known || self.alive.contains(&holder) || self.followers.contains_key(&holder),
            "fenced by a stranger"
        );
    }

    /// Whether the log ends with the guest's end.
    pub(super) fn guest_has_ended(&self) -> bool {
        self.log.iter().any(|entry| matches!(entry.body, EntryBody::Stopped(_)))
    }

    /// Replays the log on a machine of its own: what left the hosts is what one machine sends, each
    /// output once and in order. With `is_settled`, nothing is under way any more.
    pub(super) fn compare_with_one_machine(&self, machine: Machine, is_settled: bool) {
        let mut replayer = Replayer::new(machine, LogSeq(0));
        let (mut packets, mut texts) = (Vec::new(), BTreeMap::new());
        for entry in &self.log {
            match replayer.consume(entry) {
                Ok(Consumed::Output(id, operation)) => match operation {
                    OutputOperation::Packet(_) => packets.push((id, operation.digest())),
                    OutputOperation::Console(_) => _ = texts.insert(id, operation.digest()),
                },
                Ok(Consumed::Nothing | Consumed::Stopped(_)) => {}
                Err(divergence) => panic!("one machine doesn't do what the log says: {divergence}"),
            }
        }
        let carried = packets.get(..self.carried.len());
        assert_eq!(carried, Some(&self.carried[..]), "the LAN carried something else than one machine sends");
        for (id, digest) in &self.printed {
            assert_eq!(texts.get(id), Some(digest), "console output {} isn't one machine's", id.0);
        }
        if is_settled {
            assert_eq!(self.carried.len(), packets.len(), "the LAN has not carried all that the guest sent");
            // What a console had of a VM that is resumed is there, and isn't put there again.
            let is_all = self.resumed_at.is_some() || self.printed.len() == texts.len();
            assert!(is_all, "not all that the guest printed has come out");
        }
    }
}

impl History {
    /// The replies together are those of one machine: every request counted once, every count in
    /// the hash of the next.
    fn add(&mut self, reply: &Reply) {
        let (came, expected) = self.parts;
        if came < expected {
            assert_eq!(
                (reply.part, Some(reply.whole())),
                (came, self.last.map(Reply::whole)),
                "a burst is torn: {reply:?}"
            );
            self.parts.0 += 1;
            return;
        }
        assert_eq!(
            (reply.part, reply.count),
            (0, self.count + 1),
            "a request is counted twice or not at all: {reply:?}"
        );
        assert!(reply.clock >= self.clock, "the guest's clock went back from {}: {reply:?}", self.clock);
        let hash = reply.hash_after(self.hash);
        assert_eq!(reply.hash, hash, "the reply belongs to another history: {reply:?}");
        let number = self.answered.entry(reply.client).or_default();
        assert_eq!(reply.number, *number + 1, "client {} is answered out of order", reply.client);
        *number = reply.number;
        (self.count, self.hash, self.clock) = (reply.count, hash, reply.clock);
        (self.parts, self.last) = ((1, reply.parts), Some(*reply));
    }
}

fn index(place: u64) -> usize {
    usize::try_from(place).expect("a log fits in memory")
}
