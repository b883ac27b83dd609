//! The human form of reports: one line on a terminal of 80 columns, where that is enough. The JSON
//! form has everything that is left out here.

use super::{Figures, NodeReport, Recorded, Replayed};
use crate::os::rate_limit::LeftOut;
use crate::os::report::{Grouped, Instructions, Tenths};
use std::fmt;

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
            Self::Waiting { reason, seconds, .. } => write!(f, "no primary for {seconds} s: {reason}"),
            Self::GuestWaits { channel, seconds } => {
                write!(f, "the guest has waited {seconds} s for a backup at {channel}")
            }
            Self::Alone { generation } => write!(f, "ALONE as generation {generation}: no backup"),
            Self::PrimaryConnected { address } => write!(f, "connected to the primary at {address}"),
            Self::Joined { image } => write!(f, "joined: guest {image} is in lockstep"),
            Self::Protected { generation, again } => {
                write!(f, "PROTECTED{} as generation {generation}", if *again { " again" } else { "" })
            }
            Self::MemoryCopied { pages, took_ms, longest_stand_us, .. } => write!(
                f,
                "{} pages sent in {} ms, guest stood {} us at most",
                Grouped(*pages),
                Grouped(*took_ms),
                Grouped(*longest_stand_us)
            ),
            // Doesn't mention the flag, because a backup that was still joining costs no claim.
            Self::BackupLost { reason } => write!(f, "backup lost: {reason}"),
            Self::PrimaryLost { reason } => write!(f, "primary lost: {reason}"),
            Self::LogUsable { directory } => write!(f, "log whole, to go on with --resume {directory}"),
            Self::DiskWaits { directory, seconds } => write!(
                f,
                "outputs have waited {seconds} s for the disk of {directory}; Ctrl-C gives the VM to its backup"
            ),
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
                write!(f, "the arbiter knows the owner of generation {generation} again")
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
            Self::Live { generation, loss_noticed_us, live_us, entries, tail_dropped, .. } => {
                let after_us = Grouped(live_us.saturating_sub(*loss_noticed_us));
                write!(f, "LIVE as generation {generation} after {after_us} us, at entry {}", Grouped(*entries))?;
                lost(f, *tail_dropped, "may be LOST: there were too many to keep for going live")
            }
            Self::FirstOutput => f.write_str("first frame sent"),
            Self::RawConsole => f.write_str("keys go to the guest; Ctrl-A x quits, Ctrl-A twice is Ctrl-A"),
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
            Self::Diverged { reason } => f.write_str(reason),
            Self::Figures(figures) => figures.fmt(f),
            Self::Recording { instruction_count, mips, entries, is_booting } => {
                let doing = if *is_booting { "booting" } else { "recording" };
                let (instructions, entries) = (Instructions(*instruction_count), Grouped(*entries));
                write!(f, "{doing}: {instructions}, {entries} entries, {mips:.0} MIPS")
            }
            Self::Recorded(recorded) => recorded.fmt(f),
            Self::Replaying { instruction_count, mips, entries, percent } => {
                let instructions = Instructions(*instruction_count);
                match percent {
                    Some(percent) => write!(f, "replay at {percent} %: {instructions}, {mips:.0} MIPS"),
                    None => write!(f, "replay: {instructions}, {} entries, {mips:.0} MIPS", Grouped(*entries)),
                }
            }
            Self::Replayed(replayed) => replayed.fmt(f),
            // Exit codes 0 and 1 add nothing to the level.
            Self::End { reason, exit_code: 0 | 1 } => f.write_str(reason),
            Self::End { reason, exit_code } => write!(f, "{reason} (exit code {exit_code})"),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} frames", Instructions(self.instruction_count), Grouped(self.frames))?;
        // The hold time is of interest only if packets were carried.
        if self.frames_without_lan > 0 {
            write!(f, ", {} without LAN", Grouped(self.frames_without_lan))?;
        } else if self.hold_time.samples > 0 {
            write!(f, " held {} us (median)", Tenths(self.hold_time.p50_us))?;
        }
        dropped(f, self.frames_dropped)?;
        lost(f, self.outputs_given_up, "were given up: the network didn't carry them")
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, instruction_count, entries, seconds, .. } = self;
        let seconds = Seconds(*seconds);
        write!(f, "{log}: {}, {} entries, {seconds}", Instructions(*instruction_count), Grouped(*entries))?;
        dropped(f, self.frames_dropped)
    }
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instruction_count, entries, seconds, guest_seconds, .. } = self;
        let (instructions, entries) = (Instructions(*instruction_count), Grouped(*entries));
        let [seconds, guest_seconds] = [*seconds, *guest_seconds].map(Seconds);
        write!(f, "{instructions}, {entries} entries, {guest_seconds} in {seconds}")?;
        dropped(f, self.frames_dropped)
    }
}

/// A duration in seconds, with few digits.
struct Seconds(f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.0 < 10.0 { 3 } else { 1 };
        write!(f, "{:.digits$} s", self.0)
    }
}

/// Appends the number of dropped packets, unless it is 0.
fn dropped(f: &mut fmt::Formatter<'_>, frames: u64) -> fmt::Result {
    if frames == 0 { Ok(()) } else { write!(f, "; its network card dropped {} frames", Grouped(frames)) }
}

/// Appends the number of lost outputs, unless it is 0.
fn lost(f: &mut fmt::Formatter<'_>, outputs: u64, how: &str) -> fmt::Result {
    if outputs == 0 { Ok(()) } else { write!(f, "; {} outputs {how}", Grouped(outputs)) }
}
