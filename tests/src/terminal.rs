//! A terminal whose input and output are in the test's hands.

use crate::Executable;
use nix::pty::{OpenptyResult, Winsize, openpty};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Child, Command};
use tempfile::TempDir;

/// A terminal of 80 columns that runs one program in its own session, so that Ctrl-C is a signal to
/// it.
#[derive(Debug)]
pub struct Terminal {
    screen: File,
    /// The program's end.
    line: File,
    process: Child,
    /// The directory with the program's file, which has the program's name.
    _directory: TempDir,
}

impl Terminal {
    /// Starts `program`.
    ///
    /// # Errors
    /// If the host has no terminal left, or no `setsid` (Debian package util-linux).
    pub fn start(executable: &Executable, program: &str, arguments: &[&str]) -> io::Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        let line = File::from(slave);
        // `setsid` runs a program under the name of its file.
        let directory = TempDir::new()?;
        let path = directory.path().join(program);
        symlink(executable.command(program).get_program(), &path)?;
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(path).args(arguments).env("TERM", "xterm").env_remove("NO_COLOR");
        session.stdin(line.try_clone()?).stdout(line.try_clone()?).stderr(line.try_clone()?);
        let process = session.spawn()?;
        Ok(Self { screen: master.into(), line, process, _directory: directory })
    }

    /// Reads the program's output until `end`.
    ///
    /// # Errors
    /// If the program doesn't print it.
    pub fn read_until(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        while !contains(&read, end) {
            self.read_some(&mut read)?;
        }
        Ok(read)
    }

    /// Types `keys`.
    ///
    /// # Errors
    /// If the terminal doesn't take them.
    pub fn type_keys(&mut self, keys: &[u8]) -> io::Result<()> {
        self.screen.write_all(keys)
    }

    /// Reads the program's output until it ends; also returns its exit code.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub fn read_to_end(mut self) -> io::Result<(Vec<u8>, Option<i32>)> {
        // The terminal hangs up with its last user.
        self.line = File::open("/dev/null")?;
        let mut read = Vec::new();
        while self.read_some(&mut read).is_ok() {}
        Ok((read, self.process.wait()?.code()))
    }

    fn read_some(&mut self, read: &mut Vec<u8>) -> io::Result<()> {
        let mut some = [0; 512];
        let bytes = self.screen.read(&mut some)?;
        read.extend_from_slice(&some[..bytes]);
        if bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `true` if `bytes` contain `part`.
#[must_use]
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
