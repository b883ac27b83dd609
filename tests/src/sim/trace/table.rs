//! A run as a table for a terminal: a column for each process, a line for each event.

use super::{Event, Kind, Lane, State};
use hypervisor::os::report::Level;
use std::fmt::Write;
use std::ops::Range;

/// What the time takes at the left.
const TIME_COLUMNS: usize = 10;

/// A text begins further left than its column if it had less room there.
const TEXT_COLUMNS: usize = 30;

/// The head is repeated after so many lines.
const LINES_PER_HEAD: usize = 50;

/// How long before a broken rule all details are shown, in nanoseconds.
const CLOSE_NS: u64 = 3_000_000;

/// How a run is shown.
#[derive(Clone, Debug)]
pub struct View {
    /// Columns of the terminal.
    pub width: usize,
    /// With colours.
    pub is_coloured: bool,
    /// With the entries, acknowledgements, outputs and heartbeats.
    pub is_detailed: bool,
    /// Which part of the run, in nanoseconds of its clock.
    pub range_ns: Range<u64>,
}

/// The least and the greatest width.
const WIDTHS: (usize, usize) = (80, 200);

impl View {
    /// The whole run without details, on so many columns.
    #[must_use]
    pub fn new(width: usize, is_coloured: bool) -> Self {
        let width = width.clamp(WIDTHS.0, WIDTHS.1);
        Self { width, is_coloured, is_detailed: false, range_ns: 0..u64::MAX }
    }
}

/// The columns of a run with so many hosts.
pub(super) fn lanes(hosts: usize) -> Vec<Lane> {
    let mut lanes = vec![Lane::World, Lane::Lan];
    lanes.extend((0..hosts).map(Lane::Host));
    lanes.push(Lane::Arbiter);
    lanes
}

/// How many hosts a run had.
pub(super) fn hosts(events: &[Event]) -> usize {
    let hosts = events.iter().filter_map(|event| if let Lane::Host(host) = event.lane { Some(host + 1) } else { None });
    hosts.max().unwrap_or_default()
}

/// Whether an event is shown though it is a detail: a rule is broken soon after.
pub(super) fn is_close(events: &[Event], event: &Event) -> bool {
    let verdict = events.last().filter(|last| last.kind == Kind::Verdict);
    verdict.is_some_and(|verdict| event.at_ns + CLOSE_NS >= verdict.at_ns)
}

/// The events as a table.
#[must_use]
pub fn table(events: &[Event], view: &View) -> String {
    let lanes = lanes(hosts(events));
    let step = (view.width - TIME_COLUMNS) / lanes.len();
    let mut table = Table { view, lanes, step, states: Vec::new(), out: String::new(), lines_to_head: 0 };
    table.states = vec![State::Down; table.lanes.len()];
    table.legend();
    let mut left_out = 0_u32;
    let mut last_ns = None;
    for event in events {
        let is_shown = view.is_detailed || !event.kind.is_detail() || is_close(events, event);
        if !view.range_ns.contains(&event.at_ns) || !is_shown {
            left_out += 1;
            table.change_state(event);
            continue;
        }
        table.show(event, last_ns == Some(event.at_ns));
        last_ns = Some(event.at_ns);
    }
    let mut out = table.out;
    if left_out > 0 {
        let _ = writeln!(out, "{left_out} events are left out; --all, --show-from and --show-to choose others");
    }
    out
}

struct Table<'a> {
    view: &'a View,
    lanes: Vec<Lane>,
    /// From the beginning of one column to the next.
    step: usize,
    /// What the process in each column is.
    states: Vec<State>,
    out: String,
    lines_to_head: usize,
}

