//! A bounded map that forgets what has not been used lately, in two generations.
//!
//! A use moves an entry to the young generation; when that is half of the bound, the old one is
//! dropped and the young one ages. Nothing is ever scanned, and no time is needed.

use std::collections::BTreeMap;

/// The map. Holds at most `bound` entries.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    young: BTreeMap<K, V>,
    old: BTreeMap<K, V>,
    half: usize,
}

impl<K: Ord + Clone, V> Cache<K, V> {
    /// An empty cache of at most `bound` (at least 2) entries.
    pub(crate) fn new(bound: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), half: (bound / 2).max(1) }
    }

    /// The entry, which is in use from now on.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        // Looked up twice where borrows could say it in one: the common case is a hit here.
        if self.young.contains_key(key) {
            return self.young.get_mut(key);
        }
        let value = self.old.remove(key)?;
        self.insert(key.clone(), value);
        self.young.get_mut(key)
    }

    /// Adds or replaces.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Drops the entry.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    /// Every entry, used or not.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.young.values_mut().chain(self.old.values_mut())
    }

    /// Number of entries.
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
    fn the_bound_holds_and_what_is_used_stays() {
        let mut cache = Cache::new(10);
        cache.insert(0, "used");
        for key in 1..1000 {
            cache.insert(key, "once");
            assert!(cache.get_mut(&0).is_some(), "forgotten at {key}");
            assert!(cache.len() <= 10);
        }
    }

    #[test]
    fn what_is_removed_is_gone_from_both_generations() {
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
