//! Console output as text in JSON: whole characters, and no byte lost.

use serde::Serialize;
use std::fmt::Write;

/// A piece of console output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// The text, with U+FFFD for invalid UTF-8.
    pub text: String,
    /// All bytes of the piece in hexadecimal, if the text doesn't have them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

/// Makes text of console output that arrives in pieces of any size.
///
/// The bytes of an incomplete character, at most three, are kept until its rest arrives.
#[derive(Debug, Default)]
pub struct ConsoleText {
    /// The first bytes of an incomplete character.
    begun: Vec<u8>,
}

impl ConsoleText {
    /// No output yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { begun: Vec::new() }
    }

    /// The text that `bytes` complete; `None` if they only continue an incomplete character.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Piece> {
        self.begun.extend_from_slice(bytes);
        let rest = self.begun.split_off(self.begun.len() - begun_bytes(&self.begun));
        Piece::of(&std::mem::replace(&mut self.begun, rest))
    }

    /// The bytes of an incomplete character. Call it at the end of the output.
    pub fn finish(&mut self) -> Option<Piece> {
        Piece::of(&std::mem::take(&mut self.begun))
    }
}

impl Piece {
    /// A piece of `bytes` alone; `None` if there are none.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        Some(match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: text.into(), hex: None },
            Err(_) => Self { text: String::from_utf8_lossy(bytes).into_owned(), hex: Some(hex(bytes)) },
        })
    }
}

/// `bytes` as hexadecimal digits, two for each byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How many bytes at the end of `bytes` are an incomplete character.
fn begun_bytes(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    // A sequence that no further byte can make valid has an error length.
    match std::str::from_utf8(last) {
        Err(error) if error.error_len().is_none() => last.len(),
        Ok(_) | Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{ConsoleText, Piece};

    /// The pieces that result if `parts` are pushed one after the other.
    fn pieces(parts: &[&[u8]]) -> Vec<Piece> {
        let mut text = ConsoleText::default();
        let mut pieces: Vec<_> = parts.iter().filter_map(|part| text.push(part)).collect();
        pieces.extend(text.finish());
        pieces
    }

    /// The bytes of all pieces.
    fn bytes(pieces: &[Piece]) -> Vec<u8> {
        let one = |piece: &Piece| match &piece.hex {
            None => piece.text.clone().into_bytes(),
            Some(hex) => {
                (0..hex.len()).step_by(2).map(|index| u8::from_str_radix(&hex[index..index + 2], 16).unwrap()).collect()
            }
        };
        pieces.iter().flat_map(one).collect()
    }

    #[test]
    fn characters_that_are_cut_anywhere_come_whole() {
        let whole = "xé→😀y".repeat(3);
        for cut in 0..=whole.len() {
            let (first, second) = whole.as_bytes().split_at(cut);
            let pieces = pieces(&[first, second]);
            assert!(pieces.iter().all(|piece| piece.hex.is_none()), "cut at {cut}: {pieces:?}");
            assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), whole, "cut at {cut}");
        }
        let singles: Vec<_> = whole.as_bytes().chunks(1).collect();
        assert_eq!(pieces(&singles).len(), whole.chars().count(), "one piece for each character");
    }

    #[test]
    fn what_is_not_utf_8_keeps_its_bytes_however_it_is_cut() {
        let cases: [&[u8]; 7] =
            [b"\xff", b"a\xc3", b"a\xc3b", b"\xe2\x86x", b"\xf0\x9f\x98", b"\xc0\x80\xed\xa0\x80", b"ok\x80\xc3\xa9"];
        for case in cases {
            for cut in 0..=case.len() {
                let (first, second) = case.split_at(cut);
                let pieces = pieces(&[first, second]);
                assert_eq!(bytes(&pieces), case, "cut at {cut}: {pieces:?}");
                assert!(pieces.iter().any(|piece| piece.hex.is_some()), "{pieces:?}");
                assert!(
                    pieces.iter().all(|piece| piece.hex.is_some() == piece.text.contains('\u{fffd}')),
                    "{pieces:?}"
                );
            }
        }
    }

    #[test]
    fn a_replacement_character_that_the_guest_wrote_is_text() {
        assert_eq!(pieces(&["\u{fffd}".as_bytes()]), [Piece { text: "\u{fffd}".into(), hex: None }]);
    }
}
