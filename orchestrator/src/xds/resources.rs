//! The set of resources as every Envoy should have it, with numbered changes. Pure.
//!
//! Each change of the set takes the next [`Seq`]. Publishing the content that a resource already has
//! changes nothing and reports the number of the change that made it so.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Name of a resource, such as `sq/<tenant>`.
pub(crate) type ResourceName = Arc<str>;

/// Sequence number of a change to the set, counted from 1; 0, the default, stands before the first
/// change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

impl Seq {
    /// Exceeds the number of each change.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the number of the change after this one.
    pub(crate) fn following(self) -> Self {
        Self(self.0 + 1)
    }

    /// Returns the number of the change before this one; `None` before the first.
    pub(crate) fn preceding(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

/// Bytes of the hash that is a version. Two contents of one tenant's cluster with the same 64 bits
/// do not occur.
const VERSION_BYTES: usize = 8;

/// Hash of a resource's content, so that a restarted server gives the same content the same version.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Version(pub(crate) String);

/// One resource of the set. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) name: ResourceName,
    pub(crate) version: Version,
    /// The encoded message, as it goes on the wire.
    pub(crate) body: Arc<[u8]>,
    /// The change that gave it this content.
    pub(crate) seq: Seq,
}

/// The resources by name, and the number of the last change.
#[derive(Debug, Default)]
pub(crate) struct ResourceSet {
    resources: BTreeMap<ResourceName, Resource>,
    seq: Seq,
}

/// Result of [`ResourceSet::put`] and [`ResourceSet::remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The call changed the set; this is the number of the change.
    Changed(Seq),
    /// The set was like that already. An Envoy that has acknowledged this number knows it.
    Unchanged(Seq),
}

impl Version {
    pub(crate) fn of(body: &[u8]) -> Self {
        Self(hex::encode(&Sha256::digest(body)[..VERSION_BYTES]))
    }
}

impl Change {
    pub(crate) fn seq(self) -> Seq {
        match self {
            Self::Changed(seq) | Self::Unchanged(seq) => seq,
        }
    }
}

impl ResourceSet {
    /// Adds a resource or replaces its content.
    pub(crate) fn put(&mut self, name: &ResourceName, body: Vec<u8>) -> Change {
        let version = Version::of(&body);
        if let Some(present) = self.resources.get(name)
            && present.version == version
        {
            return Change::Unchanged(present.seq);
        }
        self.seq = self.seq.following();
        let resource = Resource { name: name.clone(), version, body: body.into(), seq: self.seq };
        self.resources.insert(name.clone(), resource);
        Change::Changed(self.seq)
    }

    /// Removes a resource.
    pub(crate) fn remove(&mut self, name: &str) -> Change {
        if self.resources.remove(name).is_none() {
            // The removal, if there was one, has a number of at most the current one.
            return Change::Unchanged(self.seq);
        }
        self.seq = self.seq.following();
        Change::Changed(self.seq)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Resource> {
        self.resources.get(name)
    }

    /// Iterates in the order of names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// Number of the last change.
    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_takes_a_number() {
        let mut set = ResourceSet::default();
        let name: ResourceName = "sq/a".into();
        assert_eq!(set.put(&name, vec![1]), Change::Changed(Seq(1)));
        assert_eq!(set.put(&name, vec![1]), Change::Unchanged(Seq(1)));
        assert_eq!(set.put(&name, vec![2]), Change::Changed(Seq(2)));
        assert_eq!(set.remove("sq/b"), Change::Unchanged(Seq(2)));
        assert_eq!(set.remove("sq/a"), Change::Changed(Seq(3)));
        assert_eq!(set.iter().count(), 0);
    }

    #[test]
    fn version_depends_on_content_alone() {
        assert_eq!(Version::of(b"x"), Version::of(b"x"));
        assert_ne!(Version::of(b"x"), Version::of(b"y"));
    }
}
