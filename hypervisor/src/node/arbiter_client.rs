//! Asks the arbiter, without I/O: one question at a time, given up when its answer takes too long.

use super::host::{Answer, Question};
use super::reports::NodeReport;
use crate::arbiter::ArbiterError;
use ft::claim::{Claim, Verdict};
use ft::mutation::{Mutation, mutated};
use ft::role::{ClaimAnswer, LatestAnswer};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io;
use std::time::Duration;

/// A question to the arbiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterCall {
    /// A test-and-set.
    Claim {
        /// The generation whose flag is claimed.
        generation: Generation,
        /// The claim to make.
        claim: Claim,
        /// The node that holds the flag before, as far as the claimer knows.
        predecessor: Option<NodeId>,
    },
    /// The VM's latest claim.
    Latest,
}

/// The arbiter's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterReply {
    /// The result of a test-and-set.
    Verdict(Verdict),
    /// The latest claim and its generation; `None` if the VM was never claimed.
    Latest(Option<(Generation, Claim)>),
}

/// Carries questions to the arbiter and replies back, without waiting.
pub trait ArbiterTransport {
    /// A number that identifies the next question.
    fn next_number(&self) -> u64;

    /// Sends a question about `vm`. `false` if it must be sent again later, because an earlier
    /// question has no reply yet.
    fn send(&self, number: u64, vm: &VmId, call: &ArbiterCall) -> bool;

    /// The next reply that has arrived, with the number of its question. The thread that sent the
    /// question is woken when a reply arrives.
    fn take_reply(&self) -> Option<(u64, Result<ArbiterReply, ArbiterError>)>;

    /// The arbiter as the operator wrote it, for messages.
    fn spec(&self) -> &str;

    /// A question is about to be sent.
    fn asks(&self, call: &ArbiterCall);

    /// A question was answered, or given up.
    fn settled(&self, vm: &VmId, call: &ArbiterCall, outcome: Result<&ArbiterReply, &ArbiterError>);
}

/// A question without a reply yet.
#[derive(Debug)]
struct Pending {
    call: ArbiterCall,
    until_ns: u64,
    is_sent: bool,
}

/// A side's client of the arbiter.
#[derive(Debug)]
pub struct ArbiterClient<D> {
    transport: D,
    vm: VmId,
    /// `HOST:PORT` where this node accepts a backup; part of its claims.
    address: String,
    /// How long a reply may take, in nanoseconds.
    timeout_ns: u64,
    /// The number of the last question.
    number: u64,
    pending: Option<Pending>,
    /// The number of questions in a row without a reply, which makes reports of it rare.
    unanswered: u32,
}

impl<D: ArbiterTransport> ArbiterClient<D> {
    /// A client over `transport` that gives a question up after `timeout_ns` nanoseconds.
    pub const fn new(transport: D, vm: VmId, address: String, timeout_ns: u64) -> Self {
        Self { transport, vm, address, timeout_ns, number: 0, pending: None, unanswered: 0 }
    }

    /// What carries the questions.
    pub const fn transport(&self) -> &D {
        &self.transport
    }

    /// `true` while a question has no reply.
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        self.pending.is_some()
    }

    /// When the pending question is given up, in nanoseconds; `u64::MAX` without one.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        self.pending.as_ref().map_or(u64::MAX, |pending| pending.until_ns)
    }

    /// Asks a role's question; [`ArbiterClient::poll_answer`] returns the answer.
    pub fn ask(&mut self, now_ns: u64, question: Question) {
        let call = match question {
            Question::Latest => ArbiterCall::Latest,
            Question::Claim(request) => ArbiterCall::Claim {
                generation: request.generation,
                claim: Claim { node: request.node, kind: request.kind, address: Some(self.address.clone()) },
                predecessor: request.predecessor,
            },
        };
        self.call(now_ns, call);
    }

    /// The answer for the role, once the question is answered or given up.
    ///
    /// A claim without an answer may have been made, whatever the error is, so the role asks again.
    /// Only the question for the latest claim tells apart an arbiter that an operator has to
    /// repair.
    pub fn poll_answer(&mut self, now_ns: u64, report: impl Fn(&NodeReport)) -> Option<Answer> {
        let is_claim = matches!(self.pending.as_ref()?.call, ArbiterCall::Claim { .. });
        Some(match self.poll(now_ns, report)? {
            Ok(ArbiterReply::Verdict(verdict)) => Answer::Claim(ClaimAnswer::Decided(verdict)),
            Ok(ArbiterReply::Latest(latest)) => Answer::Latest(LatestAnswer::Known(latest)),
            Err(_) if is_claim && mutated(Mutation::UnansweredClaimIsWon) => {
                Answer::Claim(ClaimAnswer::Decided(Verdict::Won))
            }
            Err(_) if is_claim => Answer::Claim(ClaimAnswer::Unreachable),
            Err(error) if error.is_unreachable() => Answer::Latest(LatestAnswer::Unreachable),
            Err(error) => Answer::Latest(LatestAnswer::Failed(error.to_string())),
        })
    }

    /// Asks a question; [`ArbiterClient::poll`] returns the reply.
    pub fn call(&mut self, now_ns: u64, call: ArbiterCall) {
        self.number = self.transport.next_number();
        self.transport.asks(&call);
        let is_sent = self.transport.send(self.number, &self.vm, &call);
        self.pending = Some(Pending { call, until_ns: now_ns + self.timeout_ns, is_sent });
    }

    /// The reply, or why the question was given up; `None` while it is pending. Questions without a
    /// reply are reported at ever longer intervals.
    pub fn poll(&mut self, now_ns: u64, report: impl Fn(&NodeReport)) -> Option<Result<ArbiterReply, ArbiterError>> {
        let pending = self.pending.as_mut()?;
        let mut outcome = None;
        while let Some((number, reply)) = self.transport.take_reply() {
            // A late reply to a question that was given up is ignored.
            if number == self.number || mutated(Mutation::LateReplyCounts) {
                outcome = Some(reply);
            }
        }
        if !pending.is_sent {
            pending.is_sent = self.transport.send(self.number, &self.vm, &pending.call);
        }
        let outcome = match outcome {
            Some(outcome) => outcome,
            None if now_ns < pending.until_ns => return None,
            None => {
                let reason = if pending.is_sent { "it takes too long" } else { "it still has an earlier request" };
                let seconds = Duration::from_nanos(self.timeout_ns).as_secs_f32();
                let text = format!("{reason} (more than {seconds} s)");
                let source = io::Error::new(io::ErrorKind::TimedOut, text);
                Err(ArbiterError::Unreachable { arbiter: self.transport.spec().to_owned(), source })
            }
        };
        self.transport.settled(&self.vm, &pending.call, outcome.as_ref());
        self.pending = None;
        match &outcome {
            Ok(_) => self.unanswered = 0,
            Err(error) => {
                self.unanswered = self.unanswered.saturating_add(1);
                if self.unanswered.is_power_of_two() {
                    report(&NodeReport::ArbiterUnreachable { reason: error.to_string() });
                }
            }
        }
        Some(outcome)
    }
}
