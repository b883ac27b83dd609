//! The promises of VMware FT's paper, the questions that it raises, and the test for each.
//!
//! Source: Scales, Nelson, Venkitachalam, "The Design of a Practical System for Fault-Tolerant
//! Virtual Machines" (2010).
//!
//! | § | promise or question | test |
//! |---|---|---|
//! | 2.1 | replay repeats the recording exactly, clock, timer and input included | `recording/programs::echo_under_clients_replays_to_the_same_console_outputs_and_digests` |
//! | 2.1 | virtual lockstep: both sides have the same state at the same instruction | `lockstep::state_is_equal_at_every_digest_while_clients_hammer_the_guest` |
//! | 2.1 | a backup whose state differs is detected, and never goes live | `lockstep::flipped_bit_on_the_backup_is_found_at_the_next_digest_and_never_goes_live` |
//! | 2.1 | the backup never runs past its log | `paper::outputs::the_backup_replays_no_further_than_its_log` |
//! | 2.2 | the Output Rule, which doesn't stop the guest | `output_rule::output_waits_for_its_acknowledgement_while_the_guest_runs_on` |
//! | 2.2 | an acknowledgement releases the outputs that it covers and no others | `output_rule::every_acknowledgement_lets_out_what_it_covers_and_nothing_more` |
//! | 2.2 | a backup's outputs are dropped | `kill::killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled` |
//! | 2.2 | an output before the crash whose entry was acknowledged, and the acknowledgement lost | `paper::outputs::an_output_that_was_logged_and_not_released_comes_once_from_the_new_primary` |
//! | 2.2 | an input whose entry never arrived: the packet was lost with the primary | `paper::outputs::an_input_whose_entry_was_lost_is_delivered_to_the_new_primary_again` |
//! | 2.2 | an output released just before the crash: the new primary can't know, and sends it again | `paper::outputs::an_output_released_just_before_the_crash_reaches_clients_once` |
//! | 2.2 | the backup acknowledges received entries, not replayed ones | `paper::outputs::a_backup_that_is_behind_replays_its_whole_log_before_it_goes_live` |
//! | 2.3 | a killed primary is followed by its backup | `kill::killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled` |
//! | 2.3 | a primary goes on without its killed backup | `backup_loss::primary_whose_backup_is_killed_goes_on_alone_as_the_next_generation` |
//! | 2.3 | the network is silent: heartbeats and log stop, both sides live | `partition::silent_cut_that_the_backup_notices_first_fences_the_primary` |
//! | 2.3 | an idle guest needs hardly any log, and stays protected | `paper::pauses::an_idle_guest_stays_protected_and_keeps_its_connection` |
//! | 2.3 | a pause shorter than the timeout is no failure | `paper::pauses::a_pause_shorter_than_the_timeout_is_no_failure` |
//! | 2.3 | no split-brain: both claim, and the test-and-set lets one win | `partition::a_silent_cut_leaves_exactly_one_live_side` |
//! | 2.3 | the old primary resumes after a pause, notices its timeout, and releases nothing | `paper::pauses::a_primary_resumed_after_its_timeout_releases_nothing` |
//! | 2.3 | ... doesn't notice it: the LAN drops its outputs | `paper::pauses::outputs_of_a_primary_resumed_before_its_timeout_are_dropped_by_the_lan` |
//! | 2.3 | the old backup resumes after a pause | `paper::pauses::a_backup_resumed_after_its_timeout_never_goes_live` |
//! | 2.3 | both sides resume after a pause | `paper::pauses::of_two_sides_resumed_after_a_pause_exactly_one_goes_on` |
//! | 2.3 | the shared storage is unreachable: neither side goes on until it is back | `arbiter_outage::sides_that_lose_each_other_both_wait_and_exactly_one_goes_on` |
//! | 2.3 | the backup dies while it claims: no side is left | `paper::claims::a_vm_whose_backup_dies_before_its_claim_is_recorded_has_no_live_side` |
//! | 2.3 | ... after its claim was recorded: it keeps the flag | `paper::claims::a_vm_whose_backup_dies_after_its_claim_is_recorded_has_no_live_side` |
//! | 2.3 | both claim, and one dies: the other goes on | `paper::claims::the_surviving_one_of_two_claimers_goes_on` |
//! | 2.3 | redundancy is restored any number of times | `rejoin::any_number_of_losses_of_either_side_is_survived` |
//! | 2.3 | clients that closed or connected during the outage | `paper::claims::connections_opened_and_closed_during_an_outage_reach_the_new_primary` |
//! | 3.1 | a backup is started for a running guest without disturbing it | `rejoin::a_backup_joins_a_guest_that_ran_unprotected_and_outlives_its_primary` |
//! | 3.1 | a new backup that dies while it starts costs the guest nothing | `rejoin::a_backup_that_dies_while_it_joins_costs_the_guest_nothing` |
//! | 3.2 | a slow backup slows its primary | `lag::a_backup_ten_times_slower_slows_its_primary_and_the_lag_stays_bounded` |
//! | 3.2 | a backup that reads nothing for a while stops its primary only for that time | `paper::pauses::a_pause_shorter_than_the_timeout_is_no_failure` |
//! | 3.3 | a guest that powers off is no failover | `operation/lifecycle::guest_that_powers_off_ends_both_sides_without_a_failover` |
//! | 3.5 | clients reach the guest on its new host, on a network without support for fault tolerance | `tap::a_kernels_tcp_connection_survives_the_kill_of_the_primary` |
//!
//! §3.4, §4.1 and §4.2 are about shared disks: this machine's disk is part of its state. The
//! batching of interrupts in §3.5 concerns the host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod claims;
mod outputs;
mod pauses;

