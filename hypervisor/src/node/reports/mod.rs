//! The reports of `ft-primary`, `ft-backup` and `ft-record` while they run. Their variants' and
//! fields' names are those of the JSON form.

#[cfg(test)]
mod tests;
mod text;

use super::distribution::Distribution;
use super::io::console_text::Piece;
use crate::os::report::{Level, Report};
use ft::trouble::Trouble;
use serde::Serialize;
use vm::{DeviceFault, DroppedPackets, Machine};

/// An event on one side of a VM.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum NodeReport {
    /// This node owns the VM.
    Owner {
        /// The VM.
        vm: String,
        /// The generation under which the node owns it.
        generation: u64,
        /// The node's id.
        node: String,
    },
    /// A backup may connect.
    Listening {
        /// The logging channel's `HOST:PORT`.
        channel: String,
    },
    /// The network carries packets.
    LanAttached {
        /// The LAN's address, or the interface.
        lan: String,
    },
    /// The network carries no packets.
    LanLost {
        /// The reason.
        reason: String,
    },
    /// A backup has connected and is sent the session.
    BackupConnected {
        /// The backup's address.
        address: String,
    },
    /// A pending connection was refused.
    BackupRefused {
        /// How many refusals before this one weren't reported.
        left_out: u64,
        /// The peer's address.
        address: String,
        /// The reason.
        reason: String,
    },
    /// A spare waits for the current backup's place.
    SpareWaits {
        /// How many before this one weren't reported.
        left_out: u64,
        /// The spare's address.
        address: String,
    },
    /// The primary has a backup, and this side waits for its place.
    WaitsForPlace,
    /// There is no primary to connect to yet. Reported after a second, and then ever more rarely.
    Waiting {
        /// The VM.
        vm: String,
        /// What is missing.
        reason: String,
        /// How long the search has lasted.
        seconds: u64,
    },
    /// The guest doesn't run yet, because its first backup hasn't joined. Reported after a second,
    /// and then ever more rarely.
    GuestWaits {
        /// Where the backup may connect.
        channel: String,
        /// How long the guest has waited.
        seconds: u64,
    },
    /// The guest runs without a backup: if this host dies, the VM does.
    Alone {
        /// The generation under which this node owns the VM.
        generation: u64,
    },
    /// This backup has connected to a primary.
    PrimaryConnected {
        /// The primary's address.
        address: String,
    },
    /// The backup has the session and builds its machine.
    Joined {
        /// The image's name.
        image: String,
    },
    /// A joining backup has been sent all of the guest's memory.
    MemoryCopied {
        /// Pages sent; a page that was sent twice counts twice.
        pages: u64,
        /// The duration of the copy.
        took_ms: u64,
        /// The total time that the guest stood still for it.
        stood_ms: u64,
        /// The longest time that it stood still at once.
        longest_stand_us: u64,
    },
    /// Outputs are held for the backup's acknowledgement from here on: the VM survives either side.
    Protected {
        /// The pair's generation.
        generation: u64,
        /// The guest ran without a backup before.
        again: bool,
    },
    /// The primary has lost its backup. A protected one asks for the flag.
    BackupLost {
        /// How.
        reason: String,
    },
    /// The backup has lost its primary, and asks for the flag.
    PrimaryLost {
        /// How.
        reason: String,
    },
    /// The VM can be resumed from its log on disk from now on.
    LogUsable {
        /// The log's directory.
        directory: String,
    },
    /// Logging to disk has failed; the VM goes on without it.
    LogLost {
        /// The reason.
        reason: String,
    },
    /// Outputs wait because the log's disk takes nothing. Reported after a second, and then ever
    /// more rarely.
    DiskWaits {
        /// The log's directory.
        directory: String,
        /// How long the disk has taken nothing.
        seconds: u64,
    },
    /// A VM was resumed from its log on disk.
    Resumed {
        /// The replayed segment.
        segment: String,
        /// How the segment ends.
        ending: String,
        /// Entries replayed.
        entries: u64,
        /// The guest's instruction count.
        instruction_count: u64,
        /// Outputs that may not have left: the LAN says which it has carried.
        tail_outputs: usize,
        /// The operator has accepted that outputs that clients saw last may be missing.
        may_lack: bool,
    },
    /// The arbiter doesn't answer. Neither side starts or takes over the VM until it does.
    ArbiterUnreachable {
        /// The reason.
        reason: String,
    },
    /// The arbiter has lost this owner's claim. The owner runs on and claims the missing flags
    /// again.
    ClaimsLost {
        /// The VM.
        vm: String,
        /// The generation under which this node owns it.
        generation: u64,
        /// The generation of the latest owner that the arbiter knows, if it knows any.
        latest: Option<u64>,
    },
    /// The arbiter confirms that this node owns the VM, though a LAN refuses it.
    OwnerConfirmed {
        /// The owner's generation.
        generation: u64,
    },
    /// The arbiter has this owner's claim again.
    ClaimsRestored {
        /// The owner's generation.
        generation: u64,
    },
    /// The pair broke after the arbiter had lost its claims. The backup may own the VM, so this
    /// primary stands still.
    Stranded {
        /// The pair's generation.
        generation: u64,
    },
    /// The backup has lost its primary, whose claim the arbiter has lost, so the backup waits.
    PrimaryClaimLost {
        /// The pair's generation.
        generation: u64,
    },
    /// The backup has gone live. Times are those of the host's monotonic clock.
    Live {
        /// The generation under which it owns the VM.
        generation: u64,
        /// When the last log entry was received.
        last_entry_received_us: u64,
        /// When the loss of the primary was noticed.
        loss_noticed_us: u64,
        /// When the test-and-set was won.
        test_and_set_won_us: u64,
        /// When the last log entry was consumed.
        last_entry_consumed_us: u64,
        /// When the guest ran live.
        live_us: u64,
        /// Entries consumed as a backup.
        entries: u64,
        /// State digests that were compared with the primary's; all were equal.
        digests_checked: u64,
        /// Unsent outputs: the primary may not have sent them.
        tail_outputs: usize,
        /// The number of further unsent outputs, which were dropped because there were too many.
        tail_dropped: u64,
    },
    /// The first packet has left this node.
    FirstOutput,
    /// The terminal is in raw mode: each key goes to the guest.
    RawConsole,
    /// The guest wrote to its console.
    Console(Piece),
    /// A driver of the guest misused its device, which does nothing until the driver resets it. The
    /// VM goes on.
    DeviceFailed {
        /// The device: `virtio-net` or `virtio-blk`.
        device: String,
        /// The index of its queue.
        queue: u16,
        /// The bad descriptor; `None` if it is the ring.
        descriptor: Option<u16>,
        /// The number of such errors since this program runs the guest.
        times: u64,
    },
    /// The guest's kernel has panicked.
    GuestPanicked {
        /// The reason, from the kernel's log.
        reason: String,
        /// The kernel has a console on which it printed the reason.
        has_console: bool,
    },
    /// Replay differs from the log: this side halts and never goes live.
    Diverged {
        /// Where and how.
        reason: String,
    },
    /// The figures of a run, at its end.
    Figures(Figures),
    /// A recording makes progress.
    Recording {
        /// Steps so far.
        instruction_count: u64,
        /// Recent millions of steps a second.
        mips: f64,
        /// Entries so far.
        entries: u64,
        /// The guest has written nothing to its console yet.
        is_booting: bool,
    },
    /// A recording is complete.
    Recorded(Recorded),
    /// A replay makes progress.
    Replaying {
        /// Steps so far.
        instruction_count: u64,
        /// Recent millions of steps a second.
        mips: f64,
        /// Entries so far.
        entries: u64,
        /// Progress in percent of the log's instructions; `None` while their number isn't known.
        percent: Option<u64>,
    },
    /// A replay has reached the log's end without a divergence.
    Replayed(Replayed),
    /// The node ends.
    End {
        /// The reason.
        reason: String,
        /// The process's exit code.
        exit_code: u8,
    },
}

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The guest's steps since reset.
    pub instruction_count: u64,
    /// Entries appended to the log.
    pub entries: u64,
    /// Bytes sent on the logging channel.
    pub channel_bytes: u64,
    /// Packets written to the network.
    pub frames: u64,
    /// Packets dropped because no LAN was attached.
    pub frames_without_lan: u64,
    /// How long outputs were held, from production to release.
    pub hold_time: Distribution,
    /// The execution lag at the end, in microseconds.
    pub lag_us: u64,
    /// The greatest execution lag, in microseconds.
    pub lag_max_us: u64,
    /// Packets that the guest's network card dropped, in both directions, because there was no
    /// buffer or it was too short.
    pub frames_dropped: u64,
    /// Outputs that the network didn't carry and that were given up when their buffer was full.
    pub outputs_given_up: u64,
}

