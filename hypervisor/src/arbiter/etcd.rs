//! Claims as keys of etcd: `/ft-arbiter/<vm>/<generation in 20 digits>`, so that their order is
//! that of the generations.
//!
//! A claim is one transaction, "if the key was never created, and the one before it has this value,
//! create it, else read both", sent to etcd's HTTP JSON gateway and decided by its answer alone: no
//! lease that could run out, no lock that could be lost. The value of the key before is read first,
//! unless it was the last that was seen, and is its predecessor's whole claim. Transactions and
//! reads are linearizable, so an answer is a majority's, and outlives any minority of the members.
//!
//! Members are asked in turn until one answers. Asking a second member for what the first one may
//! have done already changes nothing, because the claim is the same. Deliberately absent: TLS, and
//! etcd's users and passwords.
//!
//! A proxy in front of etcd answers for it while etcd is away: with a status that says so (429,
//! 5xx, and some others, whatever the body), or with a page of its own. Neither says whether etcd
//! has done what was asked, so the same is asked again. An answer that can't be etcd's is an error
//! for the operator only as long as no etcd has answered here yet: then the address is wrong.

use super::deadline::Deadline;
use super::{Arbiter, ArbiterError, base64, check_claim, record};
use ft::claim::{Claim, Verdict, before, is_successor, verdict};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use ureq::Agent;

/// The prefix of all keys.
const ROOT: &str = "/ft-arbiter";

/// The longest answer, in bytes: a claim in base64, a key, and numbers.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// How many characters of an answer an error message quotes.
const QUOTE_CHARS_MAX: usize = 200;

/// How long connecting may take: the host of a member that is down doesn't answer.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// An arbiter that is an etcd cluster.
#[derive(Debug)]
pub struct EtcdArbiter {
    members: Vec<String>,
    timeout: Duration,
    agent: Agent,
    /// The member that answered last; it is asked first.
    preferred: AtomicUsize,
    /// The cluster id of the first member that answered. Another cluster doesn't have its claims.
    cluster: OnceLock<String>,
    /// The last claim that was looked up, with its key: it saves a failover one request.
    seen: Mutex<Option<KeyValue>>,
}

/// Why one member gave no answer.
enum MemberError {
    /// It can't be reached, or says that it can't answer now.
    Unreachable(String),
    /// It answers with an error that an operator must repair.
    Failed(String),
    /// The answer is not etcd's, as far as is known here, or is of another cluster.
    Protocol(String),
}

impl MemberError {
    fn reason(&self) -> &str {
        let (Self::Unreachable(reason) | Self::Failed(reason) | Self::Protocol(reason)) = self;
        reason
    }
}

/// A transaction: what to do if all comparisons hold, and if not.
#[derive(Serialize)]
struct TransactionRequest {
    compare: Vec<Comparison>,
    success: [Operation; 1],
    failure: Vec<Operation>,
}

