//! A client of the arbiter without I/O: one question at a time, which is given up when it takes too
//! long; failures are reported rarely.

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

/// What an arbiter is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterCall {
    /// A test-and-set.
    Claim {
        /// Of this generation's flag.
        generation: Generation,
        /// For this node.
        claim: Claim,
        /// Behind this holder of the flag before.
        predecessor: Option<NodeId>,
    },
    /// The VM's latest claim.
    Latest,
}

/// What an arbiter answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArbiterReply {
    /// To a test-and-set.
    Verdict(Verdict),
    /// To the question for the latest claim.
    Latest(Option<(Generation, Claim)>),
}

/// Carries questions to the arbiter and its answers back. No call waits.
pub trait ArbiterTransport {
    /// A number that no other question has.
    fn next_number(&self) -> u64;

    /// Asks about `vm`. `false` if it can't now, because an earlier question isn't back yet.
    fn send(&self, number: u64, vm: &VmId, call: &ArbiterCall) -> bool;

    /// The next answer that has come, with the number of its question. Whoever asks is woken when
    /// there is one.
    fn take_reply(&self) -> Option<(u64, Result<ArbiterReply, ArbiterError>)>;

    /// The arbiter, as its operator names it.
    fn spec(&self) -> &str;

    /// This is about to be asked.
    fn asks(&self, call: &ArbiterCall);

    /// This is what became of a question.
    fn settled(&self, vm: &VmId, call: &ArbiterCall, outcome: Result<&ArbiterReply, &ArbiterError>);
}

/// A question that is under way.
#[derive(Debug)]
struct Pending {
    call: ArbiterCall,
    until_ns: u64,
    is_sent: bool,
}

/// The way of one VM's side to the arbiter.
#[derive(Debug)]
pub struct ArbiterClient<D> {
    transport: D,
    vm: VmId,
    /// Where this node accepts a backup, as its claims say.
    address: String,
    /// How long an answer may take, in nanoseconds.
    timeout_ns: u64,
    /// The number of the question asked last.
    number: u64,
    pending: Option<Pending>,
    /// How many questions in a row were not answered.
    unanswered: u32,
}

impl<D: ArbiterTransport> ArbiterClient<D> {
    /// A way over `transport` on which an answer is waited for `timeout_ns` nanoseconds.
    pub const fn new(transport: D, vm: VmId, address: String, timeout_ns: u64) -> Self {
        Self { transport, vm, address, timeout_ns, number: 0, pending: None, unanswered: 0 }
    }

    /// What it asks over.
    pub const fn transport(&self) -> &D {
        &self.transport
    }

    /// Whether an answer is waited for.
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        self.pending.is_some()
    }

    /// Until when the answer is waited for, in nanoseconds.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        self.pending.as_ref().map_or(u64::MAX, |pending| pending.until_ns)
    }

    /// Asks what a role wants to know; [`ArbiterClient::poll_answer`] has the answer.
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

    /// The answer for the role, once there is one, or once it is known that there is none.
    ///
    /// A claim that isn't answered may have been made, whatever the reason: it is asked for again.
    /// Only of a look is it told that an operator has to see to the arbiter first.
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

    /// Asks this; [`ArbiterClient::poll`] has the answer.
    pub fn call(&mut self, now_ns: u64, call: ArbiterCall) {
        self.number = self.transport.next_number();
        self.transport.asks(&call);
        let is_sent = self.transport.send(self.number, &self.vm, &call);
        self.pending = Some(Pending { call, until_ns: now_ns + self.timeout_ns, is_sent });
    }

    /// The answer, once there is one, or why there is none. What can't be asked is told, ever more
    /// rarely.
    pub fn poll(&mut self, now_ns: u64, report: impl Fn(&NodeReport)) -> Option<Result<ArbiterReply, ArbiterError>> {
        let pending = self.pending.as_mut()?;
        let mut outcome = None;
        while let Some((number, reply)) = self.transport.take_reply() {
            // That of a question that was given up says nothing of this one.
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
