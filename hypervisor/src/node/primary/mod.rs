//! A VM that runs live: the primary's role with the host's threads, sockets and clock around it.

mod join_figures;
mod vcpu;
mod visitors;

use self::visitors::VisitorLine;
use super::channel::{Channel, lock, serve};
use super::distribution::Distribution;
use super::environment::Node;
use super::io::console;
use super::io::inbox::{HostEventSource, InboxSender};
use super::io::network::{Network, NetworkAddress, NetworkEvents};
use super::io::outlets::Outlets;
use super::log::kept_log::{DiskWatch, KeptLog};
use super::reports::{Figures, NodeReport, frames_dropped};
use super::waiting::Waiting;
use crate::os::clock;
use crate::os::priority;
use crate::os::rate_limit::RateLimits;
use crate::os::writer;
use crossbeam_channel::{Receiver, Sender};
use ft::record::Recorder;
use ft::role::{FULL_SHARE, PrimaryAction, PrimaryEnd, PrimaryRole};
use logchannel::entry::Generation;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use vm::{Machine, OutputId, OutputOperation};

/// From one look at heartbeats, timeouts and waiting entries to the next.
const TICK: Duration = Duration::from_millis(5);

/// The same while outputs are held: a vCPU thread that the host doesn't let run must not hold them for long.
const TICK_WHILE_HOLDING: Duration = Duration::from_millis(1);

/// From one look of the conductor at heartbeats and timeouts to the next.
const WATCH: Duration = Duration::from_millis(50);

/// How long a VM that has ended waits for its network to carry the guest's last words, in nanoseconds.
const LAST_WORDS_NS: u64 = 500_000_000;

/// How long a process that ends waits for its backup to read the last words to it, in nanoseconds.
const PARTING_NS: u64 = 1_000_000_000;

/// How a live VM's process ends.
#[derive(Debug)]
pub enum LiveEnd {
    /// As the role says.
    Role(PrimaryEnd),
    /// The operator stopped a protected primary: its backup goes on.
    HandedOver,
}

/// A VM running live, and the way to stop it from another thread.
#[derive(Clone, Debug)]
pub struct LiveVm {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(in crate::node) struct Shared {
    pub(in crate::node) node: Node,
    pub(in crate::node) role: Mutex<PrimaryRole>,
    pub(in crate::node) channel: Channel<TcpStream>,
    /// How many backups wait for the place of the one that there is.
    pub(in crate::node) spares: AtomicUsize,
    /// For whoever takes a backup.
    pub(in crate::node) taking: Mutex<()>,
    /// How often lines about visitors are told.
    visitor_lines: Mutex<RateLimits<VisitorLine>>,
    outlets: Arc<Mutex<Outlets>>,
    pub(in crate::node) inbox: InboxSender,
    pub(in crate::node) may_run: AtomicBool,
    /// The guest's clock stands, because the VM is paused.
    pub(in crate::node) clock_stands: AtomicBool,
    /// Outputs wait for the backup.
    pub(in crate::node) holding: AtomicBool,
    /// As which this node owns the VM.
    pub(in crate::node) generation: AtomicU64,
    /// A backup that joins gets the guest's memory.
    pub(in crate::node) copying: AtomicBool,
    /// The thread that a joining backup came to sends everything that goes to it: there may be much.
    pub(in crate::node) sending_memory: AtomicBool,
    /// The guest's part of the vCPU's time, of [`FULL_SHARE`].
    pub(in crate::node) share: AtomicU32,
    pub(in crate::node) over: Arc<AtomicBool>,
    actions: Sender<PrimaryAction>,
}

impl LiveVm {
    /// Runs `machine` in the calling thread until the VM or this node's part in it is over, and keeps its log in `kept`.
    /// `listener` is where backups come to.
    ///
    /// `on_start` gets the running VM before the guest does anything.
    ///
    /// # Errors
    /// If threads can't be started.
    pub fn run(
        node: Node,
        role: PrimaryRole,
        machine: Machine,
        kept: Option<KeptLog>,
        listener: TcpListener,
        on_start: impl FnOnce(Self),
    ) -> io::Result<LiveEnd> {
        let (source, inbox) = HostEventSource::new(*role.clock())?;
        let (actions, action_queue) = crossbeam_channel::unbounded();
        let is_on_lan = matches!(node.network, Some(NetworkAddress::Lan(_)));
        let shared = Arc::new(Shared {
            outlets: Arc::new(Mutex::new(Outlets::new(node.reporter, is_on_lan))),
            generation: AtomicU64::new(role.generation().0),
            clock_stands: AtomicBool::new(!role.clock().is_running()),
            role: Mutex::new(role),
            channel: Channel::default(),
            inbox,
            may_run: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            copying: AtomicBool::new(false),
            sending_memory: AtomicBool::new(false),
            share: AtomicU32::new(FULL_SHARE),
            spares: AtomicUsize::new(0),
            taking: Mutex::default(),
            visitor_lines: Mutex::default(),
            over: Arc::default(),
            actions,
            node,
        });
        shared.start_network(&machine)?;
        on_start(Self { shared: shared.clone() });
        start_ticks(&shared)?;
        visitors::start(&shared, listener)?;
        console::start(shared.inbox.clone(), shared.node.keys, shared.node.reporter)?;
        let listener = Arc::downgrade(&shared);
        writer::stdout().on_console_left(move |next| {
            if let Some(shared) = listener.upgrade() {
                shared.console_left(next);
            }
        });
        let conductor = shared.clone();
        let mut disk = kept.as_ref().map(|kept| kept.disk_watch(clock::now_ns()));
        let conductor = spawn("conductor", move || conductor.conduct(&action_queue, &mut disk))?;
        let recorder = Recorder::new(machine, source, shared.node.intervals);
        if let Some(kept) = &kept {
            let shared = shared.clone();
            kept.listen(move |state| shared.drive(|role, now_ns| role.handle_disk_log(now_ns, state)));
        }
        let recorder = shared.run_vcpu(recorder, kept);
        let end = conductor.join().map_err(|_| io::Error::other("the conductor thread panicked"))?;
        // What is released is the guest's last word, if another thread was busy with the words before it.
        shared.put_out(&mut lock(&shared.outlets));
        shared.tell_figures(recorder.machine());
        Ok(end)
    }

