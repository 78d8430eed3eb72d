//! Tests of the driver, with a runtime that records its calls and an Envoy that acknowledges
//! everything.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::{GatewayId, LeaseRequest, Limits, TierName};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::jobs::Ending;
use super::*;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{
    Capabilities, Description, FirewallState, InstanceId, RuntimeError, RuntimeFuture, Spec,
    Started, Stopped,
};
use crate::tenants::lifecycle::{LeaseDecision, StartError};
use crate::xds::{Seq, StreamId};

/// An end that needs no restart.
const ORDERLY: Ending = Ending { orderly: true, restarts: false };

/// A runtime without instances that records its calls.
#[derive(Default)]
struct RecordingRuntime {
    calls: Mutex<Vec<String>>,
    start_fails: AtomicBool,
    /// Instances have died before they are stopped.
    is_dead: AtomicBool,
    deaths: Mutex<Option<mpsc::Receiver<Died>>>,
}

impl RecordingRuntime {
    fn record(&self, call: &str, tenant: &TenantId) -> RuntimeFuture<'_, ()> {
        self.calls.lock().unwrap().push(format!("{call} {tenant}"));
        Box::pin(async { Ok(()) })
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Runtime for RecordingRuntime {
    fn describe(&self) -> Description {
        Description { kind: "recording", notes: Vec::new() }
    }
    fn firewall(&self) -> FirewallState {
        FirewallState::Off
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { can_reclaim: false, max_instances: None }
    }
    fn list(&self) -> RuntimeFuture<'_, Vec<Found>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn start(&self, spec: Spec) -> RuntimeFuture<'_, Started> {
        let recorded = self.record("start", &spec.tenant);
        Box::pin(async move {
            recorded.await?;
            tokio::task::yield_now().await;
            if self.start_fails.load(Ordering::Relaxed) {
                return Err(RuntimeError::Missing("no image".to_owned()));
            }
            let endpoint = Endpoint {
                instance: InstanceId("1".to_owned()),
                address: ([127, 0, 0, 1], 1).into(),
                key: InstanceKey::generate().unwrap(),
            };
            Ok(Started { endpoint, kind: WakeKind::Create })
        })
    }
    fn pause<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        self.record("pause", tenant)
    }
    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        self.record("resume", tenant)
    }
    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped> {
        let recorded = self.record("stop", tenant);
        let dead = self.is_dead.load(Ordering::Relaxed);
        Box::pin(async move {
            recorded.await?;
            Ok(if dead { Stopped::Dead } else { Stopped::Alive })
        })
    }
    fn resize<'a>(&'a self, tenant: &'a TenantId, _: u64) -> RuntimeFuture<'a, ()> {
        self.record("resize", tenant)
    }
    fn memory_bytes<'a>(&'a self, _: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
    }
    fn pid<'a>(&'a self, _: &'a TenantId) -> RuntimeFuture<'a, Option<i32>> {
        Box::pin(async { Ok(None) })
    }
    fn reclaim<'a>(&'a self, _: &'a TenantId) -> RuntimeFuture<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
    }
    fn events(&self) -> Option<mpsc::Receiver<Died>> {
        self.deaths.lock().unwrap().take()
    }
}

/// The process that sends all requests.
const PEER: Peer = Peer { uid: 0, pid: Some(1) };

struct Bench {
    runtime: Arc<RecordingRuntime>,
    handle: Handle,
    end: oneshot::Sender<()>,
    driver: JoinHandle<Result<(), DriverError>>,
    xds: mpsc::Sender<XdsEvent>,
    metrics: Arc<Metrics>,
}

fn parts(runtime: Arc<RecordingRuntime>, vault: Option<Arc<Vault>>) -> Parts {
    let (publisher, _events) = Publisher::new();
    let metrics = Arc::new(Metrics::default());
    Parts { runtime, publisher, vault, awake: None, metrics, sq_version: SqVersion::V0_6_0 }
}

async fn bench() -> Bench {
    bench_with(RecordingRuntime::default()).await
}

