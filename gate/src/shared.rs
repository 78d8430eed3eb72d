//! What all VMs of one Envoy share: a map with compare-and-swap, and the clock.
//!
//! The host keeps it as long as its process runs: through VM reloads, configuration changes and new
//! modules. It never frees a key, so no text that a client chooses may become one.

/// The shared map and clock. The filter implements it by hostcalls, tests by [`Local`].
pub trait Shared {
    /// The value of a key and its version.
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)>;

    /// The host's clock as of now, in nanoseconds since 1970; 0 if the host has none. All VMs have the
    /// same, while the time of an event may be as old as the last tick of its VM.
    fn now_ns(&self) -> u64;

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
pub struct Local {
    map: std::collections::BTreeMap<String, (Vec<u8>, u32)>,
    /// Time of the clock.
    pub now_ns: u64,
}

impl Shared for Local {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.map.get(key).cloned()
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed> {
        let next = match (self.map.get(key), version) {
            (None, None) => 1,
            (Some((_, current)), Some(seen)) if *current == seen => current.wrapping_add(1),
            _ => return Err(Changed),
        };
        self.map.insert(key.to_owned(), (value.to_vec(), next));
        Ok(())
    }
}

#[cfg(test)]
impl Local {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
}
