//! What is wrong with a registry, and where.

use std::fmt;

/// One thing that is wrong. Never repeats a value: it might be a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The scroll; `None`: the text as a whole.
    pub place: Option<Place>,
    /// What is wrong and what to write instead.
    pub what: String,
}

/// A line of a scroll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The scroll's coordinate.
    pub at: String,
    /// The line within the scroll, from 1.
    pub line: usize,
    /// The line within the whole text, from 1, as an editor counts it.
    pub file_line: usize,
}

/// Everything that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    first: Vec<Fault>,
    more: usize,
}

/// Faults kept: more than anyone reads at once; a file that is no registry at all has millions.
const KEPT: usize = 100;

impl Fault {
    /// A fault of the text as a whole.
    pub fn whole(what: impl Into<String>) -> Self {
        Self { place: None, what: what.into() }
    }
}

impl Faults {
    /// Adds one; beyond the hundredth they are only counted.
    pub fn push(&mut self, fault: Fault) {
        if self.first.len() < KEPT { self.first.push(fault) } else { self.more += 1 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.first.len() + self.more
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The first hundred.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.first.iter()
    }

    /// In the order of the text.
    pub(super) fn sort(&mut self) {
        self.first.sort_by_key(|f| f.place.as_ref().map_or(0, |p| p.file_line));
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Place { at, line, file_line }) = &self.place {
            write!(f, "{at} line {line} (line {file_line} of the file): ")?;
        }
        f.write_str(&self.what)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.first.iter().enumerate() {
            write!(f, "{}{fault}", if n > 0 { "\n" } else { "" })?;
        }
        if self.more > 0 {
            write!(f, "\n… and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
