//! A run as one HTML file to scroll: it loads nothing, and needs no network.

use super::table::{hosts, is_close, lanes, words};
use super::{Event, Kind, Lane, State};
use hypervisor::os::report::Level;
use std::fmt::{self, Display, Write};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The kinds that a reader can hide, with what they are called.
const FILTERS: [(&str, &str); 7] = [
    ("fault", "faults"),
    ("course", "operator and course"),
    ("role", "roles"),
    ("claim", "claims"),
    ("message", "messages"),
    ("report", "reports"),
    ("detail", "details"),
];

/// The page of a run.
#[must_use]
pub fn html(title: &str, events: &[Event]) -> String {
    let lanes = lanes(hosts(events));
    let page = Page { title, events, lanes: &lanes };
    page.to_string()
}

struct Page<'a> {
    title: &'a str,
    events: &'a [Event],
    lanes: &'a [Lane],
}

impl Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = Escaped(self.title);
        writeln!(f, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
        writeln!(f, "<meta name=\"viewport\" content=\"width=device-width\">")?;
        writeln!(f, "<meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>")?;
        writeln!(f, "<style>\n{STYLE}</style>\n</head>\n<body class=\"no-detail\">")?;
        self.top(f)?;
        writeln!(f, "<main style=\"--lanes: {}\">", self.lanes.len())?;
        self.head(f)?;
        self.strips(f)?;
        for (number, event) in self.events.iter().enumerate() {
            self.event(f, number, event)?;
        }
        writeln!(f, "</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>")
    }
}

impl Page<'_> {
    /// The title, the filters, and links to what matters most.
    fn top(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "<section>\n<h1><code>{}</code></h1>\n<form>", Escaped(self.title))?;
        for (kind, name) in FILTERS {
            let checked = if kind == "detail" { "" } else { " checked" };
            writeln!(f, "<label><input type=\"checkbox\" value=\"{kind}\"{checked}> {name}</label>")?;
        }
        writeln!(f, "<label><input type=\"search\" placeholder=\"text to look for\"></label>\n</form>")?;
        writeln!(
            f,
            "<p class=\"legend\"><i class=\"strip primary\"></i> primary <i class=\"strip backup\"></i> backup \
             <i class=\"strip joining\"></i> joins <i class=\"strip seeking\"></i> looks for a primary, or resumes</p>"
        )?;
        let marked = |event: &Event| event.kind == Kind::Verdict || event.fault.is_some();
        let faults: Vec<_> = self.events.iter().enumerate().filter(|(_, event)| marked(event)).collect();
        writeln!(f, "<details><summary>{} faults and broken rules</summary>\n<ol>", faults.len())?;
        for (number, event) in faults {
            let (at, lane, words) = (Milliseconds(event.at_ns), event.lane, words(event));
            writeln!(f, "<li><a href=\"#e{number}\">{at} ms, {lane}: {}</a></li>", Escaped(&words))?;
        }
        writeln!(f, "</ol>\n</details>\n</section>")
    }

    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<div class=\"head\"><b>ms</b>")?;
        for lane in self.lanes {
            write!(f, "<b>{lane}</b>")?;
        }
        writeln!(f, "</div>")
    }

    fn column(&self, lane: Lane) -> usize {
        2 + self.lanes.iter().position(|it| *it == lane).unwrap_or_default()
    }

    /// What the process in each column is, from row to row.
    fn strips(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = row(self.events.len());
        for lane in self.lanes {
            let column = self.column(*lane);
            if matches!(lane, Lane::Lan | Lane::Arbiter) {
                writeln!(f, "<i class=\"strip still\" style=\"grid-area: 2 / {column} / {end}\"></i>")?;
            }
            let changes = self.events.iter().enumerate().filter(|(_, event)| event.lane == *lane);
            let mut changes = changes.filter_map(|(number, event)| Some((row(number), event.state?))).peekable();
            while let Some((from, state)) = changes.next() {
                let to = changes.peek().map_or(end, |(next, _)| *next);
                let name = match state {
                    State::Down => continue,
                    State::Seeking | State::Resuming => "seeking",
                    State::Joining => "joining",
                    State::Backup(_) => "backup",
                    State::Primary(_) => "primary",
                };
                writeln!(f, "<i class=\"strip {name}\" style=\"grid-area: {from} / {column} / {to}\"></i>")?;
            }
        }
        Ok(())
    }

    fn event(&self, f: &mut fmt::Formatter<'_>, number: usize, event: &Event) -> fmt::Result {
        let (row, column) = (row(number), self.column(event.lane));
        let near = if is_close(self.events, event) { " near" } else { "" };
        let kind = name(event.kind);
        // The target of links: the event itself has no box.
        write!(f, "<div class=\"event {kind}{near}\"><time id=\"e{number}\" style=\"grid-row: {row}\">")?;
        write!(f, "{}</time>", Milliseconds(event.at_ns))?;
        let from = event.from.filter(|from| *from != event.lane);
        if let Some(from) = from {
            let sender = self.column(from);
            let (left, right) = (sender.min(column), sender.max(column));
            let direction = if sender < column { "right" } else { "left" };
            write!(f, "<u class=\"{direction}\" style=\"grid-area: {row} / {left} / auto / {right}\"></u>")?;
        }
        let sender = from.map_or_else(String::new, |from| format!(" title=\"from {from}\""));
        // Near the right edge there is less room than the last columns' texts need.
        let span = if event.kind == Kind::Verdict { self.lanes.len() } else { 2 };
        let end = (column + span).min(self.lanes.len() + 2);
        let text = Escaped(&words(event)).to_string();
        writeln!(f, "<span style=\"grid-area: {row} / {column} / auto / {end}\"{sender}>{text}</span></div>")
    }
}

/// The grid's row of an event: the first is the head's.
const fn row(number: usize) -> usize {
    number + 2
}

/// The class of an event's kind; reports have that of their level too.
const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Fault => "fault",
        Kind::Course => "course",
        Kind::Role => "role",
        Kind::Claim => "claim",
        Kind::Message => "message",
        Kind::Detail => "detail",
        Kind::Report(Level::Debug | Level::Info) => "report",
        Kind::Report(Level::Notice) => "report notice",
        Kind::Report(Level::Warn) => "report warn",
        Kind::Report(Level::Error) => "report error",
        Kind::Verdict => "verdict",
    }
}

/// A time of the run's clock.
struct Milliseconds(u64);

impl Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1_000_000, self.0 / 1000 % 1000)
    }
}

/// Text that can't become markup.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::html;
    use crate::sim::{self, Event, Kind, Lane, RunSpec};

    #[test]
    fn a_page_has_every_event_and_loads_nothing() {
        let (_, events) = sim::run_kept(&RunSpec::of(5));
        let page = html("ft-sim --trace 5", &events);
        assert_eq!(page.matches("<div class=\"event ").count(), events.len());
        for outside in ["http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn text_is_no_markup() {
        let text = "<script>alert('\"&')</script>".to_owned();
        let (lane, kind) = (Lane::Host(0), Kind::Fault);
        let page =
            html(&text, &[Event { at_ns: 0, lane, kind, from: None, state: None, fault: None, text: text.clone() }]);
        assert!(!page.contains("<script>alert"));
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;").count(), 3);
    }
}
