//! A VM that runs live: the primary's role with the host's threads, sockets and clock around it.

use super::channel::{Arrived, Channel, ChannelReader, lock, serve};
use super::clock;
use super::console;
use super::inbox::{HostEventSource, InboxSender, SLICE_STEPS};
use super::network::Network;
use super::node::Node;
use super::outlets::Outlets;
use super::priority;
use super::reports::{Figures, NodeReport};
use crate::distribution::Distribution;
use crate::record::{LogSink, Recorder, Slice};
use crate::role::{PrimaryAction, PrimaryEnd, PrimaryRole};
use crossbeam_channel::{Receiver, Sender};
use logchannel::entry::{Generation, LogEntry};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// How many steps the guest runs from one look for acknowledgements to the next while outputs are held: some 2
/// microseconds.
const SLICE_STEPS_WHILE_HOLDING: u64 = 300;

/// How long a vCPU thread that has nothing to run spins for the acknowledgement of held outputs before it sleeps, in
/// nanoseconds: longer than a prompt backup takes, and not enough to matter to whoever else wants the core.
const SPIN_NS: u64 = 200_000;

/// After spinning for nothing, how many times the vCPU thread sleeps at once: on a crowded host the time is the backup's.
const SPIN_REST: u32 = 32;

/// The longest that the vCPU thread sleeps before it looks around, in nanoseconds.
const SLEEP_NS_MAX: u64 = 100_000_000;

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
struct Shared {
    node: Node,
    role: Mutex<PrimaryRole>,
    channel: Channel,
    outlets: Arc<Mutex<Outlets>>,
    inbox: InboxSender,
    may_run: AtomicBool,
    /// Outputs wait for the backup.
    holding: AtomicBool,
    over: Arc<AtomicBool>,
    actions: Sender<PrimaryAction>,
    image: Arc<[u8]>,
}

impl LiveVm {
    /// Runs `machine` in the calling thread until the VM or this node's part in it is over. `listener` is where backups
    /// come to.
    ///
    /// `on_start` gets the running VM before the guest does anything.
    ///
    /// # Errors
    /// If threads can't be started.
    pub fn run(
        node: Node,
        role: PrimaryRole,
        machine: Machine,
        image: Arc<[u8]>,
        listener: TcpListener,
        on_start: impl FnOnce(Self),
    ) -> io::Result<LiveEnd> {
        let (source, inbox) = HostEventSource::new(machine.last_ticks())?;
        let (actions, action_queue) = crossbeam_channel::unbounded();
        let shared = Arc::new(Shared {
            outlets: Arc::new(Mutex::new(Outlets::new(node.reporter, node.lan.is_some()))),
            role: Mutex::new(role),
            channel: Channel::default(),
            inbox,
            may_run: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            over: Arc::default(),
            actions,
            image,
            node,
        });
        // The attachment comes before the guest's first output, which would be lost without.
        shared.start_network(&machine)?;
        on_start(Self { shared: shared.clone() });
        start_ticks(&shared)?;
        start_listener(&shared, listener)?;
        console::start(shared.inbox.clone())?;
        let conductor = shared.clone();
        let conductor = spawn("conductor", move || conductor.conduct(&action_queue))?;
        let recorder = Recorder::new(machine, source, shared.node.intervals);
        let recorder = shared.run_vcpu(recorder);
        let end = conductor.join().map_err(|_| io::Error::other("the conductor thread panicked"))?;
        // What is released is the guest's last word, if another thread was busy with the words before it.
        shared.put_out(&mut lock(&shared.outlets));
        shared.tell_figures(recorder.machine());
        Ok(end)
    }

    /// The operator wants this process to end.
    pub fn retire(&self) {
        self.shared.drive(PrimaryRole::retire);
        self.shared.inbox.wake();
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(body)
}

impl Shared {
    /// Gives the role an input, and does what it says.
    fn drive(&self, input: impl FnOnce(&mut PrimaryRole, u64)) {
        let actions = self.give(input);
        self.carry_out(actions);
    }

    /// Gives the role an input; what it wants done has to be carried out next.
    ///
    /// A connection is cut at once, before the role can take the next backup, whose connection it would be.
    fn give(&self, input: impl FnOnce(&mut PrimaryRole, u64)) -> Vec<PrimaryAction> {
        let mut role = lock(&self.role);
        input(&mut role, clock::now_ns());
        self.may_run.store(role.may_run(), Ordering::Release);
        self.holding.store(role.gate().held() > 0, Ordering::Release);
        let actions: Vec<_> = std::iter::from_fn(|| role.poll_action()).collect();
        if actions.iter().any(|action| matches!(action, PrimaryAction::CloseChannel { .. })) {
            self.channel.cut();
        }
        actions
    }

    fn carry_out(&self, actions: Vec<PrimaryAction>) {
        self.put_out_released();
        self.send_outgoing();
        self.pass_on(actions);
    }

    fn pass_on(&self, actions: Vec<PrimaryAction>) {
        for action in actions {
            // Fails only when the conductor is over, and with it this node's part.
            let _ = self.actions.send(action);
        }
    }

