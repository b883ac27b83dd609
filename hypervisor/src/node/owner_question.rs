//! Asks the last owner of a VM whether it still runs, before another node claims that VM.

use crate::os::clock;
use logchannel::entry::Generation;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::{NodeId, VmId};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long the owner may take to answer, in nanoseconds; a live one answers at once.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Asks at `address`, `HOST:PORT`, for the owner of `vm`. Returns its node and generation, or
/// `None` without such an answer within a second.
#[must_use]
pub fn ask_owner(address: &str, vm: &VmId) -> Option<(NodeId, Generation)> {
    let until_ns = clock::now_ns() + PATIENCE_NS;
    let remaining = || match until_ns.saturating_sub(clock::now_ns()) {
        0 => None,
        left_ns => Some(Duration::from_nanos(left_ns)),
    };
    let address = address.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&address, remaining()?).ok()?;
    let mut question = Vec::new();
    Message::AskOwner { vm: vm.clone() }.encode(&mut question);
    stream.set_write_timeout(remaining()).ok()?;
    stream.write_all(&question).ok()?;
    let mut decoder = FrameDecoder::new();
    loop {
        if let Some(frame) = decoder.next_frame().ok()? {
            return match Message::decode(frame) {
                Ok(Message::Owner { node, generation }) => Some((node, generation)),
                Ok(_) | Err(_) => None,
            };
        }
        stream.set_read_timeout(Some(remaining()?)).ok()?;
        match stream.read(decoder.space()).ok()? {
            0 => return None,
            bytes => decoder.filled(bytes),
        }
    }
}
