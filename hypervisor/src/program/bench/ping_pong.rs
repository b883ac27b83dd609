//! A TCP ping-pong between two processes: the floor under every acknowledged message.

use crate::os::clock;
use crate::program::site::cores::on_core;
use crate::program::site::executable::Executable;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ExitCode, Stdio};

/// The size of a log frame with a short packet and an output.
const PING_BYTES: usize = 160;

/// The size of an acknowledgement.
const PONG_BYTES: usize = 16;

/// The name under which an executable answers pings: `ft-pong HOST:PORT block|spin`.
pub(super) const PONG: &str = "ft-pong";

/// How both sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PingWait {
    /// In the kernel.
    Block,
    /// By asking again and again.
    Spin,
}

/// The pinging side, and the process that answers.
#[derive(Debug)]
pub(super) struct PingPong {
    stream: TcpStream,
    pong: Child,
}

impl PingPong {
    /// Starts the process that answers, on `core`.
    pub(super) fn start(executable: &Executable, waiting: PingWait, core: usize) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let word = match waiting {
            PingWait::Block => "block",
            PingWait::Spin => "spin",
        };
        let mut command = executable.command(PONG);
        command.args([&listener.local_addr()?.to_string(), word]).stdin(Stdio::null());
        let pong = on_core(Some(core), || command.spawn())?;
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(waiting == PingWait::Spin)?;
        Ok(Self { stream, pong })
    }

    /// One round; returns its time in nanoseconds.
    pub(super) fn round(&mut self) -> io::Result<u64> {
        let started_ns = clock::now_ns();
        send(&mut self.stream, &[0; PING_BYTES])?;
        receive(&mut self.stream, &mut [0; PONG_BYTES])?;
        Ok(clock::now_ns() - started_ns)
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        let _ = self.pong.kill();
        let _ = self.pong.wait();
    }
}

/// Runs the answering process.
pub(crate) fn pong_main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, waiting] = arguments.as_slice() else { return ExitCode::FAILURE };
    // It ends when the pinging side closes the connection.
    match answer(address, waiting == "spin") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(address: &str, spin: bool) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(spin)?;
    loop {
        receive(&mut stream, &mut [0; PING_BYTES])?;
        send(&mut stream, &[0; PONG_BYTES])?;
    }
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    // This few bytes always fit into the socket's buffer, blocking or not.
    stream.write_all(bytes)
}

fn receive(stream: &mut TcpStream, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
