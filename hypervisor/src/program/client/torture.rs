//! Clients that torture a key/value store or a lock service: random calls without pause, each
//! recorded, so that it can be checked afterwards that they saw one copy of it.

use super::history::{Answer, Call, History};
use super::random::Random;
use super::rpc::{CallError, NetworkFaults, RpcClient};
use super::{Client, ClientResult, Watch};
use clap::ValueEnum;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a call waits for its answer. No call may be lost, so a long time costs nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pieces that are appended to a value before it is set anew.
const PIECES: u32 = 20;

/// What is tortured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The lock service, guest `lock`
    Lock,
    /// The key/value store, guest `kv`
    Kv,
}

/// How it is tortured.
#[derive(Clone, Copy, Debug)]
pub struct Torture {
    /// Which service.
    pub target: Target,
    /// How many keys or locks there are: the fewer, the more often clients meet.
    pub keys: u32,
    /// How many calls each client makes, as far as it isn't told to stop before; it releases its
    /// locks at the end.
    pub calls: u64,
    /// What the network does on purpose.
    pub faults: NetworkFaults,
    /// Decides what each client does.
    pub seed: u64,
}

impl Torture {
    /// Starts client `number` of the service at `service`, whose calls go into `history`.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(self, service: SocketAddr, number: u32, history: History) -> io::Result<Client> {
        let mut random = Random::new(self.seed ^ (u64::from(number) << 32));
        Client::start(move |watch, result| {
            let rpc = RpcClient::open(service, PATIENCE, self.faults, Random::new(random.next_u64()))
                .map_err(io::Error::other)?;
            let client = TortureClient { torture: self, number, history, rpc, random, held: Vec::new(), made: 0 };
            client.run(watch, result).map_err(io::Error::other)
        })
    }
}

struct TortureClient {
    torture: Torture,
    number: u32,
    history: History,
    rpc: RpcClient,
    random: Random,
    /// The locks that this client has taken and not released.
    held: Vec<String>,
    /// Values that this client has made: each is made once.
    made: u64,
}

impl TortureClient {
    fn run(mut self, watch: &Watch, result: &mut ClientResult) -> Result<(), CallError> {
        let mut last_us = None;
        let ended = loop {
            let is_over = watch.is_over() || result.sent >= self.torture.calls;
            // Others wait for its locks: it releases them before it ends.
            let call = match (is_over, self.held.last()) {
                (true, None) => break Ok(()),
                (true, Some(key)) => Call::Unlock { key: key.clone() },
                (false, _) => self.next(),
            };
            result.sent += 1;
            let (rpc, history) = (&mut self.rpc, &self.history);
            match history.record(self.number, &call, |call| ask(rpc, call)) {
                Ok(answer) => {
                    result.count(watch, &mut last_us);
                    self.learn(call, &answer);
                }
                Err(error) => break Err(error),
            }
        };
        result.lost = result.sent - result.received;
        ended
    }

    fn next(&mut self) -> Call {
        let key = format!("key-{}", self.random.below(self.torture.keys));
        match self.torture.target {
            Target::Lock => self.next_of_lock(key),
            Target::Kv => self.next_of_store(key),
        }
    }

    fn next_of_lock(&mut self, key: String) -> Call {
        match self.held.last() {
            Some(held) if self.random.one_in(2) => Call::Unlock { key: held.clone() },
            // One that waits while it has a lock could wait for one that waits for it.
            None if self.random.one_in(3) => Call::Acquire { key },
            _ if self.random.one_in(20) => Call::Unlock { key },
            _ => Call::Lock { key },
        }
    }

    fn next_of_store(&mut self, key: String) -> Call {
        self.made += 1;
        let value = format!("{}.{}", self.number, self.made);
        match self.random.below(10) {
            0..3 => Call::Get { key },
            3..7 if self.random.below(PIECES) > 0 => Call::Append { key, value: format!("{value} ") },
            3..8 => Call::Put { key, value },
            // Of its own values, of which some are still there.
            _ => {
                let old = self.random.one_in(2).then(|| format!("{}.{}", self.number, self.made.saturating_sub(2)));
                Call::CompareAndSwap { key, old, value }
            }
        }
    }

    fn learn(&mut self, call: Call, answer: &Answer) {
        match call {
            Call::Lock { key } | Call::Acquire { key } => {
                if *answer == Answer::Yes {
                    self.held.push(key);
                }
            }
            Call::Unlock { key } => self.held.retain(|held| *held != key),
            Call::Get { .. } | Call::Put { .. } | Call::Append { .. } | Call::CompareAndSwap { .. } => {}
        }
    }
}

/// Makes a call.
///
/// # Errors
/// [`CallError`] if it has no answer.
pub fn ask(rpc: &mut RpcClient, call: &Call) -> Result<Answer, CallError> {
    let body = call.encode().ok_or_else(|| io::Error::other("a key or a value is too long, or the key is empty"))?;
    let reply = rpc.call(body)?;
    call.decode(&reply).ok_or_else(|| io::Error::other("the server's reply is none to this call").into())
}
