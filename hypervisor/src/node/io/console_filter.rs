//! Filters a guest's recorded console output for the terminal that shows it.
//!
//! A terminal answers some sequences: where the cursor is, what the terminal is, what a colour is.
//! During a replay the guest that asked doesn't run, so the answer would be typed into the next
//! shell. Other sequences make a terminal send what was never typed (mouse, focus), change what its
//! keys send, or set the clipboard. Therefore only sequences that are known to draw are passed on;
//! all others are dropped.
//!
//! ```text
//!            ESC            [                0x40..0x7e
//!   Ground ──────► Escape ─────► Control ────────────────► Ground     sequence passed on or dropped
//!                    │ P X ] ^ _
//!                    └────────► String ── BEL, ST, CAN ──► Ground     always dropped
//! ```
//! The terminal gets whole sequences only, so its own parser is in the ground state after each, and
//! parses them as this one does. The terminal's encoding is assumed to be UTF-8.
//!
//! Source: ECMA-48, §5.4; DEC STD 070, §3.5.4; Xterm Control Sequences, "Control Sequences by
//! Category".

const ENQ: u8 = 0x05;
const BEL: u8 = 0x07;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;
const ESC: u8 = 0x1b;

/// The longest sequence that is passed on, in bytes.
const SEQUENCE_BYTES_MAX: usize = 128;

/// Replaces invalid UTF-8, as a terminal shows it.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Private modes that only change drawing: reverse video, origin, wrapping, the cursor's style, the
/// alternate screen, margins, synchronized output.
const PRIVATE_MODES: [&str; 11] = ["5", "6", "7", "12", "25", "47", "69", "1047", "1048", "1049", "2026"];

/// Private modes that show the alternate screen.
const ALTERNATE_SCREEN: [&str; 3] = ["47", "1047", "1049"];

/// Modes that only change drawing: insertion.
const MODES: [&str; 1] = ["4"];

