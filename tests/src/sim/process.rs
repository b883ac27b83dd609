//! A process on a host: it looks for a primary, backs it up, and becomes one.

use super::backup::{Backup, Ended, Live};
use super::connection::SimConnection;
use super::env::Env;
use super::host::{SimHost, address};
use super::log::{LogOfOwner, LogWork, log_options, options};
use super::primary::Primary;
use super::restart::{Resuming, Resumption};
use super::sightings::Sighting;
use super::trace::{self, Lane, Note};
use super::wires::Place;
use ft::record::Intervals;
use ft::role::{BackupEnd, PrimaryRole, Timing};
use hypervisor::node::arbiter_client::ArbiterClient;
use hypervisor::node::backup::no_primary_port::NoPrimaryAnswers;
use hypervisor::node::host::Next;
use hypervisor::node::io::lan::AttachmentTiming;
use hypervisor::node::log::LogWait;
use hypervisor::node::search::{Search, SearchStep, SearchTiming};
use hypervisor::os::report::Level;
use logchannel::session::{NodeId, VmId};
use std::sync::Arc;
use vm::{Machine, MachineConfig};

/// How long an answer of the arbiter is waited for.
const ANSWER_NS: u64 = 40_000_000;

/// What all processes of a run have in common.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) vm: VmId,
    pub(super) config: MachineConfig,
    pub(super) timing: Timing,
    pub(super) attachment: AttachmentTiming,
    pub(super) search: SearchTiming,
    pub(super) intervals: Intervals,
    /// Steps that the guest runs at once while nothing is held.
    pub(super) slice_steps: u64,
    pub(super) ns_per_step: u64,
    /// How many times slower replay is while there are faults.
    pub(super) replay_factor: u64,
    /// What outputs wait for in the logs on disk, if logs are kept.
    pub(super) log_wait: Option<LogWait>,
}

impl Setup {
    /// The way of the process on `host` to the arbiter.
    pub(super) fn arbiter_client(&self, host: &SimHost) -> ArbiterClient<SimHost> {
        let own_address = address(host.me().host).to_string();
        ArbiterClient::new(host.clone(), self.vm.clone(), own_address, ANSWER_NS)
    }
}

/// Who a process is.
#[derive(Clone, Debug)]
pub(super) struct Me {
    pub(super) host: usize,
    pub(super) node: NodeId,
    /// It has another arbiter than the rest.
    pub(super) is_mistaken: bool,
    pub(super) setup: Arc<Setup>,
}

/// Why a process ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    HandedOver,
    GuestEnded,
    Fenced,
    /// It has the wrong arbiter, and its operator is told so.
    Mistaken,
    /// Its part in the VM is over, and it is to have another one.
    StartsOver,
    /// Its host's log is none to go on from, or can't be kept.
    NoLog,
    /// Its host's log is that of a backup to its end, and may lack what clients have seen.
    LogOfBackup,
    /// It was ended before its resumed VM had a log of its own.
    Interrupted,
}

enum Kind {
    Seeking(Box<Search<SimHost>>),
    Backup(Box<Search<SimHost>>, Box<Backup>),
    Primary(Box<Primary>),
    Resuming(Box<Resuming>),
    /// It is becoming another one.
    Between,
}

/// A process.
pub(super) struct Process {
    pub(super) me: Me,
    host: SimHost,
    kind: Kind,
    no_primary: NoPrimaryAnswers<SimConnection>,
}

impl Process {
    /// A process that wants to back the VM up.
    pub(super) fn seeking(me: Me) -> Self {
        let host = SimHost::new(me.clone());
        let (vm, own_address) = (me.setup.vm.clone(), address(me.host).to_string());
        let search = Search::new(me.setup.arbiter_client(&host), vm, own_address, None, me.setup.search);
        Self { me, host, kind: Kind::Seeking(Box::new(search)), no_primary: NoPrimaryAnswers::default() }
    }

    /// A process that goes on with the VM from its host's log.
    pub(super) fn resuming(me: Me, now_ns: u64, accept_loss: bool) -> Self {
        let host = SimHost::new(me.clone());
        let resuming = Box::new(Resuming::new(now_ns, accept_loss));
        Self { me, host, kind: Kind::Resuming(resuming), no_primary: NoPrimaryAnswers::default() }
    }

    /// Whether it goes on with the VM from its host's log, and doesn't run it yet.
    pub(super) const fn is_resuming(&self) -> bool {
        matches!(self.kind, Kind::Resuming(_))
    }

    /// A process that runs the VM.
    pub(super) fn running(
        env: &mut Env,
        me: Me,
        role: PrimaryRole,
        machine: Machine,
        log: (LogOfOwner, Option<LogWork>),
    ) -> Self {
        let host = SimHost::new(me.clone());
        let primary = Primary::new(env, &host, role, machine, log);
        Self { me, host, kind: Kind::Primary(Box::new(primary)), no_primary: NoPrimaryAnswers::default() }
    }

    pub(super) const fn primary(&mut self) -> Option<&mut Primary> {
        match &mut self.kind {
            Kind::Primary(primary) => Some(primary),
            Kind::Seeking(_) | Kind::Backup(..) | Kind::Resuming(_) | Kind::Between => None,
        }
    }

    pub(super) const fn backup(&self) -> Option<&Backup> {
        match &self.kind {
            Kind::Backup(_, backup) => Some(backup),
            Kind::Seeking(_) | Kind::Primary(_) | Kind::Resuming(_) | Kind::Between => None,
        }
    }

    /// Whether it looks for a primary.
    pub(super) const fn is_seeking(&self) -> bool {
        matches!(self.kind, Kind::Seeking(_))
    }

