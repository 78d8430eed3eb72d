//! Extracts the API key from a request's headers. Only its digest leaves this file.
//!
//! SQ's own clients put the key in one of three places: `Authorization: Bearer K`,
//! `Authorization: K`, `X-SQ-API-Key: K`. The same key in two places is accepted. Two different
//! keys are refused, because the owner of the request would depend on the header that is read
//! (RFC 6750, section 2, allows one method per request).

use protocol::{ApiKey, KeyHash, headers};

/// The reason a request has no usable key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialFault {
    /// No header carries a key.
    Absent,
    /// A header that should carry a key carries something else.
    Malformed,
    /// Two headers carry different keys.
    Conflicting,
}

/// Collects credentials header by header. Borrows the key for one callback only.
#[derive(Default)]
pub(crate) struct Credentials<'a> {
    key: Option<&'a [u8]>,
    fault: Option<CredentialFault>,
}

impl<'a> Credentials<'a> {
    /// Examines one header. The host delivers names in lower case.
    pub(crate) fn see(&mut self, name: &str, value: &'a [u8]) {
        let key = match name {
            "authorization" => strip_scheme(value.trim_ascii()),
            headers::API_KEY => value.trim_ascii(),
            _ => return,
        };
        if ApiKey::check(key).is_err() {
            self.fault = self.fault.or(Some(CredentialFault::Malformed));
        } else if self.key.is_some_and(|seen| seen != key) {
            self.fault = Some(CredentialFault::Conflicting);
        } else {
            self.key = Some(key);
        }
    }

    /// Returns the digest of the key, if exactly one key was found.
    pub(crate) fn digest(&self) -> Result<KeyHash, CredentialFault> {
        match (self.fault, self.key) {
            (Some(fault), _) => Err(fault),
            (None, None) => Err(CredentialFault::Absent),
            (None, Some(key)) => Ok(KeyHash::of(key)),
        }
    }
}

/// Strips `Bearer` (in any case) and the spaces after it. Returns other values unchanged.
fn strip_scheme(value: &[u8]) -> &[u8] {
    const SCHEME: &[u8] = b"bearer";
    match value.split_at_checked(SCHEME.len()) {
        Some((scheme, rest))
            if scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_some_and(|b| *b == b' ') =>
        {
            rest.trim_ascii_start()
        }
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const KEY: &str = "pmb-v1-00112233445566778899aabbccddeeff";
    const OTHER: &str = "pmb-v1-ffeeddccbbaa99887766554433221100";

    fn digest(headers: &[(&str, &str)]) -> Result<KeyHash, CredentialFault> {
        let mut credentials = Credentials::default();
        for (name, value) in headers {
            credentials.see(name, value.as_bytes());
        }
        credentials.digest()
    }

    #[test]
    fn key_is_found_in_all_three_places() {
        let good = Ok(KeyHash::of(KEY.as_bytes()));
        for (name, value) in [
            ("authorization", format!("Bearer {KEY}")),
            ("authorization", format!("bEARER   {KEY} ")),
            ("authorization", KEY.to_owned()),
            ("x-sq-api-key", KEY.to_owned()),
        ] {
            assert_eq!(digest(&[(name, &value)]), good, "{name}: {value}");
        }
    }

    #[test]
    fn repeated_key_is_accepted_and_different_keys_conflict() {
        let bearer = format!("Bearer {KEY}");
        let both = [("authorization", bearer.as_str()), ("x-sq-api-key", KEY)];
        assert_eq!(digest(&both), Ok(KeyHash::of(KEY.as_bytes())));
        let two = [("authorization", bearer.as_str()), ("x-sq-api-key", OTHER)];
        assert_eq!(digest(&two), Err(CredentialFault::Conflicting));
    }

    #[test]
    fn similar_header_names_carry_no_key() {
        let near = [("authorization-foo", KEY), ("x-sq-api-key-2", KEY), ("cookie", KEY)];
        assert_eq!(digest(&near), Err(CredentialFault::Absent));
    }

    #[test]
    fn other_values_are_malformed() {
        let joined = format!("{KEY},{KEY}");
        let basic = format!("Basic {KEY}");
        let glued = format!("Bearer{KEY}");
        for bad in ["", "Bearer", "Bearer ", &basic, &joined, &glued, &KEY[1..], "\u{fe}"] {
            assert_eq!(digest(&[("authorization", bad)]), Err(CredentialFault::Malformed), "{bad}");
        }
    }
}
