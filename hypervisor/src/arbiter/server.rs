//! `ft-arbiter`'s sockets: one thread, a task for each connection, disk writes on threads of their
//! own.

use super::wire::{Answer, BODY_BYTES_MAX, Request};
use super::{Arbiter, ArbiterError, FileArbiter};
use crate::os::accept::AcceptTrouble;
use crate::os::clock;
use crate::os::rate_limit::{LeftOut, RateLimits};
use crate::os::report::{Level, Report, Reporter};
use ft::claim::{Claim, ClaimKind, Verdict};
use logchannel::entry::Generation;
use logchannel::frame::FrameDecoder;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{LocalSet, spawn_blocking, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

/// The most connections at once, if the process may have as many descriptors. Beyond it a new
/// connection evicts the one that has been without a request for longest. The client of that one
/// reconnects when it needs to, and clients that never ask anything keep no one else out.
pub const CONNECTIONS_MAX: usize = 256;

/// How long a new connection may take for its first request: a client connects because it has one.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be idle between requests. Clients reconnect when they need to.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The most requests that wait for the disk at once; others wait for these.
pub const DISK_THREADS_MAX: usize = 8;

/// How long a request may wait for the disk; clients wait for 5 s. A disk that hangs occupies its
/// threads, and nothing else.
pub const DISK_TIMEOUT: Duration = Duration::from_secs(4);

/// How long a client may take to read an answer, which has some hundred bytes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The reports of the arbiter.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ArbiterEvent {
    /// The server is ready.
    Listening {
        /// The address.
        listen: SocketAddr,
        /// Where the claims are.
        directory: String,
    },
    /// A claim was decided.
    Claim {
        /// The VM.
        vm: String,
        /// The generation that the winner owns, if the claim isn't for the VM's end.
        generation: u64,
        /// The flag that was claimed: the one before that generation.
        flag: u64,
        /// The node that claimed.
        node: String,
        /// Where that node listens.
        address: Option<String>,
        /// `true` if the claim is for the VM's end.
        ended: bool,
        /// `true` if the flag was granted.
        won: bool,
        /// The node that holds the flag; if the claim was refused, the node that holds the flag
        /// before, if any.
        holder: Option<String>,
        /// Where that node listens.
        holder_address: Option<String>,
        /// The flag is free and was refused, because the flag before it isn't held by the
        /// predecessor that the claim names.
        refused: bool,
    },
}

impl Report for ArbiterEvent {
    fn level(&self) -> Level {
        match self {
            Self::Listening { .. } => Level::Info,
            Self::Claim { .. } => Level::Notice,
        }
    }
}

impl fmt::Display for ArbiterEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening { listen, directory } => write!(f, "listening at {listen}, claims in {directory}"),
            // Nodes are named by the first digits of their ids. The address of a holder was
            // reported when it won.
            Self::Claim { vm, generation, node, address, ended, won, holder, refused, .. } => {
                let at = address.as_ref().map_or_else(String::new, |address| format!(" at {address}"));
                let holder = holder.as_ref().map_or_else(|| "nobody".into(), |holder| format!("node {holder:.8}"));
                match (won, refused, ended) {
                    (true, _, true) => write!(f, "{vm}: ended by node {node:.8}{at}"),
                    (true, _, false) => write!(f, "{vm}: generation {generation} is node {node:.8}{at}"),
                    (false, false, _) => write!(f, "{vm}: node {node:.8} lost generation {generation} to {holder}"),
                    (false, true, _) => write!(
                        f,
                        "{vm}: node {node:.8}{at} is refused generation {generation}: the one before is held by {holder}, not by \
                         its predecessor"
                    ),
                }
            }
        }
    }
}

/// An arbiter whose socket is bound.
#[derive(Debug)]
pub struct ArbiterServer {
    listener: TcpListener,
    listen: SocketAddr,
    arbiter: Arc<FileArbiter>,
    /// One permit for each thread that may wait for the disk: the runtime's own queue has no limit.
    disk: Arc<Semaphore>,
    connections_max: usize,
    reporter: Reporter,
    lines: RefCell<RateLimits<ClientLine>>,
}

