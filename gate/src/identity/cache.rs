//! A bounded map that evicts the least recently used entries, in two generations.
//!
//! An access moves an entry to the young generation. When that holds half of the bound, the old
//! generation is dropped and the young one takes its place. Eviction needs neither a scan nor a
//! clock, which is why no LRU crate is used here.

use std::collections::BTreeMap;

/// A map of at most `bound` entries.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    young: BTreeMap<K, V>,
    old: BTreeMap<K, V>,
    half: usize,
}

impl<K: Ord + Clone, V> Cache<K, V> {
    /// Creates an empty cache of at most `bound` (at least 2) entries.
    pub(crate) fn new(bound: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), half: (bound / 2).max(1) }
    }

    /// Returns the entry and marks it as recently used.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        // Two look-ups, because the borrow checker rejects an early return of `get_mut`.
        if self.young.contains_key(key) {
            return self.young.get_mut(key);
        }
        let value = self.old.remove(key)?;
        self.insert(key.clone(), value);
        self.young.get_mut(key)
    }

    /// Adds the entry or replaces its value.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Removes the entry from both generations.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    /// Iterates over all entries without marking them as used.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.young.values_mut().chain(self.old.values_mut())
    }

    /// Number of entries in both generations.
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn bound_holds_and_used_entries_stay() {
        let mut cache = Cache::new(10);
        cache.insert(0, "used");
        for key in 1..1000 {
            cache.insert(key, "once");
            assert!(cache.get_mut(&0).is_some(), "forgotten at {key}");
            assert!(cache.len() <= 10);
        }
    }

    #[test]
    fn removed_entry_is_gone_from_both_generations() {
        let mut cache = Cache::new(4);
        for key in 0..3 {
            cache.insert(key, key);
        }
        for key in 0..3 {
            assert_eq!(cache.remove(&key), Some(key));
            assert_eq!(cache.get_mut(&key), None);
        }
        assert_eq!(cache.len(), 0);
    }
}
