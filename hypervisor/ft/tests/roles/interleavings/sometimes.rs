//! What must happen in some runs.

/// Counters of the interesting events: a test of claims without a claim would prove nothing.
#[derive(Debug, Default)]
pub(super) struct Sometimes {
    pub(super) primary_won: u32,
    pub(super) backup_won: u32,
    pub(super) both_asked: u32,
    pub(super) fenced_with_outputs: u32,
    pub(super) unsent_sent: u32,
    pub(super) dropped_by_lan: u32,
    pub(super) sent_again_by_primary: u32,
    pub(super) protected_again_after_loss: u32,
    pub(super) protected_again_after_failover: u32,
    pub(super) joiner_lost_while_copying: u32,
    pub(super) joiner_lost_while_restoring: u32,
    pub(super) second_joiner_refused: u32,
    pub(super) third_owner: u32,
    pub(super) stopped_by_lag: u32,
    pub(super) left_before_flush: u32,
    pub(super) both_died: u32,
    pub(super) undisturbed: u32,
}

impl Sometimes {
    pub(super) fn prove_something(self, first_seed: u64) {
        let told = format!("{self:?}");
        let Self {
            primary_won,
            backup_won,
            both_asked,
            fenced_with_outputs,
            unsent_sent,
            dropped_by_lan,
            sent_again_by_primary,
            protected_again_after_loss,
            protected_again_after_failover,
            joiner_lost_while_copying,
            joiner_lost_while_restoring,
            second_joiner_refused,
            third_owner,
            stopped_by_lag,
            left_before_flush,
            both_died,
            undisturbed,
        } = self;
        let all = [
            primary_won,
            backup_won,
            both_asked,
            fenced_with_outputs,
            unsent_sent,
            dropped_by_lan,
            sent_again_by_primary,
            protected_again_after_loss,
            protected_again_after_failover,
            joiner_lost_while_copying,
            joiner_lost_while_restoring,
            second_joiner_refused,
            third_owner,
            stopped_by_lag,
            left_before_flush,
            both_died,
            undisturbed,
        ];
        assert!(all.iter().all(|times| *times > 10), "seeds from {first_seed} hardly show everything: {told}");
    }
}
