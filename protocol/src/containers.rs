//! Labels by which the orchestrator, and the tests, find the containers of one installation.
//!
//! Several orchestrators may share one Docker daemon. Each marks what it creates with an id that is
//! derived from its data root.

use sha2::{Digest, Sha256};

/// The id of the installation, by [`installation_id`].
pub const INSTALLATION: &str = "sq-gateway.installation";
/// Purpose of the container: [`ROLE_SQ`] or [`ROLE_NAMESPACE`].
pub const ROLE: &str = "sq-gateway.role";
/// Name of the tenant that an SQ container serves.
pub const TENANT: &str = "sq-gateway.tenant";
/// Name of the tenant's tier at the time of the start.
pub const TIER: &str = "sq-gateway.tier";
/// The tenant's limits at the time of the start, as JSON.
pub const LIMITS: &str = "sq-gateway.limits";
/// The release of SQ in the container.
pub const SQ_VERSION: &str = "sq-gateway.sq-version";
/// SHA-256 of the instance key, in hexadecimal: tells whether a stored key is this container's.
pub const KEY_DIGEST: &str = "sq-gateway.key-digest";
/// The host's boot id at the time of the start: a container of an earlier boot is not running.
pub const BOOT: &str = "sq-gateway.boot";

/// Value of [`ROLE`] for a container that runs a tenant's SQ.
pub const ROLE_SQ: &str = "sq";
/// Value of [`ROLE`] for a container that only keeps a network namespace.
pub const ROLE_NAMESPACE: &str = "network";

/// Bytes of the digest that become the id: enough that two installations on a host never meet.
const ID_BYTES: usize = 6;

/// The id of the installation that keeps its tenants below `data_root`, a canonical path.
pub fn installation_id(data_root: &[u8]) -> String {
    hex::encode(&Sha256::digest(data_root)[..ID_BYTES])
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn installation_id_is_derived_from_the_data_root() {
        // printf %s /data | sha256sum
        assert_eq!(installation_id(b"/data"), "bd47413b5c03");
        assert_ne!(installation_id(b"/data"), installation_id(b"/data2"));
    }
}
