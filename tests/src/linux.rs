//! A stock Linux as a guest: its files and its console.
//!
//! `guest-programs/linux/build.sh` builds the files; tests that need them report when they are
//! skipped.

use hypervisor::program::site::process::Process;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a billion instructions or two may take on a busy host, for example Linux' boot.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The address of redis on the LAN.
pub const REDIS_SERVICE: &str = "10.0.2.15:6379";

/// What the guest prints when redis accepts connections.
pub const REDIS_READY: &str = "redis ready";

/// What the guest prints once, when it boots.
pub const GREETING: &str = "guest ready";

/// Saves the boot two thirds of its instructions: self-tests, jitter entropy, security modules.
const APPEND: &str =
    "console=ttyS0 quiet cryptomgr.notests lsm=capability initcall_blacklist=jent_mod_init,trace_eval_init";

/// Linux with redis.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    kernel: String,
    initrd: String,
}

impl LinuxGuest {
    /// Linux with redis; `None` if its files don't exist. Then prints the line by which the checks
    /// before a merge count skipped tests.
    #[must_use]
    pub fn with_redis() -> Option<Self> {
        let directory = directory();
        let [kernel, initrd] = ["Image", "initramfs-redis.cpio"].map(|name| directory.join(name));
        if let Some(missing) = [&kernel, &initrd].into_iter().find(|file| !file.exists()) {
            // Written directly, because the output of a passing test's macros is captured.
            let _ = writeln!(
                io::stderr().lock(),
                "SKIPPED: {} is missing (guest-programs/linux/build.sh makes it)",
                missing.display()
            );
            return None;
        }
        Some(Self { kernel: kernel.display().to_string(), initrd: initrd.display().to_string() })
    }

    /// The path of the kernel.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The path of the initramfs.
    #[must_use]
    pub fn initrd(&self) -> &str {
        &self.initrd
    }

    /// The kernel's command line.
    #[must_use]
    pub fn append(&self) -> &'static str {
        APPEND
    }

    /// The options of `ft-record` and `ft-primary` for this guest, followed by `more`.
    #[must_use]
    pub fn options<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.options_with(APPEND, more)
    }

    /// Options with a command line that only names the console: a complete boot with all its
    /// messages.
    #[must_use]
    pub fn plain_options(&self) -> Vec<&str> {
        self.options_with("console=ttyS0", &[])
    }

    fn options_with<'a>(&'a self, append: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let guest = ["--kernel", &self.kernel, "--initrd", &self.initrd, "--append", append, "--memory", "128"];
        [&guest, more].concat()
    }
}

/// The directory of the build script's output by default.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/linux")
}

/// Waits until `text` is in the guest's console output, as this process prints it.
///
/// # Panics
/// If the process ends, or that takes longer than [`PATIENCE`].
#[track_caller]
pub fn wait_for_console(process: &mut Process, text: &str) {
    if let Err(error) = process.wait_for_console(text, PATIENCE, |_| ()) {
        panic!("{error}");
    }
}
