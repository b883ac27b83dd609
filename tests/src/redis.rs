//! A client of redis that remembers every answer: one TCP connection, on which each reply says what was there before.

use crate::linux::PATIENCE;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Commands of a [`RedisLoad`] that are sent before the first one's reply is read: a kill finds some on their way.
const BATCH: u64 = 16;

/// Keys that a [`RedisLoad`] sets, one after the other, again and again: the guest's memory is small.
const KEYS: u64 = 500;

/// The counter that a [`RedisLoad`] increments.
const COUNTER: &str = "counter";

/// What redis answers, in its protocol RESP, version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A word, such as `OK`.
    Simple(String),
    /// It refuses, and says why.
    Error(String),
    /// A number.
    Integer(i64),
    /// A value; `None` if there is none.
    Bulk(Option<String>),
}

/// A connection.
#[derive(Debug)]
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    /// Connects to the redis at `service`.
    ///
    /// # Errors
    /// If nobody accepts there.
    pub fn connect(service: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(service)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command, its words separated by single spaces, and gives the reply.
    ///
    /// # Errors
    /// If the connection is lost, or something else than a redis answers.
    pub fn ask(&mut self, command: &str) -> io::Result<Reply> {
        self.send([command])?;
        self.reply()
    }

    /// Sends commands at once. There will be a reply to each.
    fn send<S: AsRef<str>>(&mut self, commands: impl IntoIterator<Item = S>) -> io::Result<()> {
        let mut text = String::new();
        for command in commands {
            let words: Vec<_> = command.as_ref().split(' ').collect();
            // Writing to a string doesn't fail.
            let _ = write!(text, "*{}\r\n", words.len());
            for word in words {
                let _ = write!(text, "${}\r\n{word}\r\n", word.len());
            }
        }
        self.stream.get_mut().write_all(text.as_bytes())
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, format!("not a reply of redis: {line:?}"));
        let Some(text) = line.strip_suffix("\r\n") else {
            return Err(if line.is_empty() { io::ErrorKind::UnexpectedEof.into() } else { foreign() });
        };
        let (kind, rest) = text.split_at_checked(1).ok_or_else(foreign)?;
        match kind {
            "+" => Ok(Reply::Simple(rest.into())),
            "-" => Ok(Reply::Error(rest.into())),
            ":" => rest.parse().map(Reply::Integer).map_err(|_| foreign()),
            "$" if rest == "-1" => Ok(Reply::Bulk(None)),
            "$" => {
                let length: usize = rest.parse().map_err(|_| foreign())?;
                let mut value = vec![0; length + 2];
                self.stream.read_exact(&mut value)?;
                value.truncate(length);
                String::from_utf8(value).map(|value| Reply::Bulk(Some(value))).map_err(|_| foreign())
            }
            _ => Err(foreign()),
        }
    }
}

/// A client at work on a thread of its own: it increments a counter and sets keys, and every reply must be what follows from
/// the ones before it.
#[derive(Debug)]
pub struct RedisLoad {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Result<u64, String>>,
}

impl RedisLoad {
    /// Replies that the client has between two looks at a test's guest.
    pub const REPLIES: u64 = 2000;

    /// Connects to the redis at `service`, which must be empty, and lets the client have its first
    /// [`REPLIES`](Self::REPLIES).
    ///
    /// # Panics
    /// If there is no redis, or it isn't right.
    #[track_caller]
    #[must_use]
    pub fn on(service: SocketAddr) -> Self {
        let redis = Redis::connect(service).expect("redis accepts connections");
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = thread::spawn(move || work(redis, &stopped, &count));
        let load = Self { stop, acknowledged, thread };
        load.goes_on();
        load
    }

    /// Waits until the client has had [`REPLIES`](Self::REPLIES) more, all of them right.
    ///
    /// # Panics
    /// If it hasn't within [`PATIENCE`]. What was wrong, [`finish`](Self::finish) tells.
    #[track_caller]
    pub fn goes_on(&self) {
        let (target, deadline) = (self.acknowledged.load(Ordering::Relaxed) + Self::REPLIES, Instant::now() + PATIENCE);
        while self.acknowledged.load(Ordering::Relaxed) < target && !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "redis had no {} replies for the client in {PATIENCE:?}", Self::REPLIES);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the client, which reads everything back on the connection that it always had. Gives the number of commands that
    /// redis acknowledged; the effect of every one of them is there, once.
    ///
    /// # Errors
    /// In words, if something is missing, or a reply was wrong, or the connection was lost.
    ///
    /// # Panics
    /// If the client's thread did.
    pub fn finish(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client doesn't panic")
    }

    /// The same where nothing may have gone wrong.
    ///
    /// # Panics
    /// If something has.
    #[track_caller]
    pub fn lost_nothing(self) -> u64 {
        self.finish().unwrap_or_else(|error| panic!("redis: {error}"))
    }
}

/// What redis must hold.
#[derive(Debug)]
struct Model {
    counter: i64,
    /// By key's number: the value that was set last.
    values: Vec<Option<String>>,
}

impl Model {
    /// Command `number` of the client: every fourth increments, the others set a value that is never set again. `GET` asks
    /// for the value that was there before.
    fn command(number: u64) -> String {
        if number.is_multiple_of(4) {
            format!("INCR {COUNTER}")
        } else {
            format!("SET key:{} {} GET", number % KEYS, value(number))
        }
    }

    /// The one right reply to command `number`, which is done with it.
    fn reply(&mut self, number: u64) -> Reply {
        if number.is_multiple_of(4) {
            self.counter += 1;
            Reply::Integer(self.counter)
        } else {
            let key = usize::try_from(number % KEYS).expect("few keys");
            Reply::Bulk(self.values[key].replace(value(number)))
        }
    }
}

fn value(number: u64) -> String {
    format!("value-{number}-of-a-client-that-counts")
}

fn work(mut redis: Redis, stop: &AtomicBool, acknowledged: &AtomicU64) -> Result<u64, String> {
    let mut model = Model { counter: 0, values: vec![None; usize::try_from(KEYS).expect("few keys")] };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let lost = |error| format!("after {} replies: {error}", acknowledged.load(Ordering::Relaxed));
        redis.send((number..number + BATCH).map(Model::command)).map_err(lost)?;
        for number in number..number + BATCH {
            check(&Model::command(number), &redis.reply().map_err(lost)?, &model.reply(number))?;
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        number += BATCH;
    }
    let held = model.values.iter().flatten().count() + usize::from(model.counter > 0);
    let held = i64::try_from(held).expect("few keys");
    let counter = Reply::Bulk(Some(model.counter.to_string()));
    let totals = [(format!("GET {COUNTER}"), counter), ("DBSIZE".into(), Reply::Integer(held))];
    let keys = model.values.into_iter().enumerate().map(|(key, value)| (format!("GET key:{key}"), Reply::Bulk(value)));
    for (command, right) in totals.into_iter().chain(keys) {
        check(&command, &redis.ask(&command).map_err(|error| error.to_string())?, &right)?;
    }
    Ok(number)
}

fn check(command: &str, reply: &Reply, right: &Reply) -> Result<(), String> {
    if reply == right { Ok(()) } else { Err(format!("{command}: {reply:?}, and {right:?} is right")) }
}
