//! Options that several programs share.

use crate::arbiter;
use crate::arbiter::Arbiter;
use crate::arbiter::server::DISK_TIMEOUT;
use crate::node::arbiter_thread::{ArbiterThread, ClaimWatch};
use crate::node::environment::{ANSWER_NS, Node};
use crate::node::io::console::Keys;
use crate::node::io::network::NetworkAddress;
use crate::node::log::{DiskLogOptions, HostDirectory, LogDirectory, LogDirectoryError, LogWait};
use crate::os::address;
use crate::os::address::advice;
use crate::os::entropy;
use crate::os::report::Reporter;
use crate::program::Failure;
use crate::program::guest::{Guest, GuestError};
use crate::program::site::claims_directory::{open_default, warn_of_others};
use clap::Args;
use ft::claim::ADDRESS_BYTES_MAX;
use ft::record::Intervals;
use ft::role::Timing;
use logchannel::session::{ImageDigest, NodeId, VmId};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use vm::{BootMode, MachineConfig};

/// How long an arbiter may take to answer: a busy disk takes seconds to make a claim durable, now
/// and then.
const ARBITER_TIMEOUT: Duration = Duration::from_secs(5);

// A server whose disk hangs says so before its client gives up, and the client before its call is
// given up.
const _: () = assert!(DISK_TIMEOUT.as_secs() < ARBITER_TIMEOUT.as_secs());
const _: () = assert!(ARBITER_TIMEOUT.as_secs() < ANSWER_NS / 1_000_000_000);

const NS_PER_MS: u64 = 1_000_000;

/// The default of the guest's RAM, in MiB.
const MEMORY_MIB: u64 = 64;

/// The default with `--kernel`, in MiB: enough for Linux with a small userland.
const MEMORY_MIB_WITH_KERNEL: u64 = 128;

/// Which guest, on which machine.
#[derive(Args, Clone, Debug)]
pub struct GuestOptions {
    /// The guest: a built-in one (bench, counter, echo, hello, rewrite, suite, tally), or an ELF
    /// file
    #[arg(long, value_name = "NAME|PATH", default_value = "echo", conflicts_with_all = ["kernel", "bare"])]
    pub guest: String,
    /// Instead of --guest: an operating system's kernel, as a Linux Image or an ELF file that
    /// starts in S-mode
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// What is on the guest's disk when it starts. The file is only read: what the guest writes is
    /// part of the VM, and gone with it
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Instead of --guest: an ELF program that starts in M-mode without any firmware, and tells its
    /// result through its symbol `tohost`, as those of riscv-tests do
    #[arg(long, value_name = "ELF")]
    pub bare: Option<PathBuf>,
    /// The guest's RAM in MiB, or with a unit (64M, 2G); without it 64, or 128 with --kernel
    #[arg(long, value_name = "MIB", value_parser = parse_memory)]
    pub memory: Option<u64>,
    /// Boot arguments for the guest, as it finds them in its device tree
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub append: String,
    /// The address of the guest's network card; by default one that is made of the VM's name
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    pub mac: Option<Mac>,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug)]
pub struct Mac(pub [u8; 6]);

fn parse_mac(text: &str) -> Result<Mac, String> {
    let bad = || format!("`{text}` is not an address like 52:54:00:12:34:56");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    match parts.next() {
        Some(_) => Err(bad()),
        None if mac[0] & 1 == 1 => Err(format!("`{text}` is a group address; a network card needs one of its own")),
        None => Ok(Mac(mac)),
    }
}

/// An Ethernet address derived from the VM's name, so that two VMs on one LAN have different ones.
fn mac_of(vm: &VmId) -> [u8; 6] {
    let [a, b, c, ..] = ImageDigest::of(vm.as_str().as_bytes()).0;
    [0x52, 0x54, 0x00, a, b, c]
}

impl GuestOptions {
    /// The guest's image.
    ///
    /// # Errors
    /// [`GuestError`] if there is no such guest, or a file of it can't be read.
    pub fn load(&self) -> Result<Guest, GuestError> {
        let guest = match (&self.kernel, &self.bare) {
            (Some(kernel), _) => Guest::from_kernel("kernel", kernel),
            (None, Some(program)) => Guest::from_kernel("bare program", program),
            (None, None) => Guest::load(&self.guest),
        }?;
        guest.with_files(self.initrd.as_deref(), self.disk.as_deref())
    }

