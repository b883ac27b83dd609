//! Standard input, as the guest's console input.

use super::inbox::{HostInput, InboxSender};
use std::io::{self, Read};
use std::thread;

/// Sends what is typed to the guest, until standard input or the guest ends.
///
/// # Errors
/// If the thread can't start.
pub fn start(inbox: InboxSender) -> io::Result<()> {
    thread::Builder::new().name("console".into()).spawn(move || {
        let mut buffer = [0; 256];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(length) if !inbox.send(HostInput::Console(buffer[..length].to_vec())) => return,
                Ok(_) => {}
            }
        }
    })?;
    Ok(())
}
