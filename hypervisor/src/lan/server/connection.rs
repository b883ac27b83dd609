//! The connections to VM and QEMU ports: a task for each, which reads and writes.

use super::{Entered, PeerLine, ServerState};
use crate::lan::attachment::Attachment;
use crate::lan::cutter::{Cutter, Prefix};
use crate::lan::fabric::{PortLost, STREAM_PACKET_BYTES_MAX};
use crate::lan::wire::{ClientMessage, MESSAGE_BYTES_MAX, ServerMessage, WireError};
use crate::os::accept::AcceptTrouble;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// How long a connection to a VM port may take to attach.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that is being closed may take to read its last message.
const PART_TIMEOUT: Duration = Duration::from_secs(1);
/// How many bytes are written at once.
const WRITE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PortKind {
    /// A VM, by the protocol of [`wire`](crate::lan::wire).
    Vm,
    /// A QEMU process, by QEMU's framing.
    Qemu,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("closed by the peer")]
    Closed,
    #[error("no Attach within {} s", ATTACH_TIMEOUT.as_secs())]
    Silent,
    #[error("no Attach before others needed the place")]
    Crowded,
    #[error("refused")]
    Refused,
    #[error("its port was taken by a later connection, or it was silent")]
    PortLost(PortLost),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// After this many seconds of silence the kernel probes whether a peer is still there.
const KEEP_ALIVE_IDLE_S: u32 = 30;
/// The interval of these probes, in seconds.
const KEEP_ALIVE_INTERVAL_S: u32 = 10;
/// After this many unanswered probes the kernel closes the connection.
const KEEP_ALIVE_PROBES: u32 = 3;

/// Makes the kernel notice within a minute that a silent peer's host was lost; otherwise the peer
/// would keep its entry for ever.
pub(in crate::lan) fn keep_alive(stream: &TcpStream) {
    let set = setsockopt(stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_S))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL_S))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &KEEP_ALIVE_PROBES));
    if let Err(error) = set {
        tracing::debug!(%error, "a connection has no keep-alive");
    }
}

/// Accepts connections of `kind` for ever, each with a task of its own.
pub(super) async fn accept(shared: Rc<ServerState>, listener: TcpListener, kind: PortKind) {
    let mut trouble = AcceptTrouble::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match shared.enter(kind) {
                Some(entered) => {
                    keep_alive(&stream);
                    tokio::task::spawn_local(async move {
                        let ended = match kind {
                            PortKind::Vm => serve_vm(&entered, stream).await,
                            PortKind::Qemu => serve_qemu(&entered, stream).await,
                        };
                        entered.shared.log_end(peer, &ended);
                    });
                }
                None => {
                    if let Some(left_out) = shared.admit(PeerLine::ConnectionRefused) {
                        tracing::warn!(%peer, ?kind, "refused: too many connections are open{left_out}");
                    }
                }
            },
            Err(error) => {
                let what = match kind {
                    PortKind::Vm => "the port for VMs can't accept connections",
                    PortKind::Qemu => "the port for QEMU can't accept connections",
                };
                tokio::time::sleep(trouble.failed(what, &error)).await;
            }
        }
        // Lets the evicted connection's task close it before the next one is accepted.
        tokio::task::yield_now().await;
    }
}

impl ServerState {
    fn log_end(&self, peer: SocketAddr, ended: &Ended) {
        match ended {
            Ended::Wire(_) | Ended::Silent | Ended::Crowded => {
                if let Some(left_out) = self.admit(PeerLine::ConnectionClosed) {
                    tracing::warn!(%peer, "connection closed: {ended}{left_out}");
                }
            }
            Ended::Closed | Ended::Refused | Ended::PortLost(_) | Ended::Io(_) => {
                tracing::debug!(%peer, "connection closed: {ended}");
            }
        }
    }
}

async fn serve_vm(entered: &Entered, mut stream: TcpStream) -> Ended {
    let mut outbox = Outbox::default();
    let mut cutter = Cutter::new(Prefix::LittleEndian, MESSAGE_BYTES_MAX);
    let (mut reader, mut writer) = stream.split();
    let attaching = tokio::time::timeout(ATTACH_TIMEOUT, read_attachment(&mut reader, &mut cutter));
    let attaching = tokio::select! {
        attaching = attaching => attaching,
        () = entered.waker.notified() => return Ended::Crowded,
    };
    let attachment = match attaching {
        Ok(Ok(_)) if !entered.shared.keep(entered.id) => return Ended::Crowded,
        Ok(Ok(attachment)) => attachment,
        Ok(Err(error)) => {
            let reason = error.to_string();
            ServerMessage::Refused { reason: &reason }.append(&mut outbox.bytes);
            outbox.write_what_fits(&writer);
            return error;
        }
        Err(_) => return Ended::Silent,
    };
    match entered.shared.drive(|fabric| fabric.attach(entered.id, &attachment)) {
        Ok(answer) => answer.append(&mut outbox.bytes),
        Err(refusal) => {
            let reason = refusal.to_string();
            ServerMessage::Refused { reason: &reason }.append(&mut outbox.bytes);
            outbox.write_what_fits(&writer);
            return Ended::Refused;
        }
    }
    let reading = read_messages(&mut reader, &mut cutter, |cutter| {
        entered.shared.drive(|fabric| {
            while let Some(message) = cutter.next_message()? {
                match ClientMessage::decode(message)? {
                    ClientMessage::Output { id, packet } => {
                        fabric.output(entered.id, id, packet).map_err(Ended::PortLost)?;
                    }
                    ClientMessage::Heartbeat => fabric.hear(entered.id).map_err(Ended::PortLost)?,
                    ClientMessage::Attach(_) => return Err(WireError::Field("a second Attach").into()),
                }
            }
            Ok(())
        })
    });
    let ended = tokio::select! {
        ended = reading => ended,
        ended = write_pending(entered, &mut writer, &mut outbox) => ended,
    };
    if let Ended::PortLost(PortLost { fenced_by: Some(by) }) = ended
        && outbox.is_between_messages()
    {
        outbox.clear();
        ServerMessage::Fenced { by }.append(&mut outbox.bytes);
        outbox.write_what_fits(&writer);
        drain_and_close(&mut reader, &mut writer).await;
    }
    ended
}