    fn send_outgoing(&self) {
        serve(
            &self.channel.writer,
            || lock(&self.role).has_outgoing(),
            |writer| writer.write(&self.channel.sent, |buffer| lock(&self.role).take_outgoing(buffer)),
        );
    }

    fn put_out_released(&self) {
        serve(&self.outlets, || lock(&self.role).gate().has_released(), |outlets| self.put_out(outlets));
    }

    fn put_out(&self, outlets: &mut Outlets) {
        let batch: Vec<_> = {
            let mut role = lock(&self.role);
            std::iter::from_fn(|| role.take_released()).collect()
        };
        // What a LAN that is away didn't take is still the backup's to send, if this side is lost before anything leaves.
        if outlets.put_out(&batch)
            && let Some((last, _)) = batch.last()
        {
            lock(&self.role).has_left(*last);
        }
    }

    fn start_network(self: &Arc<Self>, machine: &Machine) -> io::Result<()> {
        let Some(lan) = self.node.lan else { return Ok(()) };
        let shared = self.clone();
        let network = Network {
            lan,
            vm: self.node.vm.clone(),
            node: self.node.id,
            mac: self.node.mac,
            reporter: self.node.reporter,
            inbox: self.inbox.clone(),
            outlets: self.outlets.clone(),
            over: self.over.clone(),
        };
        let boot = machine.instruction_count().0 == 0;
        // A LAN that refuses this side has been told of; whether it may go on is for the arbiter to say.
        network.start(machine.last_packet_number(), boot, move || {
            let role = lock(&shared.role);
            (role.generation(), role.gate().next_to_leave())
        })?;
        Ok(())
    }

    /// Runs the guest until this node's part in it is over.
    fn run_vcpu(&self, mut recorder: Recorder<HostEventSource>) -> Recorder<HostEventSource> {
        self.drive(|_, _| ());
        let mut sink = RoleSink { shared: self };
        let mut begun = false;
        let mut rest = 0;
        while !self.over.load(Ordering::Acquire) {
            if !self.may_run.load(Ordering::Acquire) {
                self.sleep(&recorder);
                self.hear_backup();
                continue;
            }
            if !begun {
                begun = true;
                recorder.source_mut().start();
                let generation = lock(&self.role).generation();
                let Ok(()) = recorder.log_generation(&mut sink, generation);
            }
            let holding = self.holding.load(Ordering::Acquire);
            let steps = if holding { SLICE_STEPS_WHILE_HOLDING } else { SLICE_STEPS };
            let Ok(slice) = recorder.run_slice(&mut sink, steps);
            if holding {
                self.hear_backup();
            }
            match slice {
                Slice::Ran => {}
                Slice::Waiting => {
                    self.spin_for_release(&recorder, &mut rest);
                    self.sleep(&recorder);
                    self.hear_backup();
                }
                Slice::Stopped(_) => {
                    self.sleep(&recorder);
                    self.hear_backup();
                }
            }
        }
        recorder
    }

    /// While outputs are held and the guest has nothing to do, nothing is faster than to ask again and again, as long as
    /// the backup answers soon. `rest` counts the sleeps without it after a time when it didn't.
    fn spin_for_release(&self, recorder: &Recorder<HostEventSource>, rest: &mut u32) {
        if !self.holding.load(Ordering::Acquire) {
            return;
        }
        if *rest > 0 {
            *rest -= 1;
            return;
        }
        let end_ns = clock::now_ns() + SPIN_NS;
        while self.holding.load(Ordering::Acquire)
            && !recorder.source().has_input(recorder.machine())
            && clock::now_ns() < end_ns
        {
            self.hear_backup();
            // The backup's own thread may be waiting for this very core.
            thread::yield_now();
        }
        if clock::now_ns() >= end_ns {
            *rest = SPIN_REST;
        }
    }

    /// Sleeps until the guest has something to do or the backup something to say that matters now.
    fn sleep(&self, recorder: &Recorder<HostEventSource>) {
        let backup_matters = self.holding.load(Ordering::Acquire) || !self.may_run.load(Ordering::Acquire);
        let channel = if backup_matters { self.channel.stream() } else { None };
        let socket = channel.as_ref().map(|stream| stream.as_fd());
        recorder.source().sleep(recorder.machine(), socket, clock::now_ns() + SLEEP_NS_MAX);
    }

    /// Gives the role what the backup has said, unless another thread is doing it. Messages reach the role in their
    /// order because the reader is kept until they have.
    fn hear_backup(&self) {
        let Ok(mut reader) = self.channel.reader.try_lock() else { return };
        let Some(arrived) = reader.as_mut().map(ChannelReader::take) else { return };
        let (messages, end) = match arrived {
            Arrived::Messages(messages) if messages.is_empty() => return,
            Arrived::Messages(messages) => (messages, None),
            Arrived::Last { messages, reason } => (messages, Some(reason)),
        };
        let input = |role: &mut PrimaryRole, now_ns| {
            for message in messages {
                role.backup_said(now_ns, message);
            }
            if let Some(reason) = &end {
                role.backup_lost(reason);
            }
        };
        let actions = self.give(input);
        if end.is_some() {
            *reader = None;
            // Whoever waits for this connection would wake up at once, for ever.
            self.channel.cut();
        }
        drop(reader);
        self.carry_out(actions);
    }

