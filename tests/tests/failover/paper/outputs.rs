//! §2.2: the Output Rule, and inputs and outputs around the crash of the primary.

use super::{Asker, connect, echoes};
use crate::beginnings::UNBOUNDED_LAG;
use logchannel::entry::LogSeq;
use logchannel::message::Message;
use tests::client::Load;
use tests::link::Direction;
use tests::programs;
use tests::stage::{Pair, Stage, wait_until};
use vm::InstructionCount;

#[test]
fn the_backup_replays_no_further_than_its_log() {
    /// How many steps the primary runs ahead, far enough to see that the backup doesn't follow.
    const STEPS: u64 = 20_000_000;
    let stage = Stage::new(programs!());
    let (_pair, link) = stage.linked_pair(&[&["--guest", "counter"], &UNBOUNDED_LAG[..]].concat(), &[]);
    link.hold(Direction::ToBackup);
    let known = link.passed_entries();
    let last = known.last().unwrap().count;
    // The guest computes, so it runs on without inputs.
    link.wait_for_entry(LogSeq(0), |entry| entry.count > InstructionCount(last.0 + STEPS));
    for message in link.seen(Direction::ToPrimary) {
        if let Message::Consumed { consumed, count } = message {
            assert!(consumed.0 <= known.len() as u64 && count <= last, "replayed to {count}, the log went to {last}");
        }
    }
    link.release(Direction::ToBackup);
    let is_beyond = |message: &Message| matches!(message, Message::Consumed { count, .. } if *count > last);
    wait_until("replay of what was held", || link.seen(Direction::ToPrimary).iter().any(is_beyond));
}

#[test]
fn an_output_that_was_logged_and_not_released_comes_once_from_the_new_primary() {
    let mut stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED_LAG, &[]);
    let (asker, connection) = (Asker::of(&stage), connect(&stage));
    echoes(&connection, "connected");
    link.hold(Direction::ToPrimary);
    let requests = ["request one", "request two", "request three"];
    for request in requests {
        asker.ask(request);
        let [_, output] = link.wait_for_answer(request.as_bytes());
        link.wait_for_ack(output);
    }
    asker.has_no_answer();
    primary.kill();
    assert_eq!(backup.told_number("live", "generation"), 2);
    assert!(backup.told_number("live", "tail_outputs") >= requests.len() as u64);
    for request in requests {
        asker.has_answer(request);
    }
    asker.has_no_answer();
    echoes(&connection, "the same connection");
    assert_eq!(duplicates(&mut stage), 0, "none of them had left before");
}

#[test]
fn an_input_whose_entry_was_lost_is_delivered_to_the_new_primary_again() {
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED_LAG, &[]);
    let asker = Asker::of(&stage);
    link.hold(Direction::ToBackup);
    let requests = ["request one", "request two", "request three"];
    // The primary's guest has received and answered them; the backup has no entry of them.
    let places = requests.map(|request| {
        asker.ask(request);
        link.wait_for_answer(request.as_bytes())
    });
    asker.has_no_answer();
    primary.kill();
    link.cut();
    assert_eq!(backup.told_number("live", "generation"), 2);
    let [first_packet, _] = places[0];
    assert!(backup.told_number("live", "entries") <= first_packet.0, "the backup has had none of them");
    for request in requests {
        asker.has_answer(request);
    }
    asker.has_no_answer();
}

#[test]
fn an_output_released_just_before_the_crash_reaches_clients_once() {
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED_LAG, &[]);
    let asker = Asker::of(&stage);
    link.hold(Direction::ToBackup);
    let requests = ["request one", "request two", "request three"];
    let places = requests.map(|request| {
        asker.ask(request);
        link.wait_for_answer(request.as_bytes())
    });
    // The message that they have left follows the last of their entries, and never arrives.
    let [_, last] = places[requests.len() - 1];
    link.pass_entry(last);
    for request in requests {
        asker.has_answer(request);
    }
    primary.kill();
    link.cut();
    assert_eq!(backup.told_number("live", "generation"), 2);
    let unsent = backup.told_number("live", "tail_outputs");
    assert!(unsent >= requests.len() as u64, "{unsent} outputs are made again");
    asker.ask("and on");
    asker.has_answer("and on");
    asker.has_no_answer();
}

#[test]
fn a_backup_that_is_behind_replays_its_whole_log_before_it_goes_live() {
    let stage = Stage::new(programs!());
    let (Pair { mut primary, mut backup }, link) = stage.linked_pair(&UNBOUNDED_LAG, &["--inject-slowdown", "20"]);
    // Clients are served while replay falls behind, as acknowledgements don't wait for it.
    let load = Load::on(stage.site.service);
    let said = link.seen(Direction::ToPrimary);
    let consumed =
        |message: &Message| if let Message::Consumed { consumed, .. } = message { Some(*consumed) } else { None };
    let replayed = said.iter().rev().find_map(consumed).unwrap_or(LogSeq(0));
    let received = link.entries().len() as u64;
    assert!(replayed.0 < received / 2, "{replayed} of {received} entries are replayed, which is not behind");
    primary.kill();
    assert_eq!(backup.told_number("live", "entries"), link.entries().len() as u64);
    load.goes_on();
    load.lost_nothing();
}

/// The number of outputs that the LAN dropped because it had carried them before. Ends the LAN.
fn duplicates(stage: &mut Stage) -> u64 {
    let lan = &mut stage.site.lan;
    assert_eq!(lan.interrupt().unwrap(), Some(0));
    let last = lan.reports().iter().rfind(|report| report["event"] == "dropped").unwrap();
    last["duplicates"].as_u64().unwrap()
}
