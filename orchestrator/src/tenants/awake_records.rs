//! Records of the tenants that were started and not stopped in order, in `<state_dir>/awake/`.
//!
//! A gateway may hold a lease on such a tenant, so the next run must start it again if its instance
//! is gone. The runtime alone can't tell: it removes a dead instance before it starts the next one,
//! and an orchestrator that is killed in between leaves nothing that the runtime could list.
//!
//! ```text
//!  start succeeds ─► written ─► leases … ─► stopped in order, or no lease is live ─► removed
//! ```
//!
//! A record that stays behind, such as that of a tenant whose restart failed, costs one start at
//! most. Records of an earlier boot count for nothing, because the gateways run on this host.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::{Limits, SqVersion, TenantId, TierName};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::host;
use crate::runtime::{ExitKind, Found, FoundState, Spec};
use crate::storage::atomic_file::{self, entries, remove_if_exists};
use crate::storage::private::create_private_folder;

/// Ending of a record's file name, after the tenant's name.
const SUFFIX: &str = ".json";

/// The records of one state folder.
#[derive(Debug)]
pub struct AwakeRecords {
    folder: PathBuf,
    /// The host's present boot; empty where it can't be read.
    boot: String,
}

/// The facts that a start needs and that only the tenant's last lease request knew.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    boot: String,
    tier: TierName,
    limits: Limits,
    sq_version: SqVersion,
}

impl AwakeRecords {
    /// Opens the records in a state folder.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join("awake");
        create_private_folder(&folder)?;
        atomic_file::remove_leftovers(&folder)?;
        Ok(Self { folder, boot: host::boot().unwrap_or_default() })
    }

    /// Records that a tenant was started. Need not survive a crash of the host.
    pub(super) fn write(&self, spec: &Spec) -> io::Result<()> {
        let record = Record {
            boot: self.boot.clone(),
            tier: spec.tier.clone(),
            limits: spec.limits.clone(),
            sq_version: spec.sq_version,
        };
        atomic_file::write_unflushed(&self.path(&spec.tenant), &serde_json::to_vec(&record)?)
    }

    /// Forgets a tenant on which no lease is live.
    pub(super) fn remove(&self, tenant: &TenantId) -> io::Result<()> {
        remove_if_exists(&self.path(tenant))
    }

    /// Adds the recorded tenants whose instances the runtime has not found: they are dead. Writes
    /// the records of found instances that have none, which an earlier release has started.
    pub fn complete(&self, found: &mut Vec<Found>) -> io::Result<()> {
        let mut recorded = self.read_all()?;
        for instance in found.iter() {
            if recorded.remove(&instance.tenant).is_none() && instance.endpoint.is_some() {
                self.write(&Spec {
                    tenant: instance.tenant.clone(),
                    tier: instance.tier.clone(),
                    limits: instance.limits.clone(),
                    sq_version: instance.sq_version,
                })?;
            }
        }
        found.extend(recorded.into_iter().map(|(tenant, record)| Found {
            tenant,
            tier: record.tier,
            limits: record.limits,
            sq_version: record.sq_version,
            state: FoundState::Stopped(ExitKind::Gone),
            endpoint: None,
        }));
        Ok(())
    }

    /// Reads the records of this boot, and removes the others.
    fn read_all(&self) -> io::Result<BTreeMap<TenantId, Record>> {
        let mut records = BTreeMap::new();
        for entry in entries(&self.folder)? {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            let Some(Ok(tenant)) = stem.map(TenantId::parse) else {
                warn!(path = %entry.path().display(), "file is not the record of a tenant");
                continue;
            };
            match serde_json::from_slice::<Record>(&fs::read(entry.path())?) {
                Ok(record) if record.boot == self.boot => drop(records.insert(tenant, record)),
                Ok(_) => self.remove(&tenant)?,
                Err(error) => {
                    warn!(%tenant, %error, "record of an awake tenant is unreadable; removed");
                    self.remove(&tenant)?;
                }
            }
        }
        Ok(records)
    }

    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.folder.join(format!("{tenant}{SUFFIX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::instance_key::InstanceKey;
    use crate::runtime::{Endpoint, InstanceId};

    fn spec(tenant: &str) -> Spec {
        Spec {
            tenant: TenantId::parse(tenant).unwrap(),
            tier: TierName::parse("pro").unwrap(),
            limits: Limits { memory_bytes: 1 << 30, ..Limits::default() },
            sq_version: SqVersion::V0_6_0,
        }
    }

    fn running(tenant: &str) -> Found {
        let Spec { tenant, tier, limits, sq_version } = spec(tenant);
        let endpoint = Endpoint {
            instance: InstanceId("1".to_owned()),
            address: ([127, 0, 0, 1], 1).into(),
            key: InstanceKey::placeholder(),
        };
        let state = FoundState::Running;
        Found { tenant, tier, limits, sq_version, state, endpoint: Some(endpoint) }
    }

    #[test]
    fn recorded_tenant_without_instance_is_found_dead() {
        let dir = tempfile::tempdir().unwrap();
        let records = AwakeRecords::open(dir.path()).unwrap();
        for tenant in ["gone", "stopped", "alive"] {
            records.write(&spec(tenant)).unwrap();
        }
        records.remove(&spec("stopped").tenant).unwrap();
        let mut found = vec![running("alive")];
        AwakeRecords::open(dir.path()).unwrap().complete(&mut found).unwrap();
        let gone =
            Found { state: FoundState::Stopped(ExitKind::Gone), endpoint: None, ..running("gone") };
        assert_eq!(found, [running("alive"), gone], "tier and limits are those of its start");
    }

    #[test]
    fn instance_of_an_earlier_release_gets_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let records = AwakeRecords::open(dir.path()).unwrap();
        records.complete(&mut vec![running("alive")]).unwrap();
        let mut found = Vec::new();
        records.complete(&mut found).unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn record_of_an_earlier_boot_wakes_no_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let records = AwakeRecords::open(dir.path()).unwrap();
        let earlier =
            AwakeRecords { boot: "another".to_owned(), ..AwakeRecords::open(dir.path()).unwrap() };
        earlier.write(&spec("gone")).unwrap();
        fs::write(records.path(&spec("torn").tenant), "{").unwrap();
        let mut found = Vec::new();
        records.complete(&mut found).unwrap();
        assert_eq!(found, []);
        assert!(entries(&records.folder).unwrap().is_empty(), "useless records stay");
    }
}
