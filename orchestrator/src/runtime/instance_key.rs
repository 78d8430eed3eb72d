//! The key of one SQ instance, generated at each start. Only the instance and Envoy's cluster for it
//! know this key. Clients' keys never reach SQ.

use std::fmt;

/// Random bytes in a key: 128 bits can't be guessed over a network.
const KEY_BYTES: usize = 16;

/// An instance's key as SQ takes it: 32 lower-case hexadecimal digits. `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct InstanceKey(String);

/// The text is not an instance key. The error never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance key is {} lower-case hexadecimal digits", KEY_BYTES * 2)]
pub struct InvalidInstanceKey;

/// The operating system provides no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system provides no random bytes")]
pub struct NoRandomness;

impl InstanceKey {
    /// Generates a new key from the operating system's random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bits = [0; KEY_BYTES];
        getrandom::fill(&mut bits).map_err(|_| NoRandomness)?;
        Ok(Self(hex::encode(bits)))
    }

    /// Parses the key that an instance was started with.
    pub fn parse(text: &str) -> Result<Self, InvalidInstanceKey> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == KEY_BYTES * 2 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInstanceKey)
        }
    }

    /// A constant that stands where a key is required and no instance exists: all zeros.
    pub fn placeholder() -> Self {
        Self("0".repeat(KEY_BYTES * 2))
    }

    /// The plaintext, for SQ's command line and Envoy's cluster.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstanceKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_differ_and_parse() {
        let first = InstanceKey::generate().unwrap();
        let second = InstanceKey::generate().unwrap();
        assert_ne!(first, second);
        assert_eq!(InstanceKey::parse(first.expose()), Ok(first));
    }

    #[test]
    fn debug_output_hides_the_key() {
        let key = InstanceKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "InstanceKey(***)");
    }

    #[test]
    fn malformed_keys_are_refused() {
        for bad in ["", "ab", &"g".repeat(32), &"A".repeat(32), &"a".repeat(33)] {
            assert_eq!(InstanceKey::parse(bad), Err(InvalidInstanceKey), "{bad}");
        }
    }
}
