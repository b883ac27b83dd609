//! The guests that `ft-demo` can show, and their clients.

use crate::os::clock;
use crate::os::report::Grouped;
use crate::program::Failure;
use crate::program::cli::stdout::out;
use crate::program::client::history::{self, History};
use crate::program::client::rpc::NetworkFaults;
use crate::program::client::torture::{Target, Torture};
use crate::program::client::{Client, ClientResult, echo, redis};
use crate::program::site::cluster::{Cluster, ClusterOptions, PATIENCE};
use crate::program::site::executable::Executable;
use clap::ValueEnum;
use serde::Serialize;
use std::fmt;
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
    /// The lock service of the courses' first lab
    Lock,
    /// A key/value store with calls at most once
    Kv,
    /// A stock Debian Linux with redis
    Linux,
}

/// The clients of a demo, and what they see.
pub(super) struct Clients {
    /// Each with a name.
    pub(super) clients: Vec<(&'static str, Client)>,
    /// The calls of clients whose answers must have an order that explains them.
    history: Option<History>,
}

/// What a check of all calls together has shown.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    calls: usize,
    /// `true` if one copy of the service, called by one client after the other, would have given
    /// all answers.
    pub(super) linearizable: bool,
    /// The first key or lock for which there is no such order.
    unexplained: Option<String>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = Grouped(self.calls as u64);
        match &self.unexplained {
            None => write!(f, "{calls} calls: linearizable, as of one copy that never failed"),
            Some(key) => write!(f, "{calls} calls: no order of those of {key} explains their answers"),
        }
    }
}

impl Clients {
    /// Waits for the last replies, and gives each client's result. Where all calls must have an
    /// order that explains them, checks that.
    pub(super) fn finish(self) -> (Vec<(&'static str, ClientResult)>, Option<Checked>) {
        let results = self.clients.into_iter().map(|(name, client)| (name, client.finish())).collect();
        let checked = self.history.map(|history| {
            let calls = history.take();
            let unexplained = history::check(&calls).err().map(|unexplained| unexplained.key);
            Checked { calls: calls.len(), linearizable: unexplained.is_none(), unexplained }
        });
        (results, checked)
    }
}

/// The names of the clients of a lock service or a store.
const CLIENTS: [&str; 4] = ["client 1", "client 2", "client 3", "client 4"];

/// How many locks or keys they share: few, so that they meet.
const KEYS: u32 = 8;

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
            Self::Lock => (built_in("lock"), "lock: listening", PATIENCE),
            Self::Kv => (built_in("kv"), "kv: listening", PATIENCE),
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
            Self::Lock => "lock guest serves UDP",
            Self::Kv => "key/value guest serves UDP",
            Self::Linux => "Linux guest serves redis",
        }
    }

    /// Starts its clients.
    pub(super) fn clients(self, service: SocketAddr) -> io::Result<Clients> {
        let unchecked = |clients| Clients { clients, history: None };
        Ok(match self {
            Self::Echo => unchecked(vec![("TCP", echo::tcp(service)?), ("UDP", echo::udp(service)?)]),
            Self::Lock => torture(Target::Lock, service)?,
            Self::Kv => torture(Target::Kv, service)?,
            Self::Linux => unchecked(vec![("redis", redis::start(service)?)]),
        })
    }
}

/// Clients that call at random for as long as the demo takes.
fn torture(target: Target, service: SocketAddr) -> io::Result<Clients> {
    let torture =
        Torture { target, keys: KEYS, calls: u64::MAX, faults: NetworkFaults::default(), seed: clock::now_ns() };
    let history = History::default();
    let start = |(name, number)| Ok((name, torture.start(service, number, history.clone())?));
    let clients = CLIENTS.into_iter().zip(1..).map(start).collect::<io::Result<_>>()?;
    Ok(Clients { clients, history: Some(history) })
}

/// A cluster with a built-in guest.
fn built_in(name: &str) -> ClusterOptions {
    ClusterOptions { guest: vec!["--guest".into(), name.into()], ..ClusterOptions::default() }
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
