//! What surrounds the processes: time, connections, the arbiter, and the judge who sees everything.

use super::arbiter::{Question, Said};
use super::disk::SimDisk;
use super::judge::Judge;
use super::plan::{Fault, Faults, Habit};
use super::process::Me;
use super::sightings::{Sighting, Sightings};
use super::trace::{Kind, Lane, Note, State, Trace, in_a_word, question, said};
use super::vm::SimVm;
use super::wires::{End, Place, Received, WireId, Wires};
use crate::random::Random;
use hypervisor::node::arbiter_client::ArbiterCall;
use logchannel::session::{NodeId, VmId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A process has something to do.
    Host(usize),
    /// The LAN has something to do.
    Lan,
    /// A station asks the guest something.
    Station(usize),
    /// A question reaches the arbiter.
    Question(u64),
    /// Its answer reaches the asker.
    Answer(u64),
    /// Something goes wrong.
    Fault,
    /// The connections to the LAN are cut.
    LanCut,
    /// Somebody looks how the run goes.
    Look,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// By itself: what it has written arrives.
    Exit,
    /// By a signal: the last of what it has written may not.
    Kill,
    /// With its host: what is under way is torn, and nobody is told.
    PowerCut,
}

/// A fault that strikes: what draws numbers, and the fault around it, when it is over.
pub(super) struct Struck(Random, Option<Fault>);

/// One in so many questions to the arbiter, and answers, is lost while there are faults.
const ARBITER_LOSS: u32 = 12;

/// All but the processes.
#[derive(Debug)]
pub(super) struct Env {
    pub(super) now_ns: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    events: u64,
    pub(super) random: Random,
    pub(super) wires: Wires,
    /// Connections that their listeners haven't accepted.
    dialled: BTreeMap<Place, Vec<(u64, End)>>,
    /// Hosts on which a backup joins.
    pub(super) joining: BTreeSet<usize>,
    /// Hosts on which nothing runs.
    pub(super) down: BTreeSet<usize>,
    /// After how many more sends a host's process dies.
    pub(super) dies_after_sends: BTreeMap<usize, u32>,
    pub(super) vms: Vec<SimVm>,
    /// Which VM's each host is.
    pub(super) vm_of_host: Vec<usize>,
    pub(super) arbiter_down_until_ns: u64,
    pub(super) is_faulty: bool,
    questions: BTreeMap<u64, Question>,
    next_question: u64,
    /// Answers that have come to who asked.
    answers: BTreeMap<NodeId, VecDeque<(u64, Said)>>,
    /// The hosts' disks.
    pub(super) disks: Vec<SimDisk>,
    /// Disks take long for everything, while there are faults.
    pub(super) has_slow_disks: bool,
    /// Until when a host's disk does nothing.
    pub(super) disks_hang_until_ns: BTreeMap<usize, u64>,
    pub(super) sightings: Sightings,
    pub(super) trace: Trace,
    pub(super) faults: Faults,
    /// Questions to the arbiter and answers are lost, while there are faults.
    is_arbiter_deaf: bool,
    /// Connections take less than there is to be sent, while there are faults.
    has_short_writes: bool,
}

impl Env {
    pub(super) fn new(mut random: Random, faults: Faults) -> Self {
        Self {
            now_ns: 0,
            queue: BinaryHeap::new(),
            events: 0,
            wires: Wires::new(Random::new(random.next_u64())),
            random,
            dialled: BTreeMap::new(),
            joining: BTreeSet::new(),
            down: BTreeSet::new(),
            dies_after_sends: BTreeMap::new(),
            vms: Vec::new(),
            vm_of_host: Vec::new(),
            arbiter_down_until_ns: 0,
            is_faulty: true,
            is_arbiter_deaf: faults.has(Habit::DeafArbiter),
            has_short_writes: faults.has(Habit::ShortWrites),
            questions: BTreeMap::new(),
            next_question: 0,
            answers: BTreeMap::new(),
            disks: Vec::new(),
            has_slow_disks: false,
            disks_hang_until_ns: BTreeMap::new(),
            sightings: Sightings::default(),
            trace: Trace::new(faults.record.clone()),
            faults,
        }
    }

