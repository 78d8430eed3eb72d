//! Checks a body as it arrives, before SQ sees a byte. A check takes a few dozen bytes of memory,
//! whatever the length of the body.
//!
//! ```text
//! text   UTF-8 without a scroll delimiter, not empty
//! lines  line *( LF line ) [ LF ]      line = [ coordinate ": " 32 lower-case hex digits ] [ CR ]
//! set    *( separator / space ) item *( separator … item )    item = coordinate with "/"
//!        separator = "," / ";" / LF      space = SP / TAB / CR
//! ```
//!
//! SQ skips a line without a checksum, and takes `1.1.1000` for a coordinate whose response never
//! ends. Lines that it would skip or misread are refused here.

use std::borrow::Cow;

use crate::Refusal;

use super::coordinate::{Coordinate, Groups, Scan, ScanResult};
use super::text;

/// Bound on the lines of one `delta`: SQ 0.6.0 takes 0.7 kB of memory for each (measured), and a
/// tenant has 64 MiB.
pub(crate) const DELTA_LINES_MAX: u64 = 40_000;
/// Bound on the coordinates and results of one `query`: SQ 0.6.0 takes 1.2 kB of memory for each
/// (measured).
pub(crate) const QUERY_ITEMS_MAX: u64 = 10_000;
/// Bytes that SQ writes into the response for a missing scroll.
const MISSING_BYTES: u64 = 23;
/// Number of hexadecimal digits of a checksum.
const HASH_DIGITS: u8 = 32;

/// The check of one body.
#[derive(Debug, Clone)]
pub struct BodyCheck {
    kind: Kind,
    received: u64,
    max: u64,
    example: &'static str,
}

#[derive(Debug, Clone)]
enum Kind {
    Empty,
    Text(Text),
    Lines(Lines),
    Set(Set),
}

#[derive(Debug, Clone)]
struct Text {
    utf8: Utf8,
    form: Option<FormStart>,
}

/// Recognises a form that contains a parameter of ours by its first two bytes, such as `s=`. It is
/// the request of a client that wanted the parameter to be read, and not this text to be stored.
#[derive(Debug, Clone, Default)]
struct FormStart {
    seen: u8,
    is_parameter: bool,
}

/// Validates UTF-8 across chunks; holds the bytes of an incomplete character.
#[derive(Debug, Clone, Default)]
struct Utf8 {
    part: [u8; 4],
    length: usize,
}

#[derive(Debug, Clone)]
struct Lines {
    at: LineAt,
    /// Coordinate of the previous line, for the cost of the response.
    before: Coordinate,
    count: u64,
    /// Upper bound on the bytes of the response so far.
    response: u64,
    response_max: u64,
}

#[derive(Debug, Clone)]
enum LineAt {
    Start,
    Coordinate(Scan),
    Space,
    Hash(u8),
    Return,
}

#[derive(Debug, Clone)]
struct Set {
    at: SetAt,
    items: u64,
    /// The request has a range, so no item is required.
    optional: bool,
}

#[derive(Debug, Clone)]
enum SetAt {
    Between,
    Coordinate(Scan),
    After,
}

/// The fault of a body, as text for the client.
type Fault = Cow<'static, str>;

fn bad(detail: &'static str) -> Fault {
    Cow::Borrowed(detail)
}

impl BodyCheck {
    fn new(kind: Kind, max: u64, example: &'static str) -> Self {
        Self { kind, received: 0, max, example }
    }

    /// Accepts no byte.
    pub(super) fn empty(example: &'static str) -> Self {
        Self::new(Kind::Empty, 0, example)
    }

    /// Accepts the text of a scroll. `is_form`: the content type is that of a form, which many clients
    /// send with any text.
    pub(super) fn text(max: u64, is_form: bool, example: &'static str) -> Self {
        let form = is_form.then(FormStart::default);
        Self::new(Kind::Text(Text { utf8: Utf8::default(), form }), max, example)
    }

    /// Accepts lines of `delta` whose response has at most `response_max` bytes.
    pub(super) fn lines(max: u64, response_max: u64, example: &'static str) -> Self {
        let lines = Lines {
            at: LineAt::Start,
            before: Coordinate::ROOT,
            count: 0,
            response: 0,
            response_max,
        };
        Self::new(Kind::Lines(lines), max, example)
    }

