//! The storage part of notices. One measurement of a tenant serves the reports of all VM instances
//! within a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use protocol::{TenantId, TenantNotice};

use crate::storage::disk::{Disk, Used};

/// Age up to which a measurement is used again. Each VM instance reports once a second.
const FRESH: Duration = Duration::from_millis(900);

/// Time between two deletions of old measurements.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Measurements remembered, of about 300 bytes and the names of the tenant's phexts. If more tenants
/// are active within a second, the surplus is measured at each report.
const MEASUREMENTS_MAX: usize = 65_536;

/// Tenants' use of the disk, measured at most once a second each.
#[derive(Debug)]
pub struct Storage {
    disk: Disk,
    measurements: Mutex<Measurements>,
}

#[derive(Debug, Default)]
struct Measurements {
    tenants: HashMap<TenantId, (Instant, Used)>,
    host_full: Option<(Instant, bool)>,
    /// Time of the last deletion, which walks through all measurements.
    swept_at: Option<Instant>,
}

impl Measurements {
    fn remember(&mut self, tenant: &TenantId, at: Instant, used: Used) {
        let age = |then: Instant| at.saturating_duration_since(then);
        if self.swept_at.is_none_or(|swept_at| age(swept_at) >= SWEEP_INTERVAL) {
            self.tenants.retain(|_, (measured_at, _)| age(*measured_at) < FRESH);
            self.swept_at = Some(at);
        }
        if self.tenants.len() < MEASUREMENTS_MAX || self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), (at, used));
        }
    }
}

impl Storage {
    /// Measures on `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk, measurements: Mutex::default() }
    }

    /// Enters the tenant's measurement and its age into `notice`. A tenant that can't be measured
    /// counts as a full host: a refused write is better than a truncated file. Costs one listing of a
    /// folder, and reading the phexts that have changed.
    pub fn fill(&self, tenant: &TenantId, notice: &mut TenantNotice) {
        notice.host_full = self.host_full();
        if let Some((measured_at, used)) = self.fresh(tenant) {
            enter(notice, measured_at, used);
            return;
        }
        // Before the measurement, because it may miss writes that happen during it.
        let measured_at = Instant::now();
        let Ok(used) = self.disk.used(tenant) else {
            notice.host_full = true;
            return;
        };
        enter(notice, measured_at, used.clone());
        self.measurements.lock().remember(tenant, measured_at, used);
    }

    fn fresh(&self, tenant: &TenantId) -> Option<(Instant, Used)> {
        let measurements = self.measurements.lock();
        let measured = measurements.tenants.get(tenant);
        measured.filter(|(measured_at, _)| measured_at.elapsed() < FRESH).cloned()
    }

    fn host_full(&self) -> bool {
        let measured = self.measurements.lock().host_full;
        if let Some((measured_at, full)) = measured
            && measured_at.elapsed() < FRESH
        {
            return full;
        }
        let measured_at = Instant::now();
        let full = self.disk.is_full();
        self.measurements.lock().host_full = Some((measured_at, full));
        full
    }
}

fn enter(notice: &mut TenantNotice, measured_at: Instant, used: Used) {
    notice.storage_age_ms = u64::try_from(measured_at.elapsed().as_millis()).unwrap_or(u64::MAX);
    notice.storage_used_bytes = used.bytes;
    notice.phexts = used.phexts;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(measurements: &mut Measurements, number: usize, at: Instant) {
        let tenant = TenantId::parse(&format!("t{number}")).unwrap();
        measurements.remember(&tenant, at, Used::default());
    }

    #[test]
    fn measurements_are_bounded_and_expire() {
        let mut measurements = Measurements::default();
        let begin = Instant::now();
        for number in 0..MEASUREMENTS_MAX + 10 {
            remember(&mut measurements, number, begin);
        }
        assert_eq!(measurements.tenants.len(), MEASUREMENTS_MAX);
        remember(&mut measurements, 0, begin + SWEEP_INTERVAL / 2);
        assert_eq!(measurements.tenants.len(), MEASUREMENTS_MAX, "not swept at every report");
        remember(&mut measurements, 1, begin + SWEEP_INTERVAL);
        assert_eq!(measurements.tenants.len(), 2);
    }

    #[test]
    fn fresh_measurement_is_used_again() {
        let root = tempfile::tempdir().unwrap();
        let alice = TenantId::parse("alice").unwrap();
        let folder = root.path().join("alice");
        std::fs::create_dir(&folder).unwrap();
        let storage = Storage::new(Disk::new(root.path(), 0));
        let mut notice = TenantNotice::default();
        for text in ["four", "and more"] {
            std::fs::write(folder.join("a.phext"), text).unwrap();
            storage.fill(&alice, &mut notice);
            assert_eq!((notice.storage_used_bytes, notice.host_full), (4, false));
        }
    }
}
