//! Spares: backups that wait because the primary has one already.

use crate::pair::Pair;
use crate::world::{BACKUP, MS, PRIMARY, expectation, session, vm_id};
use ft::role::{BackupAction, BackupEnd, BackupRole, Timing};
use logchannel::message::Message;
use logchannel::session::VmId;

fn joiner() -> BackupRole {
    BackupRole::new(0, BACKUP, expectation(), Timing::default())
}

fn actions(role: &mut BackupRole) -> Vec<BackupAction> {
    std::iter::from_fn(|| role.poll_action()).collect()
}

#[test]
fn a_backup_that_is_told_to_wait_says_nothing_but_heartbeats_and_takes_the_place_later() {
    let mut role = joiner();
    role.handle_message(0, Message::Wait);
    role.handle_message(0, Message::Wait);
    assert_eq!(actions(&mut role), [BackupAction::Waits], "told once");
    let mut said = Vec::new();
    role.poll_outgoing(&mut said);
    for now_ms in (0..5_000).step_by(10) {
        role.handle_message(now_ms * MS, Message::Heartbeat);
        role.handle_tick(now_ms * MS);
    }
    assert!(actions(&mut role).is_empty());
    said.clear();
    role.poll_outgoing(&mut said);
    let mut heartbeat = Vec::new();
    Message::Heartbeat.encode(&mut heartbeat);
    assert!(said.len() >= 50 * heartbeat.len() && said.chunks(heartbeat.len()).all(|message| message == heartbeat));
    role.handle_message(5_000 * MS, Message::Session { header: session(), owner: PRIMARY });
    assert!(matches!(actions(&mut role)[0], BackupAction::Begin(_)));
}

#[test]
fn a_backup_that_waits_in_vain_has_no_part_in_the_vm_and_looks_for_a_primary_again() {
    let ends = |lose: &dyn Fn(&mut BackupRole)| {
        let mut role = joiner();
        role.handle_message(0, Message::Wait);
        lose(&mut role);
        let actions = actions(&mut role);
        assert!(
            matches!(actions[..], [BackupAction::Waits, BackupAction::End(BackupEnd::NoPlace { .. })]),
            "{actions:?}"
        );
    };
    ends(&|role| role.handle_disconnect(1, "connection closed"));
    ends(&|role| role.handle_tick(1_500 * MS));
    ends(&|role| role.handle_message(1, Message::Goodbye { reason: "over".into() }));
    let mut role = joiner();
    role.handle_message(0, Message::NoPrimary);
    assert!(matches!(actions(&mut role)[..], [BackupAction::End(BackupEnd::NoPlace { .. })]));
    // A backup with a session has found its primary, which then breaks the protocol.
    let mut role = joiner();
    role.handle_message(0, Message::Session { header: session(), owner: PRIMARY });
    role.handle_message(0, Message::NoPrimary);
    assert!(matches!(actions(&mut role).last(), Some(BackupAction::End(BackupEnd::Refused { .. }))));
}

#[test]
fn a_primary_lets_wait_who_may_have_the_place_later() {
    let mut pair = Pair::alone();
    assert!(!pair.primary.may_take_backup_later(&vm_id()), "it may at once");
    pair.connect();
    assert!(pair.primary.may_take_backup_later(&vm_id()), "another joins");
    pair.exchange();
    assert!(pair.primary.is_protected() && pair.primary.may_take_backup_later(&vm_id()));
    assert!(!pair.primary.may_take_backup_later(&VmId::new("other").unwrap()));
    pair.primary.handle_disconnect("gone");
    assert!(!pair.primary.is_protected() && pair.primary.may_take_backup_later(&vm_id()), "it asks for the flag");
}
