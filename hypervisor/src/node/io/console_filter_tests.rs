use super::ConsoleFilter;

/// Filters `bytes` in pieces of `piece_bytes`, without the reset at the end.
fn filtered_in(bytes: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut filter = ConsoleFilter::default();
    let mut out = Vec::new();
    bytes.chunks(piece_bytes).for_each(|piece| filter.push(piece, &mut out));
    out
}

/// Filters `bytes`, and checks that pieces of any size give the same.
#[track_caller]
fn filtered(bytes: &[u8]) -> String {
    let whole = filtered_in(bytes, bytes.len().max(1));
    for piece_bytes in 1..bytes.len() {
        assert_eq!(filtered_in(bytes, piece_bytes), whole, "in pieces of {piece_bytes}");
    }
    String::from_utf8(whole).expect("a terminal gets UTF-8 only")
}

#[test]
fn text_and_sequences_that_draw_come_through_unchanged() {
    let cases = [
        "plain\r\n\ttext\x08\x07",
        "ä → 😀",
        "\x1b[1;31mred\x1b[0m \x1b[38:2::1:2:3mrgb\x1b[m",
        "\x1b[H\x1b[2J\x1b[12;5f\x1b[K\x1b[3A\x1b[s\x1b[u\x1b[1;24r",
        "\x1b7\x1b8\x1b(0lqk\x1b(B\x1bM\x1bD\x1b#8\x1bc",
        "\x1b[?25l\x1b[?1049h\x1b[?7h\x1b[4h\x1b[?5;6l",
        "\x1b[2 q\x1b[!p\x1b[1\"q\x1b[1;1;2;2$z\x1b[?1K\x1b[2T",
    ];
    for case in cases {
        assert_eq!(filtered(case.as_bytes()), case);
    }
}

#[test]
fn what_a_terminal_answers_is_dropped() {
    let questions: [&[u8]; 24] = [
        b"\x05",
        b"\x1b[c",
        b"\x1b[0c",
        b"\x1b[>c",
        b"\x1b[=c",
        b"\x1b[5n",
        b"\x1b[6n",
        b"\x1b[?6n",
        b"\x1b[?996n",
        b"\x1b[x",
        b"\x1b[18t",
        b"\x1b[21t",
        b"\x1b[?2026$p",
        b"\x1b[1$w",
        b"\x1b[1;1;1;1;9;9*y",
        b"\x1b[?u",
        b"\x1b[>q",
        b"\x1b[?4m",
        b"\x1b[?1;1;0S",
        b"\x1b[1'|",
        b"\x1bZ",
        b"\x1b]11;?\x07",
        b"\x1bP$qm\x1b\\",
        b"\x1b_Gi=31,a=q;AAAA\x1b\\",
    ];
    for question in questions {
        let between = [b"a", question, b"b"].concat();
        assert_eq!(filtered(&between), "ab", "{:?}", question.escape_ascii().to_string());
    }
}

#[test]
fn questions_are_found_in_every_encoding() {
    let disguises: [&[u8]; 12] = [
        b"a\x9b6nb",       // a control of eight bits
        b"a\xc2\x9b6nb",   // the same as a character
        b"a\x1b[\x1b[6nb", // a sequence that begins anew
        b"a\x1b[0006nb",
        b"a\x1b[6;6nb",
        b"a\x1b[ 6nb",
        b"a\x1b[6\x7fnb",
        b"a\x1b\x7f[6nb",
        b"a\x1b[1\x18\x1b[6nb", // a sequence that is given up
        b"a\x90$qm\x9cb",
        b"a\x1b]52;c;?\xc2\x9cb",
        b"a\x9d4;1;?\x1b\\b",
    ];
    for disguise in disguises {
        assert_eq!(filtered(disguise), "ab", "{:?}", disguise.escape_ascii().to_string());
    }
    // A terminal executes a control in the middle of a sequence; here it comes first.
    assert_eq!(filtered(b"\x1b[3\r\n1mred"), "\r\n\x1b[31mred");
    assert_eq!(filtered(b"\x1b[\x056nb"), "b");
}

