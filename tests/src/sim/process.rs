//! A process on a host: it looks for a primary, backs it up, and becomes one.

use super::arbiter::{Answer, Ask};
use super::backup::{Backup, Ended};
use super::claims::ARBITER_TIMEOUT_NS;
use super::env::Env;
use super::primary::Primary;
use super::sightings::Sighting;
use super::wires::Place;
use ft::claim::{Claim, ClaimKind};
use ft::record::Intervals;
use ft::role::{BackupEnd, Timing};
use logchannel::session::{NodeId, VmId};
use std::sync::Arc;
use vm::MachineConfig;

/// From one look for the primary to the next.
const RETRY_NS: u64 = 20_000_000;

/// What all processes of a run have in common.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) vm: VmId,
    pub(super) config: MachineConfig,
    pub(super) timing: Timing,
    pub(super) intervals: Intervals,
    /// Steps that the guest runs at once while nothing is held.
    pub(super) slice_steps: u64,
    pub(super) ns_per_step: u64,
    /// How many times slower replay is while there are faults.
    pub(super) replay_factor: u64,
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
}

enum Kind {
    Seeking(Seeking),
    Backup(Box<Backup>),
    Primary(Box<Primary>),
}

/// Asks the arbiter where the primary is.
struct Seeking {
    /// The question, and when it is given up.
    asked: Option<(u64, u64)>,
    next_ns: u64,
}

/// A process.
pub(super) struct Process {
    pub(super) me: Me,
    kind: Kind,
}

impl Process {
    /// A process that wants to back the VM up.
    pub(super) const fn seeking(me: Me) -> Self {
        Self { me, kind: Kind::Seeking(Seeking { asked: None, next_ns: 0 }) }
    }

    /// A process that runs the VM.
    pub(super) fn running(me: Me, primary: Primary) -> Self {
        Self { me, kind: Kind::Primary(Box::new(primary)) }
    }

    pub(super) const fn primary(&mut self) -> Option<&mut Primary> {
        match &mut self.kind {
            Kind::Primary(primary) => Some(primary),
            Kind::Seeking(_) | Kind::Backup(_) => None,
        }
    }

    pub(super) const fn backup(&self) -> Option<&Backup> {
        match &self.kind {
            Kind::Backup(backup) => Some(backup),
            Kind::Seeking(_) | Kind::Primary(_) => None,
        }
    }

    /// Whether a backup joins here, on either side.
    pub(super) fn is_joining(&self) -> bool {
        match &self.kind {
            Kind::Seeking(_) => false,
            Kind::Backup(backup) => backup.is_joining(),
            Kind::Primary(primary) => primary.role().is_copying(),
        }
    }

    /// Whether it asks for a flag.
    pub(super) const fn is_asking(&self) -> bool {
        match &self.kind {
            Kind::Seeking(_) => false,
            Kind::Backup(backup) => backup.is_asking(),
            Kind::Primary(primary) => primary.is_asking(),
        }
    }

    /// Does what is due. Returns when there is more to do if nothing arrives before, or how it
    /// ended.
    pub(super) fn step(&mut self, env: &mut Env) -> Result<u64, Exit> {
        match &mut self.kind {
            Kind::Seeking(_) => self.seek(env),
            Kind::Primary(primary) => primary.step(env),
            Kind::Backup(backup) => match backup.step(env) {
                Ok(next_ns) => Ok(next_ns),
                Err(Ended::Live(role, machine)) => {
                    let primary = Primary::new(env, self.me.clone(), *role, *machine);
                    self.kind = Kind::Primary(Box::new(primary));
                    Ok(env.now_ns)
                }
                Err(Ended::Over(end)) => self.backup_over(env, &end),
            },
        }
    }

    fn backup_over(&mut self, env: &mut Env, end: &BackupEnd) -> Result<u64, Exit> {
        match end {
            BackupEnd::GuestStopped(_) => Err(Exit::GuestEnded),
            BackupEnd::Fenced { .. } => Err(Exit::Fenced),
            BackupEnd::Diverged => panic!("a backup diverges"),
            BackupEnd::Refused { .. } if self.me.is_mistaken => {
                env.saw(Sighting::MistakenRefused);
                Err(Exit::Mistaken)
            }
            // `ft-backup --keep` looks for a primary again.
            BackupEnd::Unprotected { .. } | BackupEnd::NoPlace { .. } | BackupEnd::Refused { .. } => {
                let next_ns = env.now_ns + RETRY_NS;
                self.kind = Kind::Seeking(Seeking { asked: None, next_ns });
                Ok(next_ns)
            }
        }
    }

    fn seek(&mut self, env: &mut Env) -> Result<u64, Exit> {
        let Kind::Seeking(seeking) = &mut self.kind else { return Ok(env.now_ns) };
        if self.me.is_mistaken && !env.is_faulty {
            return Err(Exit::Mistaken);
        }
        let Some((number, until_ns)) = seeking.asked else {
            if seeking.next_ns <= env.now_ns {
                seeking.next_ns = env.now_ns + RETRY_NS;
                seeking.asked = Some((env.ask(&self.me, Ask::Latest), env.now_ns + ARBITER_TIMEOUT_NS));
            }
            return Ok(seeking.next_ns);
        };
        let latest = match env.answer(number) {
            Some(Answer::Latest(latest)) => latest,
            Some(Answer::Claim(_)) => panic!("the arbiter answers another question"),
            None if env.now_ns < until_ns => return Ok(until_ns),
            None => None,
        };
        seeking.asked = None;
        match latest {
            Some((_, Claim { kind: ClaimKind::Ended, .. })) => Err(Exit::GuestEnded),
            Some((_, Claim { address: Some(address), .. })) => {
                let host = address.parse().unwrap_or_else(|error| panic!("address {address}: {error}"));
                let end = env.dial(Place::Host(self.me.host), Place::Host(host));
                self.kind = Kind::Backup(Box::new(Backup::new(env, self.me.clone(), end)));
                Ok(env.now_ns)
            }
            Some((_, Claim { address: None, .. })) | None => Ok(seeking.next_ns.max(env.now_ns + 1)),
        }
    }
}
