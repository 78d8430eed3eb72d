//! Converts a phext to JSON: `[{"coord": "1.1.1/1.1.1/1.1.1", "scroll": "…"}, …]`. The fields are
//! those of SQ's `json-export`, in coordinate order, without empty scrolls, and always valid.
//!
//! It works byte by byte on SQ's response to `get` and keeps nine numbers, so a phext of any size
//! streams through.

use crate::http::coordinate::PART_MAX;
use crate::http::text::is_break;

/// Separators of scrolls, from library down to scroll.
const BREAKS: [u8; 9] = [0x01, 0x1F, 0x1E, 0x1D, 0x1C, 0x1A, 0x19, 0x18, 0x17];
/// Longest beginning of a scroll, with the end of the one before: 35 bytes of coordinate, and the
/// JSON around it.
const HEAD_MAX_BYTES: usize = 80;

/// The JSON text of a byte within a string.
#[derive(Debug, Clone, Copy)]
struct Escaped {
    text: [u8; 6],
    length: u8,
}

/// The JSON texts of the bytes below 0x20. Formatting each byte instead made an export of control
/// bytes 30 times as expensive for everybody in the same Envoy.
const CONTROL: [Escaped; 0x20] = control_bytes();
const QUOTE: Escaped = Escaped::short(b'"');
const BACKSLASH: Escaped = Escaped::short(b'\\');

/// The state of a conversion between two chunks.
#[derive(Debug)]
pub struct Export {
    at: [u16; 9],
    /// The position is inside the text of a scroll.
    open: bool,
    started: bool,
}

impl Escaped {
    /// A backslash and one character.
    const fn short(character: u8) -> Self {
        Self { text: [b'\\', character, 0, 0, 0, 0], length: 2 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }
}

const fn control_bytes() -> [Escaped; 0x20] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut table = [Escaped::short(0); 0x20];
    let mut byte = 0;
    while byte < table.len() {
        let text = [b'\\', b'u', b'0', b'0', HEX[byte >> 4], HEX[byte & 0xF]];
        table[byte] = Escaped { text, length: 6 };
        byte += 1;
    }
    table[b'\n' as usize] = Escaped::short(b'n');
    table[b'\r' as usize] = Escaped::short(b'r');
    table[b'\t' as usize] = Escaped::short(b't');
    table
}

/// Returns the JSON text of a byte; `None` if it is the byte itself.
fn escaped(byte: u8) -> Option<&'static Escaped> {
    match byte {
        b'"' => Some(&QUOTE),
        b'\\' => Some(&BACKSLASH),
        _ => CONTROL.get(usize::from(byte)),
    }
}

impl Default for Export {
    fn default() -> Self {
        Self { at: [1; 9], open: false, started: false }
    }
}

impl Export {
    /// Converts the next bytes of a phext.
    pub fn on_chunk(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size_max(chunk));
        let mut rest = chunk;
        while let Some((byte, after)) = rest.split_first() {
            if is_break(*byte) {
                let level = BREAKS.iter().position(|separator| separator == byte).unwrap_or(8);
                self.close(&mut out);
                self.at[level] = (self.at[level] + 1).min(PART_MAX);
                self.at[level + 1..].fill(1);
                rest = after;
                continue;
            }
            self.open(&mut out);
            if let Some(escaped) = escaped(*byte) {
                out.extend_from_slice(escaped.as_bytes());
                rest = after;
                continue;
            }
            // Plain text is copied as a whole. Breaks are below 0x20, so they end it too.
            let plain = rest.iter().position(|byte| escaped(*byte).is_some());
            let (text, after) = rest.split_at(plain.unwrap_or(rest.len()));
            out.extend_from_slice(text);
            rest = after;
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

    /// The most bytes that the chunk can become, so that the buffer is reserved once.
    fn size_max(&self, chunk: &[u8]) -> usize {
        let mut size = HEAD_MAX_BYTES;
        let mut open = self.open;
        for byte in chunk {
            let is_text = !is_break(*byte);
            if is_text {
                size += escaped(*byte).map_or(1, |escaped| usize::from(escaped.length));
            }
            if is_text && !open {
                size += HEAD_MAX_BYTES;
            }
            open = is_text;
        }
        size
    }

    fn open(&mut self, out: &mut Vec<u8>) {
        if self.open {
            return;
        }
        out.extend_from_slice(if self.started { b",\n" } else { b"[\n" });
        out.extend_from_slice(b"{\"coord\": \"");
        for (part, separator) in self.at.iter().zip(*b"../../.. ") {
            push_number(out, *part);
            out.push(separator);
        }
        out.pop();
        out.extend_from_slice(b"\", \"scroll\": \"");
        self.open = true;
        self.started = true;
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.open) {
            out.extend_from_slice(b"\"}");
        }
    }
}

/// Appends a part of a coordinate, which is at most 999.
fn push_number(out: &mut Vec<u8>, number: u16) {
    let digit = |value: u16| b'0' + (value % 10) as u8;
    if number >= 100 {
        out.push(digit(number / 100));
    }
    if number >= 10 {
        out.push(digit(number / 10));
    }
    out.push(digit(number));
}

#[cfg(test)]
mod tests;
