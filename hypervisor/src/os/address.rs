//! Addresses that an operator names, `HOST:PORT`.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// The form of an address, for error messages.
const FORM: &str = "say it as HOST:PORT, like 127.0.0.1:7000, [::1]:7000 or localhost:7000";

/// Checks that `text` has the form of a host, by name or address, and a port.
///
/// # Errors
/// In words for a person.
pub fn check_form(text: &str) -> Result<(), String> {
    let bad = |reason: &str| Err(format!("`{text}` {reason}: {FORM}"));
    let Some((host, port)) = text.rsplit_once(':') else { return bad("names no port") };
    if port.parse::<u16>().is_err() {
        return bad("has no port number from 0 to 65535 behind its last colon");
    }
    let bracketed = host.strip_prefix('[').map(|host| host.strip_suffix(']').unwrap_or_default());
    match bracketed {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_err() => bad("has no IPv6 address in its brackets"),
        Some(_) => Ok(()),
        None if host.is_empty() => bad("names no host"),
        None if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte)) => {
            bad("has a host name with a character that none has")
        }
        None if host.contains(':') => bad("has an IPv6 address without brackets"),
        None => Ok(()),
    }
}

/// The address that `text` names. A host name is looked up now, once; of several addresses an IPv4
/// address is preferred, at which programs listen by default.
///
/// # Errors
/// In words for a person: what is wrong with it, or that no such host is known.
pub fn resolve(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    check_form(text)?;
    let found = text.to_socket_addrs().map_err(|error| format!("the host of `{text}` can't be looked up: {error}"))?;
    found.min_by_key(|address| !address.is_ipv4()).ok_or_else(|| format!("the host of `{text}` has no address"))
}

/// Advice to an operator for an address that can't be listened at.
#[must_use]
pub fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::ADDRINUSE) => "another program listens there: choose another port, or 0 for a free one",
        Some(rustix::io::Errno::ACCESS) => "ports below 1024 need a privilege: choose one from 1024 up",
        Some(rustix::io::Errno::ADDRNOTAVAIL) => {
            "this host has no such address: choose one of its own, or 0.0.0.0 for all"
        }
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => "raise the limit of open files (ulimit -n)",
        _ => "choose another address",
    }
}

#[cfg(test)]
mod tests {
    use super::{advice, check_form, resolve};
    use std::io;
    use std::net::TcpListener;

    #[test]
    fn the_advice_is_for_the_error_at_hand() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = TcpListener::bind(listener.local_addr().unwrap()).unwrap_err();
        assert!(advice(&taken).contains("another program"));
        // TEST-NET-1 is no host's.
        let foreign = TcpListener::bind("192.0.2.1:0").unwrap_err();
        assert!(advice(&foreign).contains("no such address"));
        assert!(advice(&io::Error::from_raw_os_error(13)).contains("privilege"));
        assert!(advice(&io::Error::from_raw_os_error(24)).contains("ulimit -n"));
    }

    #[test]
    fn hosts_are_named_by_address_or_name() {
        for (text, address) in [
            ("127.0.0.1:7000", "127.0.0.1:7000"),
            ("[::1]:7000", "[::1]:7000"),
            ("localhost:7000", "127.0.0.1:7000"),
            ("localhost:0", "127.0.0.1:0"),
        ] {
            assert_eq!(resolve(text), Ok(address.parse().unwrap()), "{text}");
        }
        // RFC 6761 reserves the domain: no name server knows it.
        let unknown = resolve("no-such-host.invalid:7000").unwrap_err();
        assert!(unknown.contains("`no-such-host.invalid:7000` can't be looked up"), "{unknown}");
    }

    #[test]
    fn what_is_no_host_and_port_is_refused_with_the_reason_and_is_not_looked_up() {
        for (text, reason) in [
            ("", "names no port"),
            ("localhost", "names no port"),
            ("7000", "names no port"),
            (":7000", "names no host"),
            ("localhost:", "has no port number"),
            ("localhost:http", "has no port number"),
            ("127.0.0.1:70000", "has no port number"),
            ("::1:7000", "has an IPv6 address without brackets"),
            ("[::1:7000", "has no IPv6 address in its brackets"),
            ("[localhost]:7000", "has no IPv6 address in its brackets"),
            ("http://localhost:7000", "has a host name with a character that none has"),
            ("local host:7000", "has a host name with a character that none has"),
        ] {
            let refused = check_form(text).unwrap_err();
            assert!(refused.contains(reason) && refused.contains("127.0.0.1:7000, [::1]:7000"), "{refused}");
            assert_eq!(resolve(text), Err(refused), "{text}");
        }
        assert_eq!(check_form("primary-1.example.org:7200"), Ok(()));
    }
}