    /// The operator wants this process to end, and a VM without backup too.
    pub fn retire(&self) {
        self.part(PrimaryRole::handle_retire);
    }

    /// The operator wants this process to end, and the VM not, if it can go on elsewhere or later.
    pub fn leave(&self) {
        self.part(PrimaryRole::handle_leave);
    }

    /// Gives the role the operator's wish.
    fn part(&self, wish: impl FnOnce(&mut PrimaryRole, u64)) {
        self.shared.drive(wish);
        self.shared.inbox.wake();
    }
}

impl NetworkEvents for Shared {
    fn owner(&self) -> (Generation, Range<OutputId>) {
        let role = lock(&self.role);
        (role.generation(), role.gate().next_to_leave()..role.gate().end())
    }

    fn attached(&self, next_output: OutputId) {
        lock(&self.role).handle_attachment(next_output);
    }

    fn ready(&self) {
        self.put_out_released();
    }

    fn refused(&self) {
        self.drive(|role, _| role.handle_refusal());
    }

    fn carried(&self, next_output: OutputId) {
        lock(&self.role).handle_carried(next_output);
    }
}

pub(in crate::node) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(body)
}

impl Shared {
    /// Gives the role an input, and does what it says.
    pub(in crate::node) fn drive(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        let actions = self.give(input);
        self.carry_out(actions);
    }

    /// Gives the role an input; what it wants done has to be carried out next.
    ///
    /// A connection is cut at once, before the role can take the next backup, whose connection it would be.
    pub(in crate::node) fn give(&self, input: impl FnOnce(&mut PrimaryRole, u64)) -> Vec<PrimaryAction> {
        let mut role = lock(&self.role);
        let now_ns = clock::now_ns();
        input(&mut role, now_ns);
        let may_run = role.may_run();
        if !self.may_run.swap(may_run, Ordering::AcqRel) && may_run {
            self.inbox.wake();
        }
        self.clock_stands.store(role.clock_stands(now_ns), Ordering::Release);
        self.holding.store(role.gate().held() > 0, Ordering::Release);
        self.generation.store(role.generation().0, Ordering::Relaxed);
        self.copying.store(role.is_copying(), Ordering::Release);
        self.share.store(role.share(), Ordering::Relaxed);
        let actions: Vec<_> = std::iter::from_fn(|| role.poll_action()).collect();
        if actions.iter().any(|action| matches!(action, PrimaryAction::CloseChannel { .. })) {
            self.channel.cut();
        }
        actions
    }

