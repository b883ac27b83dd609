//! A process that goes on from its host's log after the death of both sides: the production steps
//! of `--resume`, each of which the process may die before, within and behind.

use super::arbiter::SimArbiter;
use super::disk::SimDisk;
use super::env::Env;
use super::host::address;
use super::process::Me;
use super::sightings::Sighting;
use ft::claim::{Claim, ClaimKind, Verdict};
use ft::start::ResumeConsent;
use hypervisor::arbiter::{Arbiter, ArbiterError};
use hypervisor::node::log::{LogDirectory, PossibleLoss};
use hypervisor::node::restart::{Continuation, Replayed, Restart, RestartError, Restarter};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io::ErrorKind;

/// From one step to the next, at most, in nanoseconds.
const STEP_NS: u32 = 20_000_000;

enum Stage {
    Begun,
    Surveyed(Box<Restart<SimDisk>>),
    Judged(Box<Restart<SimDisk>>),
    Replayed(Box<Replayed<SimDisk>>),
    Claimed(Box<Continuation<SimDisk>>),
    Over,
}

/// `--resume`.
pub(super) struct Resuming {
    consent: ResumeConsent,
    stage: Stage,
    next_ns: u64,
}

/// What became of a step.
pub(super) enum Resumption {
    /// There is more to do at this time.
    Goes(u64),
    /// The VM is this node's.
    Owns(Box<Continuation<SimDisk>>),
    /// It doesn't go on from this log.
    Refused {
        reason: String,
        /// The log is still that of a backup, as far as its directory says: if its writer has won
        /// the flag, it died before the log had all that it had acknowledged.
        is_backups: bool,
    },
}

/// The arbiter, from a process that may have died. It is asked until it answers.
#[derive(Debug)]
struct Link<'a> {
    arbiter: &'a SimArbiter,
    disk: &'a SimDisk,
}

impl Link<'_> {
    fn ask<T>(&self, ask: impl FnOnce() -> Result<T, ArbiterError>) -> Result<T, ArbiterError> {
        if self.disk.is_dead() {
            Err(ArbiterError::Unreachable { arbiter: "sim".into(), source: ErrorKind::NotConnected.into() })
        } else {
            ask()
        }
    }
}

impl Arbiter for Link<'_> {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        self.ask(|| self.arbiter.test_and_set(vm, generation, claim, predecessor))
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        self.ask(|| self.arbiter.latest(vm))
    }
}

impl Resuming {
    pub(super) const fn new(now_ns: u64, accept_loss: bool) -> Self {
        Self { consent: ResumeConsent { accept_loss, give_up: None }, stage: Stage::Begun, next_ns: now_ns }
    }

    pub(super) fn step(&mut self, env: &mut Env, me: &Me) -> Resumption {
        if env.now_ns < self.next_ns.max(env.arbiter_down_until_ns) {
            return Resumption::Goes(self.next_ns.max(env.arbiter_down_until_ns));
        }
        self.next_ns = env.now_ns + u64::from(env.random.below(STEP_NS));
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        if let Stage::Claimed(continuation) = stage {
            return Resumption::Owns(continuation);
        }
        match self.advance(env, me, stage) {
            Ok(stage) => {
                self.stage = stage;
                Resumption::Goes(self.next_ns)
            }
            Err(error) => {
                let reason = error.to_string();
                let of_backup = [PossibleLoss::OfBackup, PossibleLoss::OfJoiningBackup];
                let is_backups = of_backup.iter().any(|loss| reason.contains(&loss.to_string()));
                Resumption::Refused { reason, is_backups }
            }
        }
    }

    /// Takes the next step.
    fn advance(&self, env: &mut Env, me: &Me, stage: Stage) -> Result<Stage, RestartError> {
        let disk = env.disks[me.host].clone();
        let arbiter = Link { arbiter: &env.vms[env.vm_of_host[me.host]].arbiter, disk: &disk };
        let restarter = Restarter {
            vm: &me.setup.vm,
            arbiter: &arbiter,
            claim: Claim { node: me.node, kind: ClaimKind::Owner, address: Some(address(me.host).to_string()) },
            consent: self.consent,
            // Who owned the VM is dead: the operator has looked.
            ask_owner: &|_| None,
        };
        Ok(match stage {
            Stage::Begun => {
                let directory = LogDirectory::lock_existing(disk.clone(), &me.setup.vm)?;
                Stage::Surveyed(Box::new(Restart::survey(directory, &me.setup.vm)?))
            }
            Stage::Surveyed(mut restart) => {
                restart.judge(&restarter)?;
                Stage::Judged(restart)
            }
            Stage::Judged(restart) => {
                if !restart.survey.skipped.is_empty() {
                    env.sightings.saw(Sighting::SegmentSkipped);
                }
                Stage::Replayed(Box::new(restart.replay(|_| ())?))
            }
            Stage::Replayed(replayed) => Stage::Claimed(Box::new(replayed.claim(&restarter)?)),
            stage @ (Stage::Claimed(_) | Stage::Over) => stage,
        })
    }
}