    /// Does what the role asks for that takes time, until it asks for the end.
    fn conduct(&self, actions: &Receiver<PrimaryAction>) -> LiveEnd {
        let mut failed_claims = 0;
        let end = loop {
            let Ok(action) = actions.recv_timeout(WATCH) else {
                // The thread that ticks may be stuck in writing to a backup that doesn't read. This one never writes.
                self.pass_on(self.give(PrimaryRole::tick));
                continue;
            };
            match action {
                PrimaryAction::Claim(request) => {
                    let answer = self.node.claim(request, &mut failed_claims);
                    self.drive(|role, now_ns| role.claim_answered(now_ns, answer));
                }
                PrimaryAction::CloseChannel { reason } => {
                    self.node.reporter.tell(&NodeReport::BackupLost { reason });
                }
                PrimaryAction::Owner(generation) => self.tell_owner(generation),
                PrimaryAction::Protected(generation) => {
                    self.node.reporter.tell(&NodeReport::Protected { generation: generation.0 });
                }
                PrimaryAction::HandOver => break LiveEnd::HandedOver,
                PrimaryAction::End(end) => break LiveEnd::Role(end),
            }
            self.inbox.wake();
        };
        self.over.store(true, Ordering::Release);
        self.inbox.wake();
        end
    }

    fn tell_owner(&self, generation: Generation) {
        self.node.reporter.tell(&NodeReport::Owner {
            vm: self.node.vm.to_string(),
            generation: generation.0,
            node: self.node.id.to_string(),
        });
    }

    fn tell_figures(&self, machine: &Machine) {
        let (frames, frames_without_lan) = lock(&self.outlets).frames();
        let role = lock(&self.role);
        self.node.reporter.tell(&NodeReport::Figures(Figures {
            instruction_count: machine.instruction_count().0,
            entries: role.appended().0,
            channel_bytes: self.channel.sent.load(Ordering::Relaxed),
            frames,
            frames_without_lan,
            hold_time: Distribution::of(role.gate().hold_time_ns()),
        }));
    }

    /// Takes a backup, if the role takes one; called by the listening thread alone.
    fn take_backup(&self, stream: TcpStream, address: SocketAddr) -> Result<(), String> {
        if let Err(reason) = lock(&self.role).can_take_backup() {
            refuse(stream, &reason);
            return Err(reason);
        }
        let reader = self.channel.connect(stream).map_err(|error| error.to_string())?;
        self.node.reporter.tell(&NodeReport::BackupConnected { address: address.to_string() });
        self.drive(|role, now_ns| role.backup_connected(now_ns, &self.image));
        // What the backup says is heard from here on: not before the role knows that there is one.
        *lock(&self.channel.reader) = Some(reader);
        self.inbox.wake();
        Ok(())
    }
}

/// Tells a backup why it can't join, as far as it listens.
fn refuse(mut stream: TcpStream, reason: &str) {
    let mut bytes = Vec::new();
    logchannel::message::Message::Refused { reason: reason.into() }.encode(&mut bytes);
    let _ = io::Write::write_all(&mut stream, &bytes);
}

/// The recorder's entries go to the role.
struct RoleSink<'a> {
    shared: &'a Shared,
}

impl LogSink for RoleSink<'_> {
    type Error = Infallible;

    fn append(&mut self, entry: &LogEntry, output: Option<(OutputId, OutputOperation)>) -> Result<(), Infallible> {
        let may_leave = {
            let mut role = lock(&self.shared.role);
            role.append(clock::now_ns(), entry, output);
            role.has_outgoing()
        };
        if may_leave {
            self.shared.send_outgoing();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        self.shared.drive(|role, now_ns| role.flush(now_ns));
        Ok(())
    }
}

fn start_ticks(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = shared.clone();
    spawn("ticks", move || {
        priority::raise();
        while !shared.over.load(Ordering::Acquire) {
            thread::sleep(if shared.holding.load(Ordering::Acquire) { TICK_WHILE_HOLDING } else { TICK });
            shared.hear_backup();
            shared.drive(PrimaryRole::tick);
        }
    })?;
    Ok(())
}

fn start_listener(shared: &Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    let shared = shared.clone();
    spawn("channel", move || {
        loop {
            let (stream, address) = match listener.accept() {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!("a backup could not connect: {error}");
                    thread::sleep(TICK);
                    continue;
                }
            };
            if let Err(reason) = shared.take_backup(stream, address) {
                shared.node.reporter.tell(&NodeReport::BackupRefused { address: address.to_string(), reason });
            }
        }
    })?;
    Ok(())
}