use hypervisor::program::site::cluster::PATIENCE;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;
use tests::stage::Stage;

/// How long a test waits for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A failure timeout that is short, but long enough that a busy host causes no failover.
const ALERT: [&str; 2] = ["--failure-timeout-ms", "1000"];

/// A client that checks every answer. It uses datagrams, which aren't retransmitted, so that it
/// sees lost and doubled ones.
struct Asker(UdpSocket);

impl Asker {
    /// Returns once LAN and guest have resolved each other's addresses, so that an answer is one
    /// packet.
    fn of(stage: &Stage) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(stage.site.service).unwrap();
        let asker = Self(socket);
        asker.ask("hello");
        asker.has_answer("hello");
        asker
    }

    fn ask(&self, request: &str) {
        self.0.send(request.as_bytes()).unwrap();
    }

    /// Checks that the next answer is the one to `request`.
    #[track_caller]
    fn has_answer(&self, request: &str) {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = [0; 100];
        let length = self.0.recv(&mut answer).unwrap_or_else(|error| panic!("no answer to {request:?}: {error}"));
        assert_eq!(String::from_utf8_lossy(&answer[..length]), request);
    }

    #[track_caller]
    fn has_no_answer(&self) {
        self.0.set_read_timeout(Some(SILENCE)).unwrap();
        let mut answer = [0; 100];
        let error = match self.0.recv(&mut answer) {
            Ok(length) => panic!("an answer: {:?}", String::from_utf8_lossy(&answer[..length])),
            Err(error) => error,
        };
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
}

/// A connection to the guest.
fn connect(stage: &Stage) -> TcpStream {
    let client = TcpStream::connect(stage.site.service).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Checks that the guest answers `request` on this connection.
#[track_caller]
fn echoes(mut client: &TcpStream, request: &str) {
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![0; request.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), request);
}

#[test]
fn every_answer_of_the_table_is_a_test() {
    let rows = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! | ")?.rsplit('`').nth(1));
    let mut tests = 0;
    for (module, name) in rows.filter_map(|test| test.rsplit_once("::")) {
        let file = module.replace("::", "/");
        let file = if file.starts_with("recording/") || file.starts_with("operation/") {
            file
        } else {
            format!("failover/{file}")
        };
        let source = fs::read_to_string(format!("{}/tests/{file}.rs", env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(source.contains(&format!("#[test]\nfn {name}()")), "{file}.rs has no test {name}");
        tests += 1;
    }
    assert!(tests > 30, "{tests} tests were found in the table");
}
