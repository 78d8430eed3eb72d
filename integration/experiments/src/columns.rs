//! Tables that are printed row by row while an experiment runs.
//!
//! A run takes minutes, and each row is printed as soon as it is measured. The widths of the
//! columns are therefore fixed in advance, by their headings, and not by the cells.

use std::fmt::Write as _;

/// Narrowest column of figures, the gap before it included.
const MIN_WIDTH: usize = 10;
/// Blanks between a heading and the column before it.
const GAP: usize = 2;

/// A table with a left-aligned title column and right-aligned columns of figures.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    title_width: usize,
    headings: Vec<String>,
}

impl Columns {
    /// Creates a table whose titles have at most `title_width` characters.
    pub(crate) fn new<S: Into<String>>(
        title_width: usize,
        headings: impl IntoIterator<Item = S>,
    ) -> Self {
        Self { title_width, headings: headings.into_iter().map(Into::into).collect() }
    }

    /// Formats the line of headings above the rows.
    pub(crate) fn heading(&self, title: &str) -> String {
        self.row(title, &self.headings)
    }

    /// Formats one row. Missing cells at its end are left out.
    pub(crate) fn row(&self, title: &str, cells: &[String]) -> String {
        let mut row = format!("{title:<width$}", width = self.title_width);
        for (heading, cell) in self.headings.iter().zip(cells) {
            let width = (heading.chars().count() + GAP).max(MIN_WIDTH);
            // Writing to a string cannot fail.
            let _ = write!(row, "{cell:>width$}");
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_right_aligned_under_their_headings() {
        let columns = Columns::new(6, ["n", "a long heading"]);
        assert_eq!(columns.heading("part"), "part           n  a long heading");
        assert_eq!(
            columns.row("Envoy", &["1".into(), "2".into()]),
            "Envoy          1               2"
        );
    }
}
