//! The client of `ft-arbiter`.

use super::deadline::Deadline;
use super::wire::{Answer, BODY_BYTES_MAX, Request};
use super::{Arbiter, ArbiterError, check_claim};
use ft::claim::{Claim, Verdict};
use logchannel::entry::Generation;
use logchannel::frame::FrameDecoder;
use logchannel::session::{NodeId, VmId};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// An arbiter at the other end of a TCP connection.
///
/// The connection is made when it is first needed, and kept. A call that fails on a kept connection
/// is tried once more on a new one, because the server closes connections that were idle for long,
/// and may have been restarted.
#[derive(Debug)]
pub struct TcpArbiter {
    address: String,
    timeout: Duration,
    connection: Mutex<Option<Connection>>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    decoder: FrameDecoder,
}

/// Why a call on one connection failed.
enum CallError {
    Io(io::Error),
    Protocol(String),
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl TcpArbiter {
    /// The arbiter at `address`, `HOST:PORT`. Each call takes at most `timeout`, besides the
    /// look-up of a host name.
    #[must_use]
    pub fn new(address: impl Into<String>, timeout: Duration) -> Self {
        Self { address: address.into(), timeout, connection: Mutex::new(None) }
    }

    fn ask(&self, request: &Request) -> Result<Answer, ArbiterError> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Deadline::after(self.timeout);
        // Taken out: a connection is put back only after a whole answer, so that a late answer is
        // never taken for that to a later request.
        let first = kept.take().map(|connection| connection.ask(request, deadline));
        let asked = match first {
            Some(Ok(done)) => Ok(done),
            Some(Err(CallError::Protocol(reason))) => Err(CallError::Protocol(reason)),
            Some(Err(CallError::Io(_))) | None => {
                Connection::open(&self.address, deadline).and_then(|connection| connection.ask(request, deadline))
            }
        };
        match asked {
            Ok((connection, answer)) => {
                *kept = Some(connection);
                self.check(answer)
            }
            Err(CallError::Io(source)) => Err(self.unreachable(source)),
            Err(CallError::Protocol(reason)) => Err(self.protocol(reason)),
        }
    }

    /// Turns the answers that are errors into errors.
    fn check(&self, answer: Answer) -> Result<Answer, ArbiterError> {
        match answer {
            Answer::Unreachable(reason) => Err(self.unreachable(io::Error::other(reason))),
            Answer::Failed(reason) => Err(ArbiterError::Failed { arbiter: self.spec(), reason }),
            Answer::Won | Answer::Lost(_) | Answer::NotSuccessor(_) | Answer::Latest(_) => Ok(answer),
        }
    }

    fn spec(&self) -> String {
        format!("tcp:{}", self.address)
    }

    fn unreachable(&self, source: io::Error) -> ArbiterError {
        ArbiterError::Unreachable { arbiter: self.spec(), source }
    }

    fn protocol(&self, reason: String) -> ArbiterError {
        ArbiterError::Protocol { address: self.address.clone(), reason }
    }
}

impl Arbiter for TcpArbiter {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        check_claim(claim)?;
        match self.ask(&Request::TestAndSet { vm: vm.clone(), generation, claim: claim.clone(), predecessor })? {
            Answer::Won => Ok(Verdict::Won),
            Answer::Lost(holder) => Ok(Verdict::Lost(holder)),
            Answer::NotSuccessor(holder) => Ok(Verdict::NotSuccessor(holder)),
            other @ (Answer::Latest(_) | Answer::Unreachable(_) | Answer::Failed(_)) => {
                Err(self.protocol(format!("it answers a claim with {other:?}")))
            }
        }
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        match self.ask(&Request::Latest { vm: vm.clone() })? {
            Answer::Latest(latest) => Ok(latest),
            other @ (Answer::Won
            | Answer::Lost(_)
            | Answer::NotSuccessor(_)
            | Answer::Unreachable(_)
            | Answer::Failed(_)) => Err(self.protocol(format!("it answers a look-up with {other:?}"))),
        }
    }
}

impl Connection {
    fn open(address: &str, deadline: Deadline) -> Result<Self, CallError> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, deadline.remaining()?) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Self { stream, decoder: FrameDecoder::with_body_limit(BODY_BYTES_MAX) });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure.into())
    }

    /// Asks, and returns the connection with the answer if it can be used again.
    fn ask(mut self, request: &Request, deadline: Deadline) -> Result<(Self, Answer), CallError> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        self.stream.set_write_timeout(Some(deadline.remaining()?))?;
        self.stream.write_all(&bytes)?;
        while self.decoder.missing() > 0 {
            self.stream.set_read_timeout(Some(deadline.remaining()?))?;
            match self.stream.read(self.decoder.space()) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(bytes) => self.decoder.filled(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let protocol = |error: &dyn std::error::Error| CallError::Protocol(error.to_string());
        let answer = match self.decoder.next_frame() {
            Ok(Some(frame)) => Answer::decode(frame).map_err(|error| protocol(&error))?,
            Ok(None) => unreachable!("nothing is missing of the frame"),
            Err(error) => return Err(protocol(&error)),
        };
        if self.decoder.unread().is_empty() {
            Ok((self, answer))
        } else {
            Err(CallError::Protocol("it answers more than it was asked".into()))
        }
    }
}
