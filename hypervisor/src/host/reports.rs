//! What `ft-primary`, `ft-backup` and `ft-record` tell while they run.

use crate::console::Piece;
use crate::distribution::Distribution;
use crate::host::rate_limit::LeftOut;
use crate::report::{Grouped, Level, Report, Tenths};
use crate::trouble::Trouble;
use serde::Serialize;
use std::fmt;
use vm::{DeviceFault, DroppedFrames, Machine};

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
    /// Frames flow.
    LanAttached {
        /// The LAN's address.
        lan: String,
    },
    /// Frames don't flow.
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
    /// The guest doesn't run yet, as its first backup hasn't joined. Told after a second, and then rarely.
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
    /// The disk of the log takes nothing, so that outputs wait. Told after a second, and then rarely.
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
    /// The arbiter doesn't know this owner's claim any more. The owner runs on and claims the missing flags again.
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
    /// The pair has broken after the arbiter had lost its claims: the VM may run on its backup, so this primary stands still.
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
        /// How many more there were, and were dropped because the tail was full.
        tail_dropped: u64,
    },
    /// The first frame has left this node.
    FirstOutput,
    /// What is typed goes to the guest key by key.
    RawConsole,
    /// The guest wrote to its console.
    Console(Piece),
    /// A driver of the guest has made a mistake; its device does nothing until the driver has reset it. The VM goes on.
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
        /// It has a console to say so. Only of a guest that is recorded this is told.
        has_console: bool,
    },
    /// A reader of this process's output took nothing for a while, or its disk was full, and some was dropped. It is told once
    /// something is taken again.
    OutputDropped {
        /// `standard output` or `standard error`.
        stream: &'static str,
        /// Bytes of the guest's console, as they would have been written.
        console_bytes: u64,
        /// Whole lines of reports and logs.
        lines: u64,
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
        /// How many percent of the log's instructions that are; none as long as nobody knows how many there are.
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
    /// Frames put out.
    pub frames: u64,
    /// Frames that found no LAN.
    pub frames_without_lan: u64,
    /// How long outputs were held: production to release.
    pub hold_time: Distribution,
    /// How far the backup's replay was behind at the end, in microseconds.
    pub lag_us: u64,
    /// How far it was behind at most, in microseconds.
    pub lag_max_us: u64,
    /// Frames that the guest's network card dropped, either way: into no buffer, or one that is too short.
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
    let DroppedFrames { received, transmitted } = machine.dropped_frames();
    received.saturating_add(transmitted)
}

