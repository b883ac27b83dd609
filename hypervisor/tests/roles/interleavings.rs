//! Many random orders of the same few things: outputs, bytes that arrive, time, cuts, claims that get lost. Whatever the
//! order, no output leaves without acknowledgement or won claim, at most one side owns the VM's next generation, and
//! whoever does can send all that the other may not have sent.

use crate::pair::{BACKUP, G, MS, PRIMARY, Pair, operation};
use hypervisor::arbiter::Verdict;
use hypervisor::role::{BackupAction, BackupEnd, ClaimAnswer, ClaimRequest, PrimaryAction, PrimaryEnd};
use logchannel::entry::Generation;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs of the test; one takes well under a millisecond.
const RUNS: u64 = 2000;

const SEED_VARIABLE: &str = "ROLES_SEED";

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// How often the interesting things happened: a test of claims in which nobody ever claims proves nothing.
#[derive(Debug, Default)]
struct Sometimes {
    primary_won: u32,
    backup_won: u32,
    both_asked: u32,
    tail_sent: u32,
    fenced_with_outputs: u32,
    undisturbed: u32,
}

/// One run.
struct Run {
    pair: Pair,
    random: Random,
    /// Claims whose answers are on their way.
    primary_asks: Option<(ClaimRequest, ClaimAnswer)>,
    backup_asks: Option<(ClaimRequest, ClaimAnswer)>,
    primary_alone: Option<Generation>,
    backup_live: Option<Generation>,
    primary_over: bool,
    backup_over: bool,
    both_asked: bool,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            pair: Pair::protected(),
            random: Random(seed | 1),
            primary_asks: None,
            backup_asks: None,
            primary_alone: None,
            backup_live: None,
            primary_over: false,
            backup_over: false,
            both_asked: false,
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=2 => {
                if self.pair.primary.may_run() {
                    self.pair.output();
                }
            }
            3 | 4 => {
                let bytes = self.random.below(60);
                self.pair.deliver_some_to_backup(usize::try_from(bytes).unwrap());
            }
            5 | 6 => {
                let bytes = self.random.below(40);
                self.pair.deliver_some_to_primary(usize::try_from(bytes).unwrap());
            }
            7 => self.pair.replay_some(2),
            8 | 9 => {
                let ns = self.random.below(40) * MS;
                self.pair.pass(ns);
            }
            10 => self.answer(),
            _ => self.disturb(),
        }
        self.take_actions();
        self.check();
    }

    /// The rare things.
    fn disturb(&mut self) {
        match self.random.below(24) {
            0 => self.pair.cut(),
            1 if self.pair.to_primary.is_cut => self.pair.primary_lost(),
            2 if self.pair.to_primary.is_cut => self.pair.backup_lost(),
            3 => self.pair.arbiter.is_unreachable ^= true,
            4 => self.pair.arbiter.lost_replies = 1,
            _ => {}
        }
    }

    /// An answer on its way arrives, at one side or both.
    fn answer(&mut self) {
        if self.random.chance(2)
            && let Some((_, answer)) = self.primary_asks.take()
        {
            self.pair.primary.claim_answered(self.pair.now_ns, answer);
        }
        if self.random.chance(2)
            && let Some((_, answer)) = self.backup_asks.take()
        {
            self.pair.backup.claim_answered(self.pair.now_ns, answer);
        }
        self.pair.collect();
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.pair.primary_actions.pop_front() {
            match action {
                PrimaryAction::Claim(request) => {
                    let answer = self.pair.arbiter.ask(PRIMARY, request);
                    assert!(self.primary_asks.replace((request, answer)).is_none(), "one claim at a time");
                    self.both_asked |= self.backup_asks.is_some();
                }
                PrimaryAction::Owner(generation) => {
                    assert_eq!(self.primary_alone.replace(generation), None);
                }
                PrimaryAction::End(PrimaryEnd::Fenced { holder }) => {
                    assert_eq!(holder.node, BACKUP);
                    self.primary_over = true;
                }
                PrimaryAction::CloseChannel { .. } => {}
                other @ (PrimaryAction::Protected(_) | PrimaryAction::HandOver | PrimaryAction::End(_)) => {
                    panic!("nobody asked the primary for {other:?}")
                }
            }
        }
        while let Some(action) = self.pair.backup_actions.pop_front() {
            match action {
                BackupAction::Claim(request) => {
                    let answer = self.pair.arbiter.ask(BACKUP, request);
                    assert!(self.backup_asks.replace((request, answer)).is_none(), "one claim at a time");
                    self.both_asked |= self.primary_asks.is_some();
                }
                BackupAction::GoLive(generation) => assert_eq!(self.backup_live.replace(generation), None),
                BackupAction::End(BackupEnd::Fenced { holder }) => {
                    assert_eq!(holder.node, PRIMARY);
                    self.backup_over = true;
                }
                other @ (BackupAction::Build { .. }
                | BackupAction::Protected(_)
                | BackupAction::Consume(_)
                | BackupAction::Lost { .. }
                | BackupAction::End(_)) => panic!("nobody asked the backup for {other:?}"),
            }
        }
    }

    /// What holds after every step.
    fn check(&self) {
        let Self { pair, primary_alone, backup_live, .. } = self;
        assert!(primary_alone.is_none() || backup_live.is_none(), "both own generation {}", G.0 + 1);
        for owner in [primary_alone, backup_live].into_iter().flatten() {
            assert_eq!(owner.0, G.0 + 1);
            let node = if primary_alone.is_some() { PRIMARY } else { BACKUP };
            assert_eq!(pair.arbiter.claims[&G.0].node, node, "it owns by a won claim");
        }
        // Every entry of these runs is an output, so a count of entries is a count of outputs.
        let (received, consumed) = pair.backup.cursors();
        assert!(consumed <= received);
        assert!(pair.out.iter().copied().eq(0..pair.out.len() as u64), "in order, each once: {:?}", pair.out);
        if primary_alone.is_none() {
            assert!(pair.out.len() as u64 <= received.0, "an output left that the backup can't know of");
        }
    }

    /// Lets the run come to its end without further disturbance.
    fn settle(&mut self) {
        self.pair.arbiter.is_unreachable = false;
        self.pair.arbiter.lost_replies = 0;
        for _ in 0..400 {
            self.pair.pass(5 * MS);
            self.pair.deliver_to_backup();
            self.pair.deliver_to_primary();
            self.pair.replay();
            self.take_actions();
            for _ in 0..4 {
                self.answer();
                self.take_actions();
            }
            self.check();
        }
    }

    fn count(&mut self, sometimes: &mut Sometimes) {
        sometimes.both_asked += u32::from(self.both_asked);
        if self.primary_alone.is_some() {
            assert!(self.backup_over, "the loser is told");
            sometimes.primary_won += 1;
        } else if self.backup_live.is_some() {
            assert!(self.primary_over, "the loser is told");
            sometimes.backup_won += 1;
            self.check_succession(sometimes);
        } else {
            assert!(self.pair.primary.is_protected(), "a pair that breaks leaves an owner");
            assert!(!self.pair.to_primary.is_cut);
            sometimes.undisturbed += 1;
        }
    }

    /// The outputs of the old owner and the tail of the new one are together all that the log has.
    fn check_succession(&mut self, sometimes: &mut Sometimes) {
        let sent = self.pair.out.len() as u64;
        let (received, consumed) = self.pair.backup.cursors();
        assert_eq!(received, consumed, "live with nothing left to consume");
        assert!(sent <= received.0, "an output left that the successor doesn't know");
        let tail = self.pair.backup.take_tail();
        assert!(tail.iter().all(|(id, output)| *output == operation(*id)));
        let ids: Vec<u64> = tail.into_iter().map(|(id, _)| id.0).collect();
        let first = ids.first().copied().unwrap_or(received.0);
        assert!(first <= sent, "outputs {sent}..{first} are sent by nobody");
        assert!(ids.iter().copied().eq(first..received.0), "the tail {ids:?} has holes");
        sometimes.tail_sent += u32::from(!ids.is_empty());
        sometimes.fenced_with_outputs += u32::from(sent < received.0);
    }
}

