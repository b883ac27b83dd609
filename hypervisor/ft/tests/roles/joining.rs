//! Backups that join a running guest, again and again. Source: Scales et al. 2010, §2.3 and §3.1.

use crate::copying::PAGES;
use crate::pair::{Pair, end_claim};
use crate::world::{G, MS, NEXT, PRIMARY, expectation, operation, session, vm_id};
use ft::role::{BackupEnd, DiskLogState, PrimaryAction, PrimaryEnd, PrimaryRole, Timing};
use logchannel::entry::{EntryBody, Generation, LogEntry, LogSeq};
use logchannel::message::Message;
use logchannel::session::{NodeId, SessionHeader};
use logchannel::snapshot::UnsentOutput;
use vm::{InstructionCount, OutputId, OutputOperation};

const THIRD: NodeId = NodeId(3);

/// The messages in flight to the backup; they are taken out and never arrive.
fn messages_to_backup(pair: &mut Pair) -> Vec<Message> {
    pair.collect();
    pair.to_backup.deliver(usize::MAX)
}

#[test]
fn the_session_comes_first_then_memory_then_unsent_outputs_then_the_snapshot_then_entries() {
    let mut pair = Pair::alone();
    pair.lan_is_silent = true;
    pair.output();
    pair.connect();
    pair.copy();
    pair.output();
    let kinds = messages_to_backup(&mut pair).into_iter().map(|message| match message {
        Message::Session { header: found, .. } => {
            assert_eq!(found, session());
            's'
        }
        Message::Pages(_) => 'p',
        Message::UnsentOutput(_) => 't',
        Message::Snapshot(snapshot) => {
            assert_eq!(snapshot.seq, LogSeq(1));
            'S'
        }
        Message::Entries(batch) => {
            assert_eq!(batch.first_seq, LogSeq(1));
            'e'
        }
        other @ (Message::Join { .. }
        | Message::AskOwner { .. }
        | Message::Owner { .. }
        | Message::Wait
        | Message::NoPrimary
        | Message::Accepted
        | Message::Refused { .. }
        | Message::Ack { .. }
        | Message::Consumed { .. }
        | Message::Protected { .. }
        | Message::Released(_)
        | Message::Storing
        | Message::Heartbeat
        | Message::Clock { .. }
        | Message::Goodbye { .. }) => panic!("{other:?}"),
    });
    let mut kinds: Vec<_> = kinds.collect();
    kinds.dedup();
    assert_eq!(kinds, ['s', 'p', 't', 'S', 'e']);
}

#[test]
fn a_guest_runs_and_its_outputs_leave_at_once_while_a_backup_joins() {
    let mut pair = Pair::alone().with_memory(PAGES);
    let mut expected = Vec::new();
    let mut runs = |pair: &mut Pair, when: &str| {
        expected.push(pair.output().0);
        assert!(pair.primary.may_run(), "{when}");
        assert_eq!(pair.out, expected, "{when}");
    };
    runs(&mut pair, "alone");
    pair.connect();
    runs(&mut pair, "the session is under way");
    pair.copy_piece();
    assert!(pair.primary.is_copying());
    runs(&mut pair, "memory is copied");
    pair.copy();
    assert!(!pair.primary.is_copying());
    runs(&mut pair, "the snapshot is under way");
    pair.deliver_to_backup();
    runs(&mut pair, "the backup restores");
    pair.restore();
    runs(&mut pair, "the acceptance is under way");
    pair.deliver_to_primary();
    assert!(pair.primary.is_protected());
    let held = pair.output();
    assert_eq!(pair.out, expected, "held from here on");
    pair.exchange();
    assert_eq!(pair.out.last(), Some(&held.0));
    // The backup has all of it too.
    pair.replay();
    let mut next = pair.backup_goes_live(NEXT, THIRD);
    next.output();
    assert_eq!(pair.lan.borrow().carried.len(), 8);
}

/// The Output Rule applies from `Protected` on: a backup that may claim must have the entries of
/// all outputs that left unheld.
#[test]
fn protected_comes_after_every_entry_whose_output_left_unheld() {
    let mut pair = Pair::alone();
    pair.connect();
    pair.copy();
    pair.deliver_to_backup();
    pair.restore();
    // The vCPU thread is interrupted between append and flush; another thread writes the output,
    // and receives the backup's acceptance.
    let id = pair.unflushed_output();
    assert_eq!(pair.out, [id.0]);
    pair.deliver_to_primary();
    assert!(pair.primary.is_protected());
    // The driver asserts this when the backup is told; here is the consequence.
    while pair.backup_actions.is_empty() {
        assert!(pair.to_backup.len() > 0, "it is told at last");
        pair.deliver_some_to_backup(1);
    }
    pair.to_backup.lose_behind(0);
    let mut next = pair.backup_goes_live(NEXT, THIRD);
    assert_eq!(next.output(), OutputId(1), "the successor's guest has sent {id:?}");
}

