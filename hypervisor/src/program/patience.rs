//! A start's arbiter, which is asked until it answers.

use crate::arbiter::{Arbiter, ArbiterError};
use crate::node::arbiter_client::{ArbiterCall, ArbiterClient, ArbiterReply};
use crate::node::arbiter_thread::ArbiterThread;
use crate::node::environment::Node;
use crate::node::host::Next;
use crate::node::process::wait;
use crate::os::clock;
use ft::claim::{Claim, Verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::thread;
use std::time::Duration;

/// The time from an unanswered request to the next.
const RETRY: Duration = Duration::from_millis(100);

/// The node's arbiter, asked again until it answers, because a service manager may start both at
/// once. A running side does the same.
///
/// Unanswered requests are reported ever more rarely. A claim that wasn't answered may have been
/// made, so only an answer ends the wait: otherwise this process could leave a VM behind that no
/// node runs.
#[derive(Debug)]
pub(super) struct PatientArbiter<'a>(pub(super) &'a Node);

impl PatientArbiter<'_> {
    fn ask(
        &self,
        call: &ArbiterCall,
        is_final: impl Fn(&ArbiterError, u32) -> bool,
    ) -> Result<ArbiterReply, ArbiterError> {
        let mut client = self.0.arbiter_client();
        let mut unanswered = 0_u32;
        loop {
            match self.wait(&mut client, call.clone()) {
                Err(error) if !is_final(&error, unanswered) => unanswered = unanswered.saturating_add(1),
                answer => return answer,
            }
            thread::sleep(RETRY);
        }
    }

    fn wait(&self, client: &mut ArbiterClient<ArbiterThread>, call: ArbiterCall) -> Result<ArbiterReply, ArbiterError> {
        client.call(clock::now_ns(), call);
        loop {
            if let Some(answer) = client.poll(clock::now_ns(), |report| self.0.reporter.tell(report)) {
                return answer;
            }
            wait(&Next::Wait { until_ns: client.due_ns() });
        }
    }
}

impl Arbiter for PatientArbiter<'_> {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        debug_assert_eq!(*vm, self.0.vm, "a node asks about its own VM");
        let call = ArbiterCall::Claim { generation, claim: claim.clone(), predecessor };
        match self.ask(&call, |error, unanswered| unanswered == 0 && !error.is_unreachable())? {
            ArbiterReply::Verdict(verdict) => Ok(verdict),
            ArbiterReply::Latest(_) => unreachable!("a claim is answered by a verdict"),
        }
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        debug_assert_eq!(*vm, self.0.vm, "a node asks about its own VM");
        match self.ask(&ArbiterCall::Latest, |error, _| !error.is_unreachable())? {
            ArbiterReply::Latest(latest) => Ok(latest),
            ArbiterReply::Verdict(_) => unreachable!("a look is answered by the latest claim"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ArbiterThread, PatientArbiter};
    use crate::arbiter::{Arbiter, ArbiterError};
    use crate::node::environment::Node;
    use crate::node::io::console::Keys;
    use crate::os::report::Reporter;
    use ft::claim::{Claim, ClaimKind, Verdict};
    use ft::record::Intervals;
    use logchannel::entry::Generation;
    use logchannel::session::{NodeId, VmId};
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    type Answer = fn() -> Result<Verdict, ArbiterError>;

    /// An arbiter with scripted answers.
    #[derive(Debug)]
    struct Scripted {
        answers: Mutex<Vec<Answer>>,
        asked: AtomicUsize,
    }

    impl Arbiter for Scripted {
        fn test_and_set(&self, _: &VmId, _: Generation, _: &Claim, _: Option<NodeId>) -> Result<Verdict, ArbiterError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.answers.lock().unwrap().remove(0)()
        }

        fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
            let claim = Claim { node: NodeId(1), kind: ClaimKind::Owner, address: None };
            self.test_and_set(vm, Generation(0), &claim, None).map(|_| None)
        }
    }

    fn away() -> Result<Verdict, ArbiterError> {
        Err(ArbiterError::Unreachable { arbiter: "tcp:x".into(), source: io::Error::other("HTTP status 504") })
    }

    fn refused() -> Result<Verdict, ArbiterError> {
        Err(ArbiterError::Failed { arbiter: "tcp:x".into(), reason: "permission denied".into() })
    }

    fn won() -> Result<Verdict, ArbiterError> {
        Ok(Verdict::Won)
    }

    fn node(answers: &[Answer]) -> (Node, Arc<Scripted>) {
        let arbiter = Arc::new(Scripted { answers: Mutex::new(answers.to_vec()), asked: AtomicUsize::new(0) });
        let node = Node {
            vm: VmId::new("vm0").unwrap(),
            id: NodeId(1),
            arbiter: ArbiterThread::new(arbiter.clone(), "tcp:x", None).unwrap(),
            network: None,
            mac: [0; 6],
            address: "127.0.0.1:1".into(),
            reporter: Reporter::new("test", true),
            intervals: Intervals::default(),
            keys: Keys::default(),
        };
        (node, arbiter)
    }

    fn claim(node: &Node) -> Result<Verdict, ArbiterError> {
        let claim = Claim { node: node.id, kind: ClaimKind::Owner, address: None };
        PatientArbiter(node).test_and_set(&node.vm, Generation(0), &claim, None)
    }

    #[test]
    fn a_claim_that_may_have_been_made_is_asked_for_until_it_is_answered() {
        let (node, arbiter) = node(&[away, refused, away, won]);
        assert_eq!(claim(&node).unwrap(), Verdict::Won);
        assert_eq!(arbiter.asked.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn what_an_operator_must_see_to_first_ends_a_start_that_has_claimed_nothing() {
        let (node, _) = node(&[refused, away, refused]);
        assert!(claim(&node).unwrap_err().to_string().contains("permission denied"));
        let looked = PatientArbiter(&node).latest(&node.vm);
        assert!(looked.unwrap_err().to_string().contains("permission denied"), "a look makes nothing");
    }
}
