//! The arbiter: a durable test-and-set per VM and generation, so that of a broken pair exactly one
//! goes on.
//!
//! ```text
//!   FileArbiter (file:DIR) ──► DIR/<vm>/<generation>.claim, made by link(2)
//!   TcpArbiter (tcp:HOST:PORT) ──► ft-arbiter (server) ──► FileArbiter
//!   EtcdArbiter (etcd://HOST:PORT,...) ──► etcd: /ft-arbiter/<vm>/<generation>, made by a transaction
//! ```
//! Claims are only ever added. A claim of generation `g` makes its node the owner as the generation
//! after `g`. A claim names its predecessor, the node that the claimer knows as the holder of the
//! flag before: a flag is granted only behind that one. So two arbiters that agree on a number, but
//! not on the node, don't both let a side of one pair go on.
//!
//! Source: Scales et al. 2010, §2.3 "Detecting and Responding to Failure".

mod base64;
mod deadline;
mod etcd;
mod file;
mod record;
pub mod server;
mod tcp;
mod wire;

pub use etcd::EtcdArbiter;
pub use file::FileArbiter;
pub use tcp::TcpArbiter;

use crate::os::address::check_form;
use ft::claim::{ADDRESS_BYTES_MAX, Claim, Verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why an arbiter gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The spec names no arbiter.
    #[error("`{spec}` is no arbiter: {reason}; use file:DIR, tcp:HOST:PORT or etcd://HOST:PORT[,HOST:PORT...]")]
    BadSpec {
        /// The spec as it was given.
        spec: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory isn't fit to hold claims.
    #[error("can't keep claims in {}: {source}; it must be writable and on a file system with hard links", .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A claim can't be read: its holder can neither be ignored nor named.
    #[error("the claim {claim} is unreadable: {reason}; find out who wrote it")]
    BadClaim {
        /// The name of the claim.
        claim: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The arbiter over the network answers that an operator must repair it first.
    #[error("the arbiter {arbiter} can't decide: {reason}")]
    Failed {
        /// The arbiter, as in its spec.
        arbiter: String,
        /// Its reason.
        reason: String,
    },
    /// The claim's address is too long to be recorded.
    #[error("a claim's address of {bytes} bytes; at most {ADDRESS_BYTES_MAX} are allowed")]
    AddressTooLong {
        /// The length of the address.
        bytes: usize,
    },
    /// The peer doesn't speak this version of the arbiter's protocol.
    #[error("what listens at {address} is no arbiter for this build: {reason}")]
    Protocol {
        /// The address.
        address: String,
        /// What it did wrong.
        reason: String,
    },
    /// There is no answer now. The request may or may not have been recorded; asking again, with
    /// the same claim, tells.
    #[error("no answer from the arbiter {arbiter}: {source}")]
    Unreachable {
        /// The arbiter, as in its spec.
        arbiter: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl ArbiterError {
    /// `true` if asking again can help; otherwise an operator must act.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A durable test-and-set per VM and generation.
///
/// Calls block until the answer is durable, or a timeout has passed.
pub trait Arbiter: Send + Sync + fmt::Debug {
    /// Claims `generation` of `vm`, if it is free and `predecessor` holds the flag before it; the
    /// first flag has no predecessor.
    ///
    /// Exactly one node ever wins a generation. It wins again whenever it asks again, because the
    /// first answer may have been lost; its first claim stays. The predecessor is checked in one
    /// step with the test-and-set.
    ///
    /// # Errors
    /// [`ArbiterError::Unreachable`]: the caller asks again, and may not go on before it has an
    /// answer. All others are for an operator.
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError>;

    /// The latest generation of `vm` that has been claimed, and its claim.
    ///
    /// # Errors
    /// As [`Arbiter::test_and_set`].
    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError>;
}

/// Opens the arbiter that `spec` names: `file:DIR`, `tcp:HOST:PORT` or
/// `etcd://HOST:PORT[,HOST:PORT...]`. `timeout` bounds each call to an arbiter over the network.
///
/// # Errors
/// [`ArbiterError::BadSpec`] or [`ArbiterError::Directory`]. An arbiter over the network is not
/// asked yet.
pub fn open(spec: &str, timeout: Duration) -> Result<Box<dyn Arbiter>, ArbiterError> {
    const NO_ADDRESS: &str = "it names no host and port";
    const NO_TLS: &str = "etcd is spoken to by plain HTTP only, as yet, over a network that you trust";
    let bad = |reason| ArbiterError::BadSpec { spec: spec.to_owned(), reason };
    match spec.split_once(':') {
        Some(("file", "")) => Err(bad("it names no directory")),
        Some(("file", directory)) => Ok(Box::new(FileArbiter::open(directory)?)),
        Some(("tcp", address)) if is_host_and_port(address) => Ok(Box::new(TcpArbiter::new(address, timeout))),
        Some(("tcp", _)) => Err(bad(NO_ADDRESS)),
        Some(("https" | "etcds", _)) => Err(bad(NO_TLS)),
        Some(("etcd", rest)) => match rest.strip_prefix("//") {
            Some(members) if members.contains("https://") => Err(bad(NO_TLS)),
            Some(members) if members.split(',').all(is_host_and_port) => {
                Ok(Box::new(EtcdArbiter::new(members.split(','), timeout)))
            }
            Some(_) | None => Err(bad(NO_ADDRESS)),
        },
        _ => Err(bad("it begins with none of file:, tcp: and etcd://")),
    }
}

/// Whether `address` is a host, by name or address, and a port that can be connected to.
fn is_host_and_port(address: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    check_form(address).is_ok() && address.rsplit_once(':').is_some_and(|(_, port)| is_port(port))
}

/// Checks a claim before it is recorded.
fn check_claim(claim: &Claim) -> Result<(), ArbiterError> {
    match claim.address.as_ref().map_or(0, String::len) {
        bytes if bytes > ADDRESS_BYTES_MAX => Err(ArbiterError::AddressTooLong { bytes }),
        _ => Ok(()),
    }
}