/// The result of a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// The log's path.
    pub log: String,
    /// The log's size, including the image.
    pub log_bytes: u64,
    /// Entries in the log.
    pub entries: u64,
    /// The guest's steps.
    pub instruction_count: u64,
    /// Output operations: packets and pieces of console output.
    pub outputs: u64,
    /// Packets that the guest's network card dropped.
    pub frames_dropped: u64,
    /// The duration of the recording.
    pub seconds: f64,
}

/// The result of a replay.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    /// Entries consumed.
    pub entries: u64,
    /// The guest's steps.
    pub instruction_count: u64,
    /// Output operations, all equal to the recorded ones.
    pub outputs: u64,
    /// Packets that the guest's network card dropped.
    pub frames_dropped: u64,
    /// State digests compared, all equal to the recorded ones.
    pub digests_checked: u64,
    /// The digest of the final state.
    pub state_digest: String,
    /// The duration of the replay.
    pub seconds: f64,
    /// The guest's clock at the end: how long the recording ran, with the time that the guest
    /// slept.
    pub guest_seconds: f64,
    /// How the log ends.
    pub ending: String,
}

/// The number of packets that the guest's network card has dropped, in both directions.
#[must_use]
pub const fn frames_dropped(machine: &Machine) -> u64 {
    let DroppedPackets { received, transmitted } = machine.dropped_packets();
    received.saturating_add(transmitted)
}

