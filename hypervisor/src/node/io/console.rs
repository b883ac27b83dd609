//! Standard input as the guest's console input.

use super::inbox::InboxSender;
use crate::node::reports::NodeReport;
use crate::os::report::Reporter;
use crate::os::terminal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use std::io::{self, IsTerminal, Read};
use std::thread;
use std::time::Duration;

/// How often a process in the background checks whether it is in the foreground.
const FOREGROUND_CHECK: Duration = Duration::from_millis(500);

/// The escape key.
const CTRL_A: u8 = 0x01;

/// How a terminal's keys reach the guest. Input from a file or a pipe is passed on as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Keys {
    /// In lines, which the terminal edits; Ctrl-C is for this program.
    #[default]
    Lines,
    /// One by one, with Ctrl-C, for a guest that edits lines itself; Ctrl-A x is for this program.
    Raw,
}

/// Starts the thread that passes input to the guest, until standard input or the guest ends. A
/// process in the background waits until it is in the foreground.
///
/// # Errors
/// If the thread can't start.
pub fn start(inbox: InboxSender, keys: Keys, reporter: Reporter) -> io::Result<()> {
    thread::Builder::new().name("console".into()).spawn(move || {
        let is_terminal = io::stdin().is_terminal();
        while is_terminal && !terminal::is_in_foreground() {
            thread::sleep(FOREGROUND_CHECK);
        }
        // The terminal stays as it is when reports are in JSON: they are for a program, not for who
        // types.
        let is_raw = is_terminal && keys == Keys::Raw && !reporter.is_json() && terminal::make_raw().is_ok();
        if is_raw {
            reporter.tell(&NodeReport::RawConsole);
        }
        let mut escapes = Escapes::default();
        let mut buffer = [0; 256];
        loop {
            let typed = match io::stdin().lock().read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) => &buffer[..length],
            };
            let (typed, asks_for_end) = if is_raw { escapes.take_out(typed) } else { (typed.to_vec(), false) };
            if !typed.is_empty() && !inbox.send_console(typed) {
                return;
            }
            if asks_for_end {
                // Sent to the process, because another thread waits for the signal.
                let _ = kill(getpid(), Signal::SIGTERM);
            }
        }
    })?;
    Ok(())
}

/// Separates the keys for this program from the guest's.
#[derive(Debug, Default)]
struct Escapes {
    /// The last key was Ctrl-A.
    is_pending: bool,
}

impl Escapes {
    /// The keys for the guest, and whether the user asked for the end. Ctrl-A twice gives the guest
    /// one; Ctrl-A before any other key gives it both.
    fn take_out(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut asks_for_end = false;
        let mut for_guest = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (std::mem::take(&mut self.is_pending), key) {
                (false, CTRL_A) => self.is_pending = true,
                (true, b'x' | b'X') => asks_for_end = true,
                (true, CTRL_A) | (false, _) => for_guest.push(key),
                (true, _) => for_guest.extend([CTRL_A, key]),
            }
        }
        (for_guest, asks_for_end)
    }
}

#[cfg(test)]
mod tests {
    use super::Escapes;

    #[test]
    fn ctrl_a_x_asks_for_an_end_however_it_is_cut_and_all_else_is_the_guests() {
        let cases: [(&[u8], &[u8], bool); 6] = [
            (b"ls\r", b"ls\r", false),
            (b"\x01x", b"", true),
            (b"a\x01Xb", b"ab", true),
            (b"\x01\x01x", b"\x01x", false),
            (b"\x01b\x03", b"\x01b\x03", false),
            (b"x\x01", b"x", false),
        ];
        for (typed, for_guest, asks_for_end) in cases {
            assert_eq!(Escapes::default().take_out(typed), (for_guest.to_vec(), asks_for_end), "{typed:?}");
            let mut escapes = Escapes::default();
            let mut found = (Vec::new(), false);
            for key in typed {
                let (some, asks) = escapes.take_out(&[*key]);
                found.0.extend(some);
                found.1 |= asks;
            }
            assert_eq!(found, (for_guest.to_vec(), asks_for_end), "{typed:?} key by key");
        }
    }
}