/// Kinds of log lines that clients can cause as often as they like, so that each is rate-limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ClientLine {
    /// A connection ended by a fault.
    Closed,
    /// A request has no answer.
    NoAnswer,
}

impl ArbiterServer {
    /// Listens at `listen`, where port 0 picks a free port, and reports the address. The server has
    /// at most `connections_max` connections, which must be fewer than the process's descriptors,
    /// because claims need some, too.
    ///
    /// # Errors
    /// If the address can't be listened at.
    pub async fn bind(
        listen: SocketAddr,
        arbiter: FileArbiter,
        connections_max: usize,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let listen = listener.local_addr()?;
        let directory = arbiter.directory().display().to_string();
        reporter.tell(&ArbiterEvent::Listening { listen, directory });
        let disk = Arc::new(Semaphore::new(DISK_THREADS_MAX));
        let (arbiter, lines) = (Arc::new(arbiter), RefCell::default());
        Ok(Self { listener, listen, arbiter, disk, connections_max, reporter, lines })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// Serves until `shutdown` is done. Needs a current-thread runtime with I/O and time, and
    /// [`DISK_THREADS_MAX`] blocking threads. One of these may still wait for the disk afterwards:
    /// shut the runtime down in the background.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let tasks = LocalSet::new();
        tasks.spawn_local(accept(Rc::new(self)));
        tasks.run_until(shutdown).await;
    }
}

async fn accept(server: Rc<ArbiterServer>) {
    let table = Rc::new(RefCell::new(ConnectionTable::default()));
    let mut trouble = AcceptTrouble::default();
    loop {
        match server.listener.accept().await {
            Ok((stream, peer)) => {
                let entry = ConnectionEntry::take(&table, server.connections_max);
                spawn_local(serve(server.clone(), stream, peer, entry));
                // Lets the evicted connection's task close it before the next one is accepted.
                yield_now().await;
            }
            Err(error) => sleep(trouble.failed("the arbiter can't accept connections", &error)).await,
        }
    }
}

/// All connections by when they were last used, the least recent first.
#[derive(Default)]
struct ConnectionTable {
    by_use: BTreeMap<u64, Rc<Notify>>,
    uses: u64,
}

impl ConnectionTable {
    fn enter(&mut self, evicted: Rc<Notify>) -> u64 {
        self.uses += 1;
        self.by_use.insert(self.uses, evicted);
        self.uses
    }
}

/// One connection's entry in the table, removed when dropped.
struct ConnectionEntry {
    table: Rc<RefCell<ConnectionTable>>,
    used: u64,
    evicted: Rc<Notify>,
}

impl ConnectionEntry {
    /// Adds an entry; when the table is full it evicts the connection that was used least recently.
    fn take(table: &Rc<RefCell<ConnectionTable>>, connections_max: usize) -> Self {
        let evicted = Rc::new(Notify::new());
        let mut all = table.borrow_mut();
        if all.by_use.len() >= connections_max
            && let Some((_, oldest)) = all.by_use.pop_first()
        {
            oldest.notify_one();
        }
        let used = all.enter(evicted.clone());
        Self { table: table.clone(), used, evicted }
    }

    /// The connection has made a request.
    fn use_again(&mut self) {
        let mut all = self.table.borrow_mut();
        // An evicted connection isn't entered again.
        if all.by_use.remove(&self.used).is_some() {
            self.used = all.enter(self.evicted.clone());
        }
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.table.borrow_mut().by_use.remove(&self.used);
    }
}

