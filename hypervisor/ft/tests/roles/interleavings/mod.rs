//! Random orders of the same events through many generations of a VM: outputs, arriving bytes,
//! time, cuts, deaths at every point, joining backups, lost claims, a LAN that goes away and
//! returns. In any order, no output may leave without acknowledgement or won claim, each generation
//! must have one owner, and the LAN must carry every packet of the guest once.
//!
//! The invariants of every step are asserted in [`Pair::collect`], [`crate::world::Lan::carry`] and
//! [`Run::check`].

mod sometimes;

use self::sometimes::Sometimes;
use crate::pair::Pair;
use crate::world::{BACKUP, G, MS, PRIMARY, Random, expectation, session, vm_id};
use ft::claim::Verdict;
use ft::role::{BackupAction, BackupEnd, ClaimAnswer, PrimaryAction, PrimaryEnd, PrimaryRole, Timing};
use logchannel::entry::Generation;
use logchannel::session::NodeId;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// The number of runs; one takes a few milliseconds.
const RUNS: u64 = 2000;

const STEPS: u32 = 400;

const SEED_VARIABLE: &str = "FT_SEED";

/// A pair, and which of its sides have ended or died.
struct Side {
    pair: Pair,
    is_primary_over: bool,
    is_backup_over: bool,
    /// Answers to claims, in flight.
    primary_asks: Option<ClaimAnswer>,
    backup_asks: Option<ClaimAnswer>,
    protections: u32,
    lost: u32,
}

impl Side {
    fn new(pair: Pair) -> Self {
        Self {
            pair,
            is_primary_over: false,
            is_backup_over: false,
            primary_asks: None,
            backup_asks: None,
            protections: 0,
            lost: 0,
        }
    }

    /// `true` if a backup is joining.
    fn is_joining(&self) -> bool {
        !self.is_primary_over
            && !self.pair.primary.is_protected()
            && self.pair.primary.can_take_backup(&vm_id()).is_err()
    }
}

/// One VM's life.
struct Run<'a> {
    /// The newest owner's pair is the last; before it are those whose primary doesn't know yet that
    /// it has been succeeded.
    sides: Vec<Side>,
    random: Random,
    sometimes: &'a mut Sometimes,
    owners: BTreeMap<Generation, NodeId>,
    next_node: u128,
}

impl<'a> Run<'a> {
    fn new(seed: u64, sometimes: &'a mut Sometimes) -> Self {
        let mut random = Random(seed | 1);
        let lag_bound_ns = [20 * MS, Timing::default().lag_bound_ns][usize::from(random.chance(2))];
        let timing = Timing { lag_bound_ns, claim_check_ns: u64::MAX, ..Timing::default() };
        let primary = if random.chance(2) {
            PrimaryRole::awaiting_backup(PRIMARY, session(), timing)
        } else {
            PrimaryRole::alone(PRIMARY, session(), timing)
        };
        let mut pair = Pair::with(primary, expectation());
        if random.chance(8) {
            // More memory than one piece.
            pair = pair.with_memory(32);
        }
        pair.timing = timing;
        pair.next_backup(BACKUP);
        Self {
            sides: vec![Side::new(pair)],
            random,
            sometimes,
            owners: BTreeMap::from([(G, PRIMARY)]),
            next_node: BACKUP.0 + 1,
        }
    }

    fn node(&mut self) -> NodeId {
        self.next_node += 1;
        NodeId(self.next_node - 1)
    }

    /// A random pair, usually the newest.
    fn any_side(&mut self) -> usize {
        let newest = self.sides.len() - 1;
        if self.random.chance(4) { usize::try_from(self.random.below(newest as u64 + 1)).unwrap() } else { newest }
    }

    fn step(&mut self) {
        let at = self.any_side();
        let random = &mut self.random;
        let Side { pair, is_primary_over, .. } = &mut self.sides[at];
        match random.below(16) {
            0..=2 if !*is_primary_over && pair.primary.may_run() => {
                if random.chance(6) {
                    // The vCPU thread is interrupted here.
                    let out = pair.out.len();
                    pair.unflushed_output();
                    self.sometimes.left_before_flush += u32::from(pair.is_joined && pair.out.len() > out);
                } else {
                    pair.output();
                }
            }
            3..=5 => pair.deliver_some_to_backup(random.bytes()),
            6 | 7 => pair.deliver_some_to_primary(random.bytes()),
            8 => pair.replay_some(2),
            9 if pair.primary.wants_copy() && !*is_primary_over => pair.copy_piece(),
            10 => pair.restore(),
            11 | 12 => self.pass(),
            13 => self.answer(at),
            14 => self.notice(at),
            15 => self.disturb(at),
            _ => {}
        }
        self.take_actions();
        self.check();
    }

