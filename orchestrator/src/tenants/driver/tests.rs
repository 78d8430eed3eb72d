//! The driver with a runtime of words and an Envoy that acknowledges everything.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::{GatewayId, LeaseRequest, Limits, TierName, WakeKind};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::runtime::instance_key::InstanceKey;
use crate::runtime::{
    Capabilities, Description, InstanceId, RuntimeError, RuntimeFuture, Started, Stopped,
};
use crate::tenants::lifecycle::Seq;

/// Writes down what it is asked.
#[derive(Default)]
struct Words {
    calls: Mutex<Vec<String>>,
    fails: AtomicBool,
    /// What it stops had died before.
    dead: AtomicBool,
    deaths: Mutex<Option<mpsc::Receiver<Died>>>,
}

impl Words {
    fn note(&self, call: &str, tenant: &TenantId) -> RuntimeFuture<'_, ()> {
        self.calls.lock().unwrap().push(format!("{call} {tenant}"));
        Box::pin(async { Ok(()) })
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Runtime for Words {
    fn describe(&self) -> Description {
        Description { kind: "words", notes: Vec::new() }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { can_reclaim: false, max_instances: None }
    }
    fn list(&self) -> RuntimeFuture<'_, Vec<Found>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn start(&self, spec: Spec) -> RuntimeFuture<'_, Started> {
        let noted = self.note("start", &spec.tenant);
        Box::pin(async move {
            noted.await?;
            tokio::task::yield_now().await;
            if self.fails.load(Ordering::Relaxed) {
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
        self.note("pause", tenant)
    }
    fn resume<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, ()> {
        self.note("resume", tenant)
    }
    fn stop<'a>(&'a self, tenant: &'a TenantId) -> RuntimeFuture<'a, Stopped> {
        let noted = self.note("stop", tenant);
        let dead = self.dead.load(Ordering::Relaxed);
        Box::pin(async move {
            noted.await?;
            Ok(if dead { Stopped::Dead } else { Stopped::Alive })
        })
    }
    fn resize<'a>(&'a self, tenant: &'a TenantId, _: u64) -> RuntimeFuture<'a, ()> {
        self.note("resize", tenant)
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

struct Bench {
    runtime: Arc<Words>,
    handle: Handle,
    end: oneshot::Sender<()>,
    driver: JoinHandle<Result<(), Broken>>,
    xds: mpsc::Sender<XdsEvent>,
    metrics: Arc<Metrics>,
}

fn parts(runtime: Arc<Words>, vault: Option<Arc<Vault>>) -> Parts {
    let (publisher, _events) = Publisher::new();
    let metrics = Arc::new(Metrics::default());
    Parts { runtime, publisher, vault, metrics, sq_version: protocol::SqVersion::V0_6_0 }
}

async fn bench() -> Bench {
    bench_of(Words::default()).await
}

async fn bench_of(runtime: Words) -> Bench {
    let runtime = Arc::new(runtime);
    let (xds, events) = mpsc::channel(8);
    let parts = parts(runtime.clone(), None);
    let metrics = parts.metrics.clone();
    let (driver, handle) = Driver::adopt(Settings::default(), parts, Vec::new(), 0, events);
    let (stream, gateway) = (StreamId(1), GatewayId::parse("g").unwrap());
    xds.send(XdsEvent::Connected { stream, gateway }).await.unwrap();
    xds.send(XdsEvent::Acked { stream, seq: Seq::MAX - 1 }).await.unwrap();
    let (end, ended) = oneshot::channel();
    let driver = tokio::spawn(driver.run(async { drop(ended.await) }));
    Bench { runtime, handle, end, driver, xds, metrics }
}

fn ask(tenant: &str) -> LeaseRequest {
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

#[tokio::test]
async fn a_herd_is_one_start_and_everyone_is_answered() {
    let bench = bench().await;
    let asks: Vec<_> = (0..500)
        .map(|_| {
            let handle = bench.handle.clone();
            tokio::spawn(async move { handle.lease(ask("a")).await.unwrap().answer })
        })
        .collect();
    for asked in asks {
        assert!(matches!(asked.await.unwrap(), Answer::Granted { .. }));
    }
    assert_eq!(bench.runtime.calls(), ["start a"]);
}

#[tokio::test]
async fn a_start_that_fails_is_cleared_away_and_told() {
    let bench = bench().await;
    bench.runtime.fails.store(true, Ordering::Relaxed);
    let answer = bench.handle.lease(ask("a")).await.unwrap().answer;
    assert!(matches!(answer, Answer::Refused { retry_after_s: 1, .. }), "{answer:?}");
    assert_eq!(bench.runtime.calls(), ["start a", "stop a"]);
    let views = bench.handle.tenants().await.unwrap();
    assert_eq!(views[0].last_death.as_deref(), Some("no image"));
}

#[tokio::test]
async fn a_cluster_that_an_envoy_refuses_is_counted() {
    let bench = bench().await;
    bench.handle.lease(ask("a")).await.unwrap();
    let tenants = vec![TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap()];
    let (stream, reason) = (StreamId(1), "because".to_owned());
    bench.xds.send(XdsEvent::Nacked { stream, tenants, seq: 1, reason }).await.unwrap();
    let told = async {
        while !bench.metrics.encode().contains("sq_orchestrator_xds_rejected_total 2") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
}

#[tokio::test]
async fn a_driver_that_ends_leaves_tenants_running() {
    let bench = bench().await;
    bench.handle.lease(ask("a")).await.unwrap();
    drop(bench.end);
    assert_eq!(bench.driver.await.unwrap(), Ok(()));
    assert_eq!(bench.runtime.calls(), ["start a"]);
    assert_eq!(bench.handle.lease(ask("a")).await, Err(Closed));
}

#[tokio::test]
async fn a_runtime_that_tells_of_no_deaths_any_more_ends_the_driver() {
    let (follower, deaths) = mpsc::channel(1);
    let bench = bench_of(Words { deaths: Mutex::new(Some(deaths)), ..Words::default() }).await;
    bench.handle.lease(ask("a")).await.unwrap();
    drop(follower);
    let reason = bench.driver.await.unwrap().unwrap_err().to_string();
    assert_eq!(reason, "nothing is heard of deaths any more");
}

#[tokio::test]
async fn what_had_died_unnoticed_before_an_orderly_stop_keeps_its_good_copies() {
    let dir = tempfile::tempdir().unwrap();
    let (data, tenant) = (dir.path().join("tenants"), TenantId::parse("a").unwrap());
    let file = data.join("a/notes.phext");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let vault = Arc::new(Vault::open(&dir.path().join("vault"), &data).unwrap());
    let runtime = Arc::new(Words::default());
    let parts = parts(runtime.clone(), Some(vault.clone()));
    let stop = || jobs::stop(parts.clone(), tenant.clone(), Limits::default(), true);
    vault.before_start(&tenant).unwrap();
    std::fs::write(&file, "precious").unwrap();
    stop().await;
    vault.before_start(&tenant).unwrap();
    // Died within a write, and no event told of it.
    std::fs::write(&file, "").unwrap();
    runtime.dead.store(true, Ordering::Relaxed);
    stop().await;
    assert_eq!(vault.before_start(&tenant).unwrap().len(), 1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn an_sq_whose_data_cannot_be_settled_is_stopped_and_never_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (data, tenant) = (dir.path().join("tenants"), TenantId::parse("a").unwrap());
    std::fs::create_dir_all(data.join("a")).unwrap();
    std::fs::write(data.join("a/notes.phext"), "by hand").unwrap();
    // Its first copy can't be made.
    std::fs::create_dir_all(dir.path().join("vault/a/good/notes.phext")).unwrap();
    let vault = Arc::new(Vault::open(&dir.path().join("vault"), &data).unwrap());
    let runtime = Arc::new(Words::default());
    let (tier, limits) = (TierName::parse("free").unwrap(), Limits::default());
    let spec = Spec { tenant, tier, limits, sq_version: protocol::SqVersion::V0_6_0 };
    let done = jobs::start(parts(runtime.clone(), Some(vault)), spec).await;
    assert!(matches!(done.event, Some(Event::StartFailed { damaged: false, .. })), "{done:?}");
    assert_eq!(runtime.calls(), ["start a", "stop a"]);
}

#[tokio::test]
async fn a_look_at_one_tenant_and_a_sample_do_not_grow_with_the_tenants() {
    let bench = bench().await;
    for tenant in ["a", "b", "c"] {
        bench.handle.lease(ask(tenant)).await.unwrap();
    }
    let tenant = |name| TenantId::parse(name).unwrap();
    let one = bench.handle.tenant(tenant("b")).await.unwrap().unwrap();
    assert_eq!((one.tenant, one.wakes), (tenant("b"), 1));
    assert_eq!(bench.handle.tenant(tenant("stranger")).await.unwrap(), None);
    assert_eq!(bench.handle.sample(2).await.unwrap().len(), 2);
    assert_eq!(bench.handle.sample(16).await.unwrap().len(), 3);
}

#[tokio::test]
async fn only_what_no_further_try_heals_makes_a_tenant_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (data, vault) = (dir.path().join("tenants"), dir.path().join("vault"));
    let (file, marker) = (data.join("a/notes.phext"), vault.join("a/running"));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let parts = parts(Arc::default(), Some(Arc::new(Vault::open(&vault, &data).unwrap())));
    let start = async || {
        let tenant = TenantId::parse("a").unwrap();
        let (tier, limits) = (TierName::parse("free").unwrap(), Limits::default());
        let spec = Spec { tenant, tier, limits, sq_version: protocol::SqVersion::V0_6_0 };
        match jobs::start(parts.clone(), spec).await.event {
            Some(Event::StartFailed { damaged, .. }) => Some(damaged),
            _ => None,
        }
    };
    std::fs::write(&file, "text").unwrap();
    std::fs::create_dir_all(&marker).unwrap();
    assert_eq!(start().await, Some(false), "the vault can't be read just now");
    std::fs::remove_dir(&marker).unwrap();
    assert_eq!(start().await, None);
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
    assert_eq!(start().await, Some(true), "a link in a phext's place");
}
