//! The process's thread for the arbiter. It may hang with a file server, a name server or a disk;
//! no other thread waits for it.

use super::arbiter_client::{ArbiterCall, ArbiterReply, ArbiterTransport};
use super::channel::lock;
use crate::arbiter::{Arbiter, ArbiterError};
use crossbeam_channel::{Receiver, Sender, unbounded};
use ft::claim::Verdict;
use logchannel::session::VmId;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};

/// Observes claims: a process that ends between a claim and its answer may leave behind a VM that
/// nobody can start again.
pub trait ClaimWatch: Send + Sync {
    /// A claim is about to be sent.
    fn claims(&self);

    /// The claim was decided, or given up.
    fn settled(&self, vm: &VmId, outcome: Result<&Verdict, &ArbiterError>);
}

type Reply = (u64, Result<ArbiterReply, ArbiterError>);

/// What the handles share with the thread.
struct ArbiterThreadState {
    next: AtomicU64,
    /// A question has no reply yet.
    is_busy: AtomicBool,
    /// The thread to wake when a reply arrives.
    asker: Mutex<Option<Thread>>,
}

/// A handle of the process's arbiter thread.
#[derive(Clone)]
pub struct ArbiterThread {
    spec: Arc<str>,
    shared: Arc<ArbiterThreadState>,
    questions: Sender<(u64, VmId, ArbiterCall)>,
    replies: Receiver<Reply>,
    watch: Option<Arc<dyn ClaimWatch>>,
}

impl fmt::Debug for ArbiterThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ArbiterThread").field(&self.spec).finish()
    }
}

impl ArbiterThread {
    /// Starts the thread. `spec` is the arbiter as the operator wrote it.
    ///
    /// # Errors
    /// If the thread can't start.
    pub fn new(arbiter: Arc<dyn Arbiter>, spec: &str, watch: Option<Arc<dyn ClaimWatch>>) -> io::Result<Self> {
        let shared = Arc::new(ArbiterThreadState {
            next: AtomicU64::new(1),
            is_busy: AtomicBool::new(false),
            asker: Mutex::default(),
        });
        let (questions, asked) = unbounded::<(u64, VmId, ArbiterCall)>();
        let (answer, replies) = unbounded();
        thread::Builder::new().name("arbiter".into()).spawn({
            let shared = shared.clone();
            move || {
                for (number, vm, call) in asked {
                    let reply = ask(&*arbiter, &vm, &call);
                    shared.is_busy.store(false, Ordering::Release);
                    // Fails if all handles are gone; then the reply doesn't matter.
                    drop(answer.send((number, reply)));
                    if let Some(asker) = &*lock(&shared.asker) {
                        asker.unpark();
                    }
                }
            }
        })?;
        Ok(Self { spec: spec.into(), shared, questions, replies, watch })
    }
}

fn ask(arbiter: &dyn Arbiter, vm: &VmId, call: &ArbiterCall) -> Result<ArbiterReply, ArbiterError> {
    match call {
        ArbiterCall::Claim { generation, claim, predecessor } => {
            arbiter.test_and_set(vm, *generation, claim, *predecessor).map(ArbiterReply::Verdict)
        }
        ArbiterCall::Latest => arbiter.latest(vm).map(ArbiterReply::Latest),
    }
}

impl ArbiterTransport for ArbiterThread {
    fn next_number(&self) -> u64 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, number: u64, vm: &VmId, call: &ArbiterCall) -> bool {
        *lock(&self.shared.asker) = Some(thread::current());
        if self.shared.is_busy.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.questions.send((number, vm.clone(), call.clone())).is_ok()
    }

    fn take_reply(&self) -> Option<Reply> {
        self.replies.try_recv().ok()
    }

    fn spec(&self) -> &str {
        &self.spec
    }

    fn asks(&self, call: &ArbiterCall) {
        if let (ArbiterCall::Claim { .. }, Some(watch)) = (call, &self.watch) {
            watch.claims();
        }
    }

    fn settled(&self, vm: &VmId, call: &ArbiterCall, outcome: Result<&ArbiterReply, &ArbiterError>) {
        let (ArbiterCall::Claim { .. }, Some(watch)) = (call, &self.watch) else { return };
        match outcome {
            Ok(ArbiterReply::Verdict(verdict)) => watch.settled(vm, Ok(verdict)),
            Ok(ArbiterReply::Latest(_)) => {}
            Err(error) => watch.settled(vm, Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::FileArbiter;
    use crate::node::arbiter_client::ArbiterClient;
    use crate::os::clock;
    use ft::claim::{Claim, ClaimKind};
    use logchannel::entry::Generation;
    use logchannel::session::NodeId;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::fs::{self, OpenOptions};
    use std::time::Duration;

    const TIMEOUT_NS: u64 = 200_000_000;

    fn wait(client: &mut ArbiterClient<ArbiterThread>, call: ArbiterCall) -> Result<ArbiterReply, ArbiterError> {
        client.call(clock::now_ns(), call);
        loop {
            if let Some(outcome) = client.poll(clock::now_ns(), |_| ()) {
                return outcome;
            }
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The claim's file is a FIFO, so reading it blocks like reading from a file server that is
    /// down. Without the deadline this test doesn't end.
    #[test]
    fn a_file_system_that_hangs_is_an_arbiter_that_does_not_answer_until_it_does() {
        let directory = tempfile::tempdir().unwrap();
        let vm = VmId::new("vm0").unwrap();
        let claims = directory.path().join(vm.as_str());
        fs::create_dir(&claims).unwrap();
        let hung = claims.join("0.claim");
        mkfifo(&hung, Mode::S_IRWXU).unwrap();
        let arbiter = Arc::new(FileArbiter::open(directory.path()).unwrap());
        let transport = ArbiterThread::new(arbiter, "file:x", None).unwrap();
        let mut client = ArbiterClient::new(transport, vm, "127.0.0.1:1".into(), TIMEOUT_NS);
        for reason in ["takes too long", "an earlier request"] {
            let error = wait(&mut client, ArbiterCall::Latest).unwrap_err();
            assert!(error.is_unreachable() && error.to_string().contains(reason), "{error}");
        }
        let claim = Claim { node: NodeId(1), kind: ClaimKind::Owner, address: None };
        let set = |generation, predecessor| ArbiterCall::Claim { generation, claim: claim.clone(), predecessor };
        let error = wait(&mut client, set(Generation(1), Some(NodeId(1)))).unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        fs::rename(&hung, claims.join("moved")).unwrap();
        drop(OpenOptions::new().write(true).open(claims.join("moved")).unwrap());
        let won = loop {
            match wait(&mut client, set(Generation(0), None)) {
                Err(error) if error.is_unreachable() => {}
                answer => break answer.unwrap(),
            }
        };
        assert_eq!(won, ArbiterReply::Verdict(Verdict::Won));
        assert_eq!(
            wait(&mut client, ArbiterCall::Latest).unwrap(),
            ArbiterReply::Latest(Some((Generation(0), claim.clone())))
        );
    }
}
