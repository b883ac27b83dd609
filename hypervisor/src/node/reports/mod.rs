//! What `ft-primary`, `ft-backup` and `ft-record` tell while they run.

#[cfg(test)]
mod tests;
mod text;

use super::distribution::Distribution;
use super::io::console_text::Piece;
use crate::os::report::{Level, Report};
use ft::trouble::Trouble;
use serde::Serialize;
use vm::{DeviceFault, DroppedPackets, Machine};

/// One thing that happened on one side of a VM.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum NodeReport {
    /// This node owns the VM.
    Owner {
        /// Which VM.
        vm: String,
        /// As which generation.
        generation: u64,
        /// This incarnation.
        node: String,
    },
    /// A backup may connect here.
    Listening {
        /// Host and port.
        channel: String,
    },
    /// Packets flow.
    LanAttached {
        /// The LAN's address.
        lan: String,
    },
    /// Packets don't flow.
    LanLost {
        /// Why.
        reason: String,
    },
    /// A backup is connected, and the session goes to it.
    BackupConnected {
        /// Its address.
        address: String,
    },
    /// A backup was turned away.
    BackupRefused {
        /// How many refusals before this one were not told.
        left_out: u64,
        /// Its address.
        address: String,
        /// Why.
        reason: String,
    },
    /// Another backup waits here for the place of the one that there is.
    SpareWaits {
        /// How many before this one were not told.
        left_out: u64,
        /// Its address.
        address: String,
    },
    /// The primary has a backup, and this side waits for its place.
    WaitsForPlace,
    /// There is no primary to connect to yet. Told after a second, and then rarely.
    Waiting {
        /// Of which VM.
        vm: String,
        /// What is missing.
        reason: String,
        /// How long it has been waited for.
        seconds: u64,
    },
    /// The guest doesn't run yet, as its first backup hasn't joined. Told after a second, and then
    /// rarely.
    GuestWaits {
        /// Where the backup is waited for.
        channel: String,
        /// How long it has been waited for.
        seconds: u64,
    },
    /// The guest runs without a backup: the death of this host is its end.
    Alone {
        /// As which generation this node owns the VM.
        generation: u64,
    },
    /// This backup is connected to a primary.
    PrimaryConnected {
        /// Its address.
        address: String,
    },
    /// The backup has the guest's image and has built its machine.
    Joined {
        /// The image's name.
        image: String,
    },
    /// A backup that joins has been sent all of the guest's memory.
    MemoryCopied {
        /// Pages sent, each as often as it was.
        pages: u64,
        /// How long it took.
        took_ms: u64,
        /// How long of that the guest stood still, in many short stands.
        stood_ms: u64,
        /// The longest time that it stood still at once.
        longest_stand_us: u64,
    },
    /// Outputs wait for the backup's acknowledgement from here on; either side may be lost.
    Protected {
        /// The pair's generation.
        generation: u64,
        /// The guest ran without a backup before.
        again: bool,
    },
    /// The primary has lost its backup, and asks for the flag.
    BackupLost {
        /// How.
        reason: String,
    },
    /// The backup has lost its primary, and asks for the flag.
    PrimaryLost {
        /// How.
        reason: String,
    },
    /// From now on the VM can be resumed from its log on disk.
    LogUsable {
        /// The log's directory.
        directory: String,
    },
    /// The log can't be kept on disk any more; the VM goes on without.
    LogLost {
        /// Why.
        reason: String,
    },
    /// The disk of the log takes nothing, so that outputs wait. Told after a second, and then
    /// rarely.
    DiskWaits {
        /// The log's directory.
        directory: String,
        /// How long it has been waited for.
        seconds: u64,
    },
    /// A VM goes on from its log on disk.
    Resumed {
        /// The segment that was replayed.
        segment: String,
        /// How it ends.
        ending: String,
        /// Entries replayed.
        entries: u64,
        /// Where the guest stands.
        instruction_count: u64,
        /// Outputs that the LAN is asked whether it has carried.
        tail_outputs: usize,
        /// The operator has accepted that what clients have seen last may be missing.
        may_lack: bool,
    },
    /// The arbiter could not be asked; nobody goes on until it can.
    ArbiterUnreachable {
        /// Why.
        reason: String,
    },
    /// The arbiter doesn't know this owner's claim any more. The owner runs on and claims the
    /// missing flags again.
    ClaimsLost {
        /// Which VM.
        vm: String,
        /// As which generation this node owns it.
        generation: u64,
        /// As which generation the arbiter knows an owner, if it knows any.
        latest: Option<u64>,
    },
    /// The arbiter says that this node owns the VM, though a LAN refuses it.
    OwnerConfirmed {
        /// As which generation.
        generation: u64,
    },
    /// The arbiter knows this owner again.
    ClaimsRestored {
        /// As which generation.
        generation: u64,
    },
    /// The pair has broken after the arbiter had lost its claims: the VM may run on its backup, so
    /// this primary stands still.
    Stranded {
        /// The pair's generation.
        generation: u64,
    },
    /// The backup has lost its primary, whose claim the arbiter has lost: the backup waits.
    PrimaryClaimLost {
        /// The pair's generation.
        generation: u64,
    },
    /// The backup has become the primary. All times in microseconds of the host's monotonic clock.
    Live {
        /// As which generation.
        generation: u64,
        /// The last log entry arrived.
        last_entry_received_us: u64,
        /// The primary was noticed to be lost.
        loss_noticed_us: u64,
        /// The test-and-set was won.
        test_and_set_won_us: u64,
        /// The last log entry was consumed.
        last_entry_consumed_us: u64,
        /// The guest runs on the host's events.
        live_us: u64,
        /// Entries consumed as a backup.
        entries: u64,
        /// State digests compared, and equal.
        digests_checked: u64,
        /// Outputs that the predecessor may not have sent.
        tail_outputs: usize,
        /// How many more there were, and were dropped because there were too many.
        tail_dropped: u64,
    },
    /// The first packet has left this node.
    FirstOutput,
    /// What is typed goes to the guest key by key.
    RawConsole,
    /// The guest wrote to its console.
    Console(Piece),
    /// A driver of the guest has made a mistake; its device does nothing until the driver has reset
    /// it. The VM goes on.
    DeviceFailed {
        /// Which device: `virtio-net` or `virtio-blk`.
        device: String,
        /// In which of its queues.
        queue: u16,
        /// The descriptor at fault; none if it is the ring.
        descriptor: Option<u16>,
        /// How many mistakes the guest's drivers have made since this program runs it.
        times: u64,
    },
    /// The guest's kernel has panicked.
    GuestPanicked {
        /// Why, as the kernel says in its log.
        reason: String,
        /// It has a console to say so.
        has_console: bool,
    },
    /// Replay differs from the log: this side halts and never goes live.
    Diverged {
        /// Where and how.
        reason: String,
    },
    /// The figures of a run.
    Figures(Figures),
    /// A recording goes on.
    Recording {
        /// Steps so far.
        instruction_count: u64,
        /// Millions of steps a second of late.
        mips: f64,
        /// Entries so far.
        entries: u64,
        /// The guest has said nothing on its console yet.
        is_booting: bool,
    },
    /// A recording is complete.
    Recorded(Recorded),
    /// A replay goes on.
    Replaying {
        /// Steps so far.
        instruction_count: u64,
        /// Millions of steps a second of late.
        mips: f64,
        /// Entries so far.
        entries: u64,
        /// How many percent of the log's instructions that are; none as long as nobody knows how
        /// many there are.
        percent: Option<u64>,
    },
    /// A replay has come to the log's end without a difference.
    Replayed(Replayed),
    /// The node is over.
    End {
        /// Why.
        reason: String,
        /// The process's exit code.
        exit_code: u8,
    },
}

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Steps the guest has executed since reset.
    pub instruction_count: u64,
    /// Entries appended to the log.
    pub entries: u64,
    /// Bytes sent on the logging channel.
    pub channel_bytes: u64,
    /// Packets put out.
    pub frames: u64,
    /// Packets that found no LAN.
    pub frames_without_lan: u64,
    /// How long outputs were held: production to release.
    pub hold_time: Distribution,
    /// How far the backup's replay was behind at the end, in microseconds.
    pub lag_us: u64,
    /// How far it was behind at most, in microseconds.
    pub lag_max_us: u64,
    /// Frames that the guest's network card dropped, either way: into no buffer, or one that is too
    /// short.
    pub frames_dropped: u64,
    /// Outputs that the network didn't carry and that were given up when their buffer was full.
    pub outputs_given_up: u64,
}

/// What a recording came to.
#[derive(Clone, Debug, Serialize)]
pub struct Recorded {
    /// Where the log is.
    pub log: String,
    /// Its size, with the image.
    pub log_bytes: u64,
    /// Entries in it.
    pub entries: u64,
    /// Steps the guest has executed.
    pub instruction_count: u64,
    /// Frames and pieces of console output.
    pub outputs: u64,
    /// Frames that the guest's network card dropped.
    pub frames_dropped: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What a replay came to.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    /// Entries consumed.
    pub entries: u64,
    /// Steps the guest has executed.
    pub instruction_count: u64,
    /// Frames and pieces of console output, all equal to the recorded ones.
    pub outputs: u64,
    /// Frames that the guest's network card dropped.
    pub frames_dropped: u64,
    /// State digests compared, all equal to the recorded ones.
    pub digests_checked: u64,
    /// The digest of the state at the end.
    pub state_digest: String,
    /// How long it took.
    pub seconds: f64,
    /// The guest's clock at the end: how long the recording ran, sleep included.
    pub guest_seconds: f64,
    /// How the log ends.
    pub ending: String,
}

/// How many frames the guest's network card has dropped, either way.
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