#[derive(Serialize)]
struct Comparison {
    target: &'static str,
    result: &'static str,
    key: String,
    #[serde(flatten)]
    expected: Expected,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Expected {
    CreateRevision(&'static str),
    Value(String),
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    RequestPut { key: String, value: String },
    RequestRange { key: String },
}

/// A read of one key.
#[derive(Serialize)]
struct KeyRequest<'a> {
    key: &'a str,
}

/// A read of the last key of a range.
#[derive(Serialize)]
struct RangeRequest {
    key: String,
    range_end: String,
    sort_order: &'static str,
    sort_target: &'static str,
    limit: &'static str,
}

/// Any answer. etcd leaves out what is false, zero or empty, but never the header.
#[derive(Deserialize)]
struct Answer<T> {
    header: Header,
    #[serde(flatten)]
    body: T,
}

#[derive(Deserialize)]
struct Header {
    cluster_id: String,
}

#[derive(Deserialize)]
struct Transaction {
    #[serde(default)]
    succeeded: bool,
    responses: Vec<Response>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Response {
    ResponsePut(serde::de::IgnoredAny),
    ResponseRange(Range),
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

/// A key and its value, both in base64.
#[derive(Clone, Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

/// The body of an answer with a status other than 200.
#[derive(Deserialize)]
struct Failure {
    /// A gRPC status code.
    code: u32,
    message: String,
}

impl EtcdArbiter {
    /// The arbiter in the etcd cluster of `members`, each the `HOST:PORT` of a client URL. Name all
    /// of them: a member that isn't named isn't asked. Each call takes at most `timeout`.
    #[must_use]
    pub fn new<'a>(members: impl IntoIterator<Item = &'a str>, timeout: Duration) -> Self {
        // Members are asked directly, without the proxy that the environment names, and may not
        // redirect their clients.
        let config = Agent::config_builder().proxy(None).max_redirects(0).http_status_as_error(false);
        Self {
            members: members.into_iter().map(str::to_owned).collect(),
            timeout,
            agent: config.timeout_connect(Some(CONNECT_TIMEOUT)).build().into(),
            preferred: AtomicUsize::new(0),
            cluster: OnceLock::new(),
            seen: Mutex::new(None),
        }
    }

    /// Asks the members in turn, the last that answered first, each for its share of the time that
    /// is left.
    ///
    /// `understand` extracts the result from an answer; it returns `None` if etcd gives no such
    /// answer.
    fn ask<T: DeserializeOwned, U>(
        &self,
        path: &str,
        request: &impl Serialize,
        understand: impl Fn(T) -> Option<U>,
    ) -> Result<U, ArbiterError> {
        let request = serde_json::to_vec(request).expect("texts and numbers can be written as JSON");
        let deadline = Deadline::after(self.timeout);
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut errors = Vec::new();
        for asked in 0..self.members.len() {
            let index = (preferred + asked) % self.members.len();
            let member = &self.members[index];
            let left = u32::try_from(self.members.len() - asked).unwrap_or(u32::MAX);
            let share = deadline.remaining().map(|remaining| remaining / left);
            let answer = share
                .map_err(|error| MemberError::Unreachable(error.to_string()))
                .and_then(|share| self.ask_member(member, path, &request, share))
                .and_then(|Answer { header, body }| {
                    let answer = understand(body).ok_or_else(|| self.strange("it answers something else".into()))?;
                    self.check_cluster(&header.cluster_id)?;
                    Ok(answer)
                });
            match answer {
                Ok(answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(refusal) => errors.push((member.as_str(), refusal)),
            }
        }
        Err(self.no_answer(&errors))
    }

    fn ask_member<T: DeserializeOwned>(
        &self,
        member: &str,
        path: &str,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Answer<T>, MemberError> {
        let call = self.agent.post(format!("http://{member}/v3/kv/{path}")).content_type("application/json");
        let response = call.config().timeout_global(Some(timeout)).build().send(request);
        let mut response = response.map_err(|error| self.unanswered(error))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        if status != 200 {
            // Without a body, because it is too long for example, the status says enough.
            return Err(self.refused(status, &body.unwrap_or_default()));
        }
        let body = body.map_err(|error| self.unanswered(error))?;
        serde_json::from_slice(&body).map_err(|error| self.strange(format!("{error} in its answer {}", quote(&body))))
    }

    /// Checks that an answer is of the cluster that answered first.
    fn check_cluster(&self, found: &str) -> Result<(), MemberError> {
        match self.cluster.get_or_init(|| found.to_owned()) {
            cluster if *cluster == found => Ok(()),
            cluster => Err(MemberError::Protocol(format!(
                "it is of the etcd cluster {}, not of {}",
                quote(found.as_bytes()),
                quote(cluster.as_bytes())
            ))),
        }
    }

    /// The error for all members' errors: as long as one member may answer later, so may the
    /// arbiter.
    fn no_answer(&self, errors: &[(&str, MemberError)]) -> ArbiterError {
        let unreachable = |(_, refusal): &(&str, MemberError)| matches!(refusal, MemberError::Unreachable(_));
        match errors {
            [(_, MemberError::Failed(reason)), others @ ..] if !others.iter().any(unreachable) => {
                ArbiterError::Failed { arbiter: self.spec(), reason: reason.clone() }
            }
            [(member, MemberError::Protocol(reason)), others @ ..] if !others.iter().any(unreachable) => {
                ArbiterError::Protocol { address: (*member).into(), reason: reason.clone() }
            }
            all => {
                let reasons: Vec<String> =
                    all.iter().map(|(member, refusal)| format!("{member}: {}", refusal.reason())).collect();
                let source = io::Error::other(reasons.join("; "));
                ArbiterError::Unreachable { arbiter: self.spec(), source }
            }
        }
    }

    /// Why there is no whole answer.
    fn unanswered(&self, error: ureq::Error) -> MemberError {
        use ureq::Error::{BadUri, BodyExceedsLimit, Http, LargeResponseHeader, Protocol};
        if matches!(error, Protocol(_) | LargeResponseHeader(..) | BodyExceedsLimit(_) | Http(_) | BadUri(_)) {
            self.strange(error.to_string())
        } else {
            MemberError::Unreachable(error.into_io().to_string())
        }
    }

    /// The refusal in an answer with an HTTP `status` other than 200.
    fn refused(&self, status: u16, body: &[u8]) -> MemberError {
        let said = serde_json::from_slice::<Failure>(body).ok();
        let reason = said.as_ref().map_or_else(
            || format!("HTTP status {status}, {}", quote(body)),
            |said| format!("it says {}", quote(said.message.as_bytes())),
        );
        match said {
            _ if is_passing(status) => MemberError::Unreachable(reason),
            // Invalid argument, not found, permission denied, failed precondition, unimplemented,
            // unauthenticated.
            Some(Failure { code: 3 | 5 | 7 | 9 | 12 | 16, .. }) => MemberError::Failed(reason),
            // No leader, timed out, overloaded, no space left: these pass.
            Some(_) => MemberError::Unreachable(reason),
            None => self.strange(reason),
        }
    }

    /// An answer that can't be etcd's: it comes from a proxy if an etcd has answered here already.
    fn strange(&self, reason: String) -> MemberError {
        if self.cluster.get().is_some() { MemberError::Unreachable(reason) } else { MemberError::Protocol(reason) }
    }

    fn spec(&self) -> String {
        format!("etcd://{}", self.members.join(","))
    }

    /// The claim at `key`, as it was seen last or is now.
    fn look_up(&self, key: &str) -> Result<Option<KeyValue>, ArbiterError> {
        let seen = self.seen().take().filter(|seen| seen.key == key);
        if seen.is_some() {
            return Ok(seen);
        }
        self.ask("range", &KeyRequest { key }, |range: Range| range.holder(key))
    }

    fn seen(&self) -> MutexGuard<'_, Option<KeyValue>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the transaction: the claim that `flag` has, and the one that the flag before has;
    /// `None` if it was made.
    fn claim(&self, flag: &KeyValue, before: Option<KeyValue>) -> Result<Option<Holders>, ArbiterError> {
        let before_key = before.as_ref().map(|before| before.key.clone());
        let KeyValue { key, value } = flag.clone();
        // A key that doesn't exist has the create revision 0.
        let expected = Expected::CreateRevision("0");
        let mut compare = vec![Comparison { target: "CREATE", result: "EQUAL", key: key.clone(), expected }];
        let mut failure = vec![Operation::RequestRange { key: key.clone() }];
        if let Some(KeyValue { key, value }) = before {
            failure.push(Operation::RequestRange { key: key.clone() });
            compare.push(Comparison { target: "VALUE", result: "EQUAL", key, expected: Expected::Value(value) });
        }
        let success = [Operation::RequestPut { key, value }];
        let transaction = TransactionRequest { compare, success, failure };
        self.ask("txn", &transaction, |Transaction { succeeded, responses }| {
            let mut ranges = responses.into_iter().map(|response| match response {
                Response::ResponsePut(_) => None,
                Response::ResponseRange(range) => Some(range),
            });
            match (succeeded, ranges.next()?, ranges.next(), ranges.next()) {
                (true, None, None, None) => Some(None),
                (false, Some(flag_range), before_range, None) => {
                    let before = match (&before_key, before_range) {
                        (Some(key), Some(range)) => range?.holder(key)?,
                        (None, None) => None,
                        _ => return None,
                    };
                    let flag = flag_range.holder(&flag.key)?;
                    // Without another condition it is the flag that is taken.
                    (flag.is_some() || before_key.is_some()).then_some(Some(Holders { flag, before }))
                }
                _ => None,
            }
        })
    }
}

/// The claims of a flag and of the one before it.
struct Holders {
    flag: Option<KeyValue>,
    before: Option<KeyValue>,
}

impl Range {
    /// The claim at `key`, if there is one; `None` if the range is of anything else.
    fn holder(self, key: &str) -> Option<Option<KeyValue>> {
        match self.kvs.len() {
            0 => Some(None),
            _ => only(self.kvs).filter(|found| found.key == key).map(Some),
        }
    }
}

impl Arbiter for EtcdArbiter {
    fn test_and_set(
        &self,
        vm: &VmId,
        generation: Generation,
        claim: &Claim,
        predecessor: Option<NodeId>,
    ) -> Result<Verdict, ArbiterError> {
        check_claim(claim)?;
        let key_of = |generation| base64::encode(key(vm, generation).as_bytes());
        let flag = KeyValue {
            key: key_of(generation),
            value: base64::encode(record::write(vm, generation, claim).as_bytes()),
        };
        let mut found = None;
        if let Some(before) = before(generation) {
            found = self.look_up(&key_of(before))?;
            // The claim in `seen` may have been lost and replaced since; the second time it is read
            // from etcd.
            if !is_successor(generation, predecessor, claim_of(found.as_ref(), vm, before)?.as_ref()) {
                found = self.look_up(&key_of(before))?;
            }
        }
        let holder_before = |found: Option<&KeyValue>| match before(generation) {
            Some(before) => claim_of(found, vm, before),
            None => Ok(None),
        };
        let holder = holder_before(found.as_ref())?;
        let holders = if is_successor(generation, predecessor, holder.as_ref()) {
            self.claim(&flag, found)?
        } else {
            Some(Holders { flag: self.look_up(&flag.key)?, before: found })
        };
        let Some(Holders { flag, before }) = holders else { return Ok(Verdict::Won) };
        if let Some(holder) = claim_of(flag.as_ref(), vm, generation)? {
            return Ok(verdict(claim, holder));
        }
        let holder = holder_before(before.as_ref())?;
        if is_successor(generation, predecessor, holder.as_ref()) {
            let changed = io::Error::other("the claim before has changed while it was looked at");
            return Err(ArbiterError::Unreachable { arbiter: self.spec(), source: changed });
        }
        Ok(Verdict::NotSuccessor(holder))
    }

    fn latest(&self, vm: &VmId) -> Result<Option<(Generation, Claim)>, ArbiterError> {
        // All keys that continue with a digit: ':' is the character after '9'.
        let prefix = prefix(vm);
        let request = RangeRequest {
            key: base64::encode(format!("{prefix}0").as_bytes()),
            range_end: base64::encode(format!("{prefix}:").as_bytes()),
            sort_order: "DESCEND",
            sort_target: "KEY",
            limit: "1",
        };
        let last = self.ask("range", &request, |Range { kvs }| match kvs.len() {
            0 => Some(None),
            _ => only(kvs).map(Some),
        })?;
        let Some(last) = last else { return Ok(None) };
        let generation = claimed_generation(&last.key, vm).ok_or_else(|| ArbiterError::BadClaim {
            claim: quote(&base64::decode(&last.key).unwrap_or_default()),
            reason: "no claim has this key".into(),
        })?;
        let claim = read(&last, vm, generation)?;
        *self.seen() = Some(last);
        Ok(Some((generation, claim)))
    }
}

fn prefix(vm: &VmId) -> String {
    format!("{ROOT}/{vm}/")
}

fn key(vm: &VmId, generation: Generation) -> String {
    format!("{}{:020}", prefix(vm), generation.0)
}

/// The generation of `vm` that a key in base64 is the claim of.
fn claimed_generation(key_base64: &str, vm: &VmId) -> Option<Generation> {
    let found = String::from_utf8(base64::decode(key_base64)?).ok()?;
    let generation = Generation(found.strip_prefix(&prefix(vm))?.parse().ok()?);
    (key(vm, generation) == found).then_some(generation)
}

fn read(found: &KeyValue, vm: &VmId, generation: Generation) -> Result<Claim, ArbiterError> {
    base64::decode(&found.value)
        .ok_or_else(|| "its value is not base64".into())
        .and_then(|text| record::read(&text, vm, generation))
        .map_err(|reason| ArbiterError::BadClaim { claim: format!("{} in etcd", key(vm, generation)), reason })
}

/// The claim of `generation` that `found` is, if anything was found.
fn claim_of(found: Option<&KeyValue>, vm: &VmId, generation: Generation) -> Result<Option<Claim>, ArbiterError> {
    found.map(|found| read(found, vm, generation)).transpose()
}

/// The only one of `values`; `None` if there are none or more.
fn only<T>(values: Vec<T>) -> Option<T> {
    <[T; 1]>::try_from(values).ok().map(|[value]| value)
}

/// `true` for an HTTP status by which etcd can't answer now: a timeout, too early, too many
/// requests, or a server error. Not 501, by which etcd says that it lacks what is asked for.
const fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502..=599)
}

/// The beginning of a peer's text, fit for an error message.
fn quote(text: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(text).chars().take(QUOTE_CHARS_MAX).collect::<String>())
}
