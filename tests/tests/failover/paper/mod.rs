//! Every promise of VMware FT's paper, every question that it raises, and the test that answers it.
//!
//! Source: Scales, Nelson, Venkitachalam, "The Design of a Practical System for Fault-Tolerant
//! Virtual Machines" (2010).
//!
//! | § | promise or question | test |
//! |---|---|---|
//! | 2.1 | replay repeats the recording exactly, clock, timer and input included | `recording/programs::echo_under_clients_replays_to_the_same_console_outputs_and_digests` |
//! | 2.1 | virtual lockstep: both sides have the same state at the same instruction | `lockstep::state_is_equal_at_every_digest_while_clients_hammer_the_guest` |
//! | 2.1 | a backup whose state differs is found, and never goes live | `lockstep::flipped_bit_on_the_backup_is_found_at_the_next_digest_and_never_goes_live` |
//! | 2.1 | the backup never runs past the log that it has | `paper::outputs::the_backup_replays_no_further_than_its_log` |
//! | 2.2 | the Output Rule; the guest is not stopped by it | `output_rule::output_waits_for_its_acknowledgement_while_the_guest_runs_on` |
//! | 2.2 | an acknowledgement lets out what it covers and nothing more | `output_rule::every_acknowledgement_lets_out_what_it_covers_and_nothing_more` |
//! | 2.2 | the backup's outputs are dropped as long as it is a backup | `kill::killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled` |
//! | 2.2 | output made just before the crash, its entry acknowledged, the acknowledgement not heard | `paper::outputs::an_output_that_was_logged_and_not_released_comes_once_from_the_new_primary` |
//! | 2.2 | input logged, and the entry never arrived: the sender's packet was lost with the primary | `paper::outputs::an_input_whose_entry_was_lost_is_delivered_to_the_new_primary_again` |
//! | 2.2 | output let out just before the crash: the new primary can't know, and makes it again | `paper::outputs::an_output_released_just_before_the_crash_reaches_clients_once` |
//! | 2.2 | the backup acknowledges what it receives, not what it has replayed | `paper::outputs::a_backup_that_is_behind_replays_its_whole_log_before_it_goes_live` |
//! | 2.3 | a killed primary is followed by its backup | `kill::killed_primary_is_followed_by_its_backup_and_no_message_is_lost_or_doubled` |
//! | 2.3 | a killed backup leaves its primary alone | `backup_loss::primary_whose_backup_is_killed_goes_on_alone_as_the_next_generation` |
//! | 2.3 | silence of the network: heartbeats and log stop, both sides live | `partition::silent_cut_that_the_backup_notices_first_fences_the_primary` |
//! | 2.3 | an idle guest sends no log to speak of, and is neither lost nor forgotten | `paper::pauses::an_idle_guest_stays_protected_and_keeps_its_connection` |
//! | 2.3 | a pause shorter than the timeout is no failure | `paper::pauses::a_pause_shorter_than_the_timeout_is_no_failure` |
//! | 2.3 | no split brain: both claim, the test-and-set lets one | `partition::a_silent_cut_leaves_exactly_one_live_side` |
//! | 2.3 | the old primary wakes after a pause: it has found out, and puts out nothing | `paper::pauses::a_primary_resumed_after_its_timeout_releases_nothing` |
//! | 2.3 | ... it has not found out: nobody hears what it puts out | `paper::pauses::outputs_of_a_primary_resumed_before_its_timeout_are_dropped_by_the_lan` |
//! | 2.3 | the old backup wakes after a pause | `paper::pauses::a_backup_resumed_after_its_timeout_never_goes_live` |
//! | 2.3 | both wake after a pause | `paper::pauses::of_two_sides_resumed_after_a_pause_exactly_one_goes_on` |
//! | 2.3 | shared storage is unreachable: nobody goes on until it is back | `arbiter_outage::sides_that_lose_each_other_both_wait_and_exactly_one_goes_on` |
//! | 2.3 | the backup dies while it claims: nobody goes on | `paper::claims::a_vm_whose_backup_dies_before_its_claim_is_recorded_has_no_live_side` |
//! | 2.3 | ... after its claim was recorded: the flag stays its own | `paper::claims::a_vm_whose_backup_dies_after_its_claim_is_recorded_has_no_live_side` |
//! | 2.3 | both claim, and one dies: the other goes on | `paper::claims::the_surviving_one_of_two_claimers_goes_on` |
//! | 2.3 | redundancy is restored, again and again | `rejoin::any_number_of_losses_of_either_side_is_survived` |
//! | 2.3 | the client that closed meanwhile, and the one that came meanwhile | `paper::claims::connections_opened_and_closed_during_an_outage_reach_the_new_primary` |
//! | 3.1 | a backup is started for a running guest, without disturbing it | `rejoin::a_backup_joins_a_guest_that_ran_unprotected_and_outlives_its_primary` |
//! | 3.1 | what dies while the new backup is started costs nothing | `rejoin::a_backup_that_dies_while_it_joins_costs_the_guest_nothing` |
//! | 3.2 | a slow backup slows its primary | `lag::a_backup_ten_times_slower_slows_its_primary_and_the_lag_stays_bounded` |
//! | 3.2 | a backup that reads nothing for a while holds its primary up, and nothing stays stuck | `paper::pauses::a_pause_shorter_than_the_timeout_is_no_failure` |
//! | 3.3 | a guest that powers off is no failover | `operation/lifecycle::guest_that_powers_off_ends_both_sides_without_a_failover` |
//! | 3.5 | clients find the guest where it went, on a network that knows nothing of fault tolerance | `tap::a_kernels_tcp_connection_survives_the_kill_of_the_primary` |
//!
//! §3.4, §4.1 and §4.2 are of disks, which the machine hasn't got; §3.5's batching of interrupts is
//! a matter of its host.

mod claims;
mod outputs;
mod pauses;

use hypervisor::program::site::cluster::PATIENCE;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;
use tests::stage::Stage;

/// How long to look for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The link holds back reports of what is replayed, or the backup is slow: that must not slow the
/// guest here.
const UNBOUNDED: [&str; 2] = ["--lag-bound-ms", "60000"];

/// Failure timeouts: long enough that a busy host causes no loss, and far enough apart that one
/// side notices first.
const ALERT: [&str; 2] = ["--failure-timeout-ms", "1000"];

/// A client whose every answer is looked at, by datagrams: nobody sends one again, and one that is
/// doubled is seen.
struct Asker(UdpSocket);

impl Asker {
    /// The LAN and the guest know each other's addresses from here on: an answer is one packet.
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

    /// The next answer is the one to `request`.
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

/// The guest answers `request` on this connection.
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
