//! The backup without its threads: the role, its channel and its log on disk, and steps that never
//! wait.

use super::replay::ReplayWork;
use crate::node::arbiter_client::{ArbiterClient, ArbiterTransport};
use crate::node::channel::{Arrived, Channel, ChannelReader, lock, serve};
use crate::node::host::{Answer, Host, Next, Observation, Question, StepKind};
use crate::node::log::{DiskLogOptions, JoiningLog, SideDiskLog};
use crate::node::reports::NodeReport;
use ft::role::{BackupAction, BackupEnd, BackupRole, ClaimRequest, DiskLogState};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, SessionHeader};
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// How often the role's timers are checked, in nanoseconds.
const TICK_NS: u64 = 5_000_000;

/// How often the control step looks for a task, in nanoseconds; a new task wakes it earlier.
const IDLE_CHECK_NS: u64 = 50_000_000;

/// How often a side that can't take more from its channel checks for room, in nanoseconds.
const FULL_CHECK_NS: u64 = 1_000_000;

/// How long an ending side waits for its primary to read the last messages, in nanoseconds, and how
/// often it checks.
const LAST_MESSAGES_NS: u64 = 1_000_000_000;
const END_CHECK_NS: u64 = 1_000_000;

/// The node that writes the log on disk, and the log's options.
type LogOptions<H> = (NodeId, DiskLogOptions<<H as Host>::Storage>);

/// A task for the control step: those that may take long, and the end.
#[derive(Debug)]
enum ControlTask {
    CheckOwner,
    Claim(ClaimRequest),
    GoLive(Generation),
    End(BackupEnd),
}

/// The result of a control step.
#[derive(Debug)]
pub enum Control {
    /// The side goes on; when to call the step again.
    Next(Next),
    /// This node owns the VM under this generation, and goes live.
    GoLive(Generation),
    /// The side has ended.
    End(BackupEnd),
}

/// The state of the control step.
#[derive(Debug)]
pub struct BackupControl<D> {
    arbiter: ArbiterClient<D>,
    /// An end that waits until the last messages have left: how the side ends, and until when it
    /// waits at most, in nanoseconds.
    ending: Option<(BackupEnd, u64)>,
}

impl<D> BackupControl<D> {
    /// The control step's initial state.
    pub const fn new(arbiter: ArbiterClient<D>) -> Self {
        Self { arbiter, ending: None }
    }
}

impl<D: ArbiterTransport> BackupControl<D> {
    /// `true` while a question to the arbiter is unanswered.
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        self.arbiter.is_asking()
    }
}

/// A VM's backup.
pub struct BackupSide<H: Host> {
    pub(super) host: H,
    pub(super) role: Mutex<BackupRole>,
    channel: Channel<H::Connection>,
    pub(super) work: Mutex<VecDeque<ReplayWork<H>>>,
    /// Bytes in the log buffer: received, and not yet restored or replayed.
    pub(super) waiting_bytes: AtomicUsize,
    /// The log buffer's limit, beyond which the channel isn't read.
    buffer_bytes_max: usize,
    /// With which options the log on disk begins; taken when the session arrives.
    log_options: Mutex<Option<LogOptions<H>>>,
    /// The log on disk, which gets everything that is received from the session on.
    joining_log: OnceLock<JoiningLog>,
    /// The role's actions, in its order.
    actions: Mutex<VecDeque<BackupAction>>,
    /// Held by the thread that does the actions.
    acting: Mutex<()>,
    tasks: Mutex<VecDeque<ControlTask>>,
    over: AtomicBool,
    pub(super) goes_live: AtomicBool,
    /// The name of the guest's image.
    image: Mutex<String>,
}

impl<H: Host> fmt::Debug for BackupSide<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupSide").field("role", &self.role).finish_non_exhaustive()
    }
}

impl<H: Host> BackupSide<H> {
    /// A backup of the primary at the other end of `connection`. It stops reading the channel while
    /// more than `buffer_bytes_max` bytes wait to be restored or replayed.
    pub fn new(
        host: H,
        role: BackupRole,
        connection: Arc<H::Connection>,
        log_options: Option<(NodeId, DiskLogOptions<H::Storage>)>,
        buffer_bytes_max: usize,
    ) -> Self {
        let role = if log_options.is_some() { role.with_disk_log(DiskLogState::Promised) } else { role };
        let side = Self {
            host,
            role: Mutex::new(role),
            channel: Channel::default(),
            work: Mutex::default(),
            waiting_bytes: AtomicUsize::new(0),
            buffer_bytes_max,
            log_options: Mutex::new(log_options),
            joining_log: OnceLock::new(),
            actions: Mutex::default(),
            acting: Mutex::default(),
            tasks: Mutex::default(),
            over: AtomicBool::new(false),
            goes_live: AtomicBool::new(false),
            image: Mutex::default(),
        };
        side.channel.connect(connection.clone());
        *lock(&side.channel.reader) = Some(ChannelReader::new(connection));
        // The request to join.
        side.send_outgoing();
        side
    }