async fn bench_with(runtime: RecordingRuntime) -> Bench {
    let runtime = Arc::new(runtime);
    let (xds, events) = mpsc::channel(8);
    let parts = parts(runtime.clone(), None);
    let metrics = parts.metrics.clone();
    let (driver, handle) = Driver::adopt(Settings::default(), parts, Vec::new(), 0, events);
    let stream = StreamId(1);
    let gateway = GatewayId::parse("g").unwrap();
    xds.send(XdsEvent::Connected { stream, gateway, peer: PEER }).await.unwrap();
    xds.send(XdsEvent::Acked { stream, seq: Seq(u64::MAX - 1) }).await.unwrap();
    let (end, ended) = oneshot::channel();
    let driver = tokio::spawn(driver.run(async { drop(ended.await) }));
    Bench { runtime, handle, end, driver, xds, metrics }
}

fn request(tenant: &str) -> LeaseRequest {
    LeaseRequest {
        gateway: GatewayId::parse("g").unwrap(),
        tenant: TenantId::parse(tenant).unwrap(),
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        renew_only: false,
        within_quotas: false,
        patience_ms: None,
    }
}

fn spec(tenant: TenantId) -> Spec {
    Spec {
        tenant,
        tier: TierName::parse("free").unwrap(),
        limits: Limits::default(),
        sq_version: SqVersion::V0_6_0,
    }
}

fn start_error(done: &Done) -> Option<&StartError> {
    match &done.event {
        Some(Event::StartFailed { error, .. }) => Some(error),
        _ => None,
    }
}

#[tokio::test]
async fn concurrent_requests_share_one_start() {
    let bench = bench().await;
    let requests: Vec<_> = (0..500)
        .map(|_| {
            let handle = bench.handle.clone();
            tokio::spawn(async move { handle.lease(PEER, request("a")).await.unwrap().decision })
        })
        .collect();
    for request in requests {
        assert!(matches!(request.await.unwrap(), LeaseDecision::Granted { .. }));
    }
    assert_eq!(bench.runtime.calls(), ["start a"]);
}

#[tokio::test]
async fn failed_start_is_cleaned_up_and_reported() {
    let bench = bench().await;
    bench.runtime.start_fails.store(true, Ordering::Relaxed);
    let decision = bench.handle.lease(PEER, request("a")).await.unwrap().decision;
    assert!(matches!(decision, LeaseDecision::Refused { retry_after_s: 1, .. }), "{decision:?}");
    assert_eq!(bench.runtime.calls(), ["start a", "stop a"]);
    let views = bench.handle.tenants().await.unwrap();
    assert_eq!(views[0].last_death.as_deref(), Some("no image"));
}

#[tokio::test]
async fn rejected_clusters_are_counted() {
    let bench = bench().await;
    bench.handle.lease(PEER, request("a")).await.unwrap();
    let tenants = vec![TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap()];
    let reason = "because".to_owned();
    let rejected = XdsEvent::Nacked { stream: StreamId(1), tenants, seq: Seq(1), reason };
    bench.xds.send(rejected).await.unwrap();
    let counted = async {
        while !bench.metrics.encode().contains("sq_orchestrator_xds_rejected_total 2") {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), counted).await.unwrap();
}

#[tokio::test]
async fn shutdown_leaves_tenants_running() {
    let bench = bench().await;
    bench.handle.lease(PEER, request("a")).await.unwrap();
    drop(bench.end);
    assert_eq!(bench.driver.await.unwrap(), Ok(()));
    assert_eq!(bench.runtime.calls(), ["start a"]);
    assert_eq!(bench.handle.lease(PEER, request("a")).await, Err(Closed));
}

#[tokio::test]
async fn driver_ends_when_deaths_are_not_reported() {
    let (reporter, deaths) = mpsc::channel(1);
    let bench = bench_with(RecordingRuntime {
        deaths: Mutex::new(Some(deaths)),
        ..RecordingRuntime::default()
    })
    .await;
    bench.handle.lease(PEER, request("a")).await.unwrap();
    drop(reporter);
    assert_eq!(bench.driver.await.unwrap(), Err(DriverError::DeathsClosed));
}

