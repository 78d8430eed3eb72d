use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn json(chunks: &[&[u8]]) -> Vec<u8> {
    let mut export = Export::default();
    let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| export.on_chunk(chunk)).collect();
    out.extend(export.on_end());
    out
}

fn export(chunks: &[&[u8]]) -> Vec<(String, String)> {
    let all: Vec<Value> = serde_json::from_slice(&json(chunks)).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.iter().map(|row| (text(&row["coord"]), text(&row["scroll"]))).collect()
}

/// The same conversion in its plainest form: every byte and number is formatted.
fn formatted(phext: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = [1_u16; 9];
    let mut open = false;
    let mut started = false;
    for byte in phext {
        if let Some(level) = BREAKS.iter().position(|separator| separator == byte) {
            if std::mem::take(&mut open) {
                out.extend(b"\"}");
            }
            at[level] = (at[level] + 1).min(PART_MAX);
            at[level + 1..].fill(1);
            continue;
        }
        if !std::mem::replace(&mut open, true) {
            out.extend(if std::mem::replace(&mut started, true) { b",\n" } else { b"[\n" });
            let mut head = String::from("{\"coord\": \"");
            for (part, separator) in at.iter().zip([".", ".", "/", ".", ".", "/", ".", ".", ""]) {
                write!(head, "{part}{separator}").unwrap();
            }
            out.extend(head.bytes());
            out.extend(b"\", \"scroll\": \"");
        }
        match byte {
            b'"' => out.extend(b"\\\""),
            b'\\' => out.extend(b"\\\\"),
            b'\n' => out.extend(b"\\n"),
            b'\r' => out.extend(b"\\r"),
            b'\t' => out.extend(b"\\t"),
            0..0x20 => out.extend(format!("\\u{byte:04x}").bytes()),
            _ => out.push(*byte),
        }
    }
    if open {
        out.extend(b"\"}");
    }
    out.extend_from_slice(if started { b"\n]\n" } else { b"[]\n" });
    out
}

#[test]
fn each_scroll_is_one_row() {
    let rows = export(&[b"one\x17\x17three\x18\"q\\n\n\x01far\x1b"]);
    let expected = [
        ("1.1.1/1.1.1/1.1.1", "one"),
        ("1.1.1/1.1.1/1.1.3", "three"),
        ("1.1.1/1.1.1/1.2.1", "\"q\\n\n"),
        ("2.1.1/1.1.1/1.1.1", "far\u{1b}"),
    ];
    assert_eq!(rows, expected.map(|(c, s)| (c.to_owned(), s.to_owned())));
    assert_eq!(export(&[b""]), []);
}

#[test]
fn every_byte_and_number_is_written_as_formatted() {
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    assert_eq!(json(&[&every_byte]), formatted(&every_byte));
    let far = [[0x17_u8; 1_100].as_slice(), b"far"].concat();
    for length in 0..far.len() {
        let phext = [&far[..length], b"x"].concat();
        assert_eq!(json(&[&phext]), formatted(&phext));
    }
}

/// The fastest of some runs, which a busy machine disturbs least.
#[cfg(not(target_family = "wasm"))]
fn fastest(mut run: impl FnMut() -> usize) -> std::time::Duration {
    let time = |_| {
        let start = std::time::Instant::now();
        std::hint::black_box(run());
        start.elapsed()
    };
    (0..7).map(time).min().unwrap_or_default()
}

#[cfg(not(target_family = "wasm"))]
#[test]
fn control_bytes_cost_little_more_than_copying() {
    // Six times as many bytes come out, so the copy writes as many.
    let control = vec![0x02; 200_000];
    let copy = fastest(|| {
        let mut out = Vec::with_capacity(6 * control.len());
        for byte in std::hint::black_box(&control) {
            out.extend_from_slice(&[*byte; 6]);
        }
        out.len()
    });
    let export = fastest(|| Export::default().on_chunk(std::hint::black_box(&control)).len());
    assert!(export < 8 * copy, "{export:?} instead of {copy:?} for the copy");
}

proptest! {
    #[test]
    fn any_phext_in_any_chunks_is_written_as_formatted(
        text in "[a-z\"\\\\\u{0}-\u{20}€]{0,60}",
        cut in 0usize..60,
    ) {
        let bytes = text.as_bytes();
        let (left, right) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(json(&[left, right]), formatted(bytes));
        prop_assert_eq!(export(&[left, right]), export(&[bytes]));
    }

    #[test]
    fn buffer_is_reserved_once(bytes: Vec<u8>, open: bool) {
        let mut export = Export { open, ..Export::default() };
        let reserved = export.size_max(&bytes);
        prop_assert!(export.on_chunk(&bytes).len() <= reserved);
    }
}
