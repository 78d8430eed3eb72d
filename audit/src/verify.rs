//! Reading the log and checking its chain.

use std::fs;
use std::path::PathBuf;

use crate::entry::Entry;
use crate::log::AuditLog;

/// A log whose chain is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// All lines, oldest first.
    pub entries: Vec<Entry>,
    /// Hash of the last line; zeros if there is none.
    pub head: String,
}

/// The first place where the chain is broken.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A line is not the one that was written there.
    #[error("{path}:{line}: {fault}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The fault of the line.
        fault: String,
    },
    /// No line has the hash that was expected.
    #[error("no line has the hash {0}: the log was cut off, or is another")]
    Missing(String),
    /// A file can't be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
}

impl AuditLog {
    /// Reads all files and checks every hash, number and link. With `expected`, some line must have
    /// that hash: one that was noted earlier.
    pub fn verify(&self, expected: Option<&str>) -> Result<Verified, Broken> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut head = Entry::first_prev();
        let mut is_expected = expected.is_none_or(|expected| *expected == head);
        for path in self.files() {
            let text = fs::read_to_string(&path)
                .map_err(|error| Broken::Unreadable(path.clone(), error))?;
            for (index, text) in text.lines().enumerate() {
                let broken = |fault: &str| Broken::Line {
                    path: path.clone(),
                    line: index + 1,
                    fault: fault.to_owned(),
                };
                let (entry, hash) = Entry::unseal(text).map_err(broken)?;
                match entries.last() {
                    // Older files were deleted, or this is the begin of the log.
                    None if entry.n > 1 || entry.prev == head => {}
                    None => return Err(broken("the first line follows another one")),
                    Some(last) if entry.n != last.n + 1 || entry.prev != head => {
                        let fault = format!("it does not follow line {} of the log", last.n);
                        return Err(broken(&fault));
                    }
                    Some(_) => {}
                }
                is_expected |= expected == Some(hash.as_str());
                head = hash;
                entries.push(entry);
            }
        }
        match expected {
            Some(expected) if !is_expected => Err(Broken::Missing(expected.to_owned())),
            _ => Ok(Verified { entries, head }),
        }
    }
}
