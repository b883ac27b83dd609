//! Clients of an echo service: numbered messages without pause, over the host's own TCP and UDP,
//! with every reply checked.

use super::{Client, ClientResult, Watch};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// The length of every message, in bytes.
pub const MESSAGE_BYTES: usize = 64;

/// Messages in flight at once on the TCP connection.
const TCP_WINDOW: u64 = 4;

/// How long a client waits for a reply before it counts as lost. No reply may be lost, so a long
/// timeout costs nothing.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Echoes over one TCP connection to `service`.
///
/// # Errors
/// If the service can't be connected to.
pub fn tcp(service: SocketAddr) -> io::Result<Client> {
    let stream = TcpStream::connect(service)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Client::start(move |watch, result| {
        let ended = echo_tcp(stream, watch, result);
        result.lost = result.sent - result.received - result.changed;
        ended
    })
}

/// Echoes over one UDP flow to `service`, one message at a time.
///
/// # Errors
/// If the socket can't be set up.
pub fn udp(service: SocketAddr) -> io::Result<Client> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(service)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Client::start(move |watch, result| echo_udp(&socket, watch, result))
}

/// Message `number`: its number and a pattern that depends on it, so that bytes of two messages
/// can't be confused.
fn message(number: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in message.chunks_exact_mut(8) {
        state = state.rotate_left(25).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(number);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

fn echo_tcp(mut stream: TcpStream, watch: &Watch, result: &mut ClientResult) -> io::Result<()> {
    let mut last_us = None;
    let mut reply = [0; MESSAGE_BYTES];
    loop {
        while result.sent - result.received < TCP_WINDOW && !watch.is_over() {
            stream.write_all(&message(result.sent))?;
            result.sent += 1;
        }
        if result.received == result.sent {
            return Ok(());
        }
        stream.read_exact(&mut reply)?;
        if reply != message(result.received) {
            result.changed += 1;
            return Err(io::Error::other(format!("reply {} is not what was sent", result.received)));
        }
        result.count(watch, &mut last_us);
    }
}

fn echo_udp(socket: &UdpSocket, watch: &Watch, result: &mut ClientResult) -> io::Result<()> {
    let mut last_us = None;
    let mut reply = [0; MESSAGE_BYTES + 1];
    while !watch.is_over() {
        let number = result.sent;
        socket.send(&message(number))?;
        result.sent += 1;
        loop {
            match socket.recv(&mut reply) {
                Ok(length) if reply[..length] == message(number) => {
                    result.count(watch, &mut last_us);
                    break;
                }
                Ok(length) if is_earlier(&reply[..length], number) => result.out_of_order += 1,
                Ok(_) => result.changed += 1,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    result.lost += 1;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// `true` if `reply` is the right one to a message before `number`.
fn is_earlier(reply: &[u8], number: u64) -> bool {
    reply.first_chunk().is_some_and(|first| {
        let earlier = u64::from_le_bytes(*first);
        earlier < number && reply == message(earlier)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_in_every_word() {
        let (one, two) = (message(1), message(2));
        assert!(one.chunks(8).zip(two.chunks(8)).all(|(one, two)| one != two));
    }

    #[test]
    fn earlier_replies_are_told_from_changed_ones() {
        assert!(is_earlier(&message(4), 5));
        assert!(!is_earlier(&message(5), 5));
        let mut changed = message(4);
        changed[20] ^= 1;
        assert!(!is_earlier(&changed, 5));
        assert!(!is_earlier(&[1, 2], 5));
    }
}
