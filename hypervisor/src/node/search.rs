//! A backup's search for its primary.

use super::arbiter_client::{ArbiterCall, ArbiterClient, ArbiterReply, ArbiterTransport};
use super::host::{Destination, Host, Next};
use super::reports::NodeReport;
use super::wait_reports::WaitReports;
use crate::arbiter::ArbiterError;
use crate::os::address::resolve;
use ft::claim::{Claim, ClaimKind};
use ft::mutation::{Mutation, mutated};
use ft::role::BackupEnd;
use logchannel::entry::Generation;
use logchannel::session::VmId;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// Intervals of a search, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct SearchTiming {
    /// The time between two attempts to connect.
    pub retry_ns: u64,
    /// The time to the next attempt after a primary that had no room for this backup.
    pub no_place_ns: u64,
}

impl Default for SearchTiming {
    fn default() -> Self {
        Self { retry_ns: 100_000_000, no_place_ns: 300_000_000 }
    }
}

/// The state of a search.
#[derive(Debug)]
pub struct Search<D> {
    arbiter: ArbiterClient<D>,
    vm: VmId,
    /// `HOST:PORT` where this node itself accepts a backup.
    own_address: String,
    /// The primary's address, if the operator names it.
    primary: Option<SocketAddr>,
    timing: SearchTiming,
    /// The time of the next attempt, in nanoseconds.
    next_ns: u64,
    wait: Option<WaitReports>,
    /// The last address whose connection was reported.
    reported: Option<SocketAddr>,
}

/// The result of a step.
#[derive(Debug)]
pub enum SearchStep<C> {
    /// The search goes on; when to call the step again.
    Next(Next),
    /// A connection to the address where the primary should be.
    Found(Arc<C>),
    /// The arbiter can't answer until an operator has repaired it.
    Failed(ArbiterError),
}

impl<D: ArbiterTransport> Search<D> {
    /// A search for the primary of `vm` at `primary`, or at the address of the owner that the
    /// arbiter knows.
    pub const fn new(
        arbiter: ArbiterClient<D>,
        vm: VmId,
        own_address: String,
        primary: Option<SocketAddr>,
        timing: SearchTiming,
    ) -> Self {
        Self { arbiter, vm, own_address, primary, timing, next_ns: 0, wait: None, reported: None }
    }

    /// `true` if a backup that has ended in this way searches again: one that was refused has had
    /// no part in the VM, and is as good a backup as before.
    pub fn searches_again(&mut self, now_ns: u64, end: &BackupEnd) -> bool {
        let is_unused = matches!(end, BackupEnd::NoPlace { .. });
        if is_unused {
            self.next_ns = now_ns + self.timing.no_place_ns;
        }
        is_unused && !mutated(Mutation::SpareGivesUp)
    }

    /// Asks the arbiter or connects, when an attempt is due.
    pub fn step<H: Host>(&mut self, host: &H) -> SearchStep<H::Connection> {
        let now_ns = host.now_ns();
        self.wait.get_or_insert(WaitReports::since(now_ns));
        let found = if self.arbiter.is_asking() {
            match self.arbiter.poll(now_ns, |_| ()) {
                None => return SearchStep::Next(Next::Wait { until_ns: self.arbiter.due_ns() }),
                Some(Ok(ArbiterReply::Latest(latest))) => self.owner_address(latest),
                Some(Ok(ArbiterReply::Verdict(_))) => unreachable!("a look is answered by the latest claim"),
                Some(Err(error)) if error.is_unreachable() => Err(error.to_string()),
                Some(Err(error)) => return SearchStep::Failed(error),
            }
        } else if now_ns < self.next_ns {
            return SearchStep::Next(Next::Wait { until_ns: self.next_ns });
        } else if let Some(address) = self.primary {
            Ok(address)
        } else {
            self.arbiter.call(now_ns, ArbiterCall::Latest);
            return SearchStep::Next(Next::Now);
        };
        match found.and_then(|address| connect(host, address)) {
            Ok((address, connection)) => {
                if self.reported.replace(address) != Some(address) {
                    host.report(&NodeReport::PrimaryConnected { address: address.to_string() });
                }
                self.wait = None;
                SearchStep::Found(connection)
            }
            Err(reason) => {
                if let Some(seconds) = self.wait.as_mut().and_then(|wait| wait.due(now_ns)) {
                    host.report(&NodeReport::Waiting { vm: self.vm.to_string(), reason, seconds });
                }
                self.next_ns = host.now_ns() + self.timing.retry_ns;
                SearchStep::Next(Next::Wait { until_ns: self.next_ns })
            }
        }
    }

    /// The owner's address, as the arbiter knows it, or what is missing. An owner at this node's
    /// own address was an earlier process here, which is dead.
    fn owner_address(&self, latest: Option<(Generation, Claim)>) -> Result<SocketAddr, String> {
        let Some((generation, claim)) = latest else { return Err("the arbiter knows no VM of this name".into()) };
        match claim.address {
            Some(address) if claim.kind == ClaimKind::Ended => Err(format!("the VM was ended at {address}")),
            Some(address) if address == self.own_address => Err(format!(
                "the VM's owner was here, at {address}, and is gone: only its backup can go on, or --resume"
            )),
            Some(address) => resolve(&address).map_err(|error| format!("the VM's owner can't be found: {error}")),
            None => Err(format!("the VM's owner of generation {} has told no address", generation.next())),
        }
    }
}

fn connect<H: Host>(host: &H, address: SocketAddr) -> Result<(SocketAddr, Arc<H::Connection>), String> {
    match host.connect(Destination::Primary(address)) {
        Ok(connection) => Ok((address, connection)),
        // The usual reason, nothing listening, needs no details.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(format!("nobody answers at {address}")),
        Err(error) => Err(format!("nobody answers at {address} ({error})")),
    }
}
