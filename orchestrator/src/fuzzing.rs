//! Entries for the fuzz targets (`fuzz/`), compiled with `--cfg fuzzing` only: what the orchestrator
//! reads from gateways and Envoys, each with the rules that must hold whatever the bytes say.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::slice;
use std::sync::Arc;

use protocol::time::HOUR_S;
use protocol::usage::{Counters, UsageRow};
use protocol::{GatewayId, LeaseRequest, Limits, SqVersion, TenantId, TierName, UsageReport};

use crate::usage::names::Names;
use crate::usage::received::{RawReport, ReceivedReport};
use crate::usage::store::Store;
use crate::usage::sums::Sums;
use crate::usage::suspicion::Suspicion;
use crate::xds::cluster::{BearerToken, ClusterSpec};
use crate::xds::resources::{Change, ResourceName, ResourceSet, Version};
use crate::xds::session::{Request, Session};

/// The time at which reports arrive, in seconds since 1970.
const NOW_S: u64 = 1_800_000_000;

/// Tenants that exist: those whose name begins with `a`. Every tier does.
#[derive(Debug)]
struct SomeNames;

impl Names for SomeNames {
    fn is_tenant(&self, tenant: &TenantId) -> bool {
        tenant.as_str().starts_with('a')
    }

    fn is_tier(&self, _: &TierName) -> bool {
        true
    }
}

/// A usage report is recorded whatever it says: each row once, in the sums or in the quarantine.
///
/// # Panics
///
/// If the ledger breaks one of its rules.
pub fn usage_report(bytes: &[u8]) {
    let received = match serde_json::from_slice::<RawReport>(bytes) {
        Ok(raw) => ReceivedReport::from(raw),
        // Few texts are JSON. The others stand for the numbers of a report.
        Err(_) => report_of(bytes),
    };
    let rows = received.report.rows.len() + received.malformed.len();
    let mut store = Store::in_memory(Arc::new(SomeNames)).expect("a ledger");
    let reports = slice::from_ref(&received);
    let first = store.commit(reports, NOW_S).expect("a report is recorded");
    let quarantined: u64 = first.quarantined.values().sum();
    assert!(quarantined <= rows as u64, "{quarantined} of {rows} rows are in quarantine");
    // The counters are cumulative: the same report again says nothing new. Only a row that its source
    // could not have counted yet is taken later, when there was time.
    let again = store.commit(reports, NOW_S).expect("a report is recorded");
    if !first.quarantined.contains_key(&Suspicion::Jump) {
        assert_eq!(again.sums, Sums::default(), "a row counted twice");
    }
    // What counts is that of tenants that exist, and no more than was taken.
    let mut taken = first.sums;
    taken.add(&again.sums);
    let mut total = Sums::default();
    for tenant in store.sums_by_tenant(0..u64::MAX).expect("sums") {
        assert!(SomeNames.is_tenant(&tenant.tenant), "{} does not exist", tenant.tenant);
        total.add(&tenant.sums);
    }
    assert_eq!(total.columns(), taken.columns());
}

/// A report with a row for each ten bytes: tenant, hour, and one counter of any size.
fn report_of(bytes: &[u8]) -> ReceivedReport {
    let row = |piece: &[u8; 10]| {
        let [who, hour, value @ ..] = *piece;
        let value = u64::from_le_bytes(value) >> (who & 0x38);
        let mut counters = Counters::default();
        match who & 0x03 {
            0 => counters.reads = value,
            1 => counters.bytes_out = value,
            2 => counters.status[usize::from(who >> 6)] = value,
            _ => drop(counters.refused.insert("rate-limited".to_owned(), value)),
        }
        UsageRow {
            tenant: TenantId::parse(["alice", "bob"][usize::from(who >> 2 & 1)]).expect("a name"),
            tier: TierName::parse("free").expect("a name"),
            limits: Limits::default(),
            hour: (NOW_S / HOUR_S).saturating_add_signed(i64::from(hour.cast_signed())),
            counters,
        }
    };
    let rows = bytes.as_chunks().0.iter().map(row).collect();
    let gateway = GatewayId::parse("gateway-1").expect("a name");
    UsageReport { gateway, source: "vm".to_owned(), sequence: 1, rows }.into()
}