    /// Locks the role.
    pub fn role(&self) -> MutexGuard<'_, BackupRole> {
        lock(&self.role)
    }

    /// `true` once the side has ended: all its steps return [`Next::Done`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// `true` if the primary hasn't been sent everything yet.
    fn has_unsent_messages(&self) -> bool {
        self.send_outgoing();
        lock(&self.role).has_outgoing() || !self.channel.is_idle()
    }

    /// Ends the steps. If the side goes live, its machine comes from the replay, which has consumed
    /// every entry: the role doesn't go live before.
    fn finish(&self, goes_live: bool) {
        // Stored before the end: a replay that sees only the end gives its machine up.
        self.goes_live.store(goes_live, Ordering::Release);
        self.over.store(true, Ordering::Release);
        self.channel.cut();
        // Unlocks the directory of a log that never began.
        drop(lock(&self.log_options).take());
        self.host.wake(StepKind::Replay);
    }

    /// Gives the role the primary's messages. Doesn't read while the log buffer or the disk is
    /// full. Done when the connection has ended.
    pub fn step_receive(self: &Arc<Self>) -> Next {
        if self.is_over() {
            return Next::Done;
        }
        let is_disk_full = self.joining_log.get().is_some_and(JoiningLog::is_full);
        let is_full = self.waiting_bytes.load(Ordering::Relaxed) > self.buffer_bytes_max;
        if is_disk_full || is_full {
            let now_ns = self.host.now_ns();
            lock(&self.role).handle_not_listening(now_ns);
            if is_disk_full {
                self.wait_for_disk();
            }
            return Next::Wait { until_ns: now_ns + FULL_CHECK_NS };
        }
        if self.channel.is_blocked() {
            // A primary that doesn't read acknowledgements causes no more of them. Its silence
            // isn't excused by that.
            return Next::Wait { until_ns: self.host.now_ns() + FULL_CHECK_NS };
        }
        let mut reader = lock(&self.channel.reader);
        let Some(arrived) = reader.as_mut().map(ChannelReader::wait) else { return Next::Done };
        let (messages, end) = match arrived {
            Arrived::Messages(messages) => (messages, None),
            Arrived::Last { messages, reason } => (messages, Some(reason)),
        };
        if end.is_some() {
            *reader = None;
        }
        drop(reader);
        let is_idle = messages.is_empty() && end.is_none();
        self.drive(|role, now_ns| {
            for message in messages {
                role.handle_message(now_ns, message);
            }
            if let Some(reason) = &end {
                role.handle_disconnect(now_ns, reason);
            }
        });
        match end {
            Some(_) => Next::Done,
            None if is_idle => Next::Arrival { until_ns: u64::MAX },
            None => Next::Now,
        }
    }

    /// Checks the role's timers.
    pub fn step_timers(self: &Arc<Self>) -> Next {
        if self.is_over() {
            return Next::Done;
        }
        if lock(&self.role).waits_for_disk() {
            self.wait_for_disk();
        }
        self.drive(BackupRole::handle_tick);
        Next::Wait { until_ns: self.host.now_ns() + TICK_NS }
    }

    /// Handles the arbiter's answer or the next task.
    pub fn step_control<D: ArbiterTransport>(self: &Arc<Self>, control: &mut BackupControl<D>) -> Control {
        let now_ns = self.host.now_ns();
        if let Some((end, until_ns)) = control.ending.take() {
            if self.has_unsent_messages() && now_ns < until_ns {
                control.ending = Some((end, until_ns));
                return Control::Next(Next::Wait { until_ns: now_ns + END_CHECK_NS });
            }
            self.finish(false);
            return Control::End(end);
        }
        if control.arbiter.is_asking() {
            let Some(answer) = control.arbiter.poll_answer(now_ns, |report| self.host.report(report)) else {
                return Control::Next(Next::Wait { until_ns: control.arbiter.due_ns() });
            };
            self.drive(|role, now_ns| match answer {
                Answer::Claim(answer) => role.handle_claim(now_ns, answer),
                Answer::Latest(answer) => role.handle_owner(now_ns, answer),
            });
            return Control::Next(Next::Now);
        }
        let Some(task) = lock(&self.tasks).pop_front() else {
            return Control::Next(Next::Wait { until_ns: now_ns + IDLE_CHECK_NS });
        };
        match task {
            ControlTask::CheckOwner => control.arbiter.ask(now_ns, Question::Latest),
            ControlTask::Claim(request) => control.arbiter.ask(now_ns, Question::Claim(request)),
            ControlTask::GoLive(generation) => {
                self.finish(true);
                return Control::GoLive(generation);
            }
            ControlTask::End(end) => control.ending = Some((end, now_ns + LAST_MESSAGES_NS)),
        }
        Control::Next(Next::Now)
    }

    /// Gives the role an input, sends its messages, and does its actions.
    pub(super) fn drive<T>(self: &Arc<Self>, input: impl FnOnce(&mut BackupRole, u64) -> T) -> T {
        let result = {
            let mut role = lock(&self.role);
            let result = input(&mut role, self.host.now_ns());
            // Queued under the role's lock, before another thread can give it the next input.
            lock(&self.actions).extend(std::iter::from_fn(|| role.poll_action()));
            result
        };
        // Acknowledgements leave before any action.
        self.send_outgoing();
        // One thread at a time does the actions, in the role's order. An action may drive the role
        // again; the actions from that are queued behind.
        serve(
            &self.acting,
            || !lock(&self.actions).is_empty(),
            |()| {
                let action = lock(&self.actions).pop_front();
                action.into_iter().for_each(|action| self.act(action));
            },
        );
        result
    }

    fn act(self: &Arc<Self>, action: BackupAction) {
        match action {
            BackupAction::Waits => self.host.report(&NodeReport::WaitsForPlace),
            BackupAction::Begin(session) => {
                *lock(&self.image) = session.image_name.clone();
                self.begin(session);
            }
            BackupAction::Joined => {
                let image = lock(&self.image).clone();
                self.host.report(&NodeReport::Joined { image });
            }
            BackupAction::ClaimsLost(generation) => {
                self.host.report(&NodeReport::PrimaryClaimLost { generation: generation.0 });
            }
            // The log on disk gets each piece before the machine does.
            BackupAction::Pages(pages) => {
                self.log(|log| log.pages(&pages));
                self.push_work(ReplayWork::Pages(pages));
            }
            BackupAction::Restore(snapshot) => {
                self.host.observe(Observation::Snapshot(&snapshot));
                self.log(|log| log.complete(lock(&self.role).unsent().cloned(), &snapshot));
                self.push_work(ReplayWork::Restore(snapshot));
            }
            BackupAction::Consume(entries) => {
                self.host.observe(Observation::Received(&entries));
                self.log(|log| log.entries(entries.iter()));
                self.push_work(ReplayWork::Replay(entries));
            }
            BackupAction::Protected(generation) => {
                self.host.observe(Observation::Told(generation));
                self.log(JoiningLog::protects);
                self.host.report(&NodeReport::Protected { generation: generation.0, again: false });
            }
            BackupAction::Lost { reason } => {
                self.channel.cut();
                self.host.report(&NodeReport::PrimaryLost { reason: reason.to_string() });
            }
            BackupAction::CheckOwner => self.push_task(ControlTask::CheckOwner),
            BackupAction::Claim(request) => self.push_task(ControlTask::Claim(request)),
            BackupAction::GoLive(generation) => self.push_task(ControlTask::GoLive(generation)),
            BackupAction::End(end) => self.push_task(ControlTask::End(end)),
        }
    }

    /// Begins to restore the machine, and to write the log on disk.
    fn begin(self: &Arc<Self>, session: SessionHeader) {
        let options = lock(&self.log_options).take();
        let begun =
            options.map(|(node, options)| SideDiskLog::begin_joining(&self.host, options, session.clone(), node));
        let disk_log = match begun {
            None => None,
            Some(Ok((log, joining))) => {
                let _ = self.joining_log.set(joining);
                // Weak, because the side owns the log.
                let side = Arc::downgrade(self);
                log.listen(move |state| {
                    if let Some(side) = side.upgrade() {
                        side.drive(|role, now_ns| role.handle_disk_log(now_ns, state));
                    }
                });
                Some(Box::new(log))
            }
            Some(Err(error)) => {
                let reason = format!("the log can't be kept on disk: {error}");
                return self.drive(|role, _| role.handle_restore_failure(&reason));
            }
        };
        self.push_work(ReplayWork::Begin(session, disk_log));
    }

    /// Gives the log on disk something, if there is one.
    fn log(&self, give: impl FnOnce(&JoiningLog)) {
        if let Some(log) = self.joining_log.get() {
            give(log);
        }
    }

    /// Tells the role that this side waits for its disk, and how much the disk has taken so far.
    fn wait_for_disk(self: &Arc<Self>) {
        let taken = self.joining_log.get().map_or(0, JoiningLog::taken);
        self.drive(|role, now_ns| role.handle_disk_wait(now_ns, taken));
    }

    fn send_outgoing(&self) {
        self.channel.send(|| lock(&self.role).has_outgoing(), |buffer| lock(&self.role).poll_outgoing(buffer));
    }

    fn push_task(&self, task: ControlTask) {
        lock(&self.tasks).push_back(task);
        self.host.wake(StepKind::Control);
    }

    fn push_work(&self, work: ReplayWork<H>) {
        self.waiting_bytes.fetch_add(work.bytes(), Ordering::Relaxed);
        lock(&self.work).push_back(work);
        self.host.wake(StepKind::Replay);
    }
}
