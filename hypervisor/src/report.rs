//! What a program tells: status lines for a person, or one JSON object a line for a machine.

use crate::host::clock;
use serde::Serialize;
use std::fmt::Display;
use std::io::Write;

/// Where a program's reports go.
///
/// For a person they are lines on standard error, so that standard output stays the guest's console. With `--json` they
/// are objects on standard output, each with `at_us`: microseconds of the host's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Reporter {
    program: &'static str,
    json: bool,
}

#[derive(Serialize)]
struct Line<'a, R> {
    at_us: u64,
    program: &'static str,
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

    /// Tells `report`. Give it `#[serde(tag = "event", rename_all = "snake_case")]`.
    pub fn tell<R: Serialize + Display>(&self, report: &R) {
        self.tell_at(clock::now_us(), report);
    }

    /// Tells `report` of something that happened at `at_us`.
    pub fn tell_at<R: Serialize + Display>(&self, at_us: u64, report: &R) {
        if self.json {
            // A reader that went away must not take the guest with it.
            let _ = std::io::stdout().lock().write_all(&self.json_line(at_us, report));
        } else {
            let _ = writeln!(std::io::stderr().lock(), "{}: {}", self.program, printable(&report.to_string()));
        }
    }

    /// The line that tells a machine `report`.
    pub(crate) fn json_line<R: Serialize>(&self, at_us: u64, report: &R) -> Vec<u8> {
        let line = Line { at_us, program: self.program, report };
        let mut text = serde_json::to_vec(&line).expect("reports are plain structs with string keys");
        text.push(b'\n');
        text
    }
}

/// A line for a terminal: a report may have words of a peer in it, which must not move the cursor or look like a line of ours.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_stay_on_their_line() {
        assert_eq!(
            printable("lost (ü\x1b[2J\nft-primary: all is well)"),
            r"lost (ü\u{1b}[2J\nft-primary: all is well)"
        );
    }
}
