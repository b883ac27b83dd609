//! Messages on the logging channel, and questions to the arbiter, in words.

use super::Kind;
use crate::sim::arbiter::Said;
use ft::claim::Verdict;
use hypervisor::node::arbiter_client::{ArbiterCall, ArbiterReply};
use logchannel::message::Message;

/// Something that is said: its kind, its words, and their numbers.
pub(in crate::sim) type Words = (Kind, &'static str, Vec<u64>);

/// A message on the logging channel.
pub(in crate::sim) fn channel_message(message: &Message) -> Words {
    match message {
        Message::Join { .. } => (Kind::Message, "asks to be the backup", vec![]),
        Message::Wait => (Kind::Message, "there is a backup already: wait", vec![]),
        Message::NoPrimary => (Kind::Message, "here is no primary", vec![]),
        Message::Session { header, .. } => (Kind::Message, "the session of generation {}", vec![header.generation.0]),
        Message::AskOwner { .. } => (Kind::Message, "do you own the VM?", vec![]),
        Message::Owner { generation, .. } => (Kind::Message, "owns the VM as generation {}", vec![generation.0]),
        Message::Pages(pages) => (Kind::Detail, "pages of memory from {}", vec![pages.first]),
        Message::UnsentOutput(unsent) => {
            (Kind::Message, "output {} may not have left before the snapshot", vec![unsent.id.0])
        }
        Message::Snapshot(snapshot) => (Kind::Message, "the snapshot, whole at entry {}", vec![snapshot.seq.0]),
        Message::Accepted => (Kind::Message, "accepts: it has the snapshot", vec![]),
        Message::Refused { .. } => (Kind::Message, "refuses", vec![]),
        Message::Entries(batch) => {
            (Kind::Detail, "entries from {} on, {} bytes", vec![batch.first_seq.0, batch.bytes.len() as u64])
        }
        Message::Ack { received } => (Kind::Detail, "has all entries below {}", vec![received.0]),
        Message::Consumed { consumed, .. } => (Kind::Detail, "has replayed all entries below {}", vec![consumed.0]),
        Message::Protected { generation } => {
            (Kind::Message, "outputs wait for this backup: it may claim flag {}", vec![generation.0])
        }
        Message::Released(left) => {
            (Kind::Detail, "packets below output {} have left, console below {}", vec![left.packets.0, left.console.0])
        }
        Message::Storing => (Kind::Detail, "waits for its disk before it accepts", vec![]),
        Message::Heartbeat => (Kind::Detail, "heartbeat", vec![]),
        Message::Clock { ticks, runs: true } => (Kind::Detail, "heartbeat, the guest's clock runs at {}", vec![*ticks]),
        Message::Clock { ticks, runs: false } => {
            (Kind::Detail, "heartbeat, the guest's clock stands at {}", vec![*ticks])
        }
        Message::Goodbye { .. } => (Kind::Message, "leaves", vec![]),
    }
}

/// A question to the arbiter.
pub(in crate::sim) fn question(call: &ArbiterCall) -> Words {
    match call {
        ArbiterCall::Latest => (Kind::Detail, "latest claim?", vec![]),
        ArbiterCall::Claim { generation, .. } => (Kind::Claim, "flag {}?", vec![generation.0]),
    }
}

/// The arbiter's answer in a word, behind the question.
pub(in crate::sim) fn in_a_word(said: &Said) -> String {
    match said {
        Said::CantDecide => "can't decide".into(),
        Said::Reply(ArbiterReply::Verdict(Verdict::Won)) => "won".into(),
        Said::Reply(ArbiterReply::Verdict(Verdict::Lost(_))) => "lost".into(),
        Said::Reply(ArbiterReply::Verdict(Verdict::NotSuccessor(_))) => "refused".into(),
        Said::Reply(ArbiterReply::Latest(Some((flag, _)))) => format!("flag {flag}"),
        Said::Reply(ArbiterReply::Latest(None)) => "none".into(),
    }
}

/// What the arbiter says to it.
pub(in crate::sim) fn said(call: &ArbiterCall, said: &Said) -> Words {
    match (call, said) {
        (_, Said::CantDecide) => (Kind::Claim, "can't decide: no space on its disk", vec![]),
        (ArbiterCall::Claim { generation, .. }, Said::Reply(ArbiterReply::Verdict(verdict))) => {
            let what = match verdict {
                Verdict::Won => "flag {} is won",
                Verdict::Lost(_) => "flag {} is lost to another node",
                Verdict::NotSuccessor(_) => "flag {} is refused: the claim before is another node's, or gone",
            };
            (Kind::Claim, what, vec![generation.0])
        }
        (_, Said::Reply(ArbiterReply::Latest(Some((flag, _))))) => {
            (Kind::Detail, "the latest is flag {}", vec![flag.0])
        }
        (_, Said::Reply(ArbiterReply::Latest(None))) => (Kind::Detail, "there is no claim", vec![]),
        (ArbiterCall::Latest, Said::Reply(ArbiterReply::Verdict(_))) => (Kind::Detail, "a verdict", vec![]),
    }
}
