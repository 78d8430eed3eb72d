//! Bounds on the files of a tenant that are copied, by its tier.
//!
//! Code within SQ could make files of any length that occupy nothing on the disk. Copies would be real
//! bytes, and a copy is in memory while it is made.

use std::collections::BTreeMap;

use protocol::Limits;

use crate::storage::tenant_file::{FILE_MAX_BYTES, Stamp};

/// Multiple of the tier's limits that is copied: room for writes that the gateway counts late, and for
/// files from before a tier was lowered.
const MARGIN: u64 = 2;

/// Bounds of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Length of a file.
    pub(super) file_bytes: u64,
    /// Length of all files together.
    total_bytes: u64,
}

/// The files of a tenant, divided by its bounds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Divided {
    /// Files that are copied.
    pub(super) within: BTreeMap<String, Stamp>,
    /// Files that are neither read, nor copied, nor repaired.
    pub(super) beyond: BTreeMap<String, Stamp>,
}

impl Default for Bounds {
    /// Bounds while the tenant's limits are unknown: those of the largest tenant.
    fn default() -> Self {
        Self { file_bytes: FILE_MAX_BYTES, total_bytes: u64::MAX }
    }
}

impl Bounds {
    pub(super) fn of(limits: &Limits) -> Self {
        Self {
            file_bytes: limits.phext_max_bytes().saturating_mul(MARGIN).min(FILE_MAX_BYTES),
            total_bytes: limits.storage_bytes.saturating_mul(MARGIN),
        }
    }

    /// Divides a tenant's files. The smallest come first, so that one that is too large does not keep
    /// the others from being copied.
    pub(super) fn divide(&self, mut files: BTreeMap<String, Stamp>) -> Divided {
        let mut by_length: Vec<(u64, String)> =
            files.iter().map(|(name, stamp)| (stamp.bytes, name.clone())).collect();
        by_length.sort_unstable();
        let mut total: u64 = 0;
        let mut beyond = BTreeMap::new();
        for (bytes, name) in by_length {
            total = total.saturating_add(bytes);
            if (bytes > self.file_bytes || total > self.total_bytes)
                && let Some(stamp) = files.remove(&name)
            {
                beyond.insert(name, stamp);
            }
        }
        Divided { within: files, beyond }
    }
}

impl Divided {
    /// Names the first file beyond the bounds, and the number of the others; `None` if all are within.
    pub(super) fn complaint(&self) -> Option<String> {
        let (name, stamp) = self.beyond.first_key_value()?;
        let others = match self.beyond.len() - 1 {
            0 => String::new(),
            others => format!(", as are {others} other files"),
        };
        let bytes = stamp.bytes;
        Some(format!("{name}: its {bytes} bytes are more than the tier allows: not copied{others}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(lengths: &[(&str, u64)]) -> BTreeMap<String, Stamp> {
        let stamp = |(name, bytes): &(&str, u64)| ((*name).to_owned(), Stamp::of_test(*bytes, 1));
        lengths.iter().map(stamp).collect()
    }

    fn beyond(lengths: &[(&str, u64)], bounds: Bounds) -> Vec<String> {
        let divided = bounds.divide(files(lengths));
        assert_eq!(divided.within.len() + divided.beyond.len(), lengths.len());
        divided.beyond.into_keys().collect()
    }

    #[test]
    fn free_tier_has_twice_its_limits() {
        let bounds = Bounds::of(&Limits::default());
        assert_eq!(bounds, Bounds { file_bytes: 8_000_000, total_bytes: 50_000_000 });
    }

    #[test]
    fn large_file_is_beyond_and_others_are_not() {
        let bounds = Bounds { file_bytes: 10, total_bytes: 100 };
        assert_eq!(beyond(&[("a", 11), ("b", 10), ("c", 1)], bounds), ["a"]);
    }

    #[test]
    fn largest_files_of_a_full_store_are_beyond() {
        let bounds = Bounds { file_bytes: 10, total_bytes: 20 };
        assert_eq!(beyond(&[("a", 10), ("b", 9), ("c", 8)], bounds), ["a"]);
        assert_eq!(beyond(&[("a", 10), ("b", 10), ("c", 0)], bounds), [""; 0]);
    }

    #[test]
    fn unknown_limits_bound_a_file_only() {
        let bounds = Bounds::default();
        assert_eq!(beyond(&[("a", FILE_MAX_BYTES), ("b", FILE_MAX_BYTES + 1)], bounds), ["b"]);
    }

    #[test]
    fn complaint_names_a_file_and_counts_the_others() {
        let bounds = Bounds { file_bytes: 1, total_bytes: 1 };
        let complaint = |lengths| bounds.divide(files(lengths)).complaint();
        assert_eq!(complaint(&[("a", 1)]), None);
        let one = "a: its 2 bytes are more than the tier allows: not copied";
        assert_eq!(complaint(&[("a", 2)]).as_deref(), Some(one));
        let all = complaint(&[("a", 2), ("b", 3), ("c", 3)]).unwrap();
        assert!(all.ends_with(", as are 2 other files"), "{all}");
    }
}
