//! A whole fault-tolerant VM on this host, each part a process of its own: LAN, arbiter, primary,
//! backup.

use super::cores::on_core;
use super::executable::Executable;
use super::process::{Process, ProcessError};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long to wait, on a busy machine, for something that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where the built-in guests' service is on the LAN.
const GUEST_SERVICE: &str = "10.0.2.15:7";

/// The options of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The primary's options for the guest.
    pub guest: Vec<String>,
    /// Where the guest's service is on the LAN, an address and a port.
    pub guest_service: String,
    /// Its boot arguments, as `--append`.
    pub append: String,
    /// `true` for a pair; `false` for an unprotected primary.
    pub protected: bool,
    /// More options for the primary.
    pub primary: Vec<String>,
    /// More options for the backup.
    pub backup: Vec<String>,
    /// The cores of the primary and the backup; `None` leaves them to the scheduler.
    pub cores: Option<[usize; 2]>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            guest: ["--guest", "echo"].map(String::from).into(),
            guest_service: GUEST_SERVICE.into(),
            append: String::new(),
            protected: true,
            primary: Vec::new(),
            backup: Vec::new(),
            cores: None,
        }
    }
}

/// A VM's environment: a LAN that forwards to the guest's service, and an arbiter.
#[derive(Debug)]
pub struct Site {
    /// The network.
    pub lan: Process,
    /// The test-and-set.
    pub arbiter: Process,
    /// Where ordinary clients reach the guest's service, by TCP and UDP.
    pub service: SocketAddr,
    lan_address: String,
    arbiter_address: String,
}

impl Site {
    /// Starts a LAN, and an arbiter that keeps its claims in `directory`.
    ///
    /// # Errors
    /// [`ProcessError`] if a part doesn't come up.
    pub fn start(executable: &Executable, directory: &Path) -> Result<Self, ProcessError> {
        Self::serving(executable, directory, GUEST_SERVICE)
    }

    /// As [`start`](Self::start), for guests whose service is at `guest_service` on the LAN, an
    /// address and a port.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn serving(executable: &Executable, directory: &Path, guest_service: &str) -> Result<Self, ProcessError> {
        let forward = format!("127.0.0.1:0={guest_service}");
        let mut lan = Process::start(executable, "ft-lan", &["--listen", "127.0.0.1:0", "--forward", &forward])?;
        let directory = directory.display().to_string();
        let mut arbiter = Process::start(executable, "ft-arbiter", &["--listen", "127.0.0.1:0", "--dir", &directory])?;
        let listening = lan.wait_for("listening", PATIENCE)?;
        let arbiter_address = text(&arbiter.wait_for("listening", PATIENCE)?["listen"]);
        let service = service(&lan, &listening)?;
        let lan_address = text(&listening["listen"]);
        Ok(Self { lan, arbiter, service, lan_address, arbiter_address })
    }

    /// Where the arbiter listens, host and port.
    #[must_use]
    pub fn arbiter_address(&self) -> &str {
        &self.arbiter_address
    }

    /// The options by which `ft-primary` and `ft-backup` find this site; they listen at a free
    /// port.
    #[must_use]
    pub fn options(&self) -> Vec<String> {
        let arbiter = format!("tcp:{}", self.arbiter_address);
        ["--lan", &self.lan_address, "--arbiter", &arbiter, "--listen", "127.0.0.1:0"].map(String::from).into()
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The network.
    pub lan: Process,
    /// The test-and-set.
    pub arbiter: Process,
    /// The primary.
    pub primary: Process,
    /// The backup, if there is one.
    pub backup: Option<Process>,
    /// Where ordinary clients reach the guest's service, by TCP and UDP.
    pub service: SocketAddr,
    executable: Executable,
    /// The options that every side has.
    common: Vec<String>,
}

impl Cluster {
    /// Starts a cluster that keeps the arbiter's claims in `directory`, and waits for the guest's
    /// first output; a built-in guest prints that it serves.
    ///
    /// # Errors
    /// [`ProcessError`] if a part doesn't come up.
    pub fn start(executable: &Executable, directory: &Path, options: &ClusterOptions) -> Result<Self, ProcessError> {
        let mut cluster = Self::boot(executable, directory, options)?;
        cluster.primary.wait_for("console", PATIENCE)?;
        Ok(cluster)
    }

    /// As [`start`](Self::start), without waiting for the guest.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn boot(executable: &Executable, directory: &Path, options: &ClusterOptions) -> Result<Self, ProcessError> {
        let site = Site::serving(executable, directory, &options.guest_service)?;
        let common = site.options();
        let mut arguments: Vec<&str> = common.iter().map(String::as_str).collect();
        arguments.extend(options.guest.iter().map(String::as_str));
        arguments.extend(["--append", &options.append]);
        arguments.extend(options.primary.iter().map(String::as_str));
        if !options.protected {
            arguments.push("--unprotected");
        }
        let [primary_core, backup_core] = options.cores.map_or([None; 2], |cores| cores.map(Some));
        let mut primary = on_core(primary_core, || Process::start(executable, "ft-primary", &arguments))?;
        let channel = text(&primary.wait_for("listening", PATIENCE)?["channel"]);
        let mut backup = None;
        if options.protected {
            let mut arguments: Vec<&str> = common.iter().map(String::as_str).collect();
            arguments.extend(["--primary", &channel]);
            arguments.extend(options.backup.iter().map(String::as_str));
            let start = || Process::start(executable, "ft-backup", &arguments);
            let process = backup.insert(on_core(backup_core, start)?);
            process.wait_for("protected", PATIENCE)?;
        }
        let Site { lan, arbiter, service, .. } = site;
        Ok(Self { lan, arbiter, primary, backup, service, executable: executable.clone(), common })
    }

    /// Makes the backup, which has gone live, the cluster's primary.
    ///
    /// # Panics
    /// If there is no backup.
    pub fn succeed(&mut self) {
        self.primary = self.backup.take().expect("a cluster whose backup has gone live");
    }

    /// Starts a new backup, which finds the primary through the arbiter, and waits until the pair
    /// is protected.
    ///
    /// # Errors
    /// [`ProcessError`] if it doesn't join.
    pub fn restore_redundancy(&mut self) -> Result<(), ProcessError> {
        let mut arguments: Vec<&str> = self.common.iter().map(String::as_str).collect();
        arguments.push("--keep");
        let backup = self.backup.insert(Process::start(&self.executable, "ft-backup", &arguments)?);
        backup.wait_for("protected", PATIENCE)?;
        Ok(())
    }

    /// The backup.
    ///
    /// # Panics
    /// If the cluster was started without one.
    pub fn backup(&mut self) -> &mut Process {
        self.backup.as_mut().expect("the cluster was started with a backup")
    }
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The address at which the LAN forwards to the guest.
fn service(lan: &Process, listening: &serde_json::Value) -> Result<SocketAddr, ProcessError> {
    listening["forwards"][0]["listen"].as_str().and_then(|address| address.parse().ok()).ok_or_else(|| {
        ProcessError::Field {
            name: format!("ft-lan (pid {})", lan.pid()),
            report: listening.to_string(),
            field: "forwards".into(),
        }
    })
}