#[test]
fn whatever_the_order_exactly_one_side_goes_on_and_no_output_is_lost() {
    let seed = std::env::var(SEED_VARIABLE).ok().map(|text| text.parse::<u64>().unwrap());
    let random_seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let first = seed.unwrap_or(u64::try_from(random_seed).unwrap());
    let mut sometimes = Sometimes::default();
    for run_seed in first..first + if seed.is_some() { 1 } else { RUNS } {
        let told = Rerun(run_seed);
        let mut run = Run::new(run_seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..300 {
            run.step();
        }
        run.settle();
        run.count(&mut sometimes);
        drop(told);
    }
    println!("seeds from {first}: {sometimes:?}");
    if seed.is_none() {
        let Sometimes { primary_won, backup_won, both_asked, tail_sent, fenced_with_outputs, undisturbed } = sometimes;
        for times in [primary_won, backup_won, both_asked, tail_sent, fenced_with_outputs, undisturbed] {
            assert!(times > 10, "seeds from {first} hardly show everything: {sometimes:?}");
        }
    }
}

/// Says how to run a failing seed again.
struct Rerun(u64);

impl Drop for Rerun {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("rerun: {SEED_VARIABLE}={} cargo test -p hypervisor --test roles whatever_the_order", self.0);
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
        assert_eq!(of_primary, of_backup);
        if backup_first {
            pair.answer_backup(of_backup);
            pair.answer_primary(of_primary);
            assert_eq!(pair.out, [0_u64; 0]);
            assert_eq!(pair.tail(), [0]);
            assert!(matches!(pair.primary_end(), Some(PrimaryEnd::Fenced { holder }) if holder.node == BACKUP));
        } else {
            pair.answer_primary(of_primary);
            pair.answer_backup(of_backup);
            assert_eq!(pair.out, [0]);
            assert!(matches!(pair.backup_end(), Some(BackupEnd::Fenced { holder }) if holder.node == PRIMARY));
        }
        assert!(matches!(pair.arbiter.ask(PRIMARY, of_primary), ClaimAnswer::Decided(Verdict::Won)) != backup_first);
    }
}
