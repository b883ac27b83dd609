//! The guests that `ft-demo` can show, and their clients.

use crate::os::clock;
use crate::program::Failure;
use crate::program::cli::stdout::out;
use crate::program::client::Client;
use crate::program::client::{echo, redis};
use crate::program::site::cluster::{Cluster, ClusterOptions, PATIENCE};
use crate::program::site::executable::Executable;
use clap::ValueEnum;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long Linux may take from reset to redis: two billion instructions, twice, on a busy machine.
const LINUX_PATIENCE: Duration = Duration::from_secs(300);

/// Saves two thirds of the instructions of Linux' boot: self-tests, jitter entropy, security
/// modules.
const LINUX_APPEND: &str =
    "console=ttyS0 quiet cryptomgr.notests lsm=capability initcall_blacklist=jent_mod_init,trace_eval_init";

/// The address of redis on the LAN.
const REDIS_SERVICE: &str = "10.0.2.15:6379";

/// Who serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum DemoGuest {
    /// The built-in echo server, on TCP and UDP
    #[default]
    Echo,
    /// A stock Debian Linux with redis
    Linux,
}

impl DemoGuest {
    /// Boots the guest in lockstep with its backup, and waits until it serves. A guest that takes
    /// long shows its console if `show` says so.
    pub(super) fn boot(
        self,
        executable: &Executable,
        directory: &Path,
        linux_files: &Path,
        show: bool,
    ) -> Result<Cluster, Failure> {
        let (options, ready, patience) = match self {
            Self::Echo => (ClusterOptions::default(), "echo: listening", PATIENCE),
            Self::Linux => (linux(linux_files)?, "redis ready", LINUX_PATIENCE),
        };
        let show = show && self == Self::Linux;
        let began_us = clock::now_us();
        if show {
            out!("Linux boots on a primary and its backup; its console:")?;
        }
        let mut cluster = Cluster::boot(executable, directory, &options)?;
        let mut console = String::new();
        let mut told = Ok(());
        cluster.primary.wait_for_console(ready, patience, |piece| {
            console.push_str(piece);
            while let Some(end) = console.find('\n') {
                let line: String = console.drain(..=end).collect();
                // The shell asks the terminal for its size by this sequence.
                let line = line.replace("\x1b[6n", "");
                if show && !line.trim().is_empty() {
                    let line_told = out!("  {}", line.trim_end());
                    if told.is_ok() {
                        told = line_told;
                    }
                }
            }
        })?;
        told?;
        if show {
            let took = Duration::from_micros(clock::now_us() - began_us);
            out!("{ready} after {:.1} s", took.as_secs_f64())?;
        }
        Ok(cluster)
    }

    /// The service, for people.
    pub(super) const fn service(self) -> &'static str {
        match self {
            Self::Echo => "echo guest serves TCP and UDP",
            Self::Linux => "Linux guest serves redis",
        }
    }

    /// Starts its clients, each with a name.
    pub(super) fn clients(self, service: SocketAddr) -> io::Result<Vec<(&'static str, Client)>> {
        Ok(match self {
            Self::Echo => vec![("TCP", echo::tcp(service)?), ("UDP", echo::udp(service)?)],
            Self::Linux => vec![("redis", redis::start(service)?)],
        })
    }
}

/// A cluster whose guest is the Linux of these files.
fn linux(files: &Path) -> Result<ClusterOptions, Failure> {
    let [kernel, initrd] = ["Image", "initramfs-redis.cpio"].map(|name| files.join(name));
    if let Some(missing) = [&kernel, &initrd].into_iter().find(|file| !file.is_file()) {
        let missing = missing.display();
        return Err(format!(
            "there is no {missing}: guest-programs/linux/build.sh makes it (--linux-files DIR says where it is)"
        )
        .into());
    }
    let [kernel, initrd] = [kernel, initrd].map(|file| file.display().to_string());
    Ok(ClusterOptions {
        guest: vec!["--kernel".into(), kernel, "--initrd".into(), initrd],
        guest_service: REDIS_SERVICE.into(),
        append: LINUX_APPEND.into(),
        ..ClusterOptions::default()
    })
}
