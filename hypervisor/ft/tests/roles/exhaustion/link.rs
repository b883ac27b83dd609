//! The connections between the two sides, and between a side and the arbiter.

use super::guest::Story;
use super::outside::Outside;
use super::points::{Died, Kind, Side};
use crate::world::Wire;
use ft::role::{ClaimAnswer, ClaimRequest};
use logchannel::entry::LogSeq;

/// The channel of one pair.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) to_backup: Wire,
    pub(super) to_primary: Wire,
    /// A cut of the channel isn't noticed: both ends see only silence.
    pub(super) is_mute: bool,
    /// A side that notices a cut only after this many more rounds.
    pub(super) slow: Option<(Side, u32)>,
    /// One past the last entry that this pair's backup has received, dead or alive.
    pub(super) received: LogSeq,
    /// The entries that it must have received when it is told that it may claim.
    pub(super) told_from: LogSeq,
    /// The guest's history in the snapshot.
    pub(super) snapshot: Option<Story>,
}

impl Link {
    /// Cuts the channel: nothing more is sent, what is in flight may still arrive.
    pub(super) fn cut(&mut self) {
        self.to_backup.is_cut = true;
        self.to_primary.is_cut = true;
    }

    /// `true` if `side` notices now that the channel is closed.
    pub(super) fn is_seen_closed_by(&self, side: Side) -> bool {
        let wire = match side {
            Side::Primary => &self.to_primary,
            Side::Backup => &self.to_backup,
        };
        wire.is_cut && wire.len() == 0 && !self.is_mute && self.slow.is_none_or(|(slow, _)| slow != side)
    }

    pub(super) fn round(&mut self) {
        self.slow = self.slow.take().and_then(|(side, rounds)| Some((side, rounds.checked_sub(1)?)));
    }
}

/// A test-and-set in progress.
#[derive(Debug, Default)]
pub(super) struct Asking {
    pub(super) request: Option<ClaimRequest>,
    answer: Option<ClaimAnswer>,
}

impl Asking {
    pub(super) fn ask(&mut self, request: ClaimRequest) {
        assert!(self.answer.is_none() && self.request.replace(request).is_none(), "one claim at a time");
    }

    /// The request of `node` arrives at the arbiter, or the answer returns.
    pub(super) fn get_on(&mut self, outside: &mut Outside, actor: Option<Side>) -> Result<Option<ClaimAnswer>, Died> {
        if let Some(request) = self.request {
            outside.points.before(actor, Kind::ClaimRecorded)?;
            self.request = None;
            self.answer = Some(outside.arbiter.ask(request));
            outside.points.after(actor, Kind::ClaimRecorded)?;
            return Ok(None);
        }
        Ok(self.answer.take())
    }
}