    pub(in crate::node) fn carry_out(&self, actions: Vec<PrimaryAction>) {
        self.put_out_released();
        self.send_outgoing();
        self.pass_on(actions);
    }

    pub(in crate::node) fn pass_on(&self, actions: Vec<PrimaryAction>) {
        for action in actions {
            // Fails only when the conductor is over, and with it this node's part.
            let _ = self.actions.send(action);
        }
    }

    /// Sends what the role has for the backup, unless a thread of its own does: the guest doesn't wait for the channel while a
    /// backup joins.
    pub(in crate::node) fn send_outgoing(&self) {
        if !self.sending_memory.load(Ordering::SeqCst) {
            self.write_outgoing();
        }
    }

    /// The same on whatever thread.
    pub(in crate::node) fn write_outgoing(&self) {
        self.channel.send(|| lock(&self.role).has_outgoing(), |buffer| lock(&self.role).poll_outgoing(buffer));
    }

    fn put_out_released(&self) {
        serve(&self.outlets, || lock(&self.role).gate().has_released(), |outlets| self.put_out(outlets));
    }

    fn put_out(&self, outlets: &mut Outlets) {
        let batch: Vec<_> = {
            let mut role = lock(&self.role);
            std::iter::from_fn(|| role.poll_released()).collect()
        };
        let Some(last) = batch.last() else { return };
        let next = OutputId(last.id.0 + 1);
        if outlets.put_out(&batch) {
            lock(&self.role).handle_carried(next);
        }
        if batch.iter().any(|released| matches!(*released.operation, OutputOperation::Console(_))) {
            // Some may have been written or dropped at once; the rest is told by the writer.
            lock(&self.role).handle_console_left(writer::stdout().console_left());
        }
    }

    /// All console output below `next` is written, or dropped because nobody reads it: what had to stop the guest may not any
    /// more.
    fn console_left(&self, next: OutputId) {
        // The thread that writes to the console must not wait for the network.
        self.pass_on(self.give(|role, _| role.handle_console_left(next)));
    }

    fn start_network(self: &Arc<Self>, machine: &Machine) -> io::Result<()> {
        let Some(address) = self.node.network.clone() else { return Ok(()) };
        let network = Network {
            address,
            vm: self.node.vm.clone(),
            node: self.node.id,
            booted: lock(&self.role).session().booted,
            mac: self.node.mac,
            reporter: self.node.reporter,
            inbox: self.inbox.clone(),
            outlets: self.outlets.clone(),
            over: self.over.clone(),
        };
        network.start(machine.last_packet_number(), self.clone())
    }

