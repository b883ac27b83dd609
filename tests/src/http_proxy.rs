//! A proxy in front of an HTTP server. It can answer instead of the server, with or without passing
//! the request on.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// How the proxy treats requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes requests and answers on.
    Pass,
    /// Answers with this status and a page, without passing the request on.
    Away(&'static str),
    /// Passes the request on, but answers with this status and a page.
    TooLate(&'static str),
    /// Treats etcd's transactions as [`Mode::TooLate`] does, and passes other requests and answers
    /// on.
    LateForClaims(&'static str),
}

/// A proxy that runs until the process ends.
#[derive(Debug)]
pub struct HttpProxy {
    address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
}

impl HttpProxy {
    /// Starts a proxy in front of the server at `server`, at a port of its own.
    ///
    /// # Panics
    /// If the host has no port left.
    #[must_use]
    pub fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Self {
            address: listener.local_addr().expect("a bound socket has an address"),
            mode: Arc::new(Mutex::new(Mode::Pass)),
        };
        let (mode, server) = (proxy.mode.clone(), server.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (mode, server) = (mode.clone(), server.clone());
                thread::spawn(move || serve(&client, &server, &mode));
            }
        });
        proxy
    }

    /// The proxy's address.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes how requests are treated from now on.
    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

/// Serves the requests of one connection, until its client leaves.
fn serve(client: &TcpStream, server: &str, mode: &Mutex<Mode>) -> io::Result<()> {
    let mut requests = BufReader::new(client);
    loop {
        let request = read_message(&mut requests)?;
        let now = *mode.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match now {
            Mode::Pass => pass_on(server, &request)?,
            Mode::Away(status) => page(status),
            Mode::LateForClaims(_) if !request.starts_with(b"POST /v3/kv/txn ") => pass_on(server, &request)?,
            Mode::TooLate(status) | Mode::LateForClaims(status) => pass_on(server, &request).map(|_| page(status))?,
        };
        (&mut &*client).write_all(&answer)?;
    }
}

fn pass_on(server: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(server)?;
    connection.write_all(request)?;
    read_message(&mut BufReader::new(connection))
}

fn page(status: &str) -> Vec<u8> {
    let body = format!("<html><head><title>{status}</title></head><body>nginx</body></html>");
    format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Reads a whole request or answer: its head, and as many bytes as the head says.
fn read_message(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    let mut length = 0;
    loop {
        let begin = message.len();
        if from.read_until(b'\n', &mut message)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&message[begin..]).to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    from.take(length).read_to_end(&mut message)?;
    Ok(message)
}
