//! Releases of SQ and what each of them can do.
//!
//! Measured on the published crates 0.5.0 to 0.6.0; docs/sq.md has the tables.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A release of SQ, such as `0.6.0`. Releases before 0.5.0 are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SqVersion {
    major: u16,
    minor: u16,
    patch: u16,
}

/// The error for a text that is not a supported release of SQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedSqVersion;

impl SqVersion {
    /// The first release whose API is documented.
    pub const V0_5_0: Self = Self::new(0, 5, 0);
    /// The first release that serves each connection in a separate thread.
    pub const V0_5_2: Self = Self::new(0, 5, 2);
    /// The first release with the endpoint `query` and with key files; the default everywhere.
    pub const V0_6_0: Self = Self::new(0, 6, 0);

    const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// Reads three numbers separated by dots. `None` for anything else and before 0.5.0.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(number);
        let version = Self::new(numbers.next()??, numbers.next()??, numbers.next()??);
        let is_supported = numbers.next().is_none() && version >= Self::V0_5_0;
        is_supported.then_some(version)
    }

    /// True if this release has the endpoint `query`.
    pub fn has_query(self) -> bool {
        self >= Self::V0_6_0
    }

    /// True if this release reads its key from a file; the others take it on the command line only.
    pub fn reads_key_file(self) -> bool {
        self >= Self::V0_6_0
    }

    /// True if this release serves one connection after the other in a single thread, so that one
    /// slow client blocks all others.
    pub fn is_single_threaded(self) -> bool {
        self < Self::V0_5_2
    }

    /// Requests that this release may be given at once under a limit of `concurrency`.
    pub fn safe_concurrency(self, concurrency: u32) -> u32 {
        if self.is_single_threaded() { 1 } else { concurrency.max(1) }
    }
}

/// Reads one part of a version: digits only, where `u16::from_str` would take `+5` too.
fn number(text: &str) -> Option<u16> {
    let is_digits = text.bytes().all(|b| b.is_ascii_digit());
    if is_digits { text.parse().ok() } else { None }
}

impl Default for SqVersion {
    fn default() -> Self {
        Self::V0_6_0
    }
}

impl fmt::Display for SqVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for SqVersion {
    type Err = UnsupportedSqVersion;
    fn from_str(text: &str) -> Result<Self, UnsupportedSqVersion> {
        Self::parse(text).ok_or(UnsupportedSqVersion)
    }
}

impl TryFrom<String> for SqVersion {
    type Error = UnsupportedSqVersion;
    fn try_from(text: String) -> Result<Self, UnsupportedSqVersion> {
        text.parse()
    }
}

impl From<SqVersion> for String {
    fn from(version: SqVersion) -> Self {
        version.to_string()
    }
}

impl fmt::Display for UnsupportedSqVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "is not a supported version of SQ: write three numbers such as `0.6.0`, from 0.5.0",
        )
    }
}

impl std::error::Error for UnsupportedSqVersion {}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn version(text: &str) -> SqVersion {
        SqVersion::parse(text).unwrap()
    }

    #[test]
    fn version_is_three_numbers_from_0_5_0() {
        assert_eq!(version("0.5.0"), SqVersion::V0_5_0);
        assert_eq!(version("0.6.0").to_string(), "0.6.0");
        for bad in ["", "0.6", "0.6.0.1", "0.4.9", "v0.6.0", "0.6.x", "latest", "0.+6.0", "0..6"] {
            assert_eq!(SqVersion::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn query_came_with_0_6_0() {
        assert!(!version("0.5.4").has_query());
        assert!(version("0.6.0").has_query());
    }

    #[test]
    fn key_files_came_with_0_6_0() {
        assert!(!version("0.5.4").reads_key_file());
        assert!(version("0.6.0").reads_key_file());
    }

    /// The crate 0.5.1 handles connections in its accept loop, 0.5.2 spawns a thread for each.
    #[test]
    fn single_threaded_releases_get_one_request() {
        for (text, concurrency) in
            [("0.5.0", 1), ("0.5.1", 1), ("0.5.2", 4), ("0.5.4", 4), ("0.6.0", 4), ("1.0.0", 4)]
        {
            assert_eq!(version(text).safe_concurrency(4), concurrency, "{text}");
        }
        assert_eq!(version("0.6.0").safe_concurrency(0), 1);
    }

    #[test]
    fn version_travels_as_text() {
        let json = serde_json::to_string(&SqVersion::V0_6_0).unwrap();
        assert_eq!(json, "\"0.6.0\"");
        assert_eq!(serde_json::from_str::<SqVersion>(&json).unwrap(), SqVersion::V0_6_0);
        assert!(serde_json::from_str::<SqVersion>("\"0.4.9\"").is_err());
    }
}
