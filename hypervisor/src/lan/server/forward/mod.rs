//! Forwards: ports of guests made reachable for ordinary clients.
//!
//! A client's TCP connection ends in this process, and a second one, the gateway's, leads on to the
//! guest. So the client's connection survives the loss of the host under the guest. Bytes pass with
//! flow control both ways: as long as one side takes no more, no more is read from the other.
//! Half-close passes as half-close, a reset as a reset.

mod client_entry;
mod tcp;
mod udp;
mod waiting;

use super::{ServerState, StartError};
use crate::lan::events::ForwardListening;
use crate::lan::fabric::{GATEWAY_IP, PREFIX_BITS};
use crate::os::address::resolve;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::str::FromStr;
use tokio::net::{TcpListener, UdpSocket};

/// How often to look for a port that is free for both TCP and UDP.
const SAME_PORT_ATTEMPTS: usize = 16;

/// Makes a guest's port reachable at an address of this host: `[tcp:|udp:]HOST:PORT=GUEST:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    protocols: Protocols,
    listen: SocketAddr,
    guest: SocketAddrV4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocols {
    Tcp,
    Udp,
    Both,
}

/// The protocol of a forward's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its name in options and reports.
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What is wrong with the text of a [`Forward`].
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ForwardError {
    /// The text doesn't have the form of a forward.
    #[error("'{0}' is not of the form [tcp:|udp:]HOST:PORT=GUEST:PORT, for example 127.0.0.1:7007=10.0.2.15:7")]
    Form(String),
    /// The address to listen at can't be resolved.
    #[error("{0}")]
    Listen(String),
    /// The guest's address is not on the LAN.
    #[error("guest {0} is not on the LAN: use an address in 10.0.2.0/24 other than 10.0.2.0, .2 and .255, and a port")]
    Guest(SocketAddrV4),
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let (protocols, addresses) = match text.split_once(':') {
            Some(("tcp", rest)) => (Protocols::Tcp, rest),
            Some(("udp", rest)) => (Protocols::Udp, rest),
            _ => (Protocols::Both, text),
        };
        let parsed =
            addresses.split_once('=').and_then(|(listen, guest)| Some((listen, guest.parse::<SocketAddrV4>().ok()?)));
        let (listen, guest) = parsed.ok_or_else(|| ForwardError::Form(text.to_owned()))?;
        let listen = resolve(listen).map_err(ForwardError::Listen)?;
        if is_guest(*guest.ip()) && guest.port() != 0 {
            Ok(Self { protocols, listen, guest })
        } else {
            Err(ForwardError::Guest(guest))
        }
    }
}

/// `true` if a guest may have this address.
fn is_guest(ip: Ipv4Addr) -> bool {
    let host_mask = u32::MAX >> PREFIX_BITS;
    let (gateway, guest) = (GATEWAY_IP.to_bits(), ip.to_bits());
    let host = guest & host_mask;
    guest & !host_mask == gateway & !host_mask && host != 0 && host != host_mask && guest != gateway
}

/// A forward whose socket is bound.
#[derive(Debug)]
pub(in crate::lan) struct ForwardSocket {
    socket: Socket,
    address: SocketAddr,
    guest: SocketAddrV4,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Binds a forward; to the same port for both protocols if it is for both.
///
/// # Errors
/// [`StartError::Bind`]
pub(in crate::lan) async fn bind(forward: Forward) -> Result<Vec<ForwardSocket>, StartError> {
    let Forward { protocols, listen, guest } = forward;
    let failed = |source| StartError::Bind { address: listen, purpose: "a forward", source };
    let tcp = async |address| -> io::Result<ForwardSocket> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(ForwardSocket { socket: Socket::Tcp(listener), address, guest })
    };
    let udp = async |address| -> io::Result<ForwardSocket> {
        let socket = UdpSocket::bind(address).await?;
        let address = socket.local_addr()?;
        Ok(ForwardSocket { socket: Socket::Udp(socket), address, guest })
    };
    match protocols {
        Protocols::Tcp => Ok(vec![tcp(listen).await.map_err(failed)?]),
        Protocols::Udp => Ok(vec![udp(listen).await.map_err(failed)?]),
        Protocols::Both => {
            let mut attempts = if listen.port() == 0 { SAME_PORT_ATTEMPTS } else { 1 };
            loop {
                let tcp = tcp(listen).await.map_err(failed)?;
                attempts -= 1;
                match udp(tcp.address).await {
                    Ok(udp) => return Ok(vec![tcp, udp]),
                    Err(error) if attempts == 0 => return Err(failed(error)),
                    Err(_) => {}
                }
            }
        }
    }
}

impl ForwardSocket {
    /// The address where clients connect.
    pub(in crate::lan) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The forward as it is reported.
    pub(in crate::lan) fn listening(&self) -> ForwardListening {
        let protocol = match self.socket {
            Socket::Tcp(_) => Protocol::Tcp,
            Socket::Udp(_) => Protocol::Udp,
        };
        ForwardListening { protocol: protocol.name(), listen: self.address.to_string(), guest: self.guest.to_string() }
    }

    /// Serves clients for ever.
    pub(in crate::lan) async fn serve(self, shared: Rc<ServerState>) {
        match self.socket {
            Socket::Tcp(listener) => tcp::Forwarded::new(shared, self.address, self.guest).serve(listener).await,
            Socket::Udp(socket) => udp::Forwarded::new(shared, self.address, self.guest).serve(socket).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_for_both_protocols_unless_one_is_chosen() {
        let both: Forward = "127.0.0.1:7007=10.0.2.15:7".parse().unwrap();
        assert_eq!(
            both,
            Forward {
                protocols: Protocols::Both,
                listen: ([127, 0, 0, 1], 7007).into(),
                guest: SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 7),
            }
        );
        assert_eq!("tcp:127.0.0.1:7007=10.0.2.15:7".parse(), Ok(Forward { protocols: Protocols::Tcp, ..both }));
        assert_eq!("udp:127.0.0.1:7007=10.0.2.15:7".parse(), Ok(Forward { protocols: Protocols::Udp, ..both }));
        let ipv6: Forward = "tcp:[::1]:0=10.0.2.15:7".parse().unwrap();
        assert!(ipv6.listen.is_ipv6());
    }

    #[test]
    fn other_texts_are_refused_with_an_example() {
        for text in ["", "127.0.0.1:7007", "127.0.0.1:1=[::1]:7"] {
            let error = text.parse::<Forward>().unwrap_err();
            assert_eq!(error, ForwardError::Form(text.to_owned()));
            assert!(error.to_string().contains("127.0.0.1:7007=10.0.2.15:7"));
        }
    }

    #[test]
    fn clients_come_to_a_host_of_a_name_or_an_address() {
        let forward: Forward = "udp:localhost:7007=10.0.2.15:7".parse().unwrap();
        assert_eq!(forward.listen, ([127, 0, 0, 1], 7007).into());
        for text in ["7007=10.0.2.15:7", "sctp:127.0.0.1:1=10.0.2.15:7"] {
            assert!(matches!(text.parse::<Forward>(), Err(ForwardError::Listen(_))), "{text}");
        }
    }

    #[test]
    fn only_guests_on_the_lan_can_be_forwarded_to() {
        for guest in ["10.0.2.0:7", "10.0.2.2:7", "10.0.2.255:7", "10.0.3.15:7", "127.0.0.1:7", "10.0.2.15:0"] {
            let refused = format!("127.0.0.1:0={guest}").parse::<Forward>();
            assert_eq!(refused, Err(ForwardError::Guest(guest.parse().unwrap())));
        }
    }
}