    /// How typed keys reach the guest: an operating system has a line editor of its own.
    #[must_use]
    pub const fn keys(&self) -> Keys {
        if self.kernel.is_some() { Keys::Raw } else { Keys::Lines }
    }

    /// The machine of `vm` for `guest`, with a fresh seed for the guest's random numbers.
    #[must_use]
    pub fn machine(&self, vm: &VmId, guest: &Guest) -> MachineConfig {
        let default_mib = if self.kernel.is_some() { MEMORY_MIB_WITH_KERNEL } else { MEMORY_MIB };
        MachineConfig {
            ram_bytes: self.memory.unwrap_or(default_mib) << 20,
            mac: self.mac.map_or_else(|| mac_of(vm), |mac| mac.0),
            bootargs: self.append.clone(),
            rng_seed: entropy::seed(),
            boot: if self.bare.is_some() { BootMode::Bare } else { BootMode::Firmware },
            disk_bytes: guest.disk_bytes(),
        }
    }
}

/// Which network the guest is on.
#[derive(Args, Clone, Debug)]
pub struct NetworkOptions {
    /// The network: lan=HOST:PORT (an ft-lan), or tap=NAME (an interface of this host); without one
    /// the guest's network cable is unplugged
    #[arg(long, value_name = "NETWORK")]
    net: Option<NetworkAddress>,
    /// The same as --net lan=HOST:PORT
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "net", value_parser = address::resolve)]
    lan: Option<SocketAddr>,
}

impl NetworkOptions {
    /// The network's address, if there is one.
    #[must_use]
    pub fn address(&self) -> Option<NetworkAddress> {
        self.net.clone().or(self.lan.map(NetworkAddress::Lan))
    }
}

/// Which VM this node is a side of, and where the rest of the world is.
#[derive(Args, Clone, Debug)]
pub struct NodeOptions {
    /// The VM's name, the same on both sides and at the arbiter
    #[arg(long, value_name = "NAME", default_value = "vm0")]
    pub vm: VmId,
    /// The arbiter that decides which side lives: file:DIR, tcp:HOST:PORT or
    /// etcd://HOST:PORT[,HOST:PORT...]; without it file: in $STATE_DIRECTORY, for root in
    /// /var/lib/ft, else in $XDG_STATE_HOME/ft or ~/.local/state/ft
    #[arg(long, value_name = "SPEC")]
    pub arbiter: Option<String>,
    /// Where the guest's frames go.
    #[command(flatten)]
    pub network: NetworkOptions,
    /// Silence after which the other side counts as lost, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = Timing::DEFAULT.failure_timeout_ns / NS_PER_MS,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub failure_timeout_ms: u64,
    /// How far the backup's replay may be behind before the guest is slowed, in milliseconds; at
    /// four times that it stops
    #[arg(long, value_name = "MS", default_value_t = Timing::DEFAULT.lag_bound_ns / NS_PER_MS,
          value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub lag_bound_ms: u64,
    /// Steps of the guest from one state digest to the next
    #[arg(long, value_name = "STEPS", default_value_t = Intervals::default().digest_steps,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub digest_steps: u64,
    /// Keep the log in this directory, with snapshots, so that the VM can be resumed (ft-primary
    /// --resume) after the death of both sides. Each side needs a directory of its own
    #[arg(long, value_name = "DIR")]
    pub log: Option<PathBuf>,
    /// For what in the log on disk outputs wait, beside the backup's acknowledgement
    #[arg(long, value_name = "WHAT", default_value = "written")]
    pub log_wait: LogWait,
    /// Where a backup on another host reaches this side, if that isn't the address of --listen; it
    /// is stored with the VM's claim, and looked up by who uses it
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_advertised)]
    pub advertise: Option<String>,
    /// How the keys of a terminal come to the guest while it runs here; without it, raw with
    /// --kernel, and otherwise lines. A backup isn't told what its guest is
    #[arg(long, value_enum, value_name = "HOW")]
    pub keys: Option<Keys>,
    /// Tell what happens as JSON lines on standard output
    #[arg(long)]
    pub json: bool,
}

