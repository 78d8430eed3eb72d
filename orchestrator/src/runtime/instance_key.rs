//! The key of one SQ instance: minted here at each start, known to the instance and to Envoy's
//! cluster of it, and to nobody else. No customer's key ever reaches this host.

use std::fmt;

/// Random bytes in a key: 128 bits can't be guessed through a network.
const KEY_BYTES: usize = 16;

/// A minted key as SQ takes it: lower-case hexadecimal digits. `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct MintedKey(String);

/// Why a text is not a minted key. Never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a minted key is {} lower-case hexadecimal digits", KEY_BYTES * 2)]
pub struct NotMinted;

/// The system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

impl MintedKey {
    /// A new key from the system's randomness.
    pub fn mint() -> Result<Self, NoRandomness> {
        let mut bits = [0; KEY_BYTES];
        getrandom::fill(&mut bits).map_err(|_| NoRandomness)?;
        Ok(Self(hex::encode(bits)))
    }

    /// Reads back a key that an instance was started with.
    pub fn parse(text: &str) -> Result<Self, NotMinted> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let good = text.len() == KEY_BYTES * 2 && text.bytes().all(digit);
        if good { Ok(Self(text.to_owned())) } else { Err(NotMinted) }
    }

    /// One that opens nothing: no instance is ever started with it.
    pub fn nobodys() -> Self {
        Self("0".repeat(KEY_BYTES * 2))
    }

    /// The plaintext, for SQ's command line and Envoy's cluster.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for MintedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MintedKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_new_and_is_read_back() {
        let (a, b) = (MintedKey::mint().unwrap(), MintedKey::mint().unwrap());
        assert_ne!(a, b);
        assert_eq!(MintedKey::parse(a.expose()), Ok(a));
    }

    #[test]
    fn a_key_never_prints_itself() {
        assert_eq!(format!("{:?}", MintedKey::mint().unwrap()), "MintedKey(***)");
    }

    #[test]
    fn nothing_else_is_a_key() {
        for bad in ["", "ab", &"g".repeat(32), &"A".repeat(32), &"a".repeat(33)] {
            assert_eq!(MintedKey::parse(bad), Err(NotMinted), "{bad}");
        }
    }
}