    /// Accepts the coordinates of `query`.
    pub(super) fn set(max: u64, optional: bool, example: &'static str) -> Self {
        Self::new(Kind::Set(Set { at: SetAt::Between, items: 0, optional }), max, example)
    }

    /// Checks the next bytes. Do not use the check again after a refusal.
    pub fn on_chunk(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.received = self.received.saturating_add(chunk.len() as u64);
        let checked = match &mut self.kind {
            Kind::Empty if chunk.is_empty() => Ok(()),
            Kind::Empty => Err(bad("this request takes none")),
            _ if self.received > self.max => {
                return Err(Refusal::body_too_large(self.received, self.max));
            }
            Kind::Text(text) => text.on_chunk(chunk),
            Kind::Lines(lines) => chunk.iter().try_for_each(|byte| lines.on_byte(*byte)),
            Kind::Set(set) => chunk.iter().try_for_each(|byte| set.on_byte(*byte)),
        };
        checked.map_err(|fault| self.refuse(fault))
    }

    /// Checks the end of the body.
    pub fn on_end(&mut self) -> Result<(), Refusal> {
        let checked = match &mut self.kind {
            Kind::Text(_) if self.received == 0 => {
                Err(bad("it is empty; use `delete` to empty a scroll"))
            }
            Kind::Text(text) if text.utf8.length > 0 => {
                Err(bad("it ends inside a UTF-8 character"))
            }
            Kind::Text(_) | Kind::Empty => Ok(()),
            Kind::Lines(lines) => lines.on_end(),
            Kind::Set(set) => set.on_end(),
        };
        checked.map_err(|fault| self.refuse(fault))
    }

    /// The request takes no body.
    pub(crate) fn accepts_nothing(&self) -> bool {
        matches!(self.kind, Kind::Empty)
    }

    /// Bytes received so far.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received
    }

    fn refuse(&self, fault: Fault) -> Refusal {
        Refusal::bad_body(fault).example(self.example)
    }
}

impl Text {
    fn on_chunk(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        if let Some(form) = &mut self.form {
            form.on_chunk(chunk)?;
        }
        self.utf8.on_chunk(chunk)
    }
}

impl FormStart {
    fn on_chunk(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        for byte in chunk {
            match self.seen {
                0 => self.is_parameter = matches!(byte, b'p' | b'c' | b's'),
                1 if self.is_parameter && *byte == b'=' => return Err(bad(FORM)),
                _ => return Ok(()),
            }
            self.seen += 1;
        }
        Ok(())
    }
}

const FORM: &str = "it is a form, and a body is stored as it is; put the parameters into the URL and \
                    send the text itself (with curl: `-H 'Content-Type: text/plain' --data-binary`)";
const NOT_UTF8: &str = "it is not UTF-8; convert it first, such as with `iconv -f latin1 -t utf-8`";

impl Utf8 {
    fn on_chunk(&mut self, mut chunk: &[u8]) -> Result<(), Fault> {
        if let Some(byte) = text::find_break(chunk) {
            let fault = format!("it contains the byte 0x{byte:02x}, which separates scrolls");
            return Err(Cow::Owned(fault));
        }
        while self.length > 0 {
            let Some((first, rest)) = chunk.split_first() else { return Ok(()) };
            self.part[self.length] = *first;
            self.length += 1;
            chunk = rest;
            match std::str::from_utf8(&self.part[..self.length]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(bad(NOT_UTF8)),
            }
        }
        let Err(error) = std::str::from_utf8(chunk) else { return Ok(()) };
        let rest = &chunk[error.valid_up_to()..];
        if error.error_len().is_some() {
            return Err(bad(NOT_UTF8));
        }
        self.part[..rest.len()].copy_from_slice(rest);
        self.length = rest.len();
        Ok(())
    }
}

const BAD_LINE: &str = "each line must be a coordinate, a colon, a space and a checksum of 32 \
                        lower-case hexadecimal digits";

