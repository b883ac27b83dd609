//! What is between two sides, and between one and the arbiter.

use super::guest::Story;
use super::outside::Outside;
use super::points::{Died, Kind, Side};
use crate::world::Wire;
use ft::role::{ClaimAnswer, ClaimRequest};
use logchannel::entry::LogSeq;

/// The channel of one pairing.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) to_backup: Wire,
    pub(super) to_primary: Wire,
    /// Nobody is told that it is cut.
    pub(super) is_mute: bool,
    /// Who notices a cut only after this many more rounds.
    pub(super) slow: Option<(Side, u32)>,
    /// What the backup of this pairing has received, whether it lives or not.
    pub(super) received: LogSeq,
    /// What it has to have received when it is told of its protection.
    pub(super) told_from: LogSeq,
    /// What the snapshot says of the guest.
    pub(super) snapshot: Option<Story>,
}

impl Link {
    /// Nothing more gets into the channel; what is under way may still arrive.
    pub(super) fn cut(&mut self) {
        self.to_backup.is_cut = true;
        self.to_primary.is_cut = true;
    }

    /// Whether `side` learns now that the channel is closed.
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

/// A test-and-set on its way.
#[derive(Debug, Default)]
pub(super) struct Asking {
    pub(super) request: Option<ClaimRequest>,
    answer: Option<ClaimAnswer>,
}

impl Asking {
    pub(super) fn ask(&mut self, request: ClaimRequest) {
        assert!(self.answer.is_none() && self.request.replace(request).is_none(), "one claim at a time");
    }

    /// The request of `node` arrives at the arbiter, or the answer comes back.
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
