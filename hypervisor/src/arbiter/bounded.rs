//! An arbiter with bounded calls: they end in time even if the arbiter behind it hangs because a
//! file server or a name server is gone, or a disk hangs.
//!
//! A thread of its own makes the calls. A caller that has waited long enough gets "unreachable", as
//! from any arbiter that doesn't answer, and asks again; the same claim then tells what became of
//! the first request. At most one request is left behind.

use super::deadline::Deadline;
use super::{Arbiter, ArbiterError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use ft::claim::{Claim, Verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

type Question = Box<dyn FnOnce(&dyn Arbiter) + Send>;

/// Bounds the calls of another arbiter.
#[derive(Debug)]
pub struct BoundedArbiter {
    spec: String,
    timeout: Duration,
    /// A channel without capacity: a question that the thread doesn't take at once is taken back.
    questions: Sender<Question>,
}

impl BoundedArbiter {
    /// Bounds the calls of `arbiter`, which was opened by `spec`, to `timeout`.
    ///
    /// # Errors
    /// If the thread can't start.
    pub fn new(arbiter: Arc<dyn Arbiter>, spec: String, timeout: Duration) -> io::Result<Self> {
        let (questions, asked): (_, Receiver<Question>) = bounded(0);
        thread::Builder::new().name("arbiter".into()).spawn(move || {
            for question in asked {
                question(&*arbiter);
            }
        })?;
        Ok(Self { spec, timeout, questions })
    }

    fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn Arbiter) -> Result<T, ArbiterError> + Send + 'static,
    ) -> Result<T, ArbiterError> {
        let deadline = Deadline::after(self.timeout);
        let (answer, answered) = bounded(1);
        // Fails if the caller has given up.
        let question = Box::new(move |arbiter: &dyn Arbiter| drop(answer.send(call(arbiter))));
        self.questions
            .send_timeout(question, self.timeout)
            .map_err(|_| self.unanswered("it still has an earlier request"))?;
        let remaining = deadline.remaining().unwrap_or_default();
        answered.recv_timeout(remaining).unwrap_or_else(|error| {
            Err(self.unanswered(match error {
                RecvTimeoutError::Timeout => "it takes too long",
                RecvTimeoutError::Disconnected => "the thread that asks it is gone",
            }))
        })
    }

    fn unanswered(&self, reason: &str) -> ArbiterError {
        let text = format!("{reason} (more than {} s)", self.timeout.as_secs_f32());
        ArbiterError::Unreachable { arbiter: self.spec.clone(), source: io::Error::new(io::ErrorKind::TimedOut, text) }
    }
}

impl Arbiter for BoundedArbiter {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        let (vm, claim) = (vm.clone(), claim.clone());
        self.ask(move |arbiter| arbiter.test_and_set(&vm, generation, &claim, predecessor))
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        let vm = vm.clone();
        self.ask(move |arbiter| arbiter.latest(&vm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::FileArbiter;
    use ft::claim::ClaimKind;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs::{self, OpenOptions};

    const TIMEOUT: Duration = Duration::from_millis(200);

    /// A claim that is a FIFO: reading it blocks, as when a file server is gone. Without the bound
    /// this test doesn't end.
    #[test]
    fn a_file_system_that_hangs_is_an_arbiter_that_does_not_answer_until_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmId::new("vm0").unwrap();
        let claims = directory.path().join(vm.as_str());
        fs::create_dir(&claims).unwrap();
        let hung = claims.join("0.claim");
        mkfifo(&hung, Mode::S_IRWXU).unwrap();
        let arbiter = Arc::new(FileArbiter::open(directory.path()).unwrap());
        let arbiter = BoundedArbiter::new(arbiter, "file:x".into(), TIMEOUT).unwrap();
        let claim = Claim { node: NodeId(1), kind: ClaimKind::Owner, address: None };
        for reason in ["takes too long", "an earlier request"] {
            let error = arbiter.latest(&vm).unwrap_err();
            assert!(error.is_unreachable() && error.to_string().contains(reason), "{error}");
        }
        let error = arbiter.test_and_set(&vm, Generation(1), &claim, Some(NodeId(1))).unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        fs::rename(&hung, claims.join("moved")).unwrap();
        drop(OpenOptions::new().write(true).open(claims.join("moved")).unwrap());
        let won = loop {
            match arbiter.test_and_set(&vm, Generation(0), &claim, None) {
                Err(error) if error.is_unreachable() => {}
                answer => break answer.unwrap(),
            }
        };
        assert_eq!(won, Verdict::Won);
        assert_eq!(arbiter.latest(&vm).unwrap(), Some((Generation(0), claim)));
    }
}
