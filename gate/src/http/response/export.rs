//! Converts a phext to JSON: `[{"coord": "1.1.1/1.1.1/1.1.1", "scroll": "…"}, …]`. The fields are
//! those of SQ's `json-export`, in coordinate order, without empty scrolls, and always valid.
//!
//! It works byte by byte on SQ's response to `get` and keeps nine numbers, so a phext of any size
//! streams through.

use std::fmt::Write as _;

use crate::http::coordinate::PART_MAX;
use crate::http::text::is_break;

/// Separators of scrolls, from library down to scroll.
const BREAKS: [u8; 9] = [0x01, 0x1F, 0x1E, 0x1D, 0x1C, 0x1A, 0x19, 0x18, 0x17];

/// The state of a conversion between two chunks.
#[derive(Debug)]
pub struct Export {
    at: [u16; 9],
    /// The position is inside the text of a scroll.
    open: bool,
    started: bool,
}

impl Default for Export {
    fn default() -> Self {
        Self { at: [1; 9], open: false, started: false }
    }
}

impl Export {
    /// Converts the next bytes of a phext.
    pub fn on_chunk(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(chunk.len() + 64);
        for byte in chunk {
            if is_break(*byte) {
                let level = BREAKS.iter().position(|separator| separator == byte).unwrap_or(8);
                self.close(&mut out);
                self.at[level] = (self.at[level] + 1).min(PART_MAX);
                self.at[level + 1..].fill(1);
                continue;
            }
            self.open(&mut out);
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
        out
    }

    /// Ends the JSON document.
    pub fn on_end(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.close(&mut out);
        out.extend_from_slice(if self.started { b"\n]\n" } else { b"[]\n" });
        out
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        if self.open {
            return;
        }
        out.extend_from_slice(if self.started { b",\n" } else { b"[\n" });
        let mut head = String::from("{\"coord\": \"");
        for (part, separator) in self.at.iter().zip([".", ".", "/", ".", ".", "/", ".", ".", ""]) {
            // Writing to a String cannot fail.
            let _ = write!(head, "{part}{separator}");
        }
        head.push_str("\", \"scroll\": \"");
        out.extend_from_slice(head.as_bytes());
        self.open = true;
        self.started = true;
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.open) {
            out.extend_from_slice(b"\"}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn export(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut export = Export::default();
        let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| export.on_chunk(chunk)).collect();
        out.extend(export.on_end());
        let all: Vec<Value> = serde_json::from_slice(&out).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        all.iter().map(|row| (text(&row["coord"]), text(&row["scroll"]))).collect()
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

    proptest! {
        #[test]
        fn any_phext_in_any_chunks_is_valid_json(text in "[a-z\"\\\\\u{0}-\u{20}€]{0,60}", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let (left, right) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(export(&[left, right]), export(&[bytes]));
        }
    }
}