#[test]
fn outputs_that_the_network_has_not_carried_are_among_the_unsent_and_come_out_once() {
    let mut pair = Pair::alone();
    pair.output();
    pair.output();
    pair.port = None;
    (0..3).for_each(|_| _ = pair.output());
    assert_eq!(pair.out, [0, 1], "three frames are lost with the connection to the LAN");
    pair.become_protected();
    let held = pair.output();
    pair.exchange();
    pair.replay();
    assert_eq!(pair.out, [0, 1]);
    let next = pair.backup_goes_live(NEXT, THIRD);
    assert_eq!(next.out, [2, 3, 4, held.0], "those that were made before the backup came, too");
    assert_eq!(pair.lan.borrow().carried.len(), 6);
    assert_eq!(pair.lan.borrow().dropped, 0);
}

#[test]
fn unsent_outputs_that_left_meanwhile_are_not_sent_again() {
    let mut pair = Pair::alone();
    pair.lan_is_silent = true;
    (0..4).for_each(|_| _ = pair.output());
    pair.become_protected();
    assert_eq!(pair.out, [0, 1, 2, 3], "carried, but nobody was told");
    pair.output();
    // The backup gets this while it is protected: unsent outputs and later entries.
    pair.exchange();
    pair.lan_tells();
    pair.pass(5 * MS);
    pair.exchange();
    pair.output();
    pair.exchange();
    pair.replay();
    // Only the last output's report was lost, so the LAN drops that one.
    let next = pair.backup_goes_live(NEXT, THIRD);
    assert_eq!(next.out, [5]);
    assert_eq!((pair.lan.borrow().carried.len(), pair.lan.borrow().dropped), (6, 1));
}

#[test]
fn console_output_is_unsent_only_behind_what_is_not_known_to_have_left() {
    let mut pair = Pair::alone();
    let word = OutputOperation::Console(b"word".to_vec());
    let log = |pair: &mut Pair, id: u64| {
        let body = EntryBody::Output { id: OutputId(id), digest: word.digest() };
        let entry = LogEntry { count: InstructionCount(id), body };
        pair.primary.handle_entry(pair.now_ns, &entry, Some((OutputId(id), word.clone())));
    };
    log(&mut pair, 0);
    log(&mut pair, 1);
    assert_eq!(pair.primary.poll_released().map(|released| released.id), Some(OutputId(0)));
    pair.primary.handle_console_left(OutputId(1));
    assert_eq!(pair.primary.gate().next_to_leave(), OutputId(1));
    pair.primary.handle_join(pair.now_ns, &vm_id()).unwrap();
    while pair.primary.wants_copy() {
        pair.primary.copy_snapshot(pair.now_ns, &mut pair.machine);
    }
    let mut bytes = Vec::new();
    pair.primary.poll_outgoing(&mut bytes);
    pair.to_backup.send(&bytes);
    let mut messages = pair.to_backup.deliver(usize::MAX);
    messages.retain(|message| matches!(message, Message::UnsentOutput(_)));
    assert_eq!(messages, [Message::UnsentOutput(UnsentOutput { id: OutputId(1), operation: word })]);
}

#[test]
fn a_frame_lost_by_the_network_is_sent_again_by_the_primary_itself() {
    let mut pair = Pair::protected();
    pair.port = None;
    pair.output();
    pair.output();
    pair.exchange();
    assert_eq!(pair.out, [0_u64; 0]);
    pair.attach();
    assert_eq!(pair.out, [0, 1]);
    pair.attach();
    assert_eq!(pair.out, [0, 1], "they have been carried");
}

#[test]
fn a_new_backup_joins_a_primary_that_lost_its_own() {
    let mut pair = Pair::protected();
    for generation in 1..=5 {
        let generation = Generation(G.0 + generation);
        (0..3).for_each(|_| _ = pair.output());
        pair.primary_goes_on(generation);
        assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()));
        pair.next_backup(NodeId(10 + u128::from(generation.0)));
        pair.become_protected();
        assert_eq!(pair.primary.generation(), generation);
        let held = pair.output();
        assert_ne!(pair.out.last(), Some(&held.0));
        pair.exchange();
        pair.replay();
        assert_eq!(pair.backup.cursors().1, pair.primary.appended(), "the log's numbering runs on");
    }
    assert_eq!(pair.out, (0..20).collect::<Vec<_>>());
    let holders = pair.arbiter.borrow().claims.values().map(|claim| claim.node).collect::<Vec<_>>();
    assert_eq!(holders, [pair.primary_node; 6], "with the one that the VM was started with");
}

