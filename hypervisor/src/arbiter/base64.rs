//! Base64 with padding (RFC 4648, §4), the encoding of bytes in etcd's JSON.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().zip([16, 8, 0]).fold(0, |bits, (&byte, shift)| bits | usize::from(byte) << shift);
        let digits = [18, 12, 6, 0].map(|shift| char::from(ALPHABET[bits >> shift & 63]));
        text.extend(&digits[..=group.len()]);
        text.extend(std::iter::repeat_n('=', 3 - group.len()));
    }
    text
}

/// The bytes that `text` stands for; `None` if [`encode`] doesn't make such a text.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for (&digit, shift) in group.iter().zip([18, 12, 6, 0]) {
            bits |= u32::try_from(ALPHABET.iter().position(|&known| known == digit)?).ok()? << shift;
        }
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    (encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        // The vectors of RFC 4648, §10, and the two digits that these lack.
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("???>>>", "Pz8/Pj4+"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["Z", "Zg", "Zg=", "Zg===", "Zh==", "Zm9=", "=", "====", "Zm9v=", "Z g=", "Zm-_", "Zm9vYg==Zm9v", "é==="]
        {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
