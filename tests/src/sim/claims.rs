//! Asking the arbiter: one question at a time, given up after a while.

use super::arbiter::{Answer, Ask};
use super::env::Env;
use super::process::Me;
use super::sightings::Sighting;
use ft::claim::{Claim, Verdict};
use ft::role::{ClaimAnswer, ClaimRequest, LatestAnswer};
use logchannel::entry::Generation;

/// How long an answer is waited for.
pub(super) const ARBITER_TIMEOUT_NS: u64 = 40_000_000;

/// What became of a question.
pub(super) enum Asked {
    Claim(ClaimAnswer),
    Latest(LatestAnswer),
}

/// A process's way to the arbiter.
#[derive(Debug)]
pub(super) struct Claims {
    me: Me,
    /// The question, the flag that is claimed, if it is a claim, and when it is given up.
    asked: Option<(u64, Option<Generation>, u64)>,
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
        let claim = Claim { node: request.node, kind: request.kind, address: Some(self.me.host.to_string()) };
        let number = env.ask(&self.me, Ask::Claim(request, claim));
        env.note("a flag is asked for, by host", &[request.generation.0, self.me.host as u64]);
        env.flag_asked(self.me.node, request.generation);
        self.asked = Some((number, Some(request.generation), env.now_ns + ARBITER_TIMEOUT_NS));
    }

    /// Asks for the latest claim.
    pub(super) fn look(&mut self, env: &mut Env) {
        let number = env.ask(&self.me, Ask::Latest);
        self.asked = Some((number, None, env.now_ns + ARBITER_TIMEOUT_NS));
    }

    /// The answer, or that there is none.
    pub(super) fn answer(&mut self, env: &mut Env) -> Option<Asked> {
        let (number, flag, until_ns) = self.asked?;
        let answer = match (env.answer(number), flag) {
            (Some(Answer::Claim(verdict)), Some(_)) => {
                if verdict == Verdict::Won && self.lost_reply == flag {
                    env.saw(Sighting::LostReplyAskedAgain);
                }
                Asked::Claim(ClaimAnswer::Decided(verdict))
            }
            (Some(Answer::Latest(latest)), None) => Asked::Latest(LatestAnswer::Known(latest)),
            (Some(_), _) => panic!("the arbiter answers another question"),
            (None, _) if env.now_ns < until_ns => return None,
            (None, Some(generation)) => {
                env.saw(Sighting::ArbiterUnreachable);
                if env.arbiter.holder(generation) == Some(self.me.node) {
                    self.lost_reply = Some(generation);
                }
                Asked::Claim(ClaimAnswer::Unreachable)
            }
            (None, None) => {
                env.saw(Sighting::LookUnanswered);
                Asked::Latest(LatestAnswer::Unreachable)
            }
        };
        self.asked = None;
        Some(answer)
    }
}
