//! Clients of the echo service: a UDP client that accounts for every datagram, and a mixed load of
//! TCP and UDP clients.

use hypervisor::program::client::Client;
use hypervisor::program::client::echo;
use hypervisor::program::site::cluster::PATIENCE;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most datagrams in flight.
const WINDOW: u64 = 8;

/// How long a read waits for a reply before the client checks for other work.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long the client waits for duplicates after every reply has arrived.
const LINGER: Duration = Duration::from_millis(300);

/// The account of a client's datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramTally {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams without a reply.
    pub lost: u64,
    /// Datagrams with more than one reply.
    pub doubled: u64,
    /// Replies to datagrams that were never sent.
    pub foreign: u64,
}

/// A UDP client with several datagrams in flight, on a thread of its own.
#[derive(Debug)]
pub struct DatagramClient {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<DatagramTally>>,
}

impl DatagramClient {
    /// Starts a client of the echo service at `service`.
    ///
    /// # Panics
    /// If the host has no socket for it.
    #[must_use]
    pub fn start(service: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("the host has a free port");
        socket.connect(service).expect("a UDP socket can be connected");
        socket.set_read_timeout(Some(POLL_INTERVAL)).expect("a socket takes a timeout");
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = thread::spawn(move || exchange(&socket, &stopped, &count));
        Self { stop, answered, thread }
    }

    /// The number of datagrams with a reply so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for `more` further replies.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let target = self.answered() + more;
        crate::stage::wait_until("datagrams coming back", || self.answered() >= target);
    }

    /// Stops sending, waits for the replies in flight, and returns the account.
    ///
    /// # Panics
    /// If the client failed.
    #[must_use]
    pub fn finish(self) -> DatagramTally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client doesn't panic").expect("the client's socket works")
    }
}

/// Running clients of both kinds: several TCP connections, and a UDP flow.
#[derive(Debug)]
pub struct Load {
    tcp: Vec<Client>,
    udp: DatagramClient,
}

impl Load {
    /// The TCP connections of a load.
    const CONNECTIONS: usize = 3;

    /// The replies for which a test waits to see that every client is served.
    pub const REPLIES: u64 = 300;

    /// Starts clients of the echo service at `service`, and waits until each has had its first
    /// [`REPLIES`](Self::REPLIES).
    ///
    /// # Panics
    /// If the service can't be reached, or doesn't reply.
    #[track_caller]
    #[must_use]
    pub fn on(service: SocketAddr) -> Self {
        let connect = |_| echo::tcp(service).expect("the LAN takes connections");
        let load = Self { tcp: (0..Self::CONNECTIONS).map(connect).collect(), udp: DatagramClient::start(service) };
        load.goes_on();
        load
    }

    /// The replies to all clients so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.tcp.iter().map(Client::received).sum::<u64>() + self.udp.answered()
    }

    /// Waits until no more replies arrive: outputs that were released before the guest stopped may
    /// still be on their way through the LAN. Returns the replies until then.
    ///
    /// # Panics
    /// If replies still arrive after [`PATIENCE`], so that something still serves the clients.
    #[track_caller]
    #[must_use]
    pub fn comes_to_rest(&self) -> u64 {
        let mut received = self.received();
        crate::stage::wait_until("the clients' replies to end", || {
            thread::sleep(LINGER);
            received == std::mem::replace(&mut received, self.received())
        });
        received
    }

    /// Waits until every client has had [`REPLIES`](Self::REPLIES) more.
    ///
    /// # Panics
    /// If one hasn't within [`PATIENCE`].
    #[track_caller]
    pub fn goes_on(&self) {
        for (number, client) in self.tcp.iter().enumerate() {
            let answered = client.wait_for_replies(Self::REPLIES, PATIENCE);
            assert!(answered, "TCP client {number} had {} replies, and then no more", client.received());
        }
        self.udp.wait_for(Self::REPLIES);
    }

    /// Ends the clients. Every message must have been echoed once and unchanged, on TCP also in
    /// order.
    ///
    /// # Panics
    /// If one wasn't.
    #[track_caller]
    pub fn lost_nothing(self) {
        for client in self.tcp {
            let result = client.finish();
            assert!(result.is_perfect(), "{result:?}");
        }
        let tally = self.udp.finish();
        assert!(tally.sent >= Self::REPLIES, "{tally:?}");
        assert_eq!(tally, DatagramTally { sent: tally.sent, ..DatagramTally::default() });
    }
}

/// The content of datagram `number`.
fn text(number: u64) -> String {
    format!("datagram {number} of a client that counts")
}

fn exchange(socket: &UdpSocket, stop: &AtomicBool, answered: &AtomicU64) -> io::Result<DatagramTally> {
    let (mut came_back, mut foreign): (Vec<u32>, u64) = (Vec::new(), 0);
    let mut buffer = [0; 2048];
    let mut last_news = Instant::now();
    loop {
        let outstanding = came_back.len() as u64 - answered.load(Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            let wait = if outstanding == 0 { LINGER } else { PATIENCE };
            if last_news.elapsed() > wait {
                break;
            }
        } else {
            for _ in outstanding..WINDOW {
                socket.send(text(came_back.len() as u64).as_bytes())?;
                came_back.push(0);
            }
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                last_news = Instant::now();
                match number_of(&buffer[..length], came_back.len()) {
                    Some(number) => {
                        came_back[number] += 1;
                        answered.fetch_add(u64::from(came_back[number] == 1), Ordering::Relaxed);
                    }
                    None => foreign += 1,
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    let count = |wanted: fn(u32) -> bool| came_back.iter().filter(|times| wanted(**times)).count() as u64;
    Ok(DatagramTally { sent: came_back.len() as u64, lost: count(|n| n == 0), doubled: count(|n| n > 1), foreign })
}

/// The number of the datagram that `reply` echoes, if it is one of the `sent` ones.
fn number_of(reply: &[u8], sent: usize) -> Option<usize> {
    let number = std::str::from_utf8(reply).ok()?.split(' ').nth(1)?.parse().ok()?;
    (number < sent && reply == text(number as u64).as_bytes()).then_some(number)
}