    /// Notes that something happens: see [`Note::new`].
    pub(super) fn note(&mut self, lane: Lane, kind: Kind, what: &'static str, numbers: &[u64]) {
        self.tell(Note::new(lane, kind, what, numbers));
    }

    /// Notes that something goes wrong.
    pub(super) fn note_fault(&mut self, lane: Lane, what: &'static str, numbers: &[u64]) {
        self.note(lane, Kind::Fault, what, numbers);
    }

    /// Notes that the process on `host` becomes something.
    pub(super) fn note_role(&mut self, host: usize, state: State, what: &'static str, numbers: &[u64]) {
        // Most runs have one VM.
        let vm = self.vm_of_host.get(host).filter(|vm| **vm > 0).and_then(|vm| self.vms.get(*vm));
        let words = vm.map_or_else(String::new, |vm| format!(" (VM {})", vm.id));
        self.tell(Note::new(Lane::Host(host), Kind::Role, what, numbers).becomes(state).words(&words));
    }

    pub(super) fn tell(&mut self, note: Note<'_>) {
        self.trace.note(self.now_ns, self.faults.current, note);
    }

    pub(super) fn saw(&mut self, sighting: Sighting) {
        self.sightings.saw(sighting);
    }

    pub(super) fn at(&mut self, at_ns: u64, event: Event) {
        self.events += 1;
        self.queue.push(Reverse((at_ns.max(self.now_ns), self.events, event)));
    }

    /// The next event; time goes on to it.
    pub(super) fn next(&mut self) -> Option<Event> {
        let Reverse((at_ns, _, event)) = self.queue.pop()?;
        self.now_ns = at_ns;
        self.faults.record.set_now_ns(at_ns);
        Some(event)
    }

    fn wake(&mut self, place: Place, at_ns: u64) {
        match place {
            Place::Host(host) => self.at(at_ns, Event::Host(host)),
            Place::Lan => self.at(at_ns, Event::Lan),
            Place::Arbiter => {}
        }
    }

    /// Connects; whether anybody accepts it shows later.
    pub(super) fn dial(&mut self, from: Place, to: Place) -> End {
        let (near, far) = self.wires.connect(from, to);
        let arrival_ns = self.wires.arrival_ns(self.now_ns, from, to);
        if matches!(to, Place::Host(host) if self.down.contains(&host)) {
            self.close(far);
        } else {
            self.dialled.entry(to).or_default().push((arrival_ns, far));
            self.wake(to, arrival_ns);
        }
        near
    }

    /// The next connection for a listener.
    pub(super) fn accept(&mut self, place: Place) -> Option<End> {
        let now_ns = self.now_ns;
        let dialled = self.dialled.get_mut(&place)?;
        let index = dialled.iter().position(|(arrival_ns, _)| *arrival_ns <= now_ns)?;
        Some(dialled.remove(index).1)
    }

    /// Sends, unless the sender's time has come.
    pub(super) fn send(&mut self, from: usize, end: End, bytes: &[u8]) {
        if self.has_died_writing(from) {
            return;
        }
        if let Some(left) = self.dies_after_sends.get_mut(&from) {
            if *left == 0 {
                return;
            }
            *left -= 1;
        }
        self.send_from_lan(end, bytes);
    }

    /// Whether a connection takes less just now than there is to be sent.
    pub(super) fn is_short_of_room(&mut self) -> bool {
        self.has_short_writes && self.is_faulty && self.random.one_in(24)
    }

    /// Whether `host` has sent its last, or died within a call to its disk.
    pub(super) fn is_dying(&self, host: usize) -> bool {
        self.dies_after_sends.get(&host) == Some(&0) || self.has_died_writing(host)
    }

    /// Whether the process on `host` has died within a call to its disk: nothing that its step
    /// still does has an effect.
    pub(super) fn has_died_writing(&self, host: usize) -> bool {
        self.disks.get(host).is_some_and(SimDisk::is_dead)
    }

    /// Whether disks take long for everything.
    pub(super) const fn disks_are_slow(&self) -> bool {
        self.has_slow_disks && self.is_faulty
    }