async fn serve_qemu(entered: &Entered, mut stream: TcpStream) -> Ended {
    if let Err(error) = stream.set_nodelay(true) {
        return error.into();
    }
    entered.shared.drive(|fabric| fabric.join_qemu(entered.id));
    let mut outbox = Outbox::default();
    let mut cutter = Cutter::new(Prefix::BigEndian, STREAM_PACKET_BYTES_MAX);
    let (mut reader, mut writer) = stream.split();
    let reading = read_messages(&mut reader, &mut cutter, |cutter| {
        entered.shared.drive(|fabric| {
            while let Some(packet) = cutter.next_message()? {
                fabric.qemu_packet(entered.id, packet);
            }
            Ok(())
        })
    });
    tokio::select! {
        ended = reading => ended,
        ended = write_pending(entered, &mut writer, &mut outbox) => ended,
    }
}

async fn read_attachment(reader: &mut ReadHalf<'_>, cutter: &mut Cutter) -> Result<Attachment, Ended> {
    reader.as_ref().set_nodelay(true)?;
    loop {
        if let Some(message) = cutter.next_message()? {
            return match ClientMessage::decode(message)? {
                ClientMessage::Attach(attachment) => Ok(attachment),
                ClientMessage::Output { .. } | ClientMessage::Heartbeat => {
                    Err(WireError::Field("a message before Attach").into())
                }
            };
        }
        fill(reader, cutter).await?;
    }
}

/// Reads until the connection ends; `take` takes the whole messages from the cutter.
async fn read_messages(
    reader: &mut ReadHalf<'_>,
    cutter: &mut Cutter,
    mut take: impl FnMut(&mut Cutter) -> Result<(), Ended>,
) -> Ended {
    loop {
        // Bytes after Attach may have been read already.
        if let Err(ended) = take(cutter) {
            return ended;
        }
        if let Err(ended) = fill(reader, cutter).await {
            return ended;
        }
    }
}

async fn fill(reader: &mut ReadHalf<'_>, cutter: &mut Cutter) -> Result<(), Ended> {
    match reader.read(cutter.space()).await? {
        0 => Err(Ended::Closed),
        bytes => {
            cutter.filled(bytes);
            Ok(())
        }
    }
}

/// Lets the peer read the last message: closing with bytes unread would reset the connection and
/// lose it.
async fn drain_and_close(reader: &mut ReadHalf<'_>, writer: &mut WriteHalf<'_>) {
    let mut ignored = [0; 4096];
    let drain = async {
        writer.shutdown().await?;
        while reader.read(&mut ignored).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // It doesn't matter whether the peer closes in time or in order.
    let _ = tokio::time::timeout(PART_TIMEOUT, drain).await;
}

/// Writes the connection's bytes until it ends. A peer that doesn't read holds up only itself.
async fn write_pending(entered: &Entered, writer: &mut WriteHalf<'_>, outbox: &mut Outbox) -> Ended {
    loop {
        if outbox.is_empty() {
            outbox.clear();
        }
        // Called while bytes are still unsent, too: losing the port must be noticed then as well.
        let room = if outbox.is_empty() { WRITE_BYTES } else { 0 };
        let taken = entered.shared.with(|fabric| fabric.take_pending(entered.id, &mut outbox.bytes, room));
        if let Err(lost) = taken {
            return Ended::PortLost(lost);
        }
        if !outbox.is_empty() {
            match writer.try_write(outbox.unwritten()) {
                Ok(bytes) => {
                    outbox.written += bytes;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return error.into(),
            }
        }
        let unwritten = !outbox.is_empty();
        tokio::select! {
            () = entered.waker.notified() => {}
            writable = writer.writable(), if unwritten => {
                if let Err(error) = writable {
                    return error.into();
                }
            }
        }
    }
}

/// Messages on their way into a socket.
#[derive(Debug, Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// How many bytes of `bytes` have been written.
    written: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// `true` if the next byte written begins a message.
    fn is_between_messages(&self) -> bool {
        self.written == 0 || self.is_empty()
    }

    fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }

    /// Writes as much as fits: a peer that doesn't read it finds the connection closed.
    fn write_what_fits(&mut self, writer: &WriteHalf<'_>) {
        let _ = writer.try_write(self.unwritten());
    }
}
