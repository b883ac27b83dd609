//! Positions: how a person names a moment of a recording.

use super::Place;
use logchannel::entry::{EntryBody, LogEntry, LogSeq};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use vm::{Event, InstructionCount, TIMEBASE_HZ};

/// The longest name of a mark, in bytes.
const MARK_BYTES_MAX: usize = 64;

/// A moment of a recording: the machine has executed exactly `count` steps and consumed the entries
/// before `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// The machine's instruction count.
    pub count: InstructionCount,
    /// The position of the next entry.
    pub seq: LogSeq,
}

/// A position as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// A place in the recording itself.
    Target(Target),
    /// A mark, by its name.
    Mark(String),
}

/// A place in the recording. At a target that is named by an entry, the machine stands before it
/// takes that entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Where the recording begins.
    Start,
    /// After the last whole entry.
    End,
    /// This instruction count, before the entries there.
    Count(InstructionCount),
    /// This entry.
    Entry(LogSeq),
    /// The first clock read at or after this time since the guest's start, in ticks of its clock.
    Ticks(u64),
    /// The packet with this number.
    Packet(u64),
    /// The output with this id.
    Output(u64),
    /// Exactly this moment, which this recording has.
    Moment(Moment),
}

/// Why a text is no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no position: {why}. A position is an instruction count (1_000_000, 12M, 0x40), start, end, a time of \
     the guest's clock (+12.5s, +300ms), packet:N, output:N, entry:N, or the name of a mark"
)]
pub struct PositionError {
    text: String,
    why: String,
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let bad = |why: String| PositionError { text: text.into(), why };
        let number = |text: &str| parse_number(text).ok_or_else(|| bad(format!("`{text}` is no number below 2^64")));
        let target = match text {
            "start" => Target::Start,
            "end" => Target::End,
            _ => match text.split_once(':') {
                Some(("packet", rest)) => Target::Packet(number(rest)?),
                Some(("output", rest)) => Target::Output(number(rest)?),
                Some(("entry", rest)) => Target::Entry(LogSeq(number(rest)?)),
                Some((kind, _)) => return Err(bad(format!("there is nothing that is called `{kind}:`"))),
                None if text.starts_with('+') => {
                    Target::Ticks(parse_time(&text[1..]).ok_or_else(|| bad("the time can't be read".into()))?)
                }
                None if text.starts_with(|first: char| first.is_ascii_digit()) => {
                    Target::Count(InstructionCount(number(text)?))
                }
                None => {
                    check_name(text).map_err(bad)?;
                    return Ok(Self::Mark(text.into()));
                }
            },
        };
        Ok(Self::Target(target))
    }
}

/// Checks that `name` can be that of a mark.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|next| next.is_ascii_alphanumeric() || "-_.".contains(next));
    // Two dots are between the ends of a range.
    match is_name && name.len() <= MARK_BYTES_MAX && !name.contains("..") {
        _ if matches!(name, "start" | "end") => Err("start and end are the recording's own".into()),
        true => Ok(()),
        false => {
            Err(format!("the name of a mark is 1 to {MARK_BYTES_MAX} of a-z A-Z 0-9 - _ . and begins with a letter"))
        }
    }
}

/// A range as a person writes it: `POSITION..POSITION`, of which either may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionRange {
    /// Where it begins.
    pub from: Position,
    /// Where it ends.
    pub to: Position,
}

impl PositionRange {
    /// The whole recording.
    pub const ALL: Self = Self { from: Position::Target(Target::Start), to: Position::Target(Target::End) };
}

impl FromStr for PositionRange {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let Some((from, to)) = text.split_once("..") else {
            return Err(PositionError {
                text: text.into(),
                why: "a range has two dots, as in 12M..15M or packet:3..".into(),
            });
        };
        let end = |text: &str, whole: Position| if text.is_empty() { Ok(whole) } else { text.parse() };
        Ok(Self { from: end(from, Self::ALL.from)?, to: end(to, Self::ALL.to)? })
    }
}

/// A number with `_` between its digits, in hexadecimal after `0x`, or in thousands, millions or
/// billions (`k`, `M`, `G`).
pub fn parse_number(text: &str) -> Option<u64> {
    let digits: String = text.chars().filter(|next| *next != '_').collect();
    if let Some(hex) = digits.strip_prefix("0x") {
        // A sign isn't a digit.
        return u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+'));
    }
    let (digits, unit) = match digits.char_indices().next_back()? {
        (at, 'k') => (&digits[..at], 1_000),
        (at, 'M') => (&digits[..at], 1_000_000),
        (at, 'G') => (&digits[..at], 1_000_000_000),
        _ => (digits.as_str(), 1),
    };
    let number: u64 = digits.parse().ok().filter(|_| digits.starts_with(|first: char| first.is_ascii_digit()))?;
    number.checked_mul(unit)
}