impl NodeOptions {
    /// The way to the arbiter; `watch` is told of claims.
    ///
    /// # Errors
    /// If the spec names none, or a thread can't be started.
    pub fn arbiter(&self, watch: Arc<dyn ClaimWatch>) -> Result<ArbiterThread, Failure> {
        let (arbiter, spec): (Arc<dyn Arbiter>, _) = match &self.arbiter {
            None => {
                let arbiter = open_default()?;
                let spec = format!("file:{}", arbiter.directory().display());
                (Arc::new(arbiter), spec)
            }
            Some(spec) => {
                let arbiter = arbiter::open(spec, ARBITER_TIMEOUT)?;
                if let Some(directory) = spec.strip_prefix("file:") {
                    warn_of_others(Path::new(directory));
                }
                (arbiter.into(), spec.clone())
            }
        };
        Ok(ArbiterThread::new(arbiter, &spec, Some(watch))?)
    }

    /// How long to wait for what.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let failure_timeout_ns = self.failure_timeout_ms * NS_PER_MS;
        let default = Timing::DEFAULT;
        // Several heartbeats fit into the timeout, so that one that is late causes no failover.
        Timing {
            failure_timeout_ns,
            heartbeat_ns: default.heartbeat_ns.min(failure_timeout_ns / 5),
            lag_bound_ns: self.lag_bound_ms * NS_PER_MS,
            ..default
        }
    }

    /// The options of the log on disk, if one is kept.
    ///
    /// # Errors
    /// [`LogDirectoryError`] if it can't be used.
    pub fn disk_log(&self) -> Result<Option<DiskLogOptions<HostDirectory>>, LogDirectoryError> {
        let Some(path) = &self.log else { return Ok(None) };
        Ok(Some(DiskLogOptions::new(LogDirectory::open(path, &self.vm)?, self.log_wait)))
    }

    /// The node with these options, whose claim names the address of `listener` to backups.
    ///
    /// # Errors
    /// If backups couldn't connect to that address.
    pub(in crate::program) fn node(
        &self,
        id: NodeId,
        arbiter: ArbiterThread,
        mac: [u8; 6],
        listener: &TcpListener,
        program: &'static str,
    ) -> Result<Node, Failure> {
        let listening = listener.local_addr()?;
        let address = self.advertise.clone().unwrap_or_else(|| listening.to_string());
        if address.parse().is_ok_and(|address: SocketAddr| address.ip().is_unspecified()) {
            return Err(format!("backups can't find {address}: say with --advertise where they reach this host").into());
        }
        Ok(Node {
            vm: self.vm.clone(),
            id,
            arbiter,
            network: self.network.address(),
            mac,
            address,
            reporter: Reporter::new(program, self.json),
            intervals: Intervals { digest_steps: self.digest_steps, ..Intervals::default() },
            keys: self.keys.unwrap_or_default(),
        })
    }
}

fn parse_advertised(text: &str) -> Result<String, String> {
    address::check_form(text)?;
    if text.len() > ADDRESS_BYTES_MAX {
        return Err(format!("an address of more than {ADDRESS_BYTES_MAX} bytes fits into no claim"));
    }
    Ok(text.into())
}

/// MiB, from a number that may have a unit.
fn parse_memory(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit_mib = match &text[digits.len()..] {
        "" | "M" | "MiB" => 1,
        "G" | "GiB" => 1024,
        _ => return Err(format!("{text} is no size: say it in MiB, or as 64M or 2G")),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text} is no size: say it in MiB, or as 64M or 2G"))?;
    match count.checked_mul(unit_mib) {
        Some(mib @ 4..=4096) => Ok(mib),
        _ => Err("a machine has 4 MiB to 4 GiB of RAM".into()),
    }
}

/// Listens at `address`.
///
/// # Errors
/// In words for a person: which address, and why not.
pub fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .map_err(|error| format!("can't listen at {address}: {error}; {} (--listen)", advice(&error)))
}

#[cfg(test)]
mod tests {
    use super::parse_memory;

    #[test]
    fn memory_is_in_mib_or_has_a_unit() {
        for (text, mib) in [("64", 64), ("64M", 64), ("64MiB", 64), ("2G", 2048), ("4GiB", 4096), ("4", 4)] {
            assert_eq!(parse_memory(text), Ok(mib), "{text}");
        }
        for text in ["", "M", "64K", "64 M", "-1", "0x40", "64MM", "1.5G", "é"] {
            assert!(parse_memory(text).unwrap_err().contains("is no size"), "{text}");
        }
        for text in ["3", "9999999", "5G", "18446744073709551615", "18446744073709551615G"] {
            assert!(parse_memory(text).unwrap_err().contains("4 MiB to 4 GiB"), "{text}");
        }
    }
}
