//! The reports of a program: status lines for a person, or one JSON object per line for a machine.

use super::{clock, writer};
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use vm::OutputId;

/// How much a report matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For a person who looks for a cause. Only logs have it.
    Debug,
    /// The usual course.
    Info,
    /// A change that an operator wants to see: who owns the VM, and whether it is protected.
    Notice,
    /// Something is wrong; the program goes on.
    Warn,
    /// The program, or a part of it, ends because of an error.
    Error,
}

impl Level {
    /// The level's name in lines for a person, and its terminal colours.
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

/// A report of a program. Its serialisation needs `#[serde(tag = "event", rename_all =
/// "snake_case")]`.
pub trait Report: Serialize + Display {
    /// How much the report matters.
    fn level(&self) -> Level {
        Level::Info
    }
}

/// Writes a program's reports.
///
/// Reports for a person are lines on standard error, so that standard output stays the guest's
/// console. With `--json` they are objects on standard output, each with `at`, the wall-clock time,
/// and `at_us`, microseconds of the host's monotonic clock.
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

    /// `true` if reports are for a machine.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// Writes `report` as of now.
    pub fn tell<R: Report>(&self, report: &R) {
        self.tell_at(clock::now_us(), report);
    }

    /// Writes `report` of something that happened at `at_us`.
    pub fn tell_at<R: Report>(&self, at_us: u64, report: &R) {
        if self.json {
            writer::stdout().push_line(self.json_line(at_us, report));
        } else {
            let line = line_for_stderr(self.program, report.level(), &report.to_string());
            writer::stderr().push_line(line.into_bytes());
        }
    }

    /// Writes a report that is an output of the guest: the writer says when it has left.
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

/// A number for people: in groups of three digits, `1_000_000`, in all programs. It is padded as a
/// number is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouped(pub(crate) u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad_integral(true, "", &vm::InstructionCount(self.0).to_string())
    }
}

/// As [`Grouped`], with one digit after the point; for times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tenths(pub(crate) f64);

impl Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.1}", self.0);
        let (whole, tenth) = text.split_once('.').unwrap_or((&text, "0"));
        // Negative values, infinities and NaN aren't grouped.
        let whole = whole.parse().map_or_else(|_| whole.to_owned(), |whole| Grouped(whole).to_string());
        f.pad_integral(true, "", &format!("{whole}.{tenth}"))
    }
}

/// A number of instructions for people: large ones in millions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instructions(pub(crate) u64);

impl Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ..10_000_000 => write!(f, "{} instructions", Grouped(self.0)),
            10_000_000.. => write!(f, "{} M instructions", Grouped(self.0 / 1_000_000)),
        }
    }
}

/// The width of a terminal that doesn't say how wide it is, in columns.
const COLUMNS: usize = 80;

/// The narrowest terminal, in columns, for which lines are broken here; a narrower one breaks them
/// itself.
const COLUMNS_MIN: usize = 40;

/// How lines for a person are laid out.
#[derive(Clone, Copy, Debug)]
struct Looks {
    /// The terminal's width in columns; `None` if it is no terminal, and lines are read later.
    columns: Option<usize>,
    /// Colours are welcome, as <https://no-color.org> says.
    has_colours: bool,
}

impl Looks {
    /// How lines on this process's standard error look now: a terminal's width changes.
    fn of_stderr() -> Self {
        static IS_TERMINAL: OnceLock<bool> = OnceLock::new();
        Self::of(&io::stderr(), *IS_TERMINAL.get_or_init(|| io::stderr().is_terminal()))
    }

    fn of(stream: &impl AsFd, is_terminal: bool) -> Self {
        let is_colourless = || {
            std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
                || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb")
        };
        let columns = || match tcgetwinsize(stream) {
            Ok(size) if size.ws_col > 0 => size.ws_col.into(),
            Ok(_) | Err(_) => COLUMNS,
        };
        Self { columns: is_terminal.then(columns), has_colours: is_terminal && !is_colourless() }
    }
}