impl Table<'_> {
    fn legend(&mut self) {
        let mut row = Row::new(self.view.width);
        row.put(0, "┃ primary   │ backup   ╎ joins   ┊ looks for a primary   ✗ [name] a fault", Style::Dim);
        row.write(&mut self.out, self.view.is_coloured);
    }

    fn head(&mut self) {
        let mut row = Row::new(self.view.width);
        row.put(0, "      ms", Style::Bold);
        for (index, lane) in self.lanes.iter().enumerate() {
            row.put(self.start_of(index), &lane.to_string(), Style::Bold);
        }
        self.push(&row);
        let mut rule = Row::new(self.view.width);
        rule.put(0, &"─".repeat(self.view.width), Style::Dim);
        self.push(&rule);
    }

    fn start_of(&self, lane: usize) -> usize {
        TIME_COLUMNS + lane * self.step
    }

    fn index(&self, lane: Lane) -> usize {
        self.lanes.iter().position(|it| *it == lane).unwrap_or_default()
    }

    fn change_state(&mut self, event: &Event) {
        if let Some(state) = event.state {
            let index = self.index(event.lane);
            self.states[index] = state;
        }
    }

    fn show(&mut self, event: &Event, is_same_time: bool) {
        if self.lines_to_head == 0 {
            self.head();
            self.lines_to_head = LINES_PER_HEAD;
        }
        self.change_state(event);
        let lane = self.index(event.lane);
        let from = event.from.map(|from| self.index(from)).filter(|from| *from != lane);
        let text = words(event);
        let style = Style::of(event.kind);
        let mut rows = Vec::new();
        let mut first = self.row();
        if !is_same_time {
            let (ms, us) = (event.at_ns / 1_000_000, event.at_ns / 1000 % 1000);
            first.put(0, &format!("{ms:4}.{us:03}"), Style::Plain);
        }
        let length = text.chars().count();
        let place = if matches!(event.kind, Kind::Verdict) {
            let start = self.start_of(lane);
            Place { start, width: self.view.width - start, is_below: false }
        } else {
            self.place(lane, from, length)
        };
        if let Some(from) = from {
            first.arrow(self.start_of(from), self.start_of(lane), style);
        }
        if place.is_below {
            rows.push(std::mem::replace(&mut first, self.row()));
        }
        for (number, line) in wrap(&text, place.width).into_iter().enumerate() {
            let indent = if number == 0 { 0 } else { 2 };
            first.text(place.start + indent, &line, style);
            rows.push(std::mem::replace(&mut first, self.row()));
        }
        for row in &rows {
            self.push(row);
        }
    }

    /// Where a text of this length stands.
    fn place(&self, lane: usize, from: Option<usize>, length: usize) -> Place {
        let (own, width) = (self.start_of(lane), self.view.width);
        let room = TEXT_COLUMNS.max(2 * self.step);
        let fits = |start: usize| width.saturating_sub(start) >= length.min(TEXT_COLUMNS);
        let beside = |start: usize| Place { start, width: room.min(width - start), is_below: false };
        let Some(from) = from else {
            return if fits(own) { beside(own) } else { beside(width - TEXT_COLUMNS) };
        };
        let from = self.start_of(from);
        let (left, right) = (own.min(from), own.max(from));
        if right - left >= length + 8 {
            // On the arrow's line.
            Place { start: left + 4, width: length, is_below: false }
        } else if fits(right + 3) {
            beside(right + 3)
        } else {
            let place = if fits(own) { beside(own) } else { beside(width - TEXT_COLUMNS) };
            Place { is_below: true, ..place }
        }
    }

    /// A row with what the process in each column is.
    fn row(&self) -> Row {
        let mut row = Row::new(self.view.width);
        for (index, (lane, state)) in self.lanes.iter().zip(&self.states).enumerate() {
            let (glyph, style) = match (lane, state) {
                (Lane::World, _) => (" ", Style::Plain),
                (Lane::Lan | Lane::Arbiter, _) => ("·", Style::Dim),
                (Lane::Host(_), State::Down) => (" ", Style::Plain),
                (Lane::Host(_), State::Seeking | State::Resuming) => ("┊", Style::Dim),
                (Lane::Host(_), State::Joining) => ("╎", Style::Plain),
                (Lane::Host(_), State::Backup(_)) => ("│", Style::Plain),
                (Lane::Host(_), State::Primary(_)) => ("┃", Style::Good),
            };
            row.put(self.start_of(index), glyph, style);
        }
        row
    }

    fn push(&mut self, row: &Row) {
        row.write(&mut self.out, self.view.is_coloured);
        self.lines_to_head = self.lines_to_head.saturating_sub(1);
    }
}

/// Where a text stands.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    width: usize,
    /// Under the arrow, which leaves no room.
    is_below: bool,
}

/// An event's words: what a program says to its operator is in quotation marks.
pub(super) fn words(event: &Event) -> String {
    let text: String = event.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match event.kind {
        Kind::Report(Level::Warn) => format!("“WARN {text}”"),
        Kind::Report(Level::Error) => format!("“ERROR {text}”"),
        Kind::Report(_) => format!("“{text}”"),
        Kind::Fault => event.fault.map_or_else(|| format!("✗ {text}"), |fault| format!("✗ [{fault}] {text}")),
        Kind::Verdict => format!("✗✗ RULE BROKEN {text}"),
        Kind::Course | Kind::Role | Kind::Claim | Kind::Message | Kind::Detail => text,
    }
}

