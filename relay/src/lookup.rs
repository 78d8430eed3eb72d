//! From digest to verdict, in a time that does not depend on how much of the digest is right.
//!
//! Why: whoever may ask (a gateway, or someone who took over one) must not be able to find digests
//! in the registry piece by piece from the time an answer takes. A plain map compares with an early
//! exit. Here the slot is found by a hash under a secret of this process (`SipHash`), which says
//! nothing about the digest, and every digest in the slot is compared whole.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use protocol::{KeyHash, Verdict};
use subtle::ConstantTimeEq;

/// Digests with their verdicts. Made whole, never changed.
#[derive(Debug, Default)]
pub struct Lookup {
    secret: RandomState,
    slots: HashMap<u64, Vec<(KeyHash, Verdict)>>,
    len: usize,
}

impl Lookup {
    /// Takes the verdicts of a registry.
    pub fn new(verdicts: impl IntoIterator<Item = (KeyHash, Verdict)>) -> Self {
        let mut lookup = Self::default();
        for (hash, verdict) in verdicts {
            let slot = lookup.secret.hash_one(hash.as_bytes());
            lookup.slots.entry(slot).or_default().push((hash, verdict));
            lookup.len += 1;
        }
        lookup
    }

    /// The verdict on a digest.
    pub fn get(&self, hash: &KeyHash) -> Option<&Verdict> {
        let slot = self.slots.get(&self.secret.hash_one(hash.as_bytes()))?;
        let mut found = None;
        for (known, verdict) in slot {
            if bool::from(known.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(verdict);
            }
        }
        found
    }

    /// Every digest with its verdict.
    pub fn iter(&self) -> impl Iterator<Item = (&KeyHash, &Verdict)> {
        self.slots.values().flatten().map(|(hash, verdict)| (hash, verdict))
    }

    /// How many digests there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
