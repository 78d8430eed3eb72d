//! API keys and their digests.
//!
//! A key is `pmb-v1-` and 32 hexadecimal digits. The key itself is only in the client's requests and,
//! once, on the screen of the operator who created it. Everything else works with its SHA-256,
//! [`KeyHash`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Prefix of every key.
pub const KEY_PREFIX: &str = "pmb-v1-";
/// Hexadecimal digits after the prefix: 128 bits.
pub const KEY_HEX_DIGITS: usize = 32;
/// Length of a whole key in bytes.
pub const KEY_BYTES: usize = KEY_PREFIX.len() + KEY_HEX_DIGITS;

/// A plaintext API key. `Debug` prints `***`; there is no `Display` on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// The error for a text that is not a key. It never contains the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedKey;

impl ApiKey {
    /// Reads a key. Digits may be upper or lower case; the digest is computed of the exact bytes.
    pub fn parse(text: &str) -> Result<Self, MalformedKey> {
        Self::check(text.as_bytes())?;
        Ok(Self(text.to_owned()))
    }

    /// Checks that `bytes` have the form of a key, without copying them.
    pub fn check(bytes: &[u8]) -> Result<(), MalformedKey> {
        let digits = bytes.strip_prefix(KEY_PREFIX.as_bytes()).ok_or(MalformedKey)?;
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        if is_hex && digits.len() == KEY_HEX_DIGITS { Ok(()) } else { Err(MalformedKey) }
    }

    /// Forms a key from 128 random bits, which the caller provides.
    pub fn from_random(bits: [u8; KEY_HEX_DIGITS / 2]) -> Self {
        Self(format!("{KEY_PREFIX}{}", hex::encode(bits)))
    }

    /// The digest by which the key is cached, sent and stored.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.0.as_bytes())
    }

    /// The plaintext, for the one screen that shows it. The name makes the exposure visible in the
    /// calling code.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

impl FromStr for ApiKey {
    type Err = MalformedKey;
    fn from_str(text: &str) -> Result<Self, MalformedKey> {
        Self::parse(text)
    }
}

impl fmt::Display for MalformedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key is {KEY_PREFIX} and {KEY_HEX_DIGITS} hexadecimal digits")
    }
}

impl std::error::Error for MalformedKey {}

/// SHA-256 of a key, which is cached, sent and logged instead of it. As text: 64 lower-case digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

/// The error for a text that is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedHash;

impl KeyHash {
    /// Computes the digest of a key that the caller has checked.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The 32 bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for KeyHash {
    type Err = MalformedHash;
    fn from_str(text: &str) -> Result<Self, MalformedHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| MalformedHash)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for KeyHash {
    type Error = MalformedHash;
    fn try_from(text: String) -> Result<Self, MalformedHash> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> Self {
        hex::encode(hash.0)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

impl fmt::Display for MalformedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a digest is 64 hexadecimal digits (SHA-256 of the key)")
    }
}

impl std::error::Error for MalformedHash {}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const KEY: &str = "pmb-v1-00112233445566778899aabbccddeeff";

    #[test]
    fn key_is_prefix_and_32_hex_digits() {
        assert!(ApiKey::parse(KEY).is_ok());
        assert!(ApiKey::parse(&KEY.to_uppercase().replace("PMB-V1-", "pmb-v1-")).is_ok());
        for bad in ["", "pmb-v1-", &KEY[..38], &format!("{KEY}0"), &KEY.replace("00", "g0"), " "] {
            assert_eq!(ApiKey::parse(bad), Err(MalformedKey), "{bad:?}");
        }
    }

    #[test]
    fn key_never_prints_itself() {
        let key = ApiKey::parse(KEY).unwrap();
        assert_eq!(format!("{key:?}"), "ApiKey(***)");
    }

    #[test]
    fn digest_survives_json() {
        // printf %s pmb-v1-00112233445566778899aabbccddeeff | sha256sum
        let hash = ApiKey::parse(KEY).unwrap().hash();
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json.len(), 66);
        assert_eq!(serde_json::from_str::<KeyHash>(&json).unwrap(), hash);
        assert!(serde_json::from_str::<KeyHash>("\"abc\"").is_err());
    }
}