    /// Time passes, and a random side handles its timers; sometimes so much that it gives the other
    /// up.
    fn pass(&mut self) {
        let ms = if self.random.chance(40) { 1_200 } else { self.random.below(30) };
        for side in &mut self.sides {
            side.pair.now_ns += ms * MS;
            let (for_primary, for_backup) = (!self.random.chance(4), !self.random.chance(4));
            if for_primary && !side.is_primary_over {
                side.pair.primary.handle_tick(side.pair.now_ns);
            }
            if for_backup && !side.is_backup_over {
                side.pair.backup.handle_tick(side.pair.now_ns);
            }
            side.pair.collect();
        }
    }

    /// An answer in flight arrives, at one side or both.
    fn answer(&mut self, at: usize) {
        let Side { pair, primary_asks, backup_asks, .. } = &mut self.sides[at];
        if self.random.chance(2)
            && let Some(answer) = primary_asks.take()
        {
            let held = pair.primary.gate().held();
            let is_lost = matches!(&answer, ClaimAnswer::Decided(Verdict::Lost(_)));
            self.sometimes.fenced_with_outputs += u32::from(is_lost && held > 0);
            pair.primary.handle_claim(pair.now_ns, answer);
        }
        if self.random.chance(2)
            && let Some(answer) = backup_asks.take()
        {
            pair.backup.handle_claim(pair.now_ns, answer);
        }
        pair.collect();
    }

    /// A cut is noticed, and a lost backup replaced.
    fn notice(&mut self, at: usize) {
        let node = self.node();
        let side = &mut self.sides[at];
        if !side.pair.to_primary.is_cut {
            return;
        }
        if !side.is_primary_over && self.random.chance(2) {
            side.pair.backup_lost();
        }
        if !side.is_backup_over && self.random.chance(2) {
            side.pair.primary_lost();
        }
        let has_place = !side.is_primary_over && side.pair.primary.can_take_backup(&vm_id()).is_ok();
        if has_place && (side.is_backup_over || self.random.chance(4)) {
            // A backup that hasn't noticed yet may be killed.
            side.next_backup(node);
        }
    }

    /// Rare events.
    fn disturb(&mut self, at: usize) {
        let side = &mut self.sides[at];
        let random = &mut self.random;
        match random.below(32) {
            0 | 1 => side.pair.cut(),
            2 | 3 => {
                self.sometimes.joiner_lost_while_copying += u32::from(side.pair.primary.is_copying());
                let is_restoring = side.is_joining() && !side.pair.primary.is_copying();
                self.sometimes.joiner_lost_while_restoring += u32::from(is_restoring);
                side.pair.kill_backup(random.bytes());
                side.is_backup_over = true;
                side.backup_asks = None;
            }
            // Without a backup that may claim this ends the VM, which should be rare.
            4 | 5 if side.pair.primary.is_protected() || random.chance(8) => {
                side.pair.kill_primary(random.bytes());
                side.is_primary_over = true;
                side.primary_asks = None;
            }
            6 => side.pair.arbiter.borrow_mut().is_unreachable ^= true,
            7 => side.pair.arbiter.borrow_mut().lost_replies = 1,
            8 => side.pair.port = None,
            9..=11 if !side.is_primary_over => {
                let out = side.pair.out.len();
                side.pair.attach();
                self.sometimes.sent_again_by_primary += u32::from(side.pair.out.len() > out);
            }
            12 | 13 => side.pair.lan_is_silent ^= true,
            14..=16 if !side.is_primary_over => side.pair.lan_tells(),
            17 | 18 if side.is_joining() || side.pair.primary.is_protected() => {
                side.pair.primary.handle_join(side.pair.now_ns, &vm_id()).unwrap_err();
                self.sometimes.second_joiner_refused += 1;
            }
            _ => {}
        }
    }

    fn take_actions(&mut self) {
        let mut born = Vec::new();
        for at in 0..self.sides.len() {
            while let Some(action) = self.sides[at].pair.primary_actions.pop_front() {
                self.primary_wants(at, action);
            }
            while let Some(action) = self.sides[at].pair.backup_actions.pop_front() {
                born.extend(self.backup_wants(at, action));
            }
            let side = &self.sides[at];
            self.sometimes.both_asked += u32::from(side.primary_asks.is_some() && side.backup_asks.is_some());
            self.sometimes.stopped_by_lag +=
                u32::from(side.pair.primary.is_protected() && !side.pair.primary.may_run());
        }
        self.sides.extend(born);
        let newest = self.sides.len() - 1;
        let mut at = 0;
        self.sides.retain(|side| {
            at += 1;
            at > newest || !(side.is_primary_over && side.is_backup_over)
        });
    }

