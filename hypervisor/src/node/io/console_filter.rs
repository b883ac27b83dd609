//! Which of a guest's console output a terminal may see that shows a recording.
//!
//! A live terminal answers some of the sequences that it gets: where the cursor is, what it is,
//! what a colour is. The guest that asked is not there in a replay, so the answer would be typed
//! into the shell that comes next. Other sequences make a terminal send what nobody typed (mouse,
//! focus), change what its keys send, or set the clipboard. So only sequences that are known to
//! draw get through; all others are dropped.
//!
//! ```text
//!            ESC            [                0x40..0x7e
//!   Ground ──────► Escape ─────► Control ────────────────► Ground     sequence passed on or dropped, whole
//!                    │ P X ] ^ _
//!                    └────────► String ── BEL, ST, CAN ──► Ground     always dropped
//! ```
//! The terminal only gets whole sequences, so its own parser is in its ground state after each, and
//! can't understand them otherwise than this one. The terminal's encoding is taken to be UTF-8.
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

/// What the terminal shows for what is no character.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Private modes that only change what is drawn: reverse video, origin, wrapping, the cursor's
/// looks, the alternate screen, margins, synchronized output.
const PRIVATE_MODES: [&str; 11] = ["5", "6", "7", "12", "25", "47", "69", "1047", "1048", "1049", "2026"];

/// The private modes that show the alternate screen.
const ALTERNATE_SCREEN: [&str; 3] = ["47", "1047", "1049"];

/// Modes that only change what is drawn: insertion.
const MODES: [&str; 1] = ["4"];

/// Passes on what draws.
#[derive(Debug, Default)]
pub struct ConsoleFilter {
    state: State,
    /// The sequence so far, from its ESC on.
    sequence: Vec<u8>,
    /// The first bytes of a character.
    character: Vec<u8>,
    /// The terminal shows its alternate screen.
    is_alternate: bool,
    /// The terminal has got a sequence, so that its state may be other than it was.
    has_changed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escape,
    Control,
    /// Up to a string's end.
    String {
        /// A BEL is an end too.
        ends_with_bel: bool,
    },
}

impl ConsoleFilter {
    /// Appends to `out` what a terminal may see of `bytes`. A sequence or a character that isn't
    /// whole yet waits for its rest.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            self.decode(byte, out);
        }
    }

    /// Appends to `out` what makes the terminal usable again after all that it has seen. Call it at
    /// the end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.character.is_empty() && self.state == State::Ground {
            out.extend_from_slice(REPLACEMENT);
        }
        out.extend_from_slice(self.undo());
        *self = Self::default();
    }

    /// What makes the terminal usable again after all that it has seen so far.
    #[must_use]
    pub const fn undo(&self) -> &'static [u8] {
        // Soft reset (modes, margins, character sets); a terminal that has none takes the others.
        match (self.is_alternate, self.has_changed) {
            (true, _) => b"\x1b[?1049l\x1b[!p\x1b[?7h\x1b[?25h\x1b[m\x0f",
            (false, true) => b"\x1b[!p\x1b[?7h\x1b[?25h\x1b[m\x0f",
            (false, false) => b"",
        }
    }

    /// Tells characters from controls. The controls from 0x80 to 0x9f come as such, or as
    /// characters of two bytes.
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
                // What ended a character before its time is something by itself.
                if !is_alone {
                    self.decode(byte, out);
                }
            }
        }
    }

    /// A control from 0x80 to 0x9f is ESC and the byte that is less by 0x40.
    fn c1(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.control_or_ascii(ESC, out);
        self.control_or_ascii(byte - 0x40, out);
    }

    /// A character beyond ASCII.
    fn text(&mut self, character: &[u8], out: &mut Vec<u8>) {
        match self.state {
            State::String { .. } => {}
            State::Ground => out.extend_from_slice(character),
            State::Escape | State::Control => {
                self.state = State::Ground;
                out.extend_from_slice(character);
            }
        }
    }

    fn control_or_ascii(&mut self, byte: u8, out: &mut Vec<u8>) {
        match (self.state, byte) {
            (_, ESC) => {
                self.state = State::Escape;
                self.sequence.clear();
                self.sequence.push(ESC);
            }
            (_, CAN | SUB) => self.state = State::Ground,
            (State::String { ends_with_bel: true }, BEL) => self.state = State::Ground,
            (State::String { .. }, _) | (_, ENQ) => {}
            // A terminal obeys these in the middle of a sequence, too.
            (State::Ground, _) | (_, 0x00..=0x1f) => out.push(byte),
            (State::Escape, _) => self.escape(byte, out),
            (State::Control, 0x40..=0x7e) => {
                self.state = State::Ground;
                self.end_control(byte, out);
            }
            (State::Control, _) => self.collect(byte),
        }
    }

    /// A printable byte behind ESC.
    fn escape(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.collect(byte);
        self.state = match byte {
            // Something is between ESC and its end.
            0x20..=0x2f => return,
            0x7f => return,
            b'[' if self.sequence.len() == 2 => State::Control,
            b']' if self.sequence.len() == 2 => State::String { ends_with_bel: true },
            b'P' | b'X' | b'^' | b'_' if self.sequence.len() == 2 => State::String { ends_with_bel: false },
            _ => State::Ground,
        };
        if self.state == State::Ground && escape_draws(&self.sequence[1..]) {
            self.pass(out);
        }
    }

    /// The end of a control sequence.
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

    /// Passes on the modes of a sequence that are `allowed`.
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

/// Whether a sequence that is `ESC` and `rest` only changes what is drawn.
fn escape_draws(rest: &[u8]) -> bool {
    match rest {
        // Save and restore the cursor, index, tabs, single shifts, full reset, locking shifts, back
        // and forward.
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

/// Whether a control sequence that sets no modes only changes what is drawn.
fn control_draws(marker: Option<u8>, parameters: &str, between: &[u8], end: u8) -> bool {
    match (marker, between) {
        // With more than one parameter it tracks the mouse.
        (None, b"") if end == b'T' => !parameters.contains(';'),
        // Cursor, erasing, inserting, deleting, scrolling, tabs, looks, margins, lights.
        (None, b"") => b"@ABCDEFGHIJKLMPSXZ`abdefgmqrsu".contains(&end),
        // Scrolling sideways, the cursor's looks.
        (None, b" ") => b"@Aq".contains(&end),
        // Soft reset.
        (None, b"!") => end == b'p',
        // Protected characters.
        (None, b"\"") => end == b'q',
        // Rectangles.
        (None, b"$") => b"rtvxz{".contains(&end),
        // Erasing what isn't protected.
        (Some(b'?'), b"") => b"JK".contains(&end),
        _ => false,
    }
}

#[cfg(test)]
#[path = "console_filter_tests.rs"]
mod tests;
