//! Faults of a settings file, in the wording that the operator sees.

use std::fmt;

/// One fault of a key's value, or of the whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Full name of the key, such as `lifecycle.lease`; empty if the whole file is meant.
    pub key: String,
    /// The fault and its cure, such as `missing: write the path of a file`.
    pub message: String,
}

/// All faults of a settings file, one per line. An empty list means that the file is valid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    list: Vec<Fault>,
    /// Name of the file, printed in front of each fault.
    file: Option<String>,
}

impl Faults {
    /// The single fault of a file that cannot be read or parsed at all.
    pub fn of_file(message: impl fmt::Display) -> Self {
        let mut faults = Self::default();
        faults.push("", message);
        faults
    }

    /// Adds a fault of the key `key`.
    pub fn push(&mut self, key: &str, message: impl fmt::Display) {
        self.list.push(Fault { key: key.to_owned(), message: message.to_string() });
    }

    /// Names the file in front of each fault.
    #[must_use]
    pub fn in_file(self, name: impl fmt::Display) -> Self {
        Self { file: Some(name.to_string()), ..self }
    }

    /// True if a fault of `key`, or of a key below it, has been reported.
    pub fn contains(&self, key: &str) -> bool {
        self.list.iter().any(|fault| {
            let below = fault.key.strip_prefix(key);
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// The faults in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.list.iter()
    }

    /// Returns `config` if there is no fault.
    pub fn or_config<T>(self, config: T) -> Result<T, Self> {
        if self.list.is_empty() { Ok(config) } else { Err(self) }
    }
}

impl Extend<Fault> for Faults {
    fn extend<T: IntoIterator<Item = Fault>>(&mut self, faults: T) {
        self.list.extend(faults);
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key, self.message)
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(file) = &self.file {
                write!(f, "{file}: ")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