async fn serve(server: Rc<ArbiterServer>, mut stream: TcpStream, peer: SocketAddr, mut entry: ConnectionEntry) {
    let evicted = entry.evicted.clone();
    let ended = tokio::select! {
        ended = answer_all(&server, &mut stream, &mut entry) => ended,
        // The client reconnects when it needs to. Connections that come without end must not fill
        // the log.
        () = evicted.notified() => return tracing::debug!(%peer, "connection closed: it made room for another one"),
    };
    if let Err(error) = ended
        && let Some(left_out) = server.admit(ClientLine::Closed)
    {
        tracing::warn!(%peer, %error, "connection closed{left_out}");
    }
}

/// Answers the requests on one connection, one after the other, until the client leaves or is at
/// fault.
async fn answer_all(server: &ArbiterServer, stream: &mut TcpStream, entry: &mut ConnectionEntry) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut decoder = FrameDecoder::with_body_limit(BODY_BYTES_MAX);
    let mut answer_bytes = Vec::new();
    let mut patience = FIRST_REQUEST_TIMEOUT;
    loop {
        // An idle client is no fault: it reconnects when it needs to.
        let Ok(request) = timeout(patience, next_request(stream, &mut decoder)).await else { return Ok(()) };
        let Some(request) = request? else { return Ok(()) };
        entry.use_again();
        let answer = server.answer(request).await?;
        answer_bytes.clear();
        answer.encode(&mut answer_bytes);
        timeout(ANSWER_TIMEOUT, stream.write_all(&answer_bytes)).await??;
        patience = IDLE_TIMEOUT;
    }
}

/// The next request; `None` if the client has left.
async fn next_request(stream: &mut TcpStream, decoder: &mut FrameDecoder) -> io::Result<Option<Request>> {
    let faulty = |error: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    loop {
        if let Some(frame) = decoder.next_frame().map_err(|error| faulty(&error))? {
            return Request::decode(frame).map(Some).map_err(|error| faulty(&error));
        }
        match stream.read(decoder.space()).await? {
            0 => return Ok(None),
            bytes => decoder.filled(bytes),
        }
    }
}

impl ArbiterServer {
    /// Whether a line that clients can cause is to be written now.
    fn admit(&self, line: ClientLine) -> Option<LeftOut> {
        self.lines.borrow_mut().admit(line, clock::now_ns())
    }

    fn failure(&self, error: &ArbiterError) -> Answer {
        if let Some(left_out) = self.admit(ClientLine::NoAnswer) {
            tracing::error!(%error, "a request has no answer{left_out}");
        }
        if error.is_unreachable() { Answer::Unreachable(error.to_string()) } else { Answer::Failed(error.to_string()) }
    }

    /// The answer to one request; an error only if the process is ending.
    async fn answer(&self, request: Request) -> io::Result<Answer> {
        match request {
            Request::Latest { vm } => {
                let latest = self.on_disk(move |arbiter| arbiter.latest(&vm)).await?;
                Ok(latest.map_or_else(|error| self.failure(&error), Answer::Latest))
            }
            Request::TestAndSet { vm, generation, claim, predecessor } => {
                let (asked_vm, asked) = (vm.clone(), claim.clone());
                let decide =
                    move |arbiter: &FileArbiter| arbiter.test_and_set(&asked_vm, generation, &asked, predecessor);
                match self.on_disk(decide).await? {
                    Ok(verdict) => {
                        self.reporter.tell(&claim_event(vm.to_string(), generation, &claim, &verdict));
                        Ok(match verdict {
                            Verdict::Won => Answer::Won,
                            Verdict::Lost(holder) => Answer::Lost(holder),
                            Verdict::NotSuccessor(holder) => Answer::NotSuccessor(holder),
                        })
                    }
                    Err(error) => Ok(self.failure(&error)),
                }
            }
        }
    }
}