impl From<Trouble> for NodeReport {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Device { fault: DeviceFault { device, queue, descriptor }, times } => {
                Self::DeviceFailed { device: device.to_string(), queue, descriptor, times }
            }
            Trouble::Panic { reason, has_console } => Self::GuestPanicked { reason, has_console },
        }
    }
}

impl Report for NodeReport {
    fn level(&self) -> Level {
        let is_notice =
            matches!(self, Self::Owner { .. } | Self::Protected { .. } | Self::Live { .. } | Self::Resumed { .. });
        let is_warning = matches!(
            self,
            Self::BackupLost { .. }
                | Self::BackupRefused { .. }
                | Self::PrimaryLost { .. }
                | Self::Alone { .. }
                | Self::LanLost { .. }
                | Self::OwnerConfirmed { .. }
                | Self::ArbiterUnreachable { .. }
                | Self::ClaimsLost { .. }
                | Self::DiskWaits { .. }
                | Self::GuestPanicked { .. }
        );
        let is_error = matches!(
            self,
            Self::LogLost { .. }
                | Self::Diverged { .. }
                | Self::PrimaryClaimLost { .. }
                | Self::Stranded { .. }
                | Self::End { exit_code: 1.., .. }
        );
        match (is_error, is_warning, is_notice) {
            (true, ..) => Level::Error,
            (_, true, _) => Level::Warn,
            (.., true) => Level::Notice,
            (false, false, false) => Level::Info,
        }
    }
}
