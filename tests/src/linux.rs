//! A stock Linux as a guest: its files, and its console.
//!
//! `guest-programs/linux/build.sh` makes the files; tests that need them say clearly that they were
//! skipped.

use hypervisor::program::site::process::Process;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long anything may take that is a billion instructions or two, such as Linux' boot, on a busy
/// machine.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Where redis is on the LAN.
pub const REDIS_SERVICE: &str = "10.0.2.15:6379";

/// What the guest says when redis accepts connections.
pub const REDIS_READY: &str = "redis ready";

/// What the guest says once, when it boots.
pub const GREETING: &str = "guest ready";

/// Spares the boot two thirds of its instructions: self-tests, entropy of jitter, security modules.
const APPEND: &str =
    "console=ttyS0 quiet cryptomgr.notests lsm=capability initcall_blacklist=jent_mod_init,trace_eval_init";

/// Linux with redis.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    kernel: String,
    initrd: String,
}

impl LinuxGuest {
    /// With redis; `None` if its files aren't there, which is said in words that the checks before
    /// a merge look for.
    #[must_use]
    pub fn with_redis() -> Option<Self> {
        let directory = directory();
        let [kernel, initrd] = ["Image", "initramfs-redis.cpio"].map(|name| directory.join(name));
        if let Some(missing) = [&kernel, &initrd].into_iter().find(|file| !file.exists()) {
            // Not by a macro: what a passing test prints by one, nobody sees.
            let _ = writeln!(
                io::stderr().lock(),
                "SKIPPED: {} is missing (guest-programs/linux/build.sh makes it)",
                missing.display()
            );
            return None;
        }
        Some(Self { kernel: kernel.display().to_string(), initrd: initrd.display().to_string() })
    }

    /// The kernel's file.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The initramfs' file.
    #[must_use]
    pub fn initrd(&self) -> &str {
        &self.initrd
    }

    /// The kernel's command line.
    #[must_use]
    pub fn append(&self) -> &'static str {
        APPEND
    }

    /// The options of `ft-record` and `ft-primary` for this guest, and `more` after them.
    #[must_use]
    pub fn options<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.options_with(APPEND, more)
    }

    /// The same with a command line that has nothing in it but the console: the whole boot, and all
    /// that it says.
    #[must_use]
    pub fn plain_options(&self) -> Vec<&str> {
        self.options_with("console=ttyS0", &[])
    }

    fn options_with<'a>(&'a self, append: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let guest = ["--kernel", &self.kernel, "--initrd", &self.initrd, "--append", append, "--memory", "128"];
        [&guest, more].concat()
    }
}

/// Where the script puts its files if it isn't told.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/linux")
}

/// Waits until the guest's console, as this process puts it out, has `text` in it.
///
/// # Panics
/// If the process ends, or that takes longer than [`PATIENCE`].
#[track_caller]
pub fn wait_for_console(process: &mut Process, text: &str) {
    if let Err(error) = process.wait_for_console(text, PATIENCE, |_| ()) {
        panic!("{error}");
    }
}
