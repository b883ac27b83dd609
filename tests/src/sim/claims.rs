//! Asking the arbiter: one question at a time, given up after a while.

use super::arbiter::{Answer, Ask};
use super::env::Env;
use super::process::Me;
use super::sightings::Sighting;
use hypervisor::arbiter::{Claim, Verdict};
use hypervisor::role::{ClaimAnswer, ClaimRequest};
use logchannel::entry::Generation;

/// How long an answer is waited for.
pub(super) const ARBITER_TIMEOUT_NS: u64 = 40_000_000;

/// A process's way to the arbiter.
#[derive(Debug)]
pub(super) struct Claims {
    me: Me,
    /// The question, what is claimed, and when it is given up.
    asked: Option<(u64, Generation, u64)>,
    /// This flag was won already when it was asked for last, and nobody heard.
    lost_reply: Option<Generation>,
}

impl Claims {
    pub(super) const fn new(me: Me) -> Self {
        Self { me, asked: None, lost_reply: None }
    }

    pub(super) const fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn due_ns(&self) -> u64 {
        self.asked.map_or(u64::MAX, |(_, _, until_ns)| until_ns)
    }

    pub(super) fn ask(&mut self, env: &mut Env, request: ClaimRequest) {
        let claim = Claim { node: self.me.node, kind: request.kind, address: Some(self.me.host.to_string()) };
        let number = env.ask(self.me.host, Ask::Claim(request.generation, claim));
        env.note("a flag is asked for, by host", &[request.generation.0, self.me.host as u64]);
        env.flag_asked(self.me.node, request.generation);
        self.asked = Some((number, request.generation, env.now_ns + ARBITER_TIMEOUT_NS));
    }

    /// The answer, or that there is none.
    pub(super) fn answer(&mut self, env: &mut Env) -> Option<ClaimAnswer> {
        let (number, generation, until_ns) = self.asked?;
        let answer = match env.answer(number) {
            Some(Answer::Claim(verdict)) => {
                if verdict == Verdict::Won && self.lost_reply == Some(generation) {
                    env.saw(Sighting::LostReplyAskedAgain);
                }
                ClaimAnswer::Decided(verdict)
            }
            Some(Answer::Latest(_)) => panic!("the arbiter answers another question"),
            None if env.now_ns < until_ns => return None,
            None => {
                env.saw(Sighting::ArbiterUnreachable);
                if env.arbiter.holder(generation) == Some(self.me.node) {
                    self.lost_reply = Some(generation);
                }
                ClaimAnswer::Unreachable
            }
        };
        self.asked = None;
        Some(answer)
    }
}
