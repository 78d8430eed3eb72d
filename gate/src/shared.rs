//! Data that all VMs of one Envoy share: a map with compare-and-swap.
//!
//! The host keeps it for the life of the process: through VM reloads, configuration changes and new
//! modules. It never frees a key, so nothing that a client chooses becomes one.

/// The map as a decision sees it. The filter gives the host's; tests give [`Local`].
pub trait Shared {
    /// The value and its version.
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)>;

    /// Writes `value` if the entry still has `version` (`None`: if there is no entry yet).
    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed>;
}

/// Another VM wrote first: read again and decide again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed;

/// Tries before a write gives up: each failed try means that another VM's has succeeded.
const UPDATE_TRIES: u32 = 16;

/// Reads, decides, writes, and again while other VMs write first. `decide` returns `None` to leave
/// the entry as it is. Says whether the entry is as decided.
pub fn update(
    shared: &mut dyn Shared,
    key: &str,
    mut decide: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>,
) -> bool {
    for _ in 0..UPDATE_TRIES {
        let now = shared.get(key);
        let Some(value) = decide(now.as_ref().map(|(bytes, _)| bytes.as_slice())) else {
            return true;
        };
        if shared.set(key, &value, now.map(|(_, version)| version)).is_ok() {
            return true;
        }
    }
    false
}

/// A map in memory: one VM, or a test's model of several.
#[derive(Debug, Default, Clone)]
pub struct Local(std::collections::BTreeMap<String, (Vec<u8>, u32)>);

impl Shared for Local {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.0.get(key).cloned()
    }

    fn set(&mut self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), Changed> {
        let next = match (self.0.get(key), version) {
            (None, None) => 1,
            (Some((_, now)), Some(seen)) if *now == seen => now.wrapping_add(1),
            _ => return Err(Changed),
        };
        self.0.insert(key.to_owned(), (value.to_vec(), next));
        Ok(())
    }
}

#[cfg(test)]
impl Local {
    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