#[test]
fn a_new_backup_joins_the_owner_after_every_failover() {
    let mut pair = Pair::protected();
    for step in 1..=6_u64 {
        (0..3).for_each(|_| _ = pair.output());
        pair.deliver_to_backup();
        // The acknowledgements of some die with the primary.
        if step % 2 == 0 {
            pair.deliver_to_primary();
        }
        pair = pair.backup_goes_live(Generation(G.0 + step), NodeId(u128::from(10 + step)));
        assert_eq!(pair.primary.generation(), Generation(G.0 + step));
        assert!(!pair.primary.is_protected() && pair.primary.may_run(), "it goes on alone until a backup has come");
        pair.output();
        pair.become_protected();
    }
    let lan = pair.lan.borrow();
    assert_eq!(lan.carried.len(), 24);
    assert_eq!(lan.carried[23], operation(pair.primary_node, OutputId(23)));
    assert_eq!(
        pair.arbiter.borrow().claims.keys().copied().collect::<Vec<_>>(),
        (G.0 - 1..G.0 + 6).collect::<Vec<_>>()
    );
}

#[test]
fn a_primary_of_the_very_first_generation_pairs_like_any_other() {
    let session = SessionHeader { generation: Generation(1), ..session() };
    let mut pair = Pair::with(PrimaryRole::awaiting_backup(PRIMARY, session, Timing::default()), expectation());
    let first = pair.arbiter.borrow_mut().claims.pop_last().map(|(_, claim)| claim).unwrap();
    pair.arbiter.borrow_mut().claims.insert(0, first);
    pair.become_protected();
    pair.output();
    pair.exchange();
    pair.replay();
    let mut next = pair.backup_goes_live(Generation(2), THIRD);
    next.become_protected();
}

/// A backup in each stage of joining.
fn joining() -> impl Iterator<Item = (&'static str, Pair)> {
    type Step = fn(&mut Pair);
    let steps: [(&str, Step); 6] = [
        ("session under way", |_| ()),
        ("memory begun", Pair::copy_piece),
        ("snapshot under way", Pair::copy),
        ("restoring", Pair::deliver_to_backup),
        ("restored", Pair::restore),
        ("entries behind the snapshot", |pair| {
            pair.output();
            pair.deliver_to_backup();
            pair.replay();
        }),
    ];
    (1..=steps.len()).map(move |count| {
        let mut pair = Pair::alone().with_memory(32);
        pair.output();
        pair.connect();
        steps[..count].iter().for_each(|(_, step)| step(&mut pair));
        (steps[count - 1].0, pair)
    })
}

#[test]
fn losing_a_joining_backup_leaves_the_primary_alone_in_its_generation_and_running() {
    for (when, mut pair) in joining() {
        pair.backup_lost();
        assert!(matches!(pair.primary_actions.pop_front(), Some(PrimaryAction::CloseChannel { .. })), "{when}");
        assert!(pair.primary_actions.is_empty(), "{when}: nobody needs to be asked");
        assert!(!pair.primary.has_outgoing(), "{when}");
        assert_eq!((pair.primary.generation(), pair.primary.may_run()), (G, true), "{when}");
        let id = pair.output();
        assert_eq!(pair.out.last(), Some(&id.0), "{when}");
        // Its place is free for the next one.
        pair.next_backup(THIRD);
        pair.become_protected();
        pair.output();
        pair.exchange();
        pair.replay();
        pair.backup_goes_live(NEXT, NodeId(4));
    }
}

#[test]
fn a_joining_backup_that_falls_silent_is_given_up() {
    for (when, mut pair) in joining() {
        let timeout_ns = pair.timing.failure_timeout_ns;
        pair.to_primary.lose_behind(0);
        pair.now_ns += timeout_ns - 1;
        pair.primary.handle_tick(pair.now_ns);
        assert!(pair.primary.can_take_backup(&vm_id()).is_err(), "{when}");
        pair.now_ns += 1;
        pair.primary.handle_tick(pair.now_ns);
        assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()), "{when}");
    }
}