    /// Whether a backup joins here, on either side.
    pub(super) fn is_joining(&self) -> bool {
        match &self.kind {
            Kind::Seeking(_) | Kind::Resuming(_) | Kind::Between => false,
            Kind::Backup(_, backup) => backup.is_joining(),
            Kind::Primary(primary) => primary.role().is_copying(),
        }
    }

    /// Whether it asks for a flag.
    pub(super) const fn is_asking(&self) -> bool {
        match &self.kind {
            Kind::Seeking(_) | Kind::Resuming(_) | Kind::Between => false,
            Kind::Backup(_, backup) => backup.is_asking(),
            Kind::Primary(primary) => primary.is_asking(),
        }
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it
    /// ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Exit> {
        let (kind, next) = match std::mem::replace(&mut self.kind, Kind::Between) {
            Kind::Primary(mut primary) => {
                let next = primary.step(env);
                (Kind::Primary(primary), next)
            }
            Kind::Seeking(search) => self.seek(env, search),
            Kind::Between => unreachable!("a step ends as something"),
            Kind::Backup(search, backup) => self.back_up(env, search, backup),
            Kind::Resuming(resuming) => self.resume(env, resuming),
        };
        self.kind = kind;
        next
    }

    /// Goes on with `--resume`.
    fn resume(&mut self, env: &mut Env, mut resuming: Box<Resuming>) -> (Kind, Result<u64, Exit>) {
        match resuming.step(env, &self.me) {
            Resumption::Goes(next_ns) => (Kind::Resuming(resuming), Ok(next_ns)),
            Resumption::Refused { reason, is_backups } => {
                let note =
                    Note::new(Lane::Host(self.me.host), trace::Kind::Report(Level::Error), "--resume says: ", &[]);
                env.tell(note.words(&reason));
                (Kind::Resuming(resuming), Err(if is_backups { Exit::LogOfBackup } else { Exit::NoLog }))
            }
            Resumption::Owns(continuation) => {
                let node = self.me.node;
                let (entries, may_lack) = (continuation.resumed.next_seq, continuation.may_lack);
                // A disk that can't sync can't keep the mark of a failed log over a loss of power.
                let is_unreliable = env.disks[self.me.host].has_failed();
                env.judge_of(self.me.host).resumes(node, entries, may_lack || is_unreliable);
                env.saw(if may_lack { Sighting::ResumedWithLoss } else { Sighting::Resumed });
                let (role, machine, directory) = continuation.take_over(node, self.me.setup.timing);
                let wait = self.me.setup.log_wait.unwrap_or(LogWait::Written);
                let log = LogOfOwner::Begins(log_options(directory, wait));
                let primary = Primary::new(env, &self.host, role, machine, (log, None));
                (Kind::Primary(Box::new(primary)), Ok(env.now_ns))
            }
        }
    }

    /// Who comes to the port of a node that is no primary is told so.
    fn answer_at_door(&mut self, env: &mut Env) {
        while let Some(end) = env.accept(Place::Host(self.me.host)) {
            let connection = self.host.connection(end);
            self.host.call(env, || self.no_primary.answer(connection));
        }
    }

    fn seek(&mut self, env: &mut Env, mut search: Box<Search<SimHost>>) -> (Kind, Result<u64, Exit>) {
        if self.me.is_mistaken && !env.is_faulty {
            return (Kind::Seeking(search), Err(Exit::Mistaken));
        }
        self.answer_at_door(env);
        loop {
            match self.host.call(env, || search.step(&self.host)) {
                SearchStep::Next(Next::Now | Next::Done) => {}
                SearchStep::Next(Next::Wait { until_ns } | Next::Arrival { until_ns } | Next::Room { until_ns }) => {
                    return (Kind::Seeking(search), Ok(until_ns));
                }
                SearchStep::Found(connection) => {
                    let Some(log) = options(env, self.me.host, self.me.setup.log_wait) else {
                        return (Kind::Seeking(search), Err(Exit::NoLog));
                    };
                    let backup = Backup::new(env, &self.host, connection, log);
                    return (Kind::Backup(search, Box::new(backup)), Ok(env.now_ns));
                }
                SearchStep::Failed(_) => {
                    env.saw(Sighting::ArbiterUnwell);
                    return (Kind::Seeking(search), Err(Exit::StartsOver));
                }
            }
        }
    }

    fn back_up(
        &mut self,
        env: &mut Env,
        mut search: Box<Search<SimHost>>,
        mut backup: Box<Backup>,
    ) -> (Kind, Result<u64, Exit>) {
        self.answer_at_door(env);
        let end = match backup.step(env) {
            Ok(next_ns) => return (Kind::Backup(search, backup), Ok(next_ns)),
            Err(Ended::Live(live)) => {
                let Live { role, machine, log } = *live;
                let primary = Primary::new(env, &self.host, role, machine, log);
                return (Kind::Primary(Box::new(primary)), Ok(env.now_ns));
            }
            Err(Ended::Over(end)) => end,
        };
        let searches_again = search.searches_again(env.now_ns, &end);
        let next = match end {
            BackupEnd::GuestStopped(_) => Err(Exit::GuestEnded),
            BackupEnd::Fenced { .. } => Err(Exit::Fenced),
            BackupEnd::Diverged => panic!("a backup diverges"),
            BackupEnd::Refused { .. } if self.me.is_mistaken => {
                env.saw(Sighting::MistakenRefused);
                Err(Exit::Mistaken)
            }
            BackupEnd::NoPlace { .. } => {
                assert!(searches_again, "a backup that was never used doesn't look for a place again");
                Ok(env.now_ns)
            }
            // `ft-backup --keep` starts over.
            BackupEnd::Unprotected { .. } | BackupEnd::Refused { .. } => Err(Exit::StartsOver),
        };
        (Kind::Seeking(search), next)
    }
}