impl Lines {
    fn on_byte(&mut self, byte: u8) -> Result<(), Fault> {
        self.at = match (&mut self.at, byte) {
            (LineAt::Start | LineAt::Return | LineAt::Hash(HASH_DIGITS), b'\n') => LineAt::Start,
            (LineAt::Start | LineAt::Hash(HASH_DIGITS), b'\r') => LineAt::Return,
            (LineAt::Start, _) => {
                let mut scan = Scan::new(Groups::SlashOrSemicolon);
                if scan.push(byte) != ScanResult::Accepted {
                    return Err(bad(BAD_LINE));
                }
                LineAt::Coordinate(scan)
            }
            (LineAt::Coordinate(scan), _) => match scan.push(byte) {
                ScanResult::Accepted => return Ok(()),
                ScanResult::Complete(coordinate) if byte == b':' => {
                    self.add(coordinate)?;
                    LineAt::Space
                }
                _ => return Err(bad(BAD_LINE)),
            },
            (LineAt::Space, b' ') => LineAt::Hash(0),
            (LineAt::Hash(n), b'0'..=b'9' | b'a'..=b'f') if *n < HASH_DIGITS => {
                LineAt::Hash(*n + 1)
            }
            _ => return Err(bad(BAD_LINE)),
        };
        Ok(())
    }

    /// Adds a line's part of the response. SQ reports a missing scroll by a marker at its coordinate,
    /// with all delimiters up to it, so a small body can cause a response of gigabytes.
    fn add(&mut self, coordinate: Coordinate) -> Result<(), Fault> {
        self.count += 1;
        if self.count > DELTA_LINES_MAX {
            let fault = format!("it has more than {DELTA_LINES_MAX} lines; send several requests");
            return Err(Cow::Owned(fault));
        }
        let delimiters = if coordinate > self.before {
            coordinate.delimiters_after(&self.before)
        } else {
            coordinate.delimiters_max()
        };
        self.before = coordinate;
        self.response += delimiters + MISSING_BYTES;
        if self.response > self.response_max {
            return Err(bad(
                "its coordinates are too far apart, so that the response could be larger \
                            than the largest phext; sort the lines or send several requests",
            ));
        }
        Ok(())
    }

    fn on_end(&self) -> Result<(), Fault> {
        match self.at {
            LineAt::Start | LineAt::Hash(HASH_DIGITS) if self.count > 0 => Ok(()),
            LineAt::Start => Err(bad("it has no line; use GET without a body")),
            _ => Err(bad(BAD_LINE)),
        }
    }
}

const BAD_ITEM: &str = "it must consist of coordinates such as 1.1.1/1.1.1/1.1.1 (nine integers from \
                        1 to 999), separated by commas, semicolons or line breaks";

impl Set {
    fn on_byte(&mut self, byte: u8) -> Result<(), Fault> {
        let separator = matches!(byte, b',' | b';' | b'\n');
        let space = matches!(byte, b' ' | b'\t' | b'\r');
        self.at = match &mut self.at {
            SetAt::Between | SetAt::After if separator => SetAt::Between,
            SetAt::Between if space => SetAt::Between,
            SetAt::After if space => SetAt::After,
            SetAt::Between => {
                let mut scan = Scan::new(Groups::Slash);
                if scan.push(byte) != ScanResult::Accepted {
                    return Err(bad(BAD_ITEM));
                }
                SetAt::Coordinate(scan)
            }
            SetAt::Coordinate(scan) => match scan.push(byte) {
                ScanResult::Accepted => return Ok(()),
                ScanResult::Complete(_) if separator || space => {
                    self.count()?;
                    if separator { SetAt::Between } else { SetAt::After }
                }
                _ => return Err(bad(BAD_ITEM)),
            },
            SetAt::After => return Err(bad(BAD_ITEM)),
        };
        Ok(())
    }

    fn count(&mut self) -> Result<(), Fault> {
        self.items += 1;
        if self.items > QUERY_ITEMS_MAX {
            let fault = format!("it names more than {QUERY_ITEMS_MAX} coordinates");
            return Err(Cow::Owned(fault));
        }
        Ok(())
    }

    fn on_end(&mut self) -> Result<(), Fault> {
        if let SetAt::Coordinate(scan) = &self.at {
            scan.end().ok_or_else(|| bad(BAD_ITEM))?;
            self.count()?;
        }
        if self.items == 0 && !self.optional {
            return Err(bad("it names no coordinate"));
        }
        Ok(())
    }
}
