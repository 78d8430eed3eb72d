//! Which SQ runs behind the gateway, and what that release lacks.

use std::fmt;

use super::endpoint::Endpoint;

/// A release of SQ. 0.5.0 is the first documented one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SqVersion {
    major: u16,
    minor: u16,
    patch: u16,
}

impl SqVersion {
    /// The first release whose API is documented.
    pub(crate) const V0_5_0: Self = Self { major: 0, minor: 5, patch: 0 };
    /// The release that brought `query`.
    pub const V0_6_0: Self = Self { major: 0, minor: 6, patch: 0 };

    /// Reads `0.6.0`. `None` for anything else, and for releases before 0.5.0.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse::<u16>().ok());
        let version = Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        (parts.next().is_none() && version >= Self::V0_5_0).then_some(version)
    }

    /// Whether this release answers `endpoint`.
    pub fn has(self, endpoint: Endpoint) -> bool {
        endpoint != Endpoint::Query || self >= Self::V0_6_0
    }
}

impl fmt::Display for SqVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use protocol::FilterConfig;
    use protocol::config::RawFilterConfig;

    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_version_is_three_numbers_from_0_5_0_on() {
        assert_eq!(SqVersion::parse("0.5.0"), Some(SqVersion::V0_5_0));
        assert_eq!(SqVersion::parse("0.6.0").map(|v| v.to_string()).as_deref(), Some("0.6.0"));
        for bad in ["", "0.6", "0.6.0.1", "0.4.9", "v0.6.0", "0.6.x", "latest"] {
            assert_eq!(SqVersion::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_version_that_may_be_configured_is_one_that_is_read() {
        for text in ["0.5.0", "0.6.0", "1.0.0", "0.6", "0.4.9", "v0.6.0", "0.6.x", "0.6.0.1", ""] {
            let said = serde_json::json!({ "sq_version": text });
            let raw: RawFilterConfig = serde_json::from_value(said).unwrap();
            let taken = FilterConfig::try_from(raw).is_ok();
            assert_eq!(taken, SqVersion::parse(text).is_some(), "{text}");
        }
    }

    #[test]
    fn only_query_is_missing_and_only_before_0_6_0() {
        for endpoint in Endpoint::ALL {
            assert!(SqVersion::V0_6_0.has(endpoint));
            assert_eq!(SqVersion::V0_5_0.has(endpoint), endpoint != Endpoint::Query);
        }
    }
}