    /// Until when a host's disk does nothing.
    pub(super) fn disk_hangs_until_ns(&self, host: usize) -> u64 {
        if self.is_faulty { self.disks_hang_until_ns.get(&host).copied().unwrap_or_default() } else { 0 }
    }

    pub(super) fn send_from_lan(&mut self, end: End, bytes: &[u8]) {
        let Some((place, arrivals)) = self.wires.send(self.now_ns, end, bytes) else { return };
        for arrival_ns in arrivals {
            self.wake(place, arrival_ns);
        }
    }

    pub(super) fn receive(&mut self, end: End) -> Received {
        let received = self.wires.receive(self.now_ns, end);
        if received.has_made_room
            && let Some(peer) = self.wires.peer(end)
        {
            self.wake(peer, self.now_ns + 20_000);
        }
        received
    }

    pub(super) fn close(&mut self, end: End) {
        if let Some((place, at_ns)) = self.wires.close(self.now_ns, end) {
            self.wake(place, at_ns);
        }
    }

    /// Cuts a connection somewhere on the way.
    pub(super) fn cut(&mut self, wire: WireId) {
        for (place, at_ns) in self.wires.cut(self.now_ns, wire) {
            self.wake(place, at_ns);
        }
    }

    /// Ends the process on `host`, and with it its connections.
    pub(super) fn end_process(&mut self, host: usize, death: Death) {
        self.down.insert(host);
        self.joining.remove(&host);
        self.dies_after_sends.remove(&host);
        if let Some(disk) = self.disks.get(host) {
            disk.process_ends();
            if death == Death::PowerCut && disk.lose_power() {
                self.sightings.saw(Sighting::UnsyncedLost);
            }
        }
        self.dialled.remove(&Place::Host(host));
        for end in self.wires.ends_at(Place::Host(host)) {
            match death {
                Death::Exit => {}
                // A process that hadn't read everything leaves with a reset, which overtakes what
                // it had written.
                Death::Kill if self.random.one_in(3) => _ = self.wires.tear_behind(end),
                Death::Kill => {}
                Death::PowerCut => _ = self.wires.tear_behind(end),
            }
            if death == Death::PowerCut {
                self.wires.fall_silent(end);
            } else {
                self.close(end);
            }
        }
        self.wires.sweep();
    }

    /// A number for a question.
    pub(super) const fn next_question(&mut self) -> u64 {
        self.next_question += 1;
        self.next_question
    }

    /// Asks the arbiter; [`Env::take_answer`] has the answer, if one ever comes.
    pub(super) fn ask(&mut self, me: &Me, number: u64, call: ArbiterCall) {
        let Me { host, node, is_mistaken, .. } = *me;
        if self.has_died_writing(host) {
            return;
        }
        self.questions.insert(number, Question { host, node, is_mistaken, call, answer: None });
        if self.is_lost() {
            self.note_fault(Lane::Host(host), "its question to the arbiter is lost", &[]);
            return;
        }
        let at_ns = self.wires.arrival_ns(self.now_ns, Place::Host(host), Place::Arbiter);
        self.at(at_ns, Event::Question(number));
        if self.is_arbiter_deaf() && self.random.one_in(20) {
            let again_ns = at_ns + u64::from(self.random.below(100_000_000));
            self.at(again_ns, Event::Question(number));
        }
    }

    /// Which VM of the run has this name.
    pub(super) fn index_of(&self, id: &VmId) -> usize {
        self.vms.iter().position(|vm| vm.id == *id).unwrap_or_else(|| panic!("no VM is named {id}"))
    }

    /// The VM of a host.
    pub(super) fn vm_of(&mut self, host: usize) -> &mut SimVm {
        &mut self.vms[self.vm_of_host[host]]
    }

    /// Whether a backup of another VM than that of `host` joins.
    pub(super) fn is_other_joining(&self, host: usize) -> bool {
        self.joining.iter().any(|other| self.vm_of_host[*other] != self.vm_of_host[host])
    }

    /// The judge of the VM of a host.
    pub(super) fn judge_of(&mut self, host: usize) -> &mut Judge {
        &mut self.vm_of(host).judge
    }

