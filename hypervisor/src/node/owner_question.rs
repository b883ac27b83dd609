//! Asking a node whether it owns a VM, before that VM is claimed over its head.

use crate::os::clock;
use logchannel::entry::Generation;
use logchannel::frame::FrameDecoder;
use logchannel::message::Message;
use logchannel::session::{NodeId, VmId};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long an owner may take to answer, in nanoseconds. One that lives answers at once.
const PATIENCE_NS: u64 = 1_000_000_000;

/// The node that answers at `address`, `HOST:PORT`, that it owns `vm`, and its generation; `None`
/// if none does within a second.
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
