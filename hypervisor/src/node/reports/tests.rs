//! Reports must fit a terminal of 80 columns.

use super::{Figures, NodeReport, Recorded, Replayed};
use crate::node::distribution::Distribution;
use crate::node::io::console_text::Piece;
use crate::os::report::on_a_terminal;
use ft::role::{LossReason, LostSide};

const ADDRESS: &str = "192.168.1.17:7201";

/// The usual reports of a VM, from its start to its end with a failover and a join, and with usual
/// values.
fn usual_of_a_node() -> Vec<NodeReport> {
    let address = || ADDRESS.to_owned();
    vec![
        NodeReport::Owner { vm: "vm0".into(), generation: 12, node: format!("{:032x}", u128::MAX) },
        NodeReport::Listening { channel: address() },
        NodeReport::LanAttached { lan: address() },
        NodeReport::LanLost { reason: "the LAN closed the connection".into() },
        NodeReport::LanLost { reason: "connection to the LAN: Connection refused (os error 111)".into() },
        NodeReport::BackupConnected { address: address() },
        NodeReport::SpareWaits { address: address(), left_out: 0 },
        NodeReport::WaitsForPlace,
        NodeReport::Waiting { vm: "vm0".into(), reason: format!("nobody answers at {ADDRESS}"), seconds: 120 },
        NodeReport::Waiting { vm: "vm0".into(), reason: "the arbiter knows no VM of this name".into(), seconds: 120 },
        NodeReport::Waiting { vm: "vm0".into(), reason: format!("the VM was ended at {ADDRESS}"), seconds: 12 },
        NodeReport::GuestWaits { channel: address(), seconds: 120 },
        NodeReport::Alone { generation: 12 },
        NodeReport::PrimaryConnected { address: address() },
        NodeReport::Joined { image: "Image".into() },
        NodeReport::MemoryCopied { pages: 262_144, took_ms: 12_345, stood_ms: 1_234, longest_stand_us: 12_345 },
        NodeReport::Protected { generation: 12, again: true },
        NodeReport::BackupLost { reason: "connection closed".into() },
        NodeReport::BackupLost { reason: LossReason::ReplaysNothing { for_ms: 20_000 }.to_string() },
        NodeReport::PrimaryLost { reason: LossReason::Silent { side: LostSide::Primary, for_ms: 1000 }.to_string() },
        NodeReport::PrimaryLost { reason: "the operator stopped the primary".into() },
        NodeReport::LogUsable { directory: "logs/primary".into() },
        NodeReport::OwnerConfirmed { generation: 12 },
        NodeReport::ClaimsRestored { generation: 12 },
        NodeReport::Live {
            generation: 12,
            last_entry_received_us: 1,
            loss_noticed_us: 2,
            test_and_set_won_us: 3,
            last_entry_consumed_us: 4,
            live_us: 9_002,
            entries: 1_234_567,
            digests_checked: 123,
            tail_outputs: 1,
            tail_dropped: 0,
        },
        NodeReport::FirstOutput,
        NodeReport::RawConsole,
        NodeReport::Replaying { instruction_count: 12_345_678_901, mips: 456.0, entries: 1_234_567, percent: Some(50) },
        NodeReport::Figures(figures()),
        NodeReport::Figures(Figures { frames_without_lan: 1_234, ..figures() }),
        end("the operator ended the VM; it can be started again", 0),
        end("stopped by the operator; its backup goes on", 0),
        end("fenced by node 12345678 at 127.0.0.1:7201", 3),
    ]
}

fn usual_of_a_recording() -> Vec<NodeReport> {
    vec![
        NodeReport::Recording { instruction_count: 12_345_678_901, mips: 456.0, entries: 1_234_567, is_booting: false },
        NodeReport::Recorded(Recorded {
            log: "linux.ftlog".into(),
            log_bytes: 123_456_789,
            entries: 1_234_567,
            instruction_count: 12_345_678_901,
            outputs: 123_456,
            frames_dropped: 0,
            seconds: 123.4,
        }),
        end("guest powered off with code 1", 6),
        end("the guest sleeps, and it has enabled nothing that could wake it", 0),
    ]
}

fn usual_of_a_replay() -> Vec<NodeReport> {
    vec![
        NodeReport::Replaying {
            instruction_count: 12_345_678_901,
            mips: 456.0,
            entries: 1_234_567,
            percent: Some(100),
        },
        NodeReport::Replaying { instruction_count: 12_345_678_901, mips: 456.0, entries: 1_234_567, percent: None },
        NodeReport::Replayed(Replayed {
            entries: 1_234_567,
            instruction_count: 12_345_678_901,
            outputs: 123_456,
            frames_dropped: 0,
            digests_checked: 1_234,
            state_digest: format!("{:032x}", u128::MAX),
            seconds: 45.6,
            guest_seconds: 123.4,
            ending: "complete".into(),
        }),
        end("echo.ftlog: all outputs and digests equal; the log is complete", 0),
    ]
}