/// Tells of them, if there are any.
fn dropped(f: &mut fmt::Formatter<'_>, frames: u64) -> fmt::Result {
    if frames == 0 { Ok(()) } else { write!(f, "; its network card dropped {} frames", Grouped(frames)) }
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

/// Outputs that a full buffer cost, if there are any.
fn lost(f: &mut fmt::Formatter<'_>, outputs: u64, how: &str) -> fmt::Result {
    if outputs == 0 { Ok(()) } else { write!(f, "; {} outputs {how}", Grouped(outputs)) }
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
                | Self::OutputDropped { .. }
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

impl fmt::Display for NodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { vm, generation, node } => {
                write!(f, "OWNER of VM {vm} as generation {generation}, node {node:.8}")
            }
            Self::Listening { channel } => write!(f, "logging channel at {channel}"),
            Self::LanAttached { lan } => write!(f, "attached to the LAN at {lan}"),
            Self::LanLost { reason } => write!(f, "no LAN: {reason}"),
            Self::BackupConnected { address } => write!(f, "backup connected from {address}"),
            Self::BackupRefused { address, reason, left_out } => {
                write!(f, "backup from {address} refused: {reason}{}", LeftOut(*left_out))
            }
            Self::SpareWaits { address, left_out } => {
                write!(f, "another backup waits for its place, at {address}{}", LeftOut(*left_out))
            }
            Self::WaitsForPlace => f.write_str("the primary has a backup already; this one waits for its place"),
            Self::Waiting { vm, reason, seconds } => {
                write!(f, "waiting for a primary of VM {vm} since {seconds} s: {reason}")
            }
            Self::GuestWaits { channel, seconds } => {
                write!(f, "the guest waits since {seconds} s for a backup at {channel}")
            }
            Self::Alone { generation } => write!(f, "ALONE as generation {generation}: no backup"),
            Self::PrimaryConnected { address } => write!(f, "connected to the primary at {address}"),
            Self::Joined { image } => {
                write!(f, "joined: guest {image} is in lockstep")
            }
            Self::Protected { generation, again } => {
                write!(f, "PROTECTED{} as generation {generation}", if *again { " again" } else { "" })
            }
            Self::MemoryCopied { pages, took_ms, stood_ms, longest_stand_us } => write!(
                f,
                "memory sent: {} pages in {} ms; guest stood {} ms, at most {} us",
                Grouped(*pages),
                Grouped(*took_ms),
                Grouped(*stood_ms),
                Grouped(*longest_stand_us)
            ),
            // One that hadn't joined yet costs no claim.
            Self::BackupLost { reason } => write!(f, "backup lost: {reason}"),
            Self::PrimaryLost { reason } => write!(f, "primary lost: {reason}"),
            Self::LogUsable { directory } => write!(f, "log whole, to go on with --resume {directory}"),
            Self::DiskWaits { directory, seconds } => {
                write!(
                    f,
                    "outputs wait since {seconds} s for the disk of {directory}; Ctrl-C gives the VM to its backup"
                )
            }
            Self::LogLost { reason } => write!(f, "NO LOG ON DISK any more, the VM goes on without: {reason}"),
            Self::Resumed { segment, ending, entries, instruction_count, may_lack, .. } => write!(
                f,
                "resumed at instruction {} after {} entries of {segment}, which is {ending}{}",
                Grouped(*instruction_count),
                Grouped(*entries),
                if *may_lack {
                    "; the last of what clients have seen may be missing, as the operator has accepted"
                } else {
                    ""
                }
            ),
            Self::ArbiterUnreachable { reason } => {
                write!(f, "{reason}; asking again, and until it answers no side starts the VM or takes it over")
            }
            Self::ClaimsLost { vm, generation, latest } => {
                let known = latest.map_or_else(|| "no owner".into(), |latest| format!("only generation {latest}"));
                write!(
                    f,
                    "THE ARBITER HAS LOST ITS CLAIMS, or was restored to an older state: it knows {known} of VM {vm}, which \
                     this node owns as generation {generation}; claiming again what is missing. Find out who removes claims, \
                     and start no other primary of this VM"
                )
            }
            Self::OwnerConfirmed { generation } => write!(
                f,
                "the arbiter confirms this node as the owner of generation {generation}, though the LAN refuses it: is the LAN \
                 another VM's of this name, or the arbiter older than the LAN? It is tried again every second"
            ),
            Self::ClaimsRestored { generation } => {
                write!(f, "the arbiter knows this node again as the owner of generation {generation}")
            }
            Self::Stranded { generation } => write!(
                f,
                "STANDS STILL: the pair of generation {generation} broke after the arbiter had lost its claims, so the backup \
                 may own the VM. If the backup has gone live, end this primary. If it is dead, end this primary too and go on \
                 with --resume from a log, or --force-new"
            ),
            Self::PrimaryClaimLost { generation } => write!(
                f,
                "WAITS: the arbiter has lost the claim of the primary of generation {generation}, so whether that one goes on \
                 can't be known. If it lives, it claims again, and this backup is told. If it is dead, end this backup and go on \
                 with --resume from a log, or --force-new"
            ),
            Self::Live { generation, loss_noticed_us, live_us, entries, digests_checked, tail_dropped, .. } => {
                let after_us = live_us.saturating_sub(*loss_noticed_us);
                write!(
                    f,
                    "LIVE as generation {generation}, {} us after the loss ({} entries, {} digests)",
                    Grouped(after_us),
                    Grouped(*entries),
                    Grouped(*digests_checked)
                )?;
                lost(f, *tail_dropped, "may be LOST: there were too many to keep for going live")
            }
            Self::FirstOutput => f.write_str("first frame sent"),
            Self::RawConsole => f.write_str(
                "keys go to the guest as they are typed; Ctrl-A x ends this program, Ctrl-A Ctrl-A types Ctrl-A",
            ),
            Self::Console(piece) => write!(f, "console: {}", piece.text.trim_end()),
            Self::DeviceFailed { device, queue, descriptor, times } => {
                write!(f, "the guest's {device} driver has made a mistake in queue {queue}: ")?;
                match descriptor {
                    Some(descriptor) => write!(f, "bad descriptor {descriptor}")?,
                    None => f.write_str("bad ring")?,
                }
                f.write_str("; the device does nothing until the driver resets it")?;
                if *times > 1 { write!(f, " ({times} mistakes so far)") } else { Ok(()) }
            }
            Self::GuestPanicked { reason, has_console: true } => {
                write!(f, "the guest's kernel has PANICKED: {reason}")
            }
            Self::GuestPanicked { reason, has_console: false } => write!(
                f,
                "the guest's kernel has PANICKED before it had a console: {reason}; `earlycon=sbi` in its boot arguments \
                 shows all it says, --memory gives it more RAM"
            ),
            Self::OutputDropped { stream, console_bytes, lines } => {
                let (bytes, lines) = (Grouped(*console_bytes), Grouped(*lines));
                write!(f, "{stream} was not taken: {bytes} bytes of console and {lines} lines are lost")
            }
            Self::Diverged { reason } => f.write_str(reason),
            Self::Figures(figures) => {
                write!(
                    f,
                    "{} instructions, {} entries, {} bytes to the backup, {} frames",
                    Grouped(figures.instruction_count),
                    Grouped(figures.entries),
                    Grouped(figures.channel_bytes),
                    Grouped(figures.frames),
                )?;
                if figures.frames_without_lan > 0 {
                    write!(f, " ({} without LAN)", Grouped(figures.frames_without_lan))?;
                }
                dropped(f, figures.frames_dropped)?;
                if figures.hold_time.samples > 0 {
                    let Distribution { p50_us, p99_us, max_us, .. } = figures.hold_time;
                    write!(f, "; held p50 {}, p99 {}, max {} us", Tenths(p50_us), Tenths(p99_us), Tenths(max_us))?;
                }
                lost(f, figures.outputs_given_up, "were given up: the network didn't carry them")
            }
            Self::Recording { instruction_count, mips, entries, is_booting } => {
                let doing = if *is_booting { "booting" } else { "recording" };
                write!(
                    f,
                    "{doing}: {} M instructions, {mips:.0} MIPS, {} entries",
                    Grouped(instruction_count / 1_000_000),
                    Grouped(*entries)
                )
            }
            Self::Recorded(recorded) => {
                write!(
                    f,
                    "recorded {} instructions, {} entries and {} outputs in {:.3} s to {} ({} bytes)",
                    Grouped(recorded.instruction_count),
                    Grouped(recorded.entries),
                    Grouped(recorded.outputs),
                    recorded.seconds,
                    recorded.log,
                    Grouped(recorded.log_bytes)
                )?;
                dropped(f, recorded.frames_dropped)
            }
            Self::Replaying { instruction_count, mips, entries, percent } => {
                f.write_str("replaying: ")?;
                if let Some(percent) = percent {
                    write!(f, "{percent} % of the log, ")?;
                }
                let millions = Grouped(instruction_count / 1_000_000);
                write!(f, "{millions} M instructions, {mips:.0} MIPS, {} entries", Grouped(*entries))
            }
            Self::Replayed(replayed) => {
                write!(
                    f,
                    "replayed {} instructions, {} entries and {} outputs in {:.3} s (guest's clock {:.3} s); \
                 {} state digests equal, the last {}",
                    Grouped(replayed.instruction_count),
                    Grouped(replayed.entries),
                    Grouped(replayed.outputs),
                    replayed.seconds,
                    replayed.guest_seconds,
                    Grouped(replayed.digests_checked),
                    replayed.state_digest
                )?;
                dropped(f, replayed.frames_dropped)
            }
            Self::End { reason, exit_code } => write!(f, "{reason} (exit code {exit_code})"),
        }
    }
}
