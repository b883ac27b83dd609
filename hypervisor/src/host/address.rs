//! Addresses at which a program listens.

use std::io;

/// What to do about an address at which can't be listened.
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
    use super::advice;
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
}
