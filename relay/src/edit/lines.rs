//! Lines of one scroll: finding, replacing and inserting them.

use std::ops::Range;

use libphext::phext;

use super::EditError;
use crate::registry::line::Line;
use crate::registry::scroll::lines;

/// A `name: value` line, as byte ranges of its scroll.
#[derive(Debug, Clone)]
pub(super) struct FoundLine {
    /// The line with its line end.
    pub(super) line: Range<usize>,
    pub(super) value: Range<usize>,
}

/// Finds all lines whose name is `wanted`, in the order of the scroll.
pub(super) fn find_lines(scroll: &str, wanted: impl Fn(&str) -> bool) -> Vec<FoundLine> {
    let mut found = Vec::new();
    for (range, line) in lines(scroll) {
        if let Line::Field { name, value } = Line::parse(line)
            && wanted(&line[name])
        {
            let value = range.start + value.start..range.start + value.end;
            found.push(FoundLine { line: range, value });
        }
    }
    found
}

/// Replaces the value of a line; its name, spacing and comment stay.
pub(super) fn replace_value(scroll: &mut String, found: &FoundLine, value: &str) {
    // `name:` without a value gets the usual space.
    let before_value = &scroll[..found.value.start];
    let separator = if found.value.is_empty() && before_value.ends_with(':') { " " } else { "" };
    scroll.replace_range(found.value.clone(), &format!("{separator}{value}"));
}

/// Inserts a line after `anchor`, with its indentation and line end, or at the end of the scroll.
pub(super) fn insert_after(
    scroll: &mut String,
    anchor: Option<FoundLine>,
    name: &str,
    value: &str,
) {
    let position = anchor.as_ref().map_or(scroll.len(), |found| found.line.end);
    let model = anchor.map(|found| scroll[found.line].to_owned()).unwrap_or_default();
    let indent: String = model.chars().take_while(|c| *c == ' ' || *c == '\t').collect();
    let line_end = if model.ends_with("\r\n") { "\r\n" } else { "\n" };
    // The last line of a scroll may have no line end.
    let is_unterminated = position > 0 && !scroll[..position].ends_with('\n');
    let missing_end = if is_unterminated { "\n" } else { "" };
    scroll.insert_str(position, &format!("{missing_end}{indent}{name}: {value}{line_end}"));
}

/// Checks that `name: value` can be written as one line that is parsed as the same name and value.
pub(super) fn check_writable(name: &str, value: &str) -> Result<(), EditError> {
    if ["tenant", "key", "key-sha256"].contains(&name) {
        return Err(EditError::Fixed(name.to_owned()));
    }
    let written = format!("{name}: {value}");
    let breaks_line = written.contains(['\n', '\r']) || written.bytes().any(phext::is_phext_break);
    let value_start = name.len() + 2;
    let expected = Line::Field { name: 0..name.len(), value: value_start..written.len() };
    // An empty value removes the line, so that only the name matters elsewhere.
    let parses_back = value.is_empty() || Line::parse(&written) == expected;
    if breaks_line || !parses_back {
        return Err(EditError::Unwritable(name.chars().take(40).collect()));
    }
    Ok(())
}
