//! Clients of the echo service: a UDP client that accounts for every datagram, and a crowd of all
//! kinds.

use hypervisor::program::client::Client;
use hypervisor::program::client::echo;
use hypervisor::program::site::cluster::PATIENCE;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Datagrams under way at once.
const WINDOW: u64 = 8;

/// How long to look for a reply before looking around.
const LOOK: Duration = Duration::from_millis(5);

/// How long to wait for a reply that comes twice, after all have come once.
const LINGER: Duration = Duration::from_millis(300);

/// What became of the datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramTally {
    /// How many were sent.
    pub sent: u64,
    /// How many never came back.
    pub lost: u64,
    /// How many came back more than once.
    pub doubled: u64,
    /// Replies that are none of those that were sent.
    pub foreign: u64,
}

/// A UDP client with several datagrams under way, at work on a thread of its own.
#[derive(Debug)]
pub struct DatagramClient {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<DatagramTally>>,
}

impl DatagramClient {
    /// Sends to the echo service at `service`, a window of datagrams at once.
    ///
    /// # Panics
    /// If the host has no socket for it.
    #[must_use]
    pub fn start(service: SocketAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("the host has a free port");
        socket.connect(service).expect("a UDP socket can be connected");
        socket.set_read_timeout(Some(LOOK)).expect("a socket takes a timeout");
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = thread::spawn(move || exchange(&socket, &stopped, &count));
        Self { stop, answered, thread }
    }

    /// How many datagrams have come back so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `more` further datagrams have come back.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let target = self.answered() + more;
        crate::stage::wait_until("datagrams coming back", || self.answered() >= target);
    }

    /// Stops sending, waits for what is still under way, and gives the account.
    ///
    /// # Panics
    /// If the client failed.
    #[must_use]
    pub fn finish(self) -> DatagramTally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client doesn't panic").expect("the client's socket works")
    }
}

/// Clients of both kinds at work: several TCP connections, and a UDP flow.
#[derive(Debug)]
pub struct Load {
    tcp: Vec<Client>,
    udp: DatagramClient,
}

impl Load {
    /// TCP connections of a load.
    const CONNECTIONS: usize = 3;

    /// Replies that each client has between two looks at a test's guest.
    pub const REPLIES: u64 = 300;

    /// Starts clients of the echo service at `service`, and lets each have its first
    /// [`REPLIES`](Self::REPLIES).
    ///
    /// # Panics
    /// If the service can't be reached, or doesn't serve.
    #[track_caller]
    #[must_use]
    pub fn on(service: SocketAddr) -> Self {
        let connect = |_| echo::tcp(service).expect("the LAN takes connections");
        let load = Self { tcp: (0..Self::CONNECTIONS).map(connect).collect(), udp: DatagramClient::start(service) };
        load.goes_on();
        load
    }

    /// How many replies all clients have had so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.tcp.iter().map(Client::received).sum::<u64>() + self.udp.answered()
    }

    /// Waits until nothing reaches the clients any more: outputs that were released before the
    /// guest stopped may still be on their way through the LAN. Gives how many replies they have
    /// had then.
    ///
    /// # Panics
    /// If replies still arrive after [`PATIENCE`]: somebody serves the clients.
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

    /// Ends the clients: every message came back once and unchanged, on TCP in order too.
    ///
    /// # Panics
    /// If one didn't.
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

/// What datagram `number` says.
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

/// Which of the `sent` datagrams this is.
fn number_of(reply: &[u8], sent: usize) -> Option<usize> {
    let number = std::str::from_utf8(reply).ok()?.split(' ').nth(1)?.parse().ok()?;
    (number < sent && reply == text(number as u64).as_bytes()).then_some(number)
}