impl ArbiterServer {
    /// Does `work` on a thread that may wait for the disk, within [`DISK_TIMEOUT`]. Beside the
    /// arbiter's own errors it fails only if the process is ending.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&FileArbiter) -> Result<T, ArbiterError> + Send + 'static,
    ) -> io::Result<Result<T, ArbiterError>> {
        let (disk, arbiter) = (self.disk.clone(), self.arbiter.clone());
        let working = async {
            let permit = disk.acquire_owned().await.map_err(io::Error::other)?;
            let work = spawn_blocking(move || {
                let _permit = permit;
                work(&arbiter)
            });
            Ok(work.await?)
        };
        timeout(DISK_TIMEOUT, working).await.unwrap_or_else(|_| {
            let text = format!("its disk has not answered for {} s", DISK_TIMEOUT.as_secs());
            let source = io::Error::new(io::ErrorKind::TimedOut, text);
            let arbiter = format!("file:{}", self.arbiter.directory().display());
            Ok(Err(ArbiterError::Unreachable { arbiter, source }))
        })
    }
}

fn claim_event(vm: String, flag: Generation, claim: &Claim, verdict: &Verdict) -> ArbiterEvent {
    let holder = match verdict {
        Verdict::Won => Some(claim),
        Verdict::Lost(holder) => Some(holder),
        Verdict::NotSuccessor(holder) => holder.as_ref(),
    };
    ArbiterEvent::Claim {
        vm,
        // A request for the greatest generation was refused.
        generation: flag.0.saturating_add(1),
        flag: flag.0,
        node: claim.node.to_string(),
        address: claim.address.clone(),
        ended: claim.kind == ClaimKind::Ended,
        won: *verdict == Verdict::Won,
        holder_address: holder.and_then(|holder| holder.address.clone()),
        holder: holder.map(|holder| holder.node.to_string()),
        refused: matches!(verdict, Verdict::NotSuccessor(_)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::report::on_a_terminal;
    use logchannel::session::NodeId;

    /// The report of a claim of the second flag, which a pair of generation 1 asks for.
    fn told(kind: ClaimKind, verdict: &Verdict) -> ArbiterEvent {
        claim_event("vm0".into(), Generation(1), &claim(7, kind), verdict)
    }

    fn claim(node: u128, kind: ClaimKind) -> Claim {
        Claim { node: NodeId(node << 96), kind, address: Some("192.168.1.17:7201".into()) }
    }

    #[test]
    fn an_event_is_one_line_on_a_terminal() {
        let owner = || claim(8, ClaimKind::Owner);
        let events = [
            ArbiterEvent::Listening { listen: "192.168.1.17:7100".parse().unwrap(), directory: "claims".into() },
            told(ClaimKind::Owner, &Verdict::Won),
            told(ClaimKind::Owner, &Verdict::Lost(owner())),
            told(ClaimKind::Ended, &Verdict::Won),
            told(ClaimKind::Ended, &Verdict::Lost(owner())),
            told(ClaimKind::Owner, &Verdict::NotSuccessor(None)),
            told(ClaimKind::Owner, &Verdict::NotSuccessor(Some(owner()))),
        ];
        for event in events {
            let lines = on_a_terminal("ft-arbiter", &event);
            // A refusal means two arbiters or lost claims, so its line is longer.
            let is_rare = matches!(event, ArbiterEvent::Claim { refused: true, .. });
            assert!(is_rare || lines.len() == 1, "{lines:?}");
            assert!(lines.iter().all(|line| line.len() <= 80), "{lines:?}");
        }
    }

    #[test]
    fn a_generation_is_the_one_that_runs_and_the_number_of_a_claim_is_a_flag() {
        let won = told(ClaimKind::Owner, &Verdict::Won);
        let json = serde_json::to_value(&won).unwrap();
        assert_eq!([&json["flag"], &json["generation"]], [1, 2]);
        assert_eq!(won.to_string(), "vm0: generation 2 is node 00000007 at 192.168.1.17:7201");
        let lost = told(ClaimKind::Owner, &Verdict::Lost(claim(8, ClaimKind::Owner)));
        assert_eq!(lost.to_string(), "vm0: node 00000007 lost generation 2 to node 00000008");
    }
}