/// A text in lines of so many columns; those after the first have two less.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut room = width;
    for word in text.split_whitespace() {
        let mut word = word;
        let line = lines.last_mut().expect("never empty");
        let length = word.chars().count() + usize::from(!line.is_empty());
        if length <= room {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
            room -= length;
            continue;
        }
        if !line.is_empty() {
            lines.push(String::new());
            room = width - 2;
        }
        // A word that is longer than a line is cut.
        while let Some((end, _)) = word.char_indices().nth(room) {
            lines.last_mut().expect("never empty").push_str(&word[..end]);
            lines.push(String::new());
            word = &word[end..];
            room = width - 2;
        }
        lines.last_mut().expect("never empty").push_str(word);
        room -= word.chars().count();
    }
    lines
}

/// How characters look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Verdict,
    Claim,
    Message,
    Course,
    Warn,
}

impl Style {
    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Fault | Kind::Report(Level::Error) => Self::Bad,
            Kind::Course => Self::Course,
            Kind::Role | Kind::Report(Level::Notice) => Self::Good,
            Kind::Claim => Self::Claim,
            Kind::Message => Self::Message,
            Kind::Detail | Kind::Report(Level::Debug) => Self::Dim,
            Kind::Report(Level::Info) => Self::Plain,
            Kind::Report(Level::Warn) => Self::Warn,
            Kind::Verdict => Self::Verdict,
        }
    }

    const fn escape(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[1;32m",
            Self::Bad => "\x1b[31m",
            Self::Verdict => "\x1b[1;7;31m",
            Self::Claim => "\x1b[36m",
            Self::Message => "\x1b[34m",
            Self::Course => "\x1b[35m",
            Self::Warn => "\x1b[33m",
        }
    }
}

/// A line of the table.
struct Row(Vec<(char, Style)>);

impl Row {
    fn new(width: usize) -> Self {
        Self(vec![(' ', Style::Plain); width])
    }

    fn put(&mut self, start: usize, text: &str, style: Style) {
        for (cell, c) in self.0.iter_mut().skip(start).zip(text.chars()) {
            *cell = (c, style);
        }
    }

    /// Puts a text, with a blank at each side.
    fn text(&mut self, start: usize, text: &str, style: Style) {
        let end = start + text.chars().count();
        for blank in [start.wrapping_sub(1), end] {
            if let Some(cell) = self.0.get_mut(blank) {
                *cell = (' ', Style::Plain);
            }
        }
        self.put(start, text, style);
    }

    fn arrow(&mut self, from: usize, to: usize, style: Style) {
        let (left, right) = (from.min(to), from.max(to));
        self.put(left, &"─".repeat(right - left), style);
        self.put(from, "●", style);
        self.put(to, if from < to { "▶" } else { "◀" }, style);
    }

    fn write(&self, out: &mut String, is_coloured: bool) {
        let end = self.0.iter().rposition(|(c, _)| *c != ' ').map_or(0, |last| last + 1);
        let mut current = Style::Plain;
        for (c, style) in &self.0[..end] {
            if is_coloured && *style != current {
                if current != Style::Plain {
                    out.push_str("\x1b[0m");
                }
                out.push_str(style.escape());
                current = *style;
            }
            out.push(*c);
        }
        if is_coloured && current != Style::Plain {
            out.push_str("\x1b[0m");
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::{View, table, wrap};
    use crate::sim::{self, RunSpec};

    #[test]
    fn a_table_fits_its_width_and_has_colours_only_if_asked() {
        let (_, events) = sim::run_kept(&RunSpec::of(5));
        for width in [80, 100, 200] {
            let mut view = View { is_detailed: true, ..View::new(width, false) };
            let plain = table(&events, &view);
            assert!(plain.lines().count() > events.len(), "a line for each event, and a head");
            for line in plain.lines() {
                assert!(line.chars().count() <= width, "{} columns of {width}: {line}", line.chars().count());
                assert!(!line.contains('\x1b'), "{line}");
            }
            view.is_coloured = true;
            assert!(table(&events, &view).contains("\x1b[1;32m"));
        }
    }

    #[test]
    fn a_range_has_its_events_only() {
        let (_, events) = sim::run_kept(&RunSpec::of(5));
        let last_ns = events.iter().map(|event| event.at_ns).max().unwrap_or_default();
        let view = View { range_ns: last_ns..u64::MAX, is_detailed: true, ..View::new(80, false) };
        let shown = events.iter().filter(|event| event.at_ns == last_ns).count();
        let left_out = format!("{} events are left out", events.len() - shown);
        assert!(table(&events, &view).contains(&left_out), "{left_out}");
    }

    #[test]
    fn long_words_are_cut_and_nothing_is_lost() {
        let lines = wrap("one two abcdefghijklmnop", 8);
        assert_eq!(lines, ["one two", "abcdef", "ghijkl", "mnop"]);
    }
}
