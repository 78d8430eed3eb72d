//! The parts of one line: a comment, a word, or `name: value`.
//!
//! A `#` at the start of a line or after white space begins a comment. Parts are byte ranges of the
//! line, so that an edit can replace a value and leave everything around it untouched.

use std::ops::Range;

/// The content of a line, as byte ranges without surrounding white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// White space or a comment only.
    Blank,
    /// Text without a colon.
    Word(Range<usize>),
    /// Text with a colon: `name: value`.
    Field {
        /// Range before the colon.
        name: Range<usize>,
        /// Range between the colon and a comment; may be empty.
        value: Range<usize>,
    },
}

const BYTE_ORDER_MARK: char = '\u{feff}';

impl Line {
    /// Parses a line, with or without its line end.
    pub(crate) fn parse(line: &str) -> Self {
        // Some editors put a byte order mark before the text.
        let start = if line.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 };
        let content = trimmed(line, start..start + comment_start(&line[start..]));
        if content.is_empty() {
            return Self::Blank;
        }
        match line[content.clone()].find(':') {
            None => Self::Word(content),
            Some(offset) => {
                let colon = content.start + offset;
                Self::Field {
                    name: trimmed(line, content.start..colon),
                    value: trimmed(line, colon + 1..content.end),
                }
            }
        }
    }
}

/// Position of the `#` that begins a comment, or the line's length.
fn comment_start(line: &str) -> usize {
    let mut after_space = true;
    for (at, c) in line.char_indices() {
        if c == '#' && after_space {
            return at;
        }
        after_space = c.is_whitespace();
    }
    line.len()
}

/// The part of `range` without white space at both ends.
fn trimmed(line: &str, range: Range<usize>) -> Range<usize> {
    let part = &line[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(line: &str) -> (Option<&str>, Option<&str>) {
        match Line::parse(line) {
            Line::Blank => (None, None),
            Line::Word(word) => (Some(&line[word]), None),
            Line::Field { name, value } => (Some(&line[name]), Some(&line[value])),
        }
    }

    #[test]
    fn first_colon_separates_name_from_value() {
        assert_eq!(parts("  tier :  pro \t# since May\r\n"), (Some("tier"), Some("pro")));
        assert_eq!(parts("x-url: https://a/#b"), (Some("x-url"), Some("https://a/#b")));
        assert_eq!(parts("tier:"), (Some("tier"), Some("")));
        assert_eq!(parts("tiers # of 2027"), (Some("tiers"), None));
    }

    #[test]
    fn comments_and_white_space_are_blank() {
        for line in ["", "\r\n", "   ", "# a: b", "\t# x"] {
            assert_eq!(Line::parse(line), Line::Blank, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line in "[a: #\u{e9}\u{3000}\t\r]{0,20}") {
            let _ = parts(&line);
        }
    }
}