/// Reports that may be longer than a line, because they tell an operator what to do.
fn longer() -> Vec<NodeReport> {
    let why = || "something that takes a whole sentence to tell, and then some more words".to_owned();
    vec![
        NodeReport::BackupRefused { address: ADDRESS.into(), reason: why(), left_out: 3 },
        NodeReport::Resumed {
            segment: "logs/primary/00000000000000012345.ftlog".into(),
            ending: "whole up to its end at byte 123456; its writer was killed, or is still writing".into(),
            entries: 1_234_567,
            instruction_count: 12_345_678_901,
            tail_outputs: 1,
            may_lack: true,
        },
        NodeReport::DiskWaits { directory: "logs/primary".into(), seconds: 12 },
        NodeReport::LogLost { reason: why() },
        NodeReport::ArbiterUnreachable { reason: why() },
        NodeReport::ClaimsLost { vm: "vm0".into(), generation: 12, latest: Some(3) },
        NodeReport::Stranded { generation: 12 },
        NodeReport::PrimaryClaimLost { generation: 12 },
        NodeReport::DeviceFailed { device: "virtio-net".into(), queue: 1, descriptor: Some(255), times: 4 },
        NodeReport::GuestPanicked { reason: why(), has_console: false },
        NodeReport::GuestPanicked { reason: "Out of memory".into(), has_console: true },
        NodeReport::Diverged { reason: why() },
        NodeReport::Console(Piece { text: why(), hex: None }),
        NodeReport::Figures(Figures { frames_without_lan: 12, frames_dropped: 3, outputs_given_up: 1, ..figures() }),
        end(&why(), 1),
    ]
}

fn figures() -> Figures {
    let hold_time =
        Distribution { samples: 9, p50_us: 62.2, p90_us: 75.0, p99_us: 2_114.4, p99_9_us: 1.0, max_us: 2_867.2 };
    Figures {
        instruction_count: 12_345_678_901,
        entries: 1_234_567,
        channel_bytes: 123_456_789,
        frames: 123_456,
        frames_without_lan: 0,
        hold_time,
        lag_us: 1,
        lag_max_us: 2,
        frames_dropped: 0,
        outputs_given_up: 0,
    }
}

fn end(reason: &str, exit_code: u8) -> NodeReport {
    NodeReport::End { reason: reason.into(), exit_code }
}

/// `true` if a report may be longer than a line. A new report must be added here, and to one of the
/// lists above.
const fn may_be_longer(report: &NodeReport) -> bool {
    match report {
        NodeReport::BackupRefused { .. }
        | NodeReport::Resumed { .. }
        | NodeReport::DiskWaits { .. }
        | NodeReport::LogLost { .. }
        | NodeReport::ArbiterUnreachable { .. }
        | NodeReport::ClaimsLost { .. }
        | NodeReport::OwnerConfirmed { .. }
        | NodeReport::Stranded { .. }
        | NodeReport::PrimaryClaimLost { .. }
        | NodeReport::DeviceFailed { .. }
        | NodeReport::GuestPanicked { .. }
        | NodeReport::Diverged { .. }
        | NodeReport::Console(_) => true,
        NodeReport::Owner { .. }
        | NodeReport::Listening { .. }
        | NodeReport::LanAttached { .. }
        | NodeReport::LanLost { .. }
        | NodeReport::BackupConnected { .. }
        | NodeReport::SpareWaits { .. }
        | NodeReport::WaitsForPlace
        | NodeReport::Waiting { .. }
        | NodeReport::GuestWaits { .. }
        | NodeReport::Alone { .. }
        | NodeReport::PrimaryConnected { .. }
        | NodeReport::Joined { .. }
        | NodeReport::MemoryCopied { .. }
        | NodeReport::Protected { .. }
        | NodeReport::BackupLost { .. }
        | NodeReport::PrimaryLost { .. }
        | NodeReport::LogUsable { .. }
        | NodeReport::ClaimsRestored { .. }
        | NodeReport::Live { .. }
        | NodeReport::FirstOutput
        | NodeReport::RawConsole
        | NodeReport::Figures(_)
        | NodeReport::Recording { .. }
        | NodeReport::Recorded(_)
        | NodeReport::Replaying { .. }
        | NodeReport::Replayed(_)
        | NodeReport::End { .. } => false,
    }
}

#[test]
fn usual_reports_are_one_line_on_a_terminal() {
    let all =
        [("ft-primary", usual_of_a_node()), ("ft-record", usual_of_a_recording()), ("ft-replay", usual_of_a_replay())];
    for (program, reports) in all {
        for report in reports {
            let lines = on_a_terminal(program, &report);
            assert!(may_be_longer(&report) || lines.len() == 1, "{lines:#?}");
            assert!(lines[0].chars().count() <= 80, "{lines:?}");
        }
    }
}

#[test]
fn longer_reports_are_broken_between_words_and_indented_by_the_time() {
    for report in longer() {
        let lines = on_a_terminal("ft-primary", &report);
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        let is_behind_time = |line: &String| line.starts_with("         ") && !line[9..].starts_with(' ');
        assert!(lines[1..].iter().all(is_behind_time), "{lines:#?}");
    }
}
