//! The data that all VMs of one Envoy share: a map with compare-and-swap.
//!
//! The host keeps it as long as its process runs: through VM reloads, configuration changes and new
//! modules. It never frees a key, so no text that a client chooses may become one.

/// The shared map. The filter implements it by hostcalls, tests by [`Local`].
pub trait Shared {
    /// The value of a key and its version.
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)>;

    /// Writes `value` if the entry still has `version` (`None`: if there is no entry yet).
    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed>;
}

/// The write lost against another VM's: read and decide again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed;

/// Attempts before a write gives up. Each failed attempt means that another VM's has succeeded.
const UPDATE_TRIES: u32 = 16;

/// Reads, decides and writes, repeatedly while other VMs write first. `decide` returns `None` to
/// leave the entry as it is. Returns whether the entry is as decided.
pub fn update(
    shared: &mut dyn Shared,
    key: &str,
    mut decide: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>,
) -> bool {
    for _ in 0..UPDATE_TRIES {
        let current = shared.get(key);
        let Some(value) = decide(current.as_ref().map(|(bytes, _)| bytes.as_slice())) else {
            return true;
        };
        let version = current.map(|(_, version)| version);
        if shared.set(key, &value, version).is_ok() {
            return true;
        }
    }
    false
}

/// A map in memory: the shared data of one VM, or of several in a test.
#[derive(Debug, Default, Clone)]
pub struct Local(std::collections::BTreeMap<String, (Vec<u8>, u32)>);

impl Shared for Local {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.0.get(key).cloned()
    }

    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed> {
        let next = match (self.0.get(key), version) {
            (None, None) => 1,
            (Some((_, current)), Some(seen)) if *current == seen => current.wrapping_add(1),
            _ => return Err(Changed),
        };
        self.0.insert(key.to_owned(), (value.to_vec(), next));
        Ok(())
    }
}

#[cfg(test)]
impl Local {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
