//! DESIGN §5 "Claims that have vanished", §9 "A claim is identity".

use crate::pair::{Pair, owner_claim};
use crate::world::{BACKUP, G, MS, NEXT, PRIMARY, expectation, session};
use ft::claim::{Claim, ClaimKind};
use ft::role::{BackupAction, BackupEnd, ClaimRequest, LatestAnswer, PrimaryAction, PrimaryEnd, PrimaryRole, Timing};
use logchannel::entry::{EntryBody, Generation};
use logchannel::session::NodeId;

/// Another node, which starts while the arbiter has no claims.
const STRANGER: NodeId = NodeId(77);

fn claim_of(node: NodeId) -> Claim {
    Claim { node, kind: ClaimKind::Owner, address: None }
}

/// The name under which the primary refills flags before its own.
const STAND_IN: NodeId = NodeId(!PRIMARY.0);

fn refill(node: NodeId, flag: u64, predecessor: Option<NodeId>) -> PrimaryAction {
    PrimaryAction::Refill(ClaimRequest { node, generation: Generation(flag), kind: ClaimKind::Owner, predecessor })
}

impl Pair {
    fn arbiter_forgets(&self) {
        self.arbiter.borrow_mut().claims.clear();
    }

    /// The owner checks its claim. No side is lost meanwhile.
    fn check_claim(&mut self) {
        for _ in 0..=Timing::default().claim_check_ns / (100 * MS) {
            self.now_ns += 100 * MS;
            self.primary.handle_tick(self.now_ns);
            if self.is_joined {
                self.backup.handle_tick(self.now_ns);
                self.exchange();
                self.replay();
            }
            self.collect();
        }
    }

    /// Answers up to `flags` requests for lost flags, one after the other; returns the other
    /// actions.
    fn answer_refills(&mut self, flags: usize) -> Vec<PrimaryAction> {
        let (mut told, mut answered) = (Vec::new(), 0);
        while let Some(action) = self.primary_actions.pop_front() {
            if let PrimaryAction::Refill(request) = &action
                && answered < flags
            {
                answered += 1;
                let answer = self.arbiter.borrow_mut().ask(*request);
                self.primary.handle_refill(self.now_ns, answer);
                self.collect();
            } else {
                told.push(action);
            }
        }
        told
    }
}

#[test]
fn a_lone_owner_claims_lost_flags_again_from_the_first_on_and_can_be_protected_again() {
    let mut pair = Pair::alone();
    pair.arbiter_forgets();
    pair.check_claim();
    assert_eq!(pair.primary_actions.pop_front(), Some(PrimaryAction::ClaimsLost { latest: None }));
    assert_eq!(
        pair.primary_actions.front(),
        Some(&refill(STAND_IN, 0, None)),
        "a start that finds nothing claims the same flag"
    );
    assert_eq!(pair.answer_refills(usize::MAX), [PrimaryAction::ClaimsRestored(G)]);
    let claims = pair.arbiter.borrow().claims.clone();
    assert_eq!(
        claims,
        [(0, claim_of(STAND_IN)), (1, claim_of(STAND_IN)), (2, claim_of(PRIMARY))].into(),
        "and no other flag"
    );
    // Outputs leave meanwhile: an absent claim fences no owner.
    assert_eq!(pair.output().0, 0);
    assert_eq!(pair.out, [0]);
    pair.become_protected();
    pair.primary_goes_on(NEXT);
}

#[test]
fn an_arbiter_that_was_restored_to_an_older_state_gets_the_newer_flags_again() {
    let mut pair = Pair::alone();
    pair.arbiter_forgets();
    pair.arbiter.borrow_mut().claims.insert(0, claim_of(STRANGER));
    pair.check_claim();
    let told = PrimaryAction::ClaimsLost { latest: Some(Generation(0)) };
    assert_eq!(pair.primary_actions.pop_front(), Some(told), "told loudly");
    assert_eq!(pair.primary_actions.front(), Some(&refill(STAND_IN, 1, Some(STRANGER))));
    assert_eq!(pair.answer_refills(usize::MAX), [PrimaryAction::ClaimsRestored(G)]);
    assert_eq!(pair.arbiter.borrow().claims[&0].node, STRANGER, "a flag that is there stays whose it is");
    assert_eq!(pair.arbiter.borrow().claims[&(G.0 - 1)].node, PRIMARY);
}