#[tokio::test]
async fn death_before_an_orderly_stop_spares_good_copies() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("tenants");
    let tenant = TenantId::parse("a").unwrap();
    let file = data.join("a/notes.phext");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let vault = Arc::new(Vault::open(&dir.path().join("vault"), &data).unwrap());
    let runtime = Arc::new(RecordingRuntime::default());
    let parts = parts(runtime.clone(), Some(vault.clone()));
    let stop = || jobs::stop(parts.clone(), tenant.clone(), Limits::default(), ORDERLY);
    vault.before_start(&tenant).unwrap();
    std::fs::write(&file, "precious").unwrap();
    stop().await;
    vault.before_start(&tenant).unwrap();
    // It died in the middle of a write, and no event reported it.
    std::fs::write(&file, "").unwrap();
    runtime.is_dead.store(true, Ordering::Relaxed);
    stop().await;
    assert_eq!(vault.before_start(&tenant).unwrap().len(), 1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn sq_without_a_copy_of_its_data_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("tenants");
    let tenant = TenantId::parse("a").unwrap();
    std::fs::create_dir_all(data.join("a")).unwrap();
    std::fs::write(data.join("a/notes.phext"), "by hand").unwrap();
    // A folder is in the place of its first copy.
    std::fs::create_dir_all(dir.path().join("vault/a/good/notes.phext")).unwrap();
    let vault = Arc::new(Vault::open(&dir.path().join("vault"), &data).unwrap());
    let runtime = Arc::new(RecordingRuntime::default());
    let done = jobs::start(parts(runtime.clone(), Some(vault)), spec(tenant)).await;
    let error = start_error(&done);
    assert!(matches!(error, Some(StartError::Transient(_))), "{done:?}");
    assert_eq!(runtime.calls(), ["start a", "stop a"]);
}

#[tokio::test]
async fn one_tenant_and_a_sample_can_be_queried() {
    let bench = bench().await;
    for tenant in ["a", "b", "c"] {
        bench.handle.lease(PEER, request(tenant)).await.unwrap();
    }
    let tenant = |name| TenantId::parse(name).unwrap();
    let one = bench.handle.tenant(tenant("b")).await.unwrap().unwrap();
    assert_eq!((one.tenant, one.wakes), (tenant("b"), 1));
    assert_eq!(bench.handle.tenant(tenant("unknown")).await.unwrap(), None);
    assert_eq!(bench.handle.sample(2).await.unwrap().len(), 2);
    assert_eq!(bench.handle.sample(16).await.unwrap().len(), 3);
}

#[tokio::test]
async fn only_lasting_faults_make_a_tenant_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("tenants");
    let vault = dir.path().join("vault");
    let file = data.join("a/notes.phext");
    let marker = vault.join("a/running");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let parts = parts(Arc::default(), Some(Arc::new(Vault::open(&vault, &data).unwrap())));
    let start = async || {
        let done = jobs::start(parts.clone(), spec(TenantId::parse("a").unwrap())).await;
        start_error(&done).cloned()
    };
    std::fs::write(&file, "text").unwrap();
    std::fs::create_dir_all(&marker).unwrap();
    let error = start().await;
    assert!(matches!(error, Some(StartError::Transient(_))), "unreadable marker: {error:?}");
    std::fs::remove_dir(&marker).unwrap();
    assert_eq!(start().await, None);
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
    let error = start().await;
    assert!(matches!(error, Some(StartError::Damaged(_))), "a link in a phext's place: {error:?}");
}

#[tokio::test]
async fn record_lasts_while_leases_may_be_live() {
    let dir = tempfile::tempdir().unwrap();
    let records = Arc::new(AwakeRecords::open(dir.path()).unwrap());
    let runtime = Arc::new(RecordingRuntime::default());
    let parts = Parts { awake: Some(records), ..parts(runtime.clone(), None) };
    let tenant = TenantId::parse("a").unwrap();
    let is_recorded = || dir.path().join("awake/a.json").exists();
    let stop = |ending| jobs::stop(parts.clone(), tenant.clone(), Limits::default(), ending);
    jobs::start(parts.clone(), spec(tenant.clone())).await;
    assert!(is_recorded());
    // A forced sleep, a restart that fails: leases are live throughout.
    stop(Ending { orderly: false, restarts: true }).await;
    runtime.start_fails.store(true, Ordering::Relaxed);
    jobs::start(parts.clone(), spec(tenant.clone())).await;
    assert!(is_recorded(), "a crash now would leave leases without a tenant");
    stop(ORDERLY).await;
    assert!(!is_recorded());
    // The first wake fails: no lease was granted.
    jobs::start(parts.clone(), spec(tenant.clone())).await;
    assert!(!is_recorded());
}
