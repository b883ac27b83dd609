//! What a program tells: status lines for a person, or one JSON object a line for a machine.

use crate::host::{clock, writer};
use serde::Serialize;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use vm::OutputId;

/// How much a report matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For who looks for a cause. Only logs have it.
    Debug,
    /// The usual course.
    Info,
    /// A change that an operator wants to see: who owns the VM, and whether it is protected.
    Notice,
    /// Something that shouldn't be; the program goes on.
    Warn,
    /// The end of something.
    Error,
}

impl Level {
    /// The level in a line for a person, and how a terminal shows it.
    const fn looks(self) -> (&'static str, &'static str) {
        match self {
            Self::Debug => ("DEBUG", "\x1b[2m"),
            Self::Info => ("INFO ", ""),
            Self::Notice => ("NOTE ", "\x1b[1;32m"),
            Self::Warn => ("WARN ", "\x1b[1;33m"),
            Self::Error => ("ERROR", "\x1b[1;31m"),
        }
    }
}

/// Something that a program tells. Give it `#[serde(tag = "event", rename_all = "snake_case")]`.
pub trait Report: Serialize + Display {
    /// How much it matters.
    fn level(&self) -> Level {
        Level::Info
    }
}

/// Where a program's reports go.
///
/// For a person they are lines on standard error, so that standard output stays the guest's console. With `--json` they
/// are objects on standard output, each with `at`, the wall-clock time, and `at_us`: microseconds of the host's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Reporter {
    program: &'static str,
    json: bool,
}

#[derive(Serialize)]
struct Line<'a, R> {
    at: String,
    at_us: u64,
    program: &'static str,
    level: Level,
    #[serde(flatten)]
    report: &'a R,
}

impl Reporter {
    /// A reporter for `program`.
    #[must_use]
    pub const fn new(program: &'static str, json: bool) -> Self {
        Self { program, json }
    }

    /// Whether reports are for a machine.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Tells `report`.
    pub fn tell<R: Report>(&self, report: &R) {
        self.tell_at(clock::now_us(), report);
    }

    /// Tells `report` of something that happened at `at_us`.
    pub fn tell_at<R: Report>(&self, at_us: u64, report: &R) {
        if self.json {
            writer::stdout().push_line(self.json_line(at_us, report));
        } else {
            let line = line(self.program, report.level(), &report.to_string(), Looks::of_stderr());
            writer::stderr().push_line(line.into_bytes());
        }
    }

    /// Tells a report that is an output of the guest: the writer says when it has left.
    pub fn tell_output<R: Report>(&self, id: OutputId, report: &R) {
        writer::stdout().push_console(id, self.json_line(clock::now_us(), report));
    }

    /// The line that tells a machine `report`.
    pub(crate) fn json_line<R: Report>(&self, at_us: u64, report: &R) -> Vec<u8> {
        let at_ms = clock::wall_ms().saturating_sub(clock::now_us().saturating_sub(at_us) / 1000);
        let at = clock::WallTime(at_ms).to_string();
        let line = Line { at, at_us, program: self.program, level: report.level(), report };
        let mut text = serde_json::to_vec(&line).expect("reports are plain structs with string keys");
        text.push(b'\n');
        text
    }
}

/// A number for people: in groups of three digits, `1_000_000`, in all programs. It is padded as a number is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouped(pub(crate) u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad_integral(true, "", &vm::InstructionCount(self.0).to_string())
    }
}

/// The same with one digit behind the point, for times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenths(pub(crate) f64);

impl Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.1}", self.0);
        let (whole, tenth) = text.split_once('.').unwrap_or((&text, "0"));
        // What is negative or no number isn't grouped.
        let whole = whole.parse().map_or_else(|_| whole.to_owned(), |whole| Grouped(whole).to_string());
        f.pad_integral(true, "", &format!("{whole}.{tenth}"))
    }
}

/// How lines for a person look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// Somebody looks at it: the time of day is enough, and a line has 80 columns.
    is_terminal: bool,
    /// Colours are welcome, as <https://no-color.org> says.
    has_colours: bool,
}

impl Looks {
    /// How lines on this process's standard error look.
    pub(crate) fn of_stderr() -> Self {
        static LOOKS: OnceLock<Looks> = OnceLock::new();
        *LOOKS.get_or_init(|| Self::of(&io::stderr()))
    }

    fn of(stream: &impl IsTerminal) -> Self {
        let is_terminal = stream.is_terminal();
        let is_colourless = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Self { is_terminal, has_colours: is_terminal && !is_colourless }
    }
}

/// A word on standard output, set off as a line of this level is if a terminal shows it.
pub(crate) fn set_off(word: &str, level: Level) -> String {
    let (_, colour) = level.looks();
    if Looks::of(&io::stdout()).has_colours { format!("{colour}{word}\x1b[0m") } else { word.into() }
}

/// A line for a person: when, how much it matters, who says it, and what.
pub(crate) fn line(program: &str, level: Level, text: &str, looks: Looks) -> String {
    let at = clock::WallTime(clock::wall_ms()).to_string();
    // A file is read days later, a terminal at once.
    let at = if looks.is_terminal { at.get(11..19).unwrap_or(&at) } else { &at };
    let (name, colour) = level.looks();
    let text = Printable(text);
    if looks.has_colours && !colour.is_empty() {
        format!("{at} {colour}{name} {program}: {text}\x1b[0m\n")
    } else {
        format!("{at} {name} {program}: {text}\n")
    }
}

/// A line for a terminal: a report may have words of a peer in it, which must not move the cursor or look like a line of ours.
struct Printable<'a>(&'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_stay_on_their_line() {
        let text = "lost (ü\x1b[2J\nft-primary: all is well)";
        assert_eq!(Printable(text).to_string(), r"lost (ü\u{1b}[2J\nft-primary: all is well)");
    }

    #[test]
    fn numbers_have_groups_of_three_digits_and_columns() {
        assert_eq!(
            format!("[{:>9}] [{:<9}] {}", Grouped(12_345), Grouped(999), Grouped(0)),
            "[   12_345] [999      ] 0"
        );
        assert_eq!(format!("[{:>9}] {} {}", Tenths(1234.56), Tenths(0.04), Tenths(-1.0)), "[  1_234.6] 0.0 -1.0");
    }

    #[test]
    fn lines_have_time_level_and_program_and_colours_only_where_they_are_welcome() {
        let look = |is_terminal, has_colours| line("ft-lan", Level::Warn, "text", Looks { is_terminal, has_colours });
        let in_a_file = look(false, false);
        assert_eq!(in_a_file.len(), "2026-11-29T01:02:03.456Z WARN  ft-lan: text\n".len(), "{in_a_file}");
        let (at, rest) = in_a_file.split_once(' ').unwrap();
        assert!(at.ends_with('Z') && rest == "WARN  ft-lan: text\n", "{in_a_file}");
        let plain = look(true, false);
        assert_eq!(plain.split_once(' ').map(|(at, rest)| (at.len(), rest)), Some((8, "WARN  ft-lan: text\n")));
        assert!(look(true, true).ends_with("\x1b[1;33mWARN  ft-lan: text\x1b[0m\n"));
    }
}