#[test]
fn a_lost_flag_that_another_node_gets_first_fences_only_if_it_is_the_owners() {
    for taken in 0..G.0 {
        let mut pair = Pair::alone();
        pair.arbiter_forgets();
        pair.check_claim();
        let mut told = pair.answer_refills(usize::try_from(taken).unwrap());
        assert_eq!(told.remove(0), PrimaryAction::ClaimsLost { latest: None });
        pair.arbiter.borrow_mut().claims.insert(taken, claim_of(STRANGER));
        pair.primary_actions = told.into();
        let told = pair.answer_refills(usize::MAX);
        if taken == G.0 - 1 {
            let fenced = PrimaryAction::End(PrimaryEnd::Fenced { holder: claim_of(STRANGER) });
            assert_eq!(told, [fenced]);
        } else {
            assert_eq!(told, [PrimaryAction::ClaimsRestored(G)], "flag {taken}");
        }
    }
}

#[test]
fn an_owner_whose_flag_is_another_nodes_is_fenced_at_its_check_and_lets_nothing_out() {
    for flag in [G.0 - 1, G.0, G.0 + 5] {
        let mut pair = Pair::alone();
        pair.arbiter.borrow_mut().claims.insert(flag, claim_of(STRANGER));
        pair.check_claim();
        assert_eq!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder: claim_of(STRANGER) }), "flag {flag}");
        pair.output();
        assert_eq!(pair.out, [0_u64; 0]);
    }
}

#[test]
fn an_arbiter_that_can_not_be_asked_says_nothing_about_a_claim() {
    let mut pair = Pair::protected();
    pair.arbiter.borrow_mut().is_unreachable = true;
    pair.check_claim();
    pair.check_claim();
    assert!(pair.primary_actions.is_empty(), "{:?}", pair.primary_actions);
    assert!(pair.primary.is_protected());
}

#[test]
fn a_pair_that_breaks_before_its_backup_has_acknowledged_anything_new_stands_still() {
    let mut pair = Pair::protected();
    // In the lost history the backup has won the flag, and runs.
    pair.backup_lost();
    let request = pair.primary_claim().unwrap();
    pair.arbiter_forgets();
    pair.answer_primary(request);
    let told = pair.answer_refills(usize::MAX);
    let expected =
        [PrimaryAction::ClaimsLost { latest: None }, PrimaryAction::ClaimsRestored(G), PrimaryAction::Stranded(G)];
    assert_eq!(told, expected);
    assert!(pair.primary.is_stranded() && !pair.primary.may_run());
    pair.output();
    pair.check_claim();
    assert!(pair.primary_actions.is_empty(), "it doesn't claim: {:?}", pair.primary_actions);
    assert_eq!(pair.out, [0_u64; 0]);
    // The backup checks its own claim, which is later than this owner's.
    pair.arbiter.borrow_mut().claims.insert(G.0, claim_of(BACKUP));
    pair.check_claim();
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder: claim_of(BACKUP) }));
}

#[test]
fn an_operator_ends_a_primary_that_stands_still_without_an_end_mark() {
    let mut pair = Pair::protected();
    pair.backup_lost();
    let request = pair.primary_claim().unwrap();
    pair.arbiter_forgets();
    pair.answer_primary(request);
    pair.answer_refills(usize::MAX);
    pair.primary.handle_retire(pair.now_ns);
    pair.collect();
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Stranded));
    assert!(!pair.arbiter.borrow().claims.contains_key(&G.0));
}

#[test]
fn a_backup_that_acknowledges_what_came_after_the_refill_has_won_nothing_before() {
    for acknowledges in [false, true] {
        let mut pair = Pair::protected();
        pair.arbiter_forgets();
        pair.check_claim();
        let told = pair.answer_refills(usize::MAX);
        assert_eq!(told, [PrimaryAction::ClaimsLost { latest: None }, PrimaryAction::ClaimsRestored(G)]);
        pair.log(EntryBody::Progress, None);
        pair.flush();
        if acknowledges {
            pair.exchange();
        }
        pair.backup_lost();
        let claims = pair.primary_actions.iter().any(|action| matches!(action, PrimaryAction::Claim(_)));
        assert_eq!(claims, acknowledges);
        assert_eq!(pair.primary.is_stranded(), !acknowledges);
    }
}

#[test]
fn a_backup_waits_while_the_claim_of_its_primary_is_lost_and_goes_live_when_it_is_made_again() {
    let mut pair = Pair::protected();
    pair.arbiter_forgets();
    pair.primary_lost();
    let request = pair.backup_claim().unwrap();
    assert_eq!(request, owner_claim(BACKUP));
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions.pop_front(), Some(BackupAction::ClaimsLost(G)), "told");
    pair.pass(1_000 * MS);
    let request = pair.backup_claim().unwrap();
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions.pop_front(), None, "told once");
    // The primary lives, and has made its claim again.
    pair.arbiter.borrow_mut().claims.insert(G.0 - 1, claim_of(PRIMARY));
    pair.pass(1_000 * MS);
    let request = pair.backup_claim().unwrap();
    pair.answer_backup(request);
    assert_eq!(pair.backup_actions.pop_front(), Some(BackupAction::GoLive(NEXT)));
}

