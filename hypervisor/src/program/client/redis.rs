//! A client of redis that remembers every answer: one TCP connection, on which each reply says what
//! was there before.

use super::{Client, ClientResult, Watch};
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Commands that the client sends before it reads the first one's reply, so that a kill finds some
/// in flight.
const BATCH: u64 = 16;

/// Keys that the client sets, one after the other, again and again: the guest's memory is small.
const KEYS: u64 = 500;

/// The counter that the client increments.
const COUNTER: &str = "counter";

/// How long a reply may take before it counts as lost. No reply may be lost, so a long timeout
/// costs nothing.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a client of the redis at `service`, which must be empty, over one connection: it increments
/// a counter and sets keys, and every reply must follow from the ones before. At its end it reads
/// everything back: the effect of every acknowledged command is there, once.
///
/// # Errors
/// If redis can't be connected to.
pub fn start(service: SocketAddr) -> io::Result<Client> {
    let redis = Redis::connect(service)?;
    Client::start(move |watch, result| {
        let ended = work(redis, watch, result);
        result.lost = result.sent - result.received - result.changed;
        ended
    })
}

/// What redis answers, in its protocol RESP, version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A word, such as `OK`.
    Simple(String),
    /// An error, with its text.
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
    /// If the connection is refused.
    pub fn connect(service: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(service)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command, its words separated by single spaces, and returns the reply.
    ///
    /// # Errors
    /// If the connection is lost, or something else than a redis answers.
    pub fn ask(&mut self, command: &str) -> io::Result<Reply> {
        self.send([command])?;
        self.reply()
    }

    /// Sends several commands at once; a reply comes for each.
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

/// The contents that redis must have.
#[derive(Debug)]
struct Model {
    counter: i64,
    /// The value that was set last, by the key's number.
    values: Vec<Option<String>>,
}

impl Model {
    /// Command `number` of the client: every fourth increments, the others set a value that is
    /// never set again. `GET` asks for the value that was there before.
    fn command(number: u64) -> String {
        if number.is_multiple_of(4) {
            format!("INCR {COUNTER}")
        } else {
            format!("SET key:{} {} GET", number % KEYS, value(number))
        }
    }

    /// Applies command `number`, and returns its one right reply.
    fn reply(&mut self, number: u64) -> Reply {
        if number.is_multiple_of(4) {
            self.counter += 1;
            Reply::Integer(self.counter)
        } else {
            let key = usize::try_from(number % KEYS).expect("few keys");
            Reply::Bulk(self.values[key].replace(value(number)))
        }
    }

    /// Reads everything from redis, and compares it.
    fn read_back(self, redis: &mut Redis) -> io::Result<()> {
        let held = self.values.iter().flatten().count() + usize::from(self.counter > 0);
        let held = Reply::Integer(i64::try_from(held).expect("few keys"));
        let counter = Reply::Bulk(Some(self.counter.to_string()));
        let totals = [(format!("GET {COUNTER}"), counter), ("DBSIZE".into(), held)];
        let keys = self.values.into_iter().enumerate();
        let keys = keys.map(|(key, value)| (format!("GET key:{key}"), Reply::Bulk(value)));
        for (command, right) in totals.into_iter().chain(keys) {
            check(&command, &redis.ask(&command)?, &right)?;
        }
        Ok(())
    }
}

fn value(number: u64) -> String {
    format!("value-{number}-of-a-client-that-counts")
}

fn work(mut redis: Redis, watch: &Watch, result: &mut ClientResult) -> io::Result<()> {
    let mut model = Model { counter: 0, values: vec![None; usize::try_from(KEYS).expect("few keys")] };
    let mut last_us = None;
    while !watch.is_over() {
        let batch = result.sent..result.sent + BATCH;
        redis.send(batch.clone().map(Model::command))?;
        result.sent = batch.end;
        for number in batch {
            let reply = redis.reply()?;
            check(&Model::command(number), &reply, &model.reply(number)).inspect_err(|_| result.changed += 1)?;
            result.count(watch, &mut last_us);
        }
    }
    model.read_back(&mut redis)
}

fn check(command: &str, reply: &Reply, right: &Reply) -> io::Result<()> {
    if reply == right { Ok(()) } else { Err(io::Error::other(format!("{command}: {reply:?}, and {right:?} is right"))) }
}