    /// Does what the role asks for that takes time, until it asks for the end.
    fn conduct(&self, actions: &Receiver<PrimaryAction>, disk: &mut Option<DiskWatch>) -> LiveEnd {
        let mut failed_claims = 0;
        let mut waiting = Waiting::since(clock::now_ns());
        // A guest that runs from the start has been without a backup before it gets one.
        let mut was_alone = !lock(&self.role).is_awaiting_backup();
        if was_alone {
            self.tell_alone();
        }
        let end = loop {
            let Ok(action) = actions.recv_timeout(WATCH) else {
                self.tell_waiting(&mut waiting);
                if let Some(report) = disk.as_mut().and_then(|disk| disk.look(clock::now_ns())) {
                    self.node.reporter.tell(&report);
                }
                continue;
            };
            match action {
                PrimaryAction::Claim(request) => {
                    let answer = self.node.claim(request, &mut failed_claims);
                    self.drive(|role, now_ns| role.handle_claim(now_ns, answer));
                }
                PrimaryAction::Look => {
                    let answer = self.node.latest(&mut failed_claims);
                    self.drive(|role, now_ns| role.handle_latest(now_ns, answer));
                }
                PrimaryAction::Refill(request) => {
                    let answer = self.node.claim(request, &mut failed_claims);
                    self.drive(|role, now_ns| role.handle_refill(now_ns, answer));
                }
                PrimaryAction::ClaimsLost { latest } => self.node.reporter.tell(&NodeReport::ClaimsLost {
                    vm: self.node.vm.to_string(),
                    generation: self.generation.load(Ordering::Relaxed),
                    latest: latest.map(|flag| flag.0.saturating_add(1)),
                }),
                PrimaryAction::ClaimsRestored(generation) => {
                    self.node.reporter.tell(&NodeReport::ClaimsRestored { generation: generation.0 });
                }
                PrimaryAction::Confirmed(generation) => {
                    self.node.reporter.tell(&NodeReport::OwnerConfirmed { generation: generation.0 });
                }
                PrimaryAction::Stranded(generation) => {
                    self.node.reporter.tell(&NodeReport::Stranded { generation: generation.0 });
                }
                PrimaryAction::CloseChannel { reason } => {
                    self.node.reporter.tell(&NodeReport::BackupLost { reason: reason.to_string() });
                }
                PrimaryAction::Owner(generation) => {
                    self.tell_owner(generation);
                    self.tell_alone();
                    was_alone = true;
                }
                PrimaryAction::Protected(generation) => {
                    let again = was_alone;
                    self.node.reporter.tell(&NodeReport::Protected { generation: generation.0, again });
                }
                PrimaryAction::HandOver => break LiveEnd::HandedOver,
                PrimaryAction::End(end) => break LiveEnd::Role(end),
            }
            self.inbox.wake();
        };
        if matches!(end, LiveEnd::Role(PrimaryEnd::GuestStopped(_) | PrimaryEnd::Retired)) {
            self.wait_for_last_words();
        }
        self.send_last_words();
        lock(&self.outlets).finish_console();
        self.over.store(true, Ordering::Release);
        self.inbox.wake();
        end
    }

    /// A backup that reads gets what was said to it last, for a while.
    fn send_last_words(&self) {
        let end_ns = clock::now_ns() + PARTING_NS;
        while self.channel.is_clogged() && clock::now_ns() < end_ns {
            thread::sleep(Duration::from_millis(1));
            self.write_outgoing();
        }
    }

    /// Nobody else will send what the network hasn't carried yet.
    fn wait_for_last_words(&self) {
        let end_ns = clock::now_ns() + LAST_WORDS_NS;
        let has_left = || {
            let role = lock(&self.role);
            role.gate().next_to_leave() >= role.gate().end()
        };
        self.put_out_released();
        while !has_left() && clock::now_ns() < end_ns {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Tells an operator who wonders why the guest doesn't run.
    fn tell_waiting(&self, waiting: &mut Waiting) {
        if !lock(&self.role).is_awaiting_backup() {
            return;
        }
        if let Some(seconds) = waiting.due(clock::now_ns()) {
            let channel = self.node.address.clone();
            self.node.reporter.tell(&NodeReport::GuestWaits { channel, seconds });
        }
    }

    fn tell_alone(&self) {
        let generation = self.generation.load(Ordering::Relaxed);
        self.node.reporter.tell(&NodeReport::Alone { generation });
    }

    fn tell_owner(&self, generation: Generation) {
        self.node.reporter.tell(&NodeReport::Owner {
            vm: self.node.vm.to_string(),
            generation: generation.0,
            node: self.node.id.to_string(),
        });
    }

    fn tell_figures(&self, machine: &Machine) {
        let ((frames, frames_without_lan), hold_time) = {
            let outlets = lock(&self.outlets);
            (outlets.frames(), Distribution::of(outlets.hold_time_ns()))
        };
        let role = lock(&self.role);
        self.node.reporter.tell(&NodeReport::Figures(Figures {
            instruction_count: machine.instruction_count().0,
            entries: role.appended().0,
            channel_bytes: self.channel.sent(),
            frames,
            frames_without_lan,
            hold_time,
            lag_us: role.lag_ns().0 / 1000,
            lag_max_us: role.lag_ns().1 / 1000,
            frames_dropped: frames_dropped(machine),
            outputs_given_up: role.gate().given_up(),
        }));
    }
}

fn start_ticks(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = shared.clone();
    spawn("ticks", move || {
        priority::raise();
        while !shared.over.load(Ordering::Acquire) {
            thread::sleep(if shared.holding.load(Ordering::Acquire) { TICK_WHILE_HOLDING } else { TICK });
            shared.hear_backup();
            shared.drive(PrimaryRole::handle_tick);
        }
    })?;
    Ok(())
}
