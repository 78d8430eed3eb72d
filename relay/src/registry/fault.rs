//! Faults of a registry, with the place of each.

use std::fmt;

/// One fault. It never repeats a value from the text, which might be a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Place of the faulty line; `None` for a fault of the text as a whole.
    pub(crate) place: Option<Place>,
    /// Description of the fault and of the expected text.
    pub(crate) what: String,
}

/// A line of a scroll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Coordinate of the scroll.
    pub(crate) coordinate: String,
    /// Number of the line within the scroll, from 1.
    pub(crate) line: usize,
    /// Number of the line within the file, from 1, as an editor counts.
    pub(crate) file_line: usize,
}

/// All faults of one text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    listed: Vec<Fault>,
    unlisted: usize,
}

/// Faults that are listed; the rest are counted. A file that is no registry at all has millions.
const LISTED_MAX: usize = 100;

impl Fault {
    /// Creates a fault of the text as a whole.
    pub(super) fn of_text(what: impl Into<String>) -> Self {
        Self { place: None, what: what.into() }
    }
}

impl Faults {
    /// Adds a fault, or only counts it if [`LISTED_MAX`] are listed already.
    pub(super) fn push(&mut self, fault: Fault) {
        if self.listed.len() < LISTED_MAX {
            self.listed.push(fault);
        } else {
            self.unlisted += 1;
        }
    }

    /// Number of faults, unlisted ones included.
    pub(crate) fn len(&self) -> usize {
        self.listed.len() + self.unlisted
    }

    /// Returns true if there is no fault.
    pub(crate) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// The listed faults.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.listed.iter()
    }

    /// Puts the listed faults in the order of the text.
    pub(super) fn sort(&mut self) {
        self.listed.sort_by_key(|fault| fault.place.as_ref().map_or(0, |place| place.file_line));
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { coordinate, line, file_line }) = &self.place {
            write!(f, "{coordinate} line {line} (line {file_line} of the file): ")?;
        }
        f.write_str(&self.what)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.listed.iter().enumerate() {
            let separator = if index > 0 { "\n" } else { "" };
            write!(f, "{separator}{fault}")?;
        }
        if self.unlisted > 0 {
            write!(f, "\n… and {} more", self.unlisted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
