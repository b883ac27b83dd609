//! Calls over UDP that are executed at most once: [`services::rpc`] on a socket.

use super::random::Random;
use crate::os::clock;
use crate::program::cli::interrupt::{self, Interrupted};
use services::rpc::client::{Answer, Client};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// The longest wait before it is looked whether the operator has interrupted the program.
const LOOK_NS: u64 = 100_000_000;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server was silent for as long as the caller waits.
    #[error("no answer from {service} within {} s", .patience.as_secs())]
    Unanswered {
        /// The server.
        service: SocketAddr,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The server has dropped the session for others.
    #[error("the server has dropped this session; whether the last call was executed isn't known")]
    Expired,
    /// The socket failed.
    #[error("can't speak to the server: {0}")]
    Socket(#[from] io::Error),
    /// The operator doesn't want to wait.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What a network does to datagrams on purpose, in both directions, to see that calls are executed
/// once all the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkFaults {
    /// How many in a hundred are lost.
    pub lost_percent: u32,
    /// How many in a hundred requests are sent twice.
    pub doubled_percent: u32,
}

/// A client's session with a server.
#[derive(Debug)]
pub struct RpcClient {
    service: SocketAddr,
    socket: UdpSocket,
    client: Client,
    patience: Duration,
    faults: NetworkFaults,
    random: Random,
}

impl RpcClient {
    /// Opens a session with the server at `service`. Each call waits for its answer for as long as
    /// `patience`.
    ///
    /// # Errors
    /// [`CallError`] if the server doesn't answer.
    pub fn open(
        service: SocketAddr,
        patience: Duration,
        faults: NetworkFaults,
        mut random: Random,
    ) -> Result<Self, CallError> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(service)?;
        let client = Client::open(clock::now_ns(), random.next_u64());
        let mut client = Self { service, socket, client, patience, faults, random };
        match client.wait()? {
            Answer::Opened => Ok(client),
            Answer::Done(_) | Answer::Expired => Err(CallError::Expired),
        }
    }

    /// Calls, and returns the reply.
    ///
    /// # Errors
    /// [`CallError`] if there is none: the call may have been executed, or may still be.
    pub fn call(&mut self, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
        self.client.call(clock::now_ns(), body);
        match self.wait()? {
            Answer::Done(body) => Ok(body),
            Answer::Opened | Answer::Expired => Err(CallError::Expired),
        }
    }

    /// How many times a request had to be sent again.
    #[must_use]
    pub const fn retries(&self) -> u64 {
        self.client.retries()
    }

    fn wait(&mut self) -> Result<Answer, CallError> {
        let deadline_ns = clock::now_ns().saturating_add(u64::try_from(self.patience.as_nanos()).unwrap_or(u64::MAX));
        let mut datagram = [0; 2048];
        loop {
            let now_ns = clock::now_ns();
            if now_ns >= deadline_ns {
                return Err(CallError::Unanswered { service: self.service, patience: self.patience });
            }
            interrupt::check()?;
            self.send(now_ns)?;
            let due_ns = self.client.due_ns().unwrap_or(now_ns).min(deadline_ns);
            let wait_ns = due_ns.saturating_sub(now_ns).clamp(1_000, LOOK_NS);
            self.socket.set_read_timeout(Some(Duration::from_nanos(wait_ns)))?;
            match self.socket.recv(&mut datagram) {
                Ok(length) => {
                    if self.random.below(100) >= self.faults.lost_percent
                        && let Some(answer) = self.client.handle(&datagram[..length])
                    {
                        return Ok(answer);
                    }
                }
                // The server's host says that nobody listens, as yet or any more: it is asked
                // again, as one that is silent.
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a copy of the request, if one is due.
    fn send(&mut self, now_ns: u64) -> io::Result<()> {
        let Some(datagram) = self.client.poll(now_ns) else { return Ok(()) };
        let copies = match self.random.below(100) {
            drawn if drawn < self.faults.lost_percent => 0,
            drawn if drawn < self.faults.lost_percent + self.faults.doubled_percent => 2,
            _ => 1,
        };
        for _ in 0..copies {
            match self.socket.send(datagram) {
                Err(error) if !is_passing(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// `true` for an error after which the next try may succeed.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}