#[test]
fn neither_side_goes_on_behind_another_node_than_the_pairs_owner() {
    let mut pair = Pair::protected();
    pair.arbiter.borrow_mut().claims.insert(G.0 - 1, claim_of(STRANGER));
    pair.primary_lost();
    pair.backup_lost();
    let (of_primary, of_backup) = (pair.primary_claim().unwrap(), pair.backup_claim().unwrap());
    pair.answer_primary(of_primary);
    pair.answer_backup(of_backup);
    let holder = claim_of(STRANGER);
    assert_eq!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder: holder.clone() }));
    assert_eq!(pair.backup_end(), Some(BackupEnd::Fenced { holder }));
    assert!(!pair.arbiter.borrow().claims.contains_key(&G.0));
}

#[test]
fn a_primary_is_accepted_only_by_a_backup_whose_arbiter_knows_its_node_as_the_owner() {
    let ended = Claim { kind: ClaimKind::Ended, ..claim_of(PRIMARY) };
    for (flag, known) in [
        (G.0 - 1, Some(claim_of(STRANGER))),
        (G.0 - 1, Some(ended)),
        (G.0, Some(claim_of(PRIMARY))),
        (G.0 - 2, Some(claim_of(PRIMARY))),
        (0, None),
    ] {
        // This owner doesn't check its claim, and so isn't fenced by the check.
        let timing = Timing { claim_check_ns: u64::MAX, ..Timing::default() };
        let mut pair = Pair::with(PrimaryRole::awaiting_backup(PRIMARY, session(), timing), expectation());
        pair.arbiter.borrow_mut().claims = known.map(|claim| (flag, claim)).into_iter().collect();
        pair.connect();
        pair.exchange();
        let Some(BackupEnd::Refused { reason }) = pair.backup_end() else { panic!("accepted with flag {flag}") };
        assert!(reason.contains("same --arbiter"), "{reason}");
        assert!(!pair.primary.is_protected());
    }
}

#[test]
fn an_arbiter_that_can_not_be_asked_is_no_check_of_the_owner() {
    let mut pair = Pair::new();
    pair.arbiter.borrow_mut().is_unreachable = true;
    pair.connect();
    pair.exchange();
    assert!(!pair.primary.is_protected() && pair.restored.is_some(), "the machine stands, and is not accepted");
    for _ in 0..30 {
        pair.pass(100 * MS);
        pair.exchange();
    }
    assert!(!pair.primary.is_protected(), "however long it takes");
    pair.arbiter.borrow_mut().is_unreachable = false;
    pair.pass(100 * MS);
    pair.exchange();
    assert!(pair.primary.is_protected());
}

/// A LAN's refusal is no claim: the owner asks the arbiter each time, reports at a limited rate
/// that it is confirmed, and ends only when another node holds its flag.
#[test]
fn an_owner_that_a_lan_refuses_is_confirmed_by_the_arbiter_or_fenced() {
    let mut pair = Pair::alone();
    let refused = |pair: &mut Pair, answer: LatestAnswer| {
        pair.primary.handle_refusal();
        assert_eq!(pair.primary.poll_action(), Some(PrimaryAction::CheckClaim));
        pair.primary.handle_latest(pair.now_ns, answer);
        pair.now_ns += 1000 * MS;
        pair.primary.poll_action()
    };
    let held_by = |node| LatestAnswer::Known(Some((Generation(G.0 - 1), claim_of(node))));
    assert_eq!(refused(&mut pair, LatestAnswer::Unreachable), None, "nobody has confirmed anything");
    let told: Vec<_> = (0..61).map(|_| refused(&mut pair, held_by(PRIMARY))).collect();
    assert_eq!(told[0], Some(PrimaryAction::Confirmed(G)));
    assert!(told[1..60].iter().all(Option::is_none), "told rarely");
    assert_eq!(told[60], Some(PrimaryAction::Confirmed(G)));
    let fenced = PrimaryAction::End(PrimaryEnd::Fenced { holder: claim_of(STRANGER) });
    assert_eq!(refused(&mut pair, held_by(STRANGER)), Some(fenced));
}