    /// The arbiter loses all its claims.
    pub(super) fn forget_claims(&mut self) {
        self.note_fault(Lane::Arbiter, "loses its claims", &[]);
        for vm in &mut self.vms {
            vm.has_forgotten = true;
            vm.arbiter.forget();
        }
    }

    /// Lets the next fault of the plan strike, unless it is left out: it draws its own numbers.
    pub(super) fn begin_planned(&mut self) -> Option<Struck> {
        let planned = self.faults.next_planned();
        self.begin(planned)
    }

    /// As [`Env::begin_planned`], for a fault at a moment that has come.
    pub(super) fn begin_aimed(&mut self) -> Option<Struck> {
        let aimed = self.faults.next_aimed();
        self.begin(aimed)
    }

    fn begin(&mut self, fault: Option<(Fault, Random)>) -> Option<Struck> {
        let (fault, random) = fault?;
        Some(Struck(std::mem::replace(&mut self.random, random), self.faults.current.replace(fault)))
    }

    /// The fault has struck.
    pub(super) fn end_fault(&mut self, Struck(random, current): Struck) {
        (self.random, self.faults.current) = (random, current);
    }

    /// A fault at a moment that has come, unless it is left out.
    fn strike_here(&mut self, fault: fn(&mut Self)) {
        if let Some(struck) = self.begin_aimed() {
            fault(self);
            self.end_fault(struck);
        }
    }

    const fn is_arbiter_deaf(&self) -> bool {
        self.is_arbiter_deaf && self.is_faulty
    }

    fn is_lost(&mut self) -> bool {
        self.is_arbiter_deaf() && self.random.one_in(ARBITER_LOSS)
    }

    /// The arbiter hears a question.
    pub(super) fn hear_question(&mut self, number: u64) {
        if self.now_ns < self.arbiter_down_until_ns {
            return;
        }
        // One that an operator has to see to decides nothing.
        let is_unwell = self.is_arbiter_deaf() && self.random.one_in(300);
        let Some(asked) = self.questions.get_mut(&number) else { return };
        let vm = &self.vms[self.vm_of_host[asked.host]];
        let before = vm.arbiter.last().map(|(generation, _)| generation);
        let arbiter = if asked.is_mistaken { &vm.other_arbiter } else { &vm.arbiter };
        let answer = if is_unwell { Said::CantDecide } else { Said::Reply(arbiter.hear(&asked.call)) };
        let (host, is_mistaken) = (asked.host, asked.is_mistaken);
        let (kind, what, numbers) = question(&asked.call);
        let other = if is_mistaken { " (of another arbiter)" } else { "" };
        let words = format!(" {}{other}", in_a_word(&answer));
        asked.answer = Some(answer);
        self.tell(Note::new(Lane::Arbiter, kind, what, &numbers).from(Place::Host(host)).words(&words));
        if self.vms[self.vm_of_host[host]].arbiter.last().map(|(generation, _)| generation) != before {
            // Its answer is on its way.
            if self.is_faulty && self.random.one_in(60) {
                self.strike_here(Self::forget_claims);
            }
        }
        if self.is_lost() {
            self.note_fault(Lane::Arbiter, "its answer to host {} is lost", &[host as u64]);
            return;
        }
        let at_ns = self.wires.arrival_ns(self.now_ns, Place::Arbiter, Place::Host(host));
        self.at(at_ns, Event::Answer(number));
    }

    /// An answer has arrived: its asker is to be woken.
    pub(super) fn answer_arrived(&mut self, number: u64) -> Option<usize> {
        let Question { host, node, call, answer, .. } = self.questions.get(&number)?.clone();
        let answer = answer?;
        let (kind, what, numbers) = said(&call, &answer);
        self.tell(Note::new(Lane::Host(host), kind, what, &numbers).from(Place::Arbiter));
        self.answers.entry(node).or_default().push_back((number, answer));
        Some(host)
    }

    /// The next answer that has come to `node`, with the number of its question.
    pub(super) fn take_answer(&mut self, node: NodeId) -> Option<(u64, Said)> {
        self.answers.get_mut(&node)?.pop_front()
    }
}