#[test]
fn a_joining_backup_never_claims() {
    for (when, mut pair) in joining() {
        pair.primary_lost();
        assert!(matches!(pair.backup_end(), Some(BackupEnd::Unprotected { .. })), "{when}");
        // What was in flight arrives, and what was begun ends.
        pair.deliver_to_backup();
        pair.restore();
        pair.primary_says(Message::Protected { generation: G });
        pair.replay();
        pair.pass(10_000 * MS);
        assert!(pair.backup_actions.is_empty(), "{when}: {:?}", pair.backup_actions);
    }
}

#[test]
fn a_guest_that_ends_while_a_backup_joins_ends() {
    for (when, mut pair) in joining() {
        let reason = pair.guest_stops();
        let request = pair.primary_claim().unwrap();
        assert_eq!(request, end_claim(G, PRIMARY), "{when}");
        assert!(pair.to_backup.is_cut, "{when}");
        // Whatever messages the backup still has.
        pair.restore();
        pair.deliver_to_primary();
        pair.answer_primary(request);
        assert_eq!(pair.primary_actions, [PrimaryAction::End(PrimaryEnd::GuestStopped(reason))], "{when}");
        pair.primary_lost();
        assert!(matches!(pair.backup_end(), Some(BackupEnd::Unprotected { .. })), "{when}");
    }
}

#[test]
fn an_operator_who_retires_a_primary_while_a_backup_joins_ends_the_vm() {
    for (when, mut pair) in joining() {
        pair.primary.handle_retire(pair.now_ns);
        pair.collect();
        let request = pair.primary_claim().unwrap();
        assert_eq!(request, end_claim(G, PRIMARY), "{when}");
        assert!(!pair.primary.may_run() && pair.primary.can_take_backup(&vm_id()).is_err(), "{when}");
        pair.restore();
        pair.deliver_to_primary();
        assert!(!pair.primary.is_protected(), "{when}");
        pair.answer_primary(request);
        assert_eq!(pair.primary_actions, [PrimaryAction::End(PrimaryEnd::Retired)], "{when}");
        pair.primary_lost();
        assert!(matches!(pair.backup_end(), Some(BackupEnd::Unprotected { .. })), "{when}");
    }
}

#[test]
fn a_backup_lost_just_when_it_was_protected_is_a_loss_like_any_other() {
    let mut pair = Pair::alone();
    pair.connect();
    pair.exchange();
    assert!(pair.primary.is_protected());
    pair.primary_actions.clear();
    let held = pair.output();
    pair.primary_goes_on(NEXT);
    assert_eq!(pair.out, [held.0]);
}

#[test]
fn a_failover_right_after_the_join_has_all_that_happened_while_it_went_on() {
    for (when, mut pair) in joining() {
        pair.output();
        pair.exchange();
        assert!(pair.primary.is_protected(), "{when}");
        pair.output();
        pair.deliver_to_backup();
        pair.replay();
        let mut next = pair.backup_goes_live(NEXT, THIRD);
        let id = next.output();
        assert_eq!(next.lan.borrow().carried.len() as u64, id.0 + 1, "{when}");
        assert_eq!(next.lan.borrow().carried[0], operation(PRIMARY, OutputId(0)), "{when}");
    }
}

#[test]
fn a_backup_that_lives_and_gets_nowhere_gives_its_place_up() {
    let mut pair = Pair::alone();
    pair.connect();
    pair.copy();
    // It is never silent for the whole failure timeout, and has twenty of them.
    let half_ns = Timing::default().failure_timeout_ns / 2;
    for _ in 0..39 {
        pair.pass(half_ns);
        pair.backup_says(Message::Heartbeat);
        assert!(pair.primary.can_take_backup(&vm_id()).is_err(), "it may take its time to put a machine together");
    }
    pair.pass(half_ns);
    pair.backup_says(Message::Heartbeat);
    assert_eq!(pair.primary.can_take_backup(&vm_id()), Ok(()));
    assert_eq!(pair.primary.generation(), G, "its loss costs nothing");
}

/// Replay never produces outputs from before the snapshot, so the backup must get those too that
/// still wait for the disk.
#[test]
fn outputs_that_wait_for_the_log_on_disk_when_a_backup_joins_are_among_the_unsent() {
    let mut pair = Pair::alone();
    pair.primary.handle_disk_log(0, DiskLogState::UpTo(LogSeq(0)));
    let held = pair.output();
    assert!(pair.out.is_empty(), "the disk has not got it");
    pair.become_protected();
    assert!(pair.out.is_empty());
    let next = pair.backup_goes_live(NEXT, THIRD);
    assert_eq!(next.lan.borrow().carried, [operation(PRIMARY, held)], "lost with its primary");
}