/// The filter's state.
#[derive(Debug, Default)]
pub struct ConsoleFilter {
    state: FilterState,
    /// The current sequence, including its ESC.
    sequence: Vec<u8>,
    /// The first bytes of an incomplete character.
    character: Vec<u8>,
    /// The terminal shows its alternate screen.
    is_alternate: bool,
    /// A sequence was passed on, so the terminal's state may have changed.
    has_changed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FilterState {
    #[default]
    Ground,
    Escape,
    Control,
    /// Inside a control string.
    String {
        /// A BEL ends it too.
        ends_with_bel: bool,
    },
}

impl ConsoleFilter {
    /// Appends the part of `bytes` to `out` that a terminal may get. An incomplete sequence or
    /// character is kept until its rest arrives.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            self.decode(byte, out);
        }
    }

    /// Appends what resets the terminal after everything that it has got. Call it at the end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.character.is_empty() && self.state == FilterState::Ground {
            out.extend_from_slice(REPLACEMENT);
        }
        out.extend_from_slice(self.undo());
        *self = Self::default();
    }

    /// What resets the terminal after everything that it has got so far.
    #[must_use]
    pub const fn undo(&self) -> &'static [u8] {
        // Soft reset (modes, margins, character sets), and the important parts of it for terminals
        // without.
        match (self.is_alternate, self.has_changed) {
            (true, _) => b"\x1b[?1049l\x1b[!p\x1b[?7h\x1b[?25h\x1b[m\x0f",
            (false, true) => b"\x1b[!p\x1b[?7h\x1b[?25h\x1b[m\x0f",
            (false, false) => b"",
        }
    }

    /// Separates characters from controls. C1 controls, 0x80 to 0x9f, may be single bytes or
    /// characters of two.
    fn decode(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.character.is_empty() {
            match byte {
                0x00..=0x7f => return self.control_or_ascii(byte, out),
                0x80..=0x9f => return self.c1(byte, out),
                0xa0..=0xff => {}
            }
        }
        self.character.push(byte);
        match std::str::from_utf8(&self.character) {
            Ok(_) => match std::mem::take(&mut self.character)[..] {
                [0xc2, c1 @ 0x80..=0x9f] => self.c1(c1, out),
                ref character => self.text(character, out),
            },
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                let is_alone = self.character.len() == 1;
                self.character.clear();
                self.text(REPLACEMENT, out);
                // The byte that cut the character short is decoded by itself.
                if !is_alone {
                    self.decode(byte, out);
                }
            }
        }
    }

    /// A C1 control means ESC and the byte less 0x40.
    fn c1(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.control_or_ascii(ESC, out);
        self.control_or_ascii(byte - 0x40, out);
    }

    /// Handles a character beyond ASCII.
    fn text(&mut self, character: &[u8], out: &mut Vec<u8>) {
        match self.state {
            FilterState::String { .. } => {}
            FilterState::Ground => out.extend_from_slice(character),
            FilterState::Escape | FilterState::Control => {
                self.state = FilterState::Ground;
                out.extend_from_slice(character);
            }
        }
    }

    fn control_or_ascii(&mut self, byte: u8, out: &mut Vec<u8>) {
        match (self.state, byte) {
            (_, ESC) => {
                self.state = FilterState::Escape;
                self.sequence.clear();
                self.sequence.push(ESC);
            }
            (_, CAN | SUB) => self.state = FilterState::Ground,
            (FilterState::String { ends_with_bel: true }, BEL) => self.state = FilterState::Ground,
            (FilterState::String { .. }, _) | (_, ENQ) => {}
            // A terminal executes C0 controls also in the middle of a sequence.
            (FilterState::Ground, _) | (_, 0x00..=0x1f) => out.push(byte),
            (FilterState::Escape, _) => self.escape(byte, out),
            (FilterState::Control, 0x40..=0x7e) => {
                self.state = FilterState::Ground;
                self.end_control(byte, out);
            }
            (FilterState::Control, _) => self.collect(byte),
        }
    }

    /// Handles a printable byte after ESC.
    fn escape(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.collect(byte);
        self.state = match byte {
            // An intermediate byte.
            0x20..=0x2f => return,
            0x7f => return,
            b'[' if self.sequence.len() == 2 => FilterState::Control,
            b']' if self.sequence.len() == 2 => FilterState::String { ends_with_bel: true },
            b'P' | b'X' | b'^' | b'_' if self.sequence.len() == 2 => FilterState::String { ends_with_bel: false },
            _ => FilterState::Ground,
        };
        if self.state == FilterState::Ground && escape_draws(&self.sequence[1..]) {
            self.pass(out);
        }
    }

    /// Handles the final byte of a control sequence.
    fn end_control(&mut self, end: u8, out: &mut Vec<u8>) {
        self.collect(end);
        if self.sequence.len() >= SEQUENCE_BYTES_MAX {
            return;
        }
        let body = &self.sequence[2..self.sequence.len() - 1];
        let (marker, body) = match body {
            [marker @ 0x3c..=0x3f, body @ ..] => (Some(*marker), body),
            body => (None, body),
        };
        let split = body.iter().position(|byte| byte.is_ascii_punctuation() && !b":;".contains(byte) || *byte == b' ');
        let (parameters, between) = body.split_at(split.unwrap_or(body.len()));
        if between.iter().any(|byte| !(0x20..=0x2f).contains(byte)) {
            return;
        }
        let parameters = String::from_utf8_lossy(parameters).into_owned();
        match (marker, between, end) {
            (None, b"", b'h' | b'l') => self.pass_modes("", &parameters, &MODES, end, out),
            (Some(b'?'), b"", b'h' | b'l') => self.pass_modes("?", &parameters, &PRIVATE_MODES, end, out),
            _ if control_draws(marker, &parameters, between, end) => self.pass(out),
            _ => {}
        }
    }

    /// Passes on a mode sequence with those modes that are `allowed`.
    fn pass_modes(&mut self, marker: &str, parameters: &str, allowed: &[&str], end: u8, out: &mut Vec<u8>) {
        let modes: Vec<_> = parameters.split(';').filter(|mode| allowed.contains(mode)).collect();
        if modes.is_empty() {
            return;
        }
        if modes.iter().any(|mode| ALTERNATE_SCREEN.contains(mode)) {
            self.is_alternate = end == b'h';
        }
        self.sequence = format!("\x1b[{marker}{}{}", modes.join(";"), char::from(end)).into_bytes();
        self.pass(out);
    }

    fn collect(&mut self, byte: u8) {
        if byte != 0x7f && self.sequence.len() < SEQUENCE_BYTES_MAX {
            self.sequence.push(byte);
        }
    }

    fn pass(&mut self, out: &mut Vec<u8>) {
        self.has_changed = true;
        out.extend_from_slice(&self.sequence);
    }
}

/// `true` if the sequence of `ESC` and `rest` only changes drawing.
fn escape_draws(rest: &[u8]) -> bool {
    match rest {
        // Save and restore the cursor, index, tabs, single shifts, full reset, locking shifts, back
        // and forward index.
        [
            b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'N' | b'O' | b'c' | b'n' | b'o' | b'|' | b'}' | b'~' | b'6'
            | b'9',
        ] => true,
        // Character sets.
        [b'(' | b')' | b'*' | b'+' | b'-' | b'.' | b'/', between @ .., _] => between.len() <= 2,
        // Lines of double size, and the alignment pattern.
        [b'#', b'3' | b'4' | b'5' | b'6' | b'8'] => true,
        _ => false,
    }
}

/// `true` if a control sequence that sets no modes only changes drawing.
fn control_draws(marker: Option<u8>, parameters: &str, between: &[u8], end: u8) -> bool {
    match (marker, between) {
        // With more than one parameter it tracks the mouse.
        (None, b"") if end == b'T' => !parameters.contains(';'),
        // Cursor, erasing, inserting, deleting, scrolling, tabs, attributes, margins, keyboard
        // lights.
        (None, b"") => b"@ABCDEFGHIJKLMPSXZ`abdefgmqrsu".contains(&end),
        // Scrolling sideways, the cursor's style.
        (None, b" ") => b"@Aq".contains(&end),
        // Soft reset.
        (None, b"!") => end == b'p',
        // Protected characters.
        (None, b"\"") => end == b'q',
        // Rectangles.
        (None, b"$") => b"rtvxz{".contains(&end),
        // Erasing unprotected characters.
        (Some(b'?'), b"") => b"JK".contains(&end),
        _ => false,
    }
}

#[cfg(test)]
#[path = "console_filter_tests.rs"]
mod tests;