    fn primary_wants(&mut self, at: usize, action: PrimaryAction) {
        let side = &mut self.sides[at];
        match action {
            PrimaryAction::Claim(request) => {
                let answer = side.pair.arbiter.borrow_mut().ask(request);
                assert!(side.primary_asks.replace(answer).is_none(), "one claim at a time");
            }
            PrimaryAction::Protected(generation) => {
                assert_eq!(generation, side.pair.primary.generation());
                side.protections += 1;
                self.sometimes.protected_again_after_loss += u32::from(side.lost > 0);
                self.sometimes.protected_again_after_failover += u32::from(side.pair.primary_node != PRIMARY);
            }
            PrimaryAction::Owner(generation) => {
                side.lost += 1;
                self.sometimes.primary_won += 1;
                let node = side.pair.primary_node;
                self.owns(generation, node);
            }
            PrimaryAction::End(PrimaryEnd::Fenced { holder }) => {
                assert_eq!(holder.node, side.pair.backup_node);
                side.is_primary_over = true;
            }
            PrimaryAction::CloseChannel { .. } => {}
            other @ (PrimaryAction::CheckClaim
            | PrimaryAction::Refill(_)
            | PrimaryAction::ClaimsLost { .. }
            | PrimaryAction::ClaimsRestored(_)
            | PrimaryAction::Confirmed(_)
            | PrimaryAction::Stranded(_)
            | PrimaryAction::HandOver
            | PrimaryAction::End(_)) => {
                panic!("nobody asked the primary for {other:?}")
            }
        }
    }

    /// A backup's action; the next pair if it goes live.
    fn backup_wants(&mut self, at: usize, action: BackupAction) -> Option<Side> {
        let node = self.node();
        let side = &mut self.sides[at];
        match action {
            BackupAction::Claim(request) => {
                let answer = side.pair.arbiter.borrow_mut().ask(request);
                assert!(side.backup_asks.replace(answer).is_none(), "one claim at a time");
            }
            BackupAction::Protected(_) => {}
            BackupAction::GoLive(generation) => {
                side.is_backup_over = true;
                let owner = side.pair.backup_node;
                let next = side.pair.succeeded(generation, node);
                self.sometimes.backup_won += 1;
                self.sometimes.unsent_sent += u32::from(!next.out.is_empty());
                self.owns(generation, owner);
                return Some(Side::new(next));
            }
            BackupAction::End(BackupEnd::Fenced { holder }) => {
                assert_eq!(holder.node, side.pair.primary_node);
                side.is_backup_over = true;
            }
            BackupAction::End(BackupEnd::Unprotected { .. }) => side.is_backup_over = true,
            other @ (BackupAction::Waits
            | BackupAction::Begin(_)
            | BackupAction::CheckOwner
            | BackupAction::Joined
            | BackupAction::ClaimsLost(_)
            | BackupAction::Pages(_)
            | BackupAction::Restore(_)
            | BackupAction::Consume(_)
            | BackupAction::Lost { .. }
            | BackupAction::End(_)) => panic!("nobody asked the backup for {other:?}"),
        }
        None
    }

    /// Each generation has one owner, by a won claim of the one before.
    fn owns(&mut self, generation: Generation, node: NodeId) {
        let before = Generation(generation.0 - 1);
        assert!(self.owners.contains_key(&before), "generation {generation} without one before it");
        assert_eq!(self.owners.insert(generation, node), None, "generation {generation} has two owners");
        assert_eq!(self.sides[0].pair.arbiter.borrow().claims[&before.0].node, node, "without a won claim");
        self.sometimes.third_owner += u32::from(generation.0 == G.0 + 2);
    }

    /// The LAN must have carried what the newest owner's guest has sent.
    fn check(&self) {
        let Some(Side { pair, .. }) = self.sides.last() else { panic!("no side at all") };
        let lan = pair.lan.borrow();
        let sent = pair.history.iter().filter_map(|(_, output)| output.as_ref());
        assert_eq!(sent.take(lan.carried.len()).count(), lan.carried.len(), "the owner doesn't know all that left");
        if let Some(last) = lan.carried.last() {
            let mut sent = pair.history.iter().filter_map(|(_, output)| output.as_ref());
            assert_eq!(sent.nth(lan.carried.len() - 1), Some(last), "the owner knows another output");
        }
    }

