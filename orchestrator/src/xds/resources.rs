//! The set of clusters as it should be, each change numbered. Pure.
//!
//! Every change of the set takes the next `seq`. To publish what is there already changes nothing
//! and gives the seq it has had.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// A resource's name, `sq/<tenant>`.
pub type Name = Arc<str>;

/// A number of a change of the set; 0: before the first.
pub type Seq = u64;

/// Hash of a resource's bytes, so that a restarted server gives the same content the same version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Of `body`.
    pub version: Version,
    /// The resource as it goes on the wire.
    pub body: Arc<[u8]>,
    /// When it became so.
    pub seq: Seq,
}

/// The set.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: BTreeMap<Name, Entry>,
    seq: Seq,
}

/// What a call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The set differs since this seq.
    At(Seq),
    /// It was so already, since this seq.
    Since(Seq),
}

impl Version {
    /// 64 bits of SHA-256: collisions within one tenant's few versions do not happen.
    pub fn of(body: &[u8]) -> Self {
        Self(hex::encode(&Sha256::digest(body)[..8]))
    }
}

impl Change {
    /// The seq, either way.
    pub fn seq(self) -> Seq {
        match self {
            Self::At(seq) | Self::Since(seq) => seq,
        }
    }
}

impl Catalog {
    /// Sets a resource.
    pub fn put(&mut self, name: &Name, body: Vec<u8>) -> Change {
        let version = Version::of(&body);
        if let Some(entry) = self.entries.get(name)
            && entry.version == version
        {
            return Change::Since(entry.seq);
        }
        self.seq += 1;
        let entry = Entry { version, body: body.into(), seq: self.seq };
        self.entries.insert(name.clone(), entry);
        Change::At(self.seq)
    }

    /// Takes a resource away. Of one that is not there: as of now.
    pub fn remove(&mut self, name: &str) -> Change {
        if self.entries.remove(name).is_none() {
            return Change::Since(self.seq);
        }
        self.seq += 1;
        Change::At(self.seq)
    }

    /// A resource.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All resources, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Entry)> {
        self.entries.iter()
    }

    /// The last change.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// How many resources.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_takes_a_number() {
        let mut catalog = Catalog::default();
        let name: Name = "sq/a".into();
        assert_eq!(catalog.put(&name, vec![1]), Change::At(1));
        assert_eq!(catalog.put(&name, vec![1]), Change::Since(1));
        assert_eq!(catalog.put(&name, vec![2]), Change::At(2));
        assert_eq!(catalog.remove("sq/b"), Change::Since(2));
        assert_eq!(catalog.remove("sq/a"), Change::At(3));
        assert!(catalog.is_empty());
    }

    #[test]
    fn the_same_bytes_have_the_same_version_in_every_life() {
        assert_eq!(Version::of(b"x"), Version::of(b"x"));
        assert_ne!(Version::of(b"x"), Version::of(b"y"));
    }
}
