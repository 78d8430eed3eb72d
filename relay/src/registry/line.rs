//! One line of a scroll: blank, a comment, a word, or `name: value`.
//!
//! A `#` at the start of a line or after white space begins a comment. The parts are byte ranges
//! of the line, so that an edit can replace a value and leave everything around it as it was.

use std::ops::Range;

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Nothing, or a comment.
    Blank,
    /// Text without a colon.
    Word(Range<usize>),
    /// `name: value`; both without the white space around them.
    Field {
        /// Before the colon.
        name: Range<usize>,
        /// After the colon, before a comment; may be empty.
        value: Range<usize>,
    },
}

/// Takes a line (without its end, or with it) apart.
pub fn split(line: &str) -> Line {
    // Some editors put a byte order mark before the text.
    let start = if line.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let content = trimmed(line, start..start + comment_start(&line[start..]));
    if content.is_empty() {
        return Line::Blank;
    }
    match line[content.clone()].find(':') {
        None => Line::Word(content),
        Some(colon) => {
            let colon = content.start + colon;
            Line::Field {
                name: trimmed(line, content.start..colon),
                value: trimmed(line, colon + 1..content.end),
            }
        }
    }
}

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
        match split(line) {
            Line::Blank => (None, None),
            Line::Word(word) => (Some(&line[word]), None),
            Line::Field { name, value } => (Some(&line[name]), Some(&line[value])),
        }
    }

    #[test]
    fn a_field_is_what_stands_around_the_first_colon() {
        assert_eq!(parts("  tier :  pro \t# since May\r\n"), (Some("tier"), Some("pro")));
        assert_eq!(parts("x-url: https://a/#b"), (Some("x-url"), Some("https://a/#b")));
        assert_eq!(parts("tier:"), (Some("tier"), Some("")));
        assert_eq!(parts("tiers # of 2027"), (Some("tiers"), None));
    }

    #[test]
    fn comments_and_white_space_say_nothing() {
        for line in ["", "\r\n", "   ", "# a: b", "\t# x"] {
            assert_eq!(split(line), Line::Blank, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_can_be_taken_apart(line in "[a: #\u{e9}\u{3000}\t\r]{0,20}") {
            let _ = parts(&line);
        }
    }
}
