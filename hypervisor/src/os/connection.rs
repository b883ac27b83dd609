//! Connections that a thread may wait for, and that no thread has to.

use nix::sys::socket::{MsgFlags, recv, send};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

/// A connection: bytes in order, as TCP carries them.
pub trait Connection: Send + Sync + 'static {
    /// Reads what has arrived; 0 if nothing more will come. A host that has a thread for this waits
    /// until something has.
    ///
    /// # Errors
    /// `WouldBlock` or `Interrupted` if nothing has arrived; others end the connection.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// The same, without waiting.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends as many of these bytes as the connection takes now.
    ///
    /// # Errors
    /// `WouldBlock` or `Interrupted` if it takes none now; others mean that nothing can be sent any
    /// more.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Ends the connection: whoever reads or writes it finds that out at once.
    fn cut(&self);
}

impl Connection for TcpStream {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.as_raw_fd(), buffer, MsgFlags::empty())?)
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    // Not by O_NONBLOCK, which every descriptor of the socket would have.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    fn cut(&self) {
        // Fails if the peer has closed it already, which is as good.
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// Whether an error says only that there is nothing to be done now.
pub(crate) fn is_idle(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