/// `word` for standard output, coloured as a line of this level if a terminal shows it.
pub(crate) fn set_off(word: &str, level: Level) -> String {
    let (_, colour) = level.looks();
    let stdout = io::stdout();
    if Looks::of(&stdout, stdout.is_terminal()).has_colours { format!("{colour}{word}\x1b[0m") } else { word.into() }
}

/// `true` while the terminal's cursor isn't at the beginning of a line, because the guest has
/// printed a prompt, for example.
static IS_WITHIN_LINE: AtomicBool = AtomicBool::new(false);

/// Notes that these bytes of the guest's console go to standard output.
pub(crate) fn console_shown(bytes: &[u8]) {
    static IS_TERMINAL: OnceLock<bool> = OnceLock::new();
    if let Some(last) = bytes.last()
        && *IS_TERMINAL.get_or_init(|| io::stdout().is_terminal())
    {
        IS_WITHIN_LINE.store(*last != b'\n', Ordering::Release);
    }
}

/// Ctrl-C was typed, perhaps: a terminal shows that itself.
pub(crate) fn key_shown() {
    IS_WITHIN_LINE.store(true, Ordering::Release);
}

/// A line for a person on standard error; on a terminal it begins on a new line, wherever the
/// cursor was.
pub(crate) fn line_for_stderr(program: &str, level: Level, text: &str) -> String {
    let looks = Looks::of_stderr();
    let mut line = line(program, level, text, looks);
    if looks.columns.is_some() && IS_WITHIN_LINE.swap(false, Ordering::AcqRel) {
        line.insert(0, '\n');
    }
    line
}

/// A line for a person: time, level, program and text.
///
/// A file is read days later, together with others: it gets the date, every level and the program's
/// whole name. A terminal is read now, and has 80 columns: it gets the time of day, the names of
/// the levels from `Warn` on (the others only as colours), the name without `ft-`, and long texts
/// in several lines.
fn line(program: &str, level: Level, text: &str, looks: Looks) -> String {
    let at = clock::WallTime(clock::wall_ms()).to_string();
    let (name, colour) = level.looks();
    let text = Printable(text);
    let Some(columns) = looks.columns else { return format!("{at} {name} {program}: {text}\n") };
    let at = at.get(11..19).unwrap_or(&at);
    let name = match level {
        Level::Warn | Level::Error | Level::Debug => format!("{} ", name.trim_end()),
        Level::Info | Level::Notice => String::new(),
    };
    let program = program.strip_prefix("ft-").unwrap_or(program);
    let text = without_error_numbers(&text.to_string());
    let said = wrapped(&format!("{name}{program}: {text}"), at.len() + 1, columns);
    if looks.has_colours && !colour.is_empty() {
        format!("{at} {colour}{said}\x1b[0m\n")
    } else {
        format!("{at} {said}\n")
    }
}

/// `text` without the numbers of the host's errors, which are behind their names.
fn without_error_numbers(text: &str) -> String {
    const BEFORE: &str = " (os error ";
    let mut parts = text.split(BEFORE);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(')') {
            Some(rest) => kept.push_str(rest),
            None => kept.extend([BEFORE, part]),
        }
    }
    kept
}