#[test]
fn what_changes_keys_mouse_or_clipboard_is_dropped_and_the_rest_of_its_sequence_stays() {
    assert_eq!(filtered(b"\x1b[?1000h\x1b[?1006;25;2004h\x1b[?1004;1h"), "\x1b[?25h");
    assert_eq!(filtered(b"\x1b[?1h\x1b=x\x1b>\x1b[>4;2m\x1b[>1u\x1b[=5u\x1b[2h\x1b[20h\x1b[?2l"), "x");
    assert_eq!(filtered(b"\x1b]52;c;cm0gLXJmIH4K\x07x\x1b]0;title\x1b\\y"), "xy");
    assert_eq!(filtered(b"\x1b%@x\x1b F"), "x", "another encoding would make controls of characters");
    assert_eq!(filtered(b"\x1b[5iprinted\x1b[4i"), "printed");
}

#[test]
fn what_is_no_utf_8_is_shown_as_a_terminal_would() {
    assert_eq!(filtered(b"a\xffb\xe2\x86c\xc3\xa9"), "a\u{fffd}b\u{fffd}c\u{e9}");
    assert_eq!(filtered(b"\xe2\x1b[6nx"), "\u{fffd}x");
    // A character that contains the byte of a control.
    assert_eq!(filtered("\u{6db}\u{671c}6n".as_bytes()), "\u{6db}\u{671c}6n");
}

#[test]
fn a_sequence_without_end_takes_no_memory_and_is_not_shown() {
    let mut filter = ConsoleFilter::default();
    let mut out = Vec::new();
    filter.push(b"\x1b[", &mut out);
    filter.push(&vec![b'1'; 1 << 20], &mut out);
    assert!(filter.sequence.capacity() < 1000);
    filter.push(b"mx\x1bPq", &mut out);
    filter.push(&vec![b'1'; 1 << 20], &mut out);
    assert!(filter.sequence.capacity() < 1000);
    assert_eq!(out, b"x");
}

#[test]
fn the_terminal_is_usable_afterwards() {
    let restored = |bytes: &[u8]| {
        let mut filter = ConsoleFilter::default();
        filter.push(bytes, &mut Vec::new());
        let mut out = Vec::new();
        filter.finish(&mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(restored(b"plain text\r\n"), "");
    assert_eq!(restored(b"\xe2\x86"), "\u{fffd}");
    assert!(restored(b"\x1b[31m\x1b[?25l").contains("\x1b[?25h"));
    assert!(restored(b"\x1b[?1049h~").starts_with("\x1b[?1049l"));
    assert!(!restored(b"\x1b[?1049h~\x1b[?1049l").contains("1049"));
}

/// Only listed sequences are passed on, whatever a guest writes.
#[test]
fn random_output_never_brings_a_question_through() {
    let alphabet = b"\x1b\x1b\x1b[[[]P_X^Z?>=<;:0156 $!\"'*#%cnxthlpqymu\x05\x07\x18\x7f\x9b\x90\x9c\xc2\xe2\x86\\a\r";
    let mut state = 1_u64;
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..24)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                alphabet[usize::try_from(state >> 33).unwrap() % alphabet.len()]
            })
            .collect();
        let shown = String::from_utf8(filtered_in(&bytes, 5)).expect("a terminal gets UTF-8 only");
        assert!(!shown.contains(['\x05', '\u{9b}', '\u{90}', '\u{9d}', '\x18']), "{bytes:?}: {shown:?}");
        // The output passes the filter unchanged: its sequences are whole, and listed.
        assert_eq!(String::from_utf8(filtered_in(shown.as_bytes(), 3)).unwrap(), shown, "{bytes:?}");
        for sequence in shown.split('\x1b').skip(1) {
            let control = sequence.strip_prefix('[').unwrap_or_default();
            let end = control.find(|c: char| ('\x40'..='\x7e').contains(&c));
            let is_question = end.is_some_and(|end| "cn".contains(&control[end..=end]));
            assert!(!is_question && !sequence.starts_with('Z'), "{bytes:?}: {shown:?}");
        }
    }
}
