//! Tables, counts and units, as all commands print them.

use comfy_table::{CellAlignment, Table, presets};

/// Starts a table without borders. The columns from `numbers_from` on are aligned to the right.
pub(super) fn new(headings: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= numbers_from {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Renders a table without blanks at the ends of its lines.
pub(super) fn render(table: &Table) -> String {
    table.trim_fmt() + "\n"
}

/// Formats a count with its noun, such as `1 tenant` or `2 tenants`.
pub(super) fn count(n: impl Into<u128>, noun: &str) -> String {
    match n.into() {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

/// Formats bytes in decimal units with one digit behind the point.
pub(super) fn bytes(bytes: u64) -> String {
    for (unit, size) in [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)] {
        if bytes >= size {
            return format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size);
        }
    }
    format!("{bytes} B")
}

/// Formats a duration in its two largest units.
pub(super) fn duration(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        let shown = [0, 59_999, 3_599_000, 86_399_000, 90_000_000].map(duration);
        assert_eq!(shown, ["0 ms", "59 s", "59 min 59 s", "23 h 59 min", "1 d 1 h"]);
    }

    #[test]
    fn bytes_show_one_digit_in_decimal_units() {
        let shown = [999, 1_550, 1_550_000, 2_000_000_000].map(bytes);
        assert_eq!(shown, ["999 B", "1.5 kB", "1.5 MB", "2.0 GB"]);
    }

    #[test]
    fn counts_agree_with_their_nouns() {
        let shown = [0_u64, 1, 2].map(|n| count(n, "tenant"));
        assert_eq!(shown, ["0 tenants", "1 tenant", "2 tenants"]);
    }

    #[test]
    fn lines_have_no_blanks_at_their_ends() {
        let mut table = new(&["NAME", "BYTES"], 1);
        table.add_row(["a", "10"]).add_row(["long name", "5"]);
        assert_eq!(render(&table), "NAME       BYTES\na             10\nlong name      5\n");
    }
}