/// A time as ticks of the guest's clock: `12.5s`, `300ms`, `2m`; without a unit, seconds.
fn parse_time(text: &str) -> Option<u64> {
    let end = text.find(|next: char| !next.is_ascii_digit() && next != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit_ns: u64 = match unit {
        "" | "s" => 1_000_000_000,
        "us" => 1_000,
        "ms" => 1_000_000,
        "m" => 60_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    // Digits beyond a nanosecond make no difference.
    let fraction = &fraction[..fraction.len().min(9)];
    let mut part_ns = 0;
    if !fraction.is_empty() {
        let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        part_ns = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit_ns) / u128::from(scale);
    }
    let ns = u128::from(whole) * u128::from(unit_ns) + part_ns;
    u64::try_from(ns / u128::from(1_000_000_000 / TIMEBASE_HZ)).ok()
}

impl Target {
    /// `true` if what is named comes before `place`: it can't be reached from there.
    #[must_use]
    pub fn is_before(self, place: &Place) -> bool {
        let Place { cursor, context, .. } = place;
        match self {
            Self::Start => true,
            Self::End => false,
            Self::Count(count) => context.count >= count.0,
            Self::Entry(seq) => cursor.seq() > seq,
            Self::Ticks(ticks) => context.ticks >= ticks,
            Self::Packet(number) => context.packet >= number,
            Self::Output(id) => context.output > id,
            Self::Moment(moment) => cursor.seq() > moment.seq,
        }
    }

    /// `true` if the replay stops before it takes this entry.
    #[must_use]
    pub fn stops_before(self, seq: LogSeq, entry: &LogEntry) -> bool {
        match (self, &entry.body) {
            (Self::Start, _) => true,
            (Self::Count(count), _) => entry.count >= count,
            (Self::Entry(wanted) | Self::Moment(Moment { seq: wanted, .. }), _) => seq >= wanted,
            (Self::Ticks(wanted), EntryBody::Event(Event::ClockRead { ticks })) => *ticks >= wanted,
            (Self::Packet(wanted), EntryBody::Event(Event::Packet { number, .. })) => *number >= wanted,
            (Self::Output(wanted), EntryBody::Output { id, .. }) => id.0 >= wanted,
            (Self::End | Self::Ticks(_) | Self::Packet(_) | Self::Output(_), _) => false,
        }
    }

    /// `false` if this target names an entry, and the one at which the replay has stopped is
    /// another.
    #[must_use]
    pub fn is_named_by(self, seq: LogSeq) -> bool {
        match self {
            Self::Entry(wanted) => wanted == seq,
            Self::Moment(moment) => moment.seq == seq,
            Self::Start | Self::End | Self::Count(_) | Self::Ticks(_) | Self::Packet(_) | Self::Output(_) => true,
        }
    }

    /// The number of the packet or output in `entry` if that isn't the wanted one: its number is
    /// none of this VM's.
    #[must_use]
    pub fn skipped_by(self, entry: &LogEntry) -> Option<u64> {
        match (self, &entry.body) {
            (Self::Packet(wanted), EntryBody::Event(Event::Packet { number, .. })) if *number > wanted => Some(*number),
            (Self::Output(wanted), EntryBody::Output { id, .. }) if id.0 > wanted => Some(id.0),
            _ => None,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instruction {} before entry {}", self.count.0, self.seq.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::End => f.write_str("end"),
            Self::Count(count) => write!(f, "instruction {}", count.0),
            Self::Entry(seq) => write!(f, "entry:{}", seq.0),
            Self::Ticks(ticks) => {
                let time = Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / TIMEBASE_HZ));
                write!(f, "+{}s", time.as_secs_f64())
            }
            Self::Packet(number) => write!(f, "packet:{number}"),
            Self::Output(id) => write!(f, "output:{id}"),
            Self::Moment(moment) => moment.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Position, PositionRange, Target};
    use logchannel::entry::LogSeq;
    use vm::InstructionCount;

    #[test]
    fn positions_are_counts_times_numbers_and_names() {
        let count = |count| Target::Count(InstructionCount(count));
        for (text, target) in [
            ("start", Target::Start),
            ("end", Target::End),
            ("0", count(0)),
            ("1_000_000", count(1_000_000)),
            ("12M", count(12_000_000)),
            ("3G", count(3_000_000_000)),
            ("0xff", count(255)),
            ("+12.5s", Target::Ticks(125_000_000)),
            ("+300ms", Target::Ticks(3_000_000)),
            ("+2m", Target::Ticks(1_200_000_000)),
            ("+1", Target::Ticks(10_000_000)),
            ("+0.00000010001s", Target::Ticks(1)),
            ("packet:17", Target::Packet(17)),
            ("output:9", Target::Output(9)),
            ("entry:5", Target::Entry(LogSeq(5))),
        ] {
            assert_eq!(text.parse(), Ok(Position::Target(target)), "{text}");
        }
        assert_eq!("crash.1".parse(), Ok(Position::Mark("crash.1".into())));
        for bad in [
            "",
            "+",
            "+s",
            "+1.x",
            "1x",
            "18446744073709551616",
            "99999999999G",
            "0x+1",
            "pocket:1",
            "packet:",
            "-1",
            "ümlaut",
            "a b",
            "+1h",
            "packet:-1",
            "+99999999999999999999s",
        ] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
        assert!("x".repeat(65).parse::<Position>().is_err());
        assert!("a..b".parse::<Position>().is_err());
        let range: PositionRange = "packet:3..crash.1".parse().unwrap();
        assert_eq!(range.from, Position::Target(Target::Packet(3)));
        assert_eq!(range.to, Position::Mark("crash.1".into()));
        assert_eq!("..".parse(), Ok(PositionRange::ALL));
        assert!("5".parse::<PositionRange>().is_err() && "1..2..3".parse::<PositionRange>().is_err());
    }
}