    /// Lets time pass without disturbances.
    fn calm(&mut self, ticks: u32) {
        for _ in 0..ticks {
            for side in &mut self.sides {
                let pair = &mut side.pair;
                pair.now_ns += 5 * MS;
                if !side.is_primary_over {
                    pair.primary.handle_tick(pair.now_ns);
                    pair.copy();
                }
                if !side.is_backup_over {
                    pair.backup.handle_tick(pair.now_ns);
                }
                pair.collect();
                pair.deliver_to_backup();
                pair.restore();
                pair.replay();
                pair.deliver_to_primary();
            }
            self.take_actions();
            for at in 0..self.sides.len() {
                (0..4).for_each(|_| self.answer(at));
            }
            self.take_actions();
            self.check();
        }
    }

    /// Without further disturbances service must resume: every older owner ends, the newest is
    /// protected again, and the guest runs.
    fn settle(mut self) {
        {
            let mut arbiter = self.sides[0].pair.arbiter.borrow_mut();
            (arbiter.is_unreachable, arbiter.lost_replies) = (false, 0);
        }
        for side in &mut self.sides {
            side.pair.lan_is_silent = false;
            side.pair.attach();
        }
        self.calm(400);
        assert!(self.sides[..self.sides.len() - 1].iter().all(|side| side.is_primary_over), "a stale owner is told");
        let node = self.node();
        let side = self.sides.last_mut().unwrap();
        if side.is_primary_over {
            assert!(side.is_backup_over, "a backup that can't claim ends");
            self.sometimes.both_died += 1;
            return;
        }
        if !side.pair.primary.is_protected() {
            assert_eq!(side.pair.primary.can_take_backup(&vm_id()), Ok(()));
            side.next_backup(node);
        }
        self.sometimes.undisturbed += u32::from(self.owners.len() == 1);
        self.calm(100);
        let Side { pair, .. } = self.sides.last_mut().unwrap();
        assert!(pair.primary.is_protected() && pair.primary.may_run(), "service resumes: {:?}", pair.primary);
        pair.output();
        self.calm(10);
        let Side { pair, .. } = self.sides.last_mut().unwrap();
        let lan = pair.lan.borrow();
        let sent = pair.history.iter().filter_map(|(_, output)| output.as_ref());
        assert!(sent.eq(&lan.carried), "the LAN has carried all that the guest has sent");
        self.sometimes.dropped_by_lan += u32::from(lan.dropped > 0);
    }
}

impl Side {
    fn next_backup(&mut self, node: NodeId) {
        self.pair.next_backup(node);
        self.pair.collect();
        (self.is_backup_over, self.backup_asks) = (false, None);
    }
}

#[test]
fn whatever_the_order_exactly_one_side_goes_on_and_no_output_is_lost_or_doubled() {
    let seed = std::env::var(SEED_VARIABLE).ok().map(|text| text.parse::<u64>().unwrap());
    let random_seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let first = seed.unwrap_or(u64::try_from(random_seed).unwrap());
    let mut sometimes = Sometimes::default();
    for run_seed in first..first + if seed.is_some() { 1 } else { RUNS } {
        let told = Rerun(run_seed);
        let mut run = Run::new(run_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), &mut sometimes);
        (0..STEPS).for_each(|_| run.step());
        run.settle();
        drop(told);
    }
    println!("seeds from {first}: {sometimes:?}");
    if seed.is_none() {
        sometimes.prove_something(first);
    }
}

/// Prints how to rerun a failing seed.
struct Rerun(u64);

impl Drop for Rerun {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("rerun: {SEED_VARIABLE}={} cargo test -p ft --test roles whatever_the_order", self.0);
        }
    }
}

#[test]
fn both_sides_ask_at_once_and_exactly_one_wins() {
    for backup_first in [false, true] {
        let mut pair = Pair::protected();
        pair.output();
        pair.deliver_to_backup();
        pair.replay();
        pair.primary_lost();
        pair.backup_lost();
        let (of_primary, of_backup) = (pair.primary_claim().unwrap(), pair.backup_claim().unwrap());
        assert_eq!((of_primary.generation, of_primary.predecessor), (of_backup.generation, of_backup.predecessor));
        if backup_first {
            pair.answer_backup(of_backup);
            pair.answer_primary(of_primary);
            assert_eq!(pair.out, [0_u64; 0]);
            assert_eq!(pair.unsent(), [0]);
            assert!(matches!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder }) if holder.node == BACKUP));
        } else {
            pair.answer_primary(of_primary);
            pair.answer_backup(of_backup);
            assert_eq!(pair.out, [0]);
            assert!(matches!(pair.backup_end(), Some(BackupEnd::Fenced { holder }) if holder.node == PRIMARY));
        }
        let again = pair.arbiter.borrow_mut().ask(of_primary);
        assert!(matches!(again, ClaimAnswer::Decided(Verdict::Won)) != backup_first);
    }
}