/// A lease request within the bounds becomes a cluster, and survives being written and read again.
///
/// # Panics
///
/// If it does not.
pub fn lease_request(json: &[u8]) {
    let Ok(request) = serde_json::from_slice::<LeaseRequest>(json) else { return };
    let written = serde_json::to_vec(&request).expect("a request can be written");
    assert_eq!(serde_json::from_slice::<LeaseRequest>(&written).expect("it was written"), request);
    let limits = &request.limits;
    if limits.out_of_bounds().is_some() {
        return;
    }
    assert!(limits.memory_bytes <= 1 << 40 && limits.concurrency >= 1);
    assert!(limits.body_max_bytes() <= limits.body_bytes.max(limits.memory_bytes));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1337));
    let spec = ClusterSpec::new(address, BearerToken::new("token"), limits, SqVersion::V0_6_0);
    assert!(spec.encode(&request.tenant).len() < 8_192);
}

/// An Envoy that subscribes, acknowledges and rejects in any order ends up with the whole set, once it
/// behaves.
///
/// # Panics
///
/// If it does not.
pub fn xds_session(bytes: &[u8]) {
    let mut run =
        Run { session: Session::default(), set: ResourceSet::default(), envoy: BTreeMap::new() };
    // Subscribes to everything, as Envoy does.
    run.request(Request::default());
    for step in bytes.chunks_exact(3) {
        run.step(step[0], step[1], step[2]);
    }
    run.settle();
}

/// A session, the set that it publishes, and the Envoy at its other end.
struct Run {
    session: Session,
    set: ResourceSet,
    /// The versions that Envoy has accepted.
    envoy: BTreeMap<ResourceName, Version>,
}

impl Run {
    fn step(&mut self, action: u8, which: u8, content: u8) {
        let name = ResourceName::from(format!("sq/t{}", which % 8));
        match action % 6 {
            0 | 1 => {
                let change = self.set.put(&name, vec![content % 4]);
                self.changed(&name, change);
            }
            2 => {
                let change = self.set.remove(&name);
                self.changed(&name, change);
            }
            3 => drop(self.receive(None)),
            4 => drop(self.receive((content % 2 == 0).then_some(name))),
            _ => {
                // A nonce that the session has not given out, and a name asked for by itself.
                let nonce = format!("x{content}");
                let subscribe = vec![name.to_string()];
                self.request(Request { nonce, subscribe, ..Request::default() });
                // Envoy has what it asks for anew only once it comes.
                self.envoy.remove(&name);
            }
        }
    }

    fn changed(&mut self, name: &ResourceName, change: Change) {
        if let Change::Changed(seq) = change {
            self.session.on_change(name, seq);
        }
    }

    fn request(&mut self, request: Request) {
        self.session.on_request(&request, &self.set).expect("few names");
    }

    /// Takes the next response, and accepts it unless it has the name of a culprit.
    fn receive(&mut self, culprit: Option<ResourceName>) -> bool {
        let Some(response) = self.session.next_response(&self.set, &mut Vec::new()) else {
            return false;
        };
        let is_bad = |name: &ResourceName| Some(name) == culprit.as_ref();
        let error = response.resources.iter().any(|resource| is_bad(&resource.name));
        if error {
            let error = culprit.map(|name| format!("{name} is bad"));
            self.request(Request { nonce: response.nonce, error, ..Request::default() });
            return true;
        }
        for resource in response.resources {
            self.envoy.insert(resource.name, resource.version);
        }
        for name in response.removed {
            self.envoy.remove(&name);
        }
        self.request(Request { nonce: response.nonce, ..Request::default() });
        true
    }

    /// Changes every resource once more, so that rejected ones are sent again, and lets Envoy accept.
    fn settle(&mut self) {
        for which in 0..8 {
            let name = ResourceName::from(format!("sq/t{which}"));
            let change = self.set.put(&name, vec![9]);
            self.changed(&name, change);
        }
        let mut responses = 0;
        while self.receive(None) {
            responses += 1;
            assert!(responses < 100, "the session never rests");
        }
        for resource in self.set.iter() {
            assert_eq!(
                self.envoy.get(&resource.name),
                Some(&resource.version),
                "{}",
                resource.name
            );
        }
    }
}