/// `text` in lines of at most `columns`, broken between words and indented by `indent` columns; the
/// caller fills the first line's indent. A word that is longer than a line is left whole, so that
/// it can be copied.
fn wrapped(text: &str, indent: usize, columns: usize) -> String {
    if columns < COLUMNS_MIN {
        return text.to_owned();
    }
    let mut lines = String::with_capacity(text.len());
    let mut column = indent;
    for (index, word) in text.split(' ').enumerate() {
        let width = word.chars().count();
        if index > 0 && column + 1 + width > columns {
            lines.push('\n');
            lines.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += width;
    }
    lines
}

/// A line for a terminal: a report may have words of a peer in it, which must not move the cursor
/// or look like a line of ours.
struct Printable<'a>(&'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

/// The lines of `report` on a terminal of 80 columns without colours.
#[cfg(test)]
pub(crate) fn on_a_terminal<R: Report>(program: &str, report: &R) -> Vec<String> {
    let looks = Looks { columns: Some(COLUMNS), has_colours: false };
    line(program, report.level(), &report.to_string(), looks).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_text_stays_on_its_line() {
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
    fn a_file_gets_date_level_and_program() {
        let line = line("ft-lan", Level::Info, "text (os error 2)", Looks { columns: None, has_colours: false });
        assert_eq!(line.len(), "2026-11-29T01:02:03.456Z INFO  ft-lan: text (os error 2)\n".len(), "{line}");
        let (at, rest) = line.split_once(' ').unwrap();
        assert!(at.ends_with('Z') && rest == "INFO  ft-lan: text (os error 2)\n", "{line}");
    }

    #[test]
    fn a_terminal_gets_the_time_of_day_and_only_levels_of_what_is_wrong_and_colours_where_they_are_welcome() {
        let look = |level, has_colours| line("ft-lan", level, "text", Looks { columns: Some(80), has_colours });
        let behind_time = |level| look(level, false).split_once(' ').map(|(at, rest)| (at.len(), rest.to_owned()));
        for (level, rest) in [
            (Level::Info, "lan: text\n"),
            (Level::Notice, "lan: text\n"),
            (Level::Warn, "WARN lan: text\n"),
            (Level::Error, "ERROR lan: text\n"),
        ] {
            assert_eq!(behind_time(level), Some((8, rest.into())));
        }
        assert!(look(Level::Warn, true).ends_with(" \x1b[1;33mWARN lan: text\x1b[0m\n"));
        assert!(look(Level::Notice, true).ends_with(" \x1b[1;32mlan: text\x1b[0m\n"));
        assert!(look(Level::Info, true).ends_with(" lan: text\n"));
    }

    #[test]
    fn what_is_too_long_for_a_terminal_goes_on_below_itself() {
        assert_eq!(wrapped("one two three", 4, 40), "one two three");
        let words = "word ".repeat(20);
        let lines = wrapped(words.trim_end(), 9, 40);
        assert_eq!(lines.split_whitespace().count(), 20);
        for (index, line) in lines.lines().enumerate() {
            let (indent, rest) = line.split_at(if index > 0 { 9 } else { 0 });
            assert!(indent.trim().is_empty() && rest.starts_with("word") && rest.len() <= 31, "{lines}");
        }
        // It fits to the last column, and not beyond.
        assert_eq!(wrapped("a23456789 b2345678901", 9, 40).lines().count(), 1);
        assert_eq!(wrapped(&format!("{} b", "a".repeat(29)), 9, 40).lines().count(), 1);
        assert_eq!(wrapped(&format!("{} b", "a".repeat(30)), 9, 40).lines().count(), 2);
        let path = format!("in /{}", "a".repeat(100));
        assert_eq!(wrapped(&path, 0, 40), path.replace(' ', "\n"), "a path stays whole");
        assert_eq!(wrapped(&words, 9, 39), words, "narrow terminals do it themselves");
    }

    #[test]
    fn numbers_of_errors_are_left_out_behind_their_names_only() {
        for (text, kept) in [
            ("a: Connection refused (os error 111); b", "a: Connection refused; b"),
            ("(No such file (os error 2)) (os error 5)", "(No such file)"),
            ("(os error x) and (os error 1", "(os error x) and (os error 1"),
            ("a (os error 1x) b", "a (os error 1x) b"),
        ] {
            assert_eq!(without_error_numbers(text), kept);
        }
    }

    #[test]
    fn instructions_are_in_millions_once_the_rest_is_noise() {
        assert_eq!(Instructions(9_999_999).to_string(), "9_999_999 instructions");
        assert_eq!(Instructions(1_234_567_890).to_string(), "1_234 M instructions");
    }
}
