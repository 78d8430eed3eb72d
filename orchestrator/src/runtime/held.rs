//! A runtime whose tenants can be held still for a moment, so that empty phexts can be removed which
//! SQ might be about to write: no write of a frozen SQ is half done, for a kernel ends a call before
//! it freezes the caller. A request that SQ is reading just then fails, for SQ takes the interruption
//! (EINTR) for a broken connection: nothing that happens often may hold a tenant.
//!
//! The lifecycle asks one thing per tenant at a time; the holder is another asker. So whatever would
//! freeze, thaw, start or kill a tenant waits until it is let go, a matter of milliseconds.
//!
//! Unlike one that dozes, a held tenant is in use: leases on it are live. A process that is killed in
//! between leaves it frozen, with a mark in `<state_dir>/held/`; the next thaws it before it says
//! what runs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::TenantId;
use tokio::sync::{Mutex as Turn, mpsc};
use tokio::time::{Instant, sleep};

use crate::runtime::open_files::Process;
use crate::runtime::readiness;
use crate::runtime::{
    Answer, Description, Died, ExitKind, Found, FoundState, Runtime, RuntimeError, Spec, Started,
    Stopped,
};

/// How long a tenant that can't be thawed is tried: a Docker daemon restarts within seconds.
const THAW_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries.
const THAW_RETRY: Duration = Duration::from_millis(200);

/// Wraps a runtime; everything must go through it.
pub struct Held {
    inner: Arc<dyn Runtime>,
    /// A file for each tenant that is held.
    marks: PathBuf,
    /// How long one that can't be thawed is tried.
    thaw_within: Duration,
    /// Whose turn it is, and whether the tenant is meant to run; bounded by what is started.
    turns: Mutex<HashMap<TenantId, Arc<Turn<bool>>>>,
}

/// What came of holding a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hold {
    /// It was looked at while it was frozen; false: it does not run, is being started or stopped, or
    /// can't be frozen.
    pub looked: bool,
    /// It can't be thawed: it has to be stopped.
    pub stuck: bool,
}

impl Held {
    /// Around `inner`; marks are kept below `state_dir`.
    pub fn new(inner: Arc<dyn Runtime>, state_dir: &Path) -> std::io::Result<Self> {
        let marks = state_dir.join("held");
        fs::create_dir_all(&marks)?;
        Ok(Self { inner, marks, thaw_within: THAW_WITHIN, turns: Mutex::default() })
    }

    fn mark(&self, tenant: &TenantId) -> PathBuf {
        self.marks.join(tenant.as_str())
    }

    /// One that is left costs the next life a needless thaw, no more.
    fn unmark(&self, tenant: &TenantId) {
        let _ = fs::remove_file(self.mark(tenant));
    }

    /// Whether it is frozen no longer. One that does not answer yet is thawed, and so is a dead one.
    async fn thaw(&self, tenant: &TenantId) -> bool {
        let deadline = Instant::now() + self.thaw_within;
        loop {
            match self.inner.resume(tenant).await {
                Ok(()) | Err(RuntimeError::NotReady { .. } | RuntimeError::NoInstance(_)) => {
                    self.unmark(tenant);
                    return true;
                }
                Err(error) if Instant::now() < deadline => {
                    tracing::warn!(%tenant, %error, "it can't be thawed; trying again");
                    sleep(THAW_RETRY).await;
                }
                Err(error) => {
                    tracing::error!(%tenant, %error, "it can't be thawed");
                    return false;
                }
            }
        }
    }

    fn turn(&self, tenant: &TenantId) -> Arc<Turn<bool>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(tenant.clone()).or_default().clone()
    }

    /// Freezes a running tenant, calls `look` with its process, where that can be told, and thaws
    /// it. `look` may block, so ask from a thread that may; clients wait meanwhile. Must not be
    /// dropped before it is done.
    pub async fn hold(&self, tenant: &TenantId, look: impl FnOnce(Option<&Process>)) -> Hold {
        let turn = self.turn(tenant);
        // A start takes long, and there is nothing to look at before it is over.
        let Ok(runs) = turn.try_lock() else { return Hold::default() };
        // Without a mark it could stay frozen.
        if !*runs || File::create(self.mark(tenant)).is_err() {
            return Hold::default();
        }
        let pid = self.inner.pid(tenant).await.ok().flatten();
        let process = pid.and_then(|pid| Process::of(pid, tenant));
        let looked = self.inner.pause(tenant).await.is_ok();
        if looked {
            look(process.as_ref());
        }
        // Thawed whatever came of freezing it: half a freeze must not stay.
        Hold { looked, stuck: !self.thaw(tenant).await }
    }

    /// Whether it is this tenant's SQ that answers at `address`: once it is dead, another tenant's may
    /// have the address before anybody is told. So the runtime is asked for it *after* the answer.
    pub async fn answers(&self, tenant: &TenantId, address: SocketAddr, within: Duration) -> bool {
        readiness::answers(address, within).await.is_ok()
            && matches!(self.inner.pid(tenant).await, Ok(Some(_)))
    }

    /// Thaws what an earlier life held when it was killed; what can't be thawed is stopped.
    async fn let_go(&self, one: &mut Found) -> Result<(), RuntimeError> {
        if self.thaw(&one.tenant).await {
            one.state = FoundState::Running;
        } else {
            self.inner.stop(&one.tenant).await?;
            self.unmark(&one.tenant);
            (one.state, one.endpoint) = (FoundState::Stopped(ExitKind::Gone), None);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl Runtime for Held {
    fn describe(&self) -> Description {
        self.inner.describe()
    }

    fn list(&self) -> Answer<'_, Vec<Found>> {
        Box::pin(async {
            let mut found = self.inner.list().await?;
            for one in &mut found {
                if one.state == FoundState::Paused && self.mark(&one.tenant).exists() {
                    self.let_go(one).await?;
                }
                *self.turn(&one.tenant).lock().await = one.state == FoundState::Running;
            }
            Ok(found)
        })
    }

    fn start(&self, spec: Spec) -> Answer<'_, Started> {
        Box::pin(async move {
            let turn = self.turn(&spec.tenant);
            let mut runs = turn.lock().await;
            *runs = false;
            let started = self.inner.start(spec).await;
            *runs = started.is_ok();
            started
        })
    }

    fn pause<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, ()> {
        Box::pin(async move {
            let turn = self.turn(tenant);
            let mut runs = turn.lock().await;
            *runs = false;
            self.inner.pause(tenant).await
        })
    }

    fn resume<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, ()> {
        Box::pin(async move {
            let turn = self.turn(tenant);
            let mut runs = turn.lock().await;
            let resumed = self.inner.resume(tenant).await;
            *runs = resumed.is_ok();
            resumed
        })
    }

    fn stop<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Stopped> {
        Box::pin(async move {
            let turn = self.turn(tenant);
            let mut runs = turn.lock().await;
            *runs = false;
            let was = self.inner.stop(tenant).await?;
            self.unmark(tenant);
            self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
            Ok(was)
        })
    }

    fn resize<'a>(&'a self, tenant: &'a TenantId, memory_bytes: u64) -> Answer<'a, ()> {
        self.inner.resize(tenant, memory_bytes)
    }

    fn memory_bytes<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<u64>> {
        self.inner.memory_bytes(tenant)
    }

    fn pid<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<i32>> {
        self.inner.pid(tenant)
    }

    fn reclaim<'a>(&'a self, tenant: &'a TenantId) -> Answer<'a, Option<u64>> {
        self.inner.reclaim(tenant)
    }

    fn most(&self) -> Option<usize> {
        self.inner.most()
    }

    fn events(&self) -> Option<mpsc::Receiver<Died>> {
        self.inner.events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::instance_key::MintedKey;
    use crate::runtime::{Endpoint, Instance};
    use futures_util::FutureExt;
    use protocol::{Limits, TierName, WakeKind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// Notes what it is asked.
    #[derive(Default)]
    struct Noted {
        asked: Mutex<Vec<&'static str>>,
        found: Mutex<Vec<Found>>,
        /// So often a tenant can't be thawed.
        frozen_fast: AtomicUsize,
        dead: AtomicBool,
    }

    impl Noted {
        fn note<T: Send + 'static>(&self, word: &'static str, value: T) -> Answer<'_, T> {
            self.asked.lock().unwrap().push(word);
            Box::pin(async { Ok(value) })
        }

        fn taken(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    /// A wrapped runtime on a state folder that goes with it.
    fn held(noted: &Arc<Noted>) -> (tempfile::TempDir, Held) {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::new(noted.clone(), dir.path()).unwrap();
        (dir, held)
    }

    fn alice() -> TenantId {
        TenantId::parse("alice").unwrap()
    }

    impl Runtime for Noted {
        fn describe(&self) -> Description {
            Description { kind: "noted", notes: Vec::new() }
        }

        fn list(&self) -> Answer<'_, Vec<Found>> {
            self.note("list", self.found.lock().unwrap().clone())
        }

        fn start(&self, _: Spec) -> Answer<'_, Started> {
            self.note("start", Started { endpoint: endpoint(), kind: WakeKind::Start })
        }

        fn pause<'a>(&'a self, _: &'a TenantId) -> Answer<'a, ()> {
            self.note("pause", ())
        }

        fn resume<'a>(&'a self, _: &'a TenantId) -> Answer<'a, ()> {
            let left = self.frozen_fast.load(Ordering::Relaxed);
            if left == 0 {
                return self.note("resume", ());
            }
            self.frozen_fast.store(left - 1, Ordering::Relaxed);
            Box::pin(async { Err(RuntimeError::Unavailable("restarting".to_owned())) })
        }

        fn stop<'a>(&'a self, _: &'a TenantId) -> Answer<'a, Stopped> {
            self.note("stop", Stopped::Alive)
        }

        fn resize<'a>(&'a self, _: &'a TenantId, _: u64) -> Answer<'a, ()> {
            self.note("resize", ())
        }

        fn memory_bytes<'a>(&'a self, _: &'a TenantId) -> Answer<'a, Option<u64>> {
            Box::pin(async { Ok(None) })
        }

        fn pid<'a>(&'a self, _: &'a TenantId) -> Answer<'a, Option<i32>> {
            let pid = (!self.dead.load(Ordering::Relaxed)).then_some(1);
            Box::pin(async move { Ok(pid) })
        }

        fn events(&self) -> Option<mpsc::Receiver<Died>> {
            None
        }
    }

    fn endpoint() -> Endpoint {
        Endpoint {
            instance: Instance("i".into()),
            address: ([127, 0, 0, 1], 1).into(),
            key: MintedKey::nobodys(),
        }
    }

    fn spec(tenant: &TenantId) -> Spec {
        let (tier, limits) = (TierName::parse("free").unwrap(), Limits::default());
        Spec { tenant: tenant.clone(), tier, limits, sq_version: "0.6.0".into() }
    }

    #[tokio::test]
    async fn a_running_tenant_is_frozen_only_while_it_is_looked_at() {
        let noted = Arc::new(Noted::default());
        let ((_dir, held), alice) = (held(&noted), alice());
        held.start(spec(&alice)).await.unwrap();
        noted.taken();
        let mut seen = Vec::new();
        let came = held.hold(&alice, |_| seen = noted.taken()).await;
        assert_eq!(came, Hold { looked: true, stuck: false });
        assert_eq!((seen, noted.taken()), (vec!["pause"], vec!["resume"]));
    }

    #[tokio::test]
    async fn a_tenant_that_dozes_or_is_stopped_is_never_thawed_by_the_holder() {
        let noted = Arc::new(Noted::default());
        let ((_dir, held), alice) = (held(&noted), alice());
        held.start(spec(&alice)).await.unwrap();
        held.pause(&alice).await.unwrap();
        noted.taken();
        assert_eq!(held.hold(&alice, |_| ()).await, Hold::default());
        held.resume(&alice).await.unwrap();
        held.stop(&alice).await.unwrap();
        noted.taken();
        assert_eq!(held.hold(&alice, |_| ()).await, Hold::default());
        assert_eq!(noted.taken(), [""; 0]);
    }

    #[tokio::test]
    async fn a_tenant_that_cannot_be_thawed_at_once_is_thawed_a_little_later() {
        let noted = Arc::new(Noted::default());
        let ((_dir, held), alice) = (held(&noted), alice());
        held.start(spec(&alice)).await.unwrap();
        noted.frozen_fast.store(2, Ordering::Relaxed);
        let came = held.hold(&alice, |_| ()).await;
        assert_eq!(came, Hold { looked: true, stuck: false });
        assert_eq!(noted.taken(), ["start", "pause", "resume"]);
    }

    #[tokio::test]
    async fn a_tenant_that_cannot_be_thawed_at_all_is_told_to_be_stuck() {
        let noted = Arc::new(Noted::default());
        let ((_dir, mut held), alice) = (held(&noted), alice());
        held.thaw_within = Duration::ZERO;
        held.start(spec(&alice)).await.unwrap();
        noted.frozen_fast.store(usize::MAX, Ordering::Relaxed);
        assert_eq!(held.hold(&alice, |_| ()).await, Hold { looked: true, stuck: true });
    }

    #[tokio::test]
    async fn another_tenants_answer_at_a_dead_ones_address_is_no_sign_of_life() {
        let noted = Arc::new(Noted::default());
        let ((_dir, held), alice) = (held(&noted), alice());
        let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = there.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = there.accept().await {
                // Unread, it would end in a reset.
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(b"HTTP/1.1 401 Unauthorized\r\n\r\n").await.unwrap();
            }
        });
        let within = Duration::from_secs(5);
        assert!(held.answers(&alice, address, within).await);
        noted.dead.store(true, Ordering::Relaxed);
        assert!(!held.answers(&alice, address, within).await);
    }

    #[tokio::test]
    async fn what_a_killed_holder_left_frozen_runs_before_anything_is_said_of_it() {
        let noted = Arc::new(Noted::default());
        let ((dir, held), alice) = (held(&noted), alice());
        let Spec { tenant, tier, limits, sq_version } = spec(&alice);
        let (state, endpoint) = (FoundState::Paused, Some(endpoint()));
        let found = Found { tenant, tier, limits, sq_version, state, endpoint };
        noted.found.lock().unwrap().push(found);
        let state = async |held: &Held| held.list().await.unwrap().remove(0).state;
        assert_eq!(state(&held).await, FoundState::Paused, "it dozes");
        // Killed in the middle.
        held.resume(&alice).await.unwrap();
        let look = |_: Option<&Process>| {
            assert!(dir.path().join("held/alice").exists());
            std::panic::resume_unwind(Box::new(()))
        };
        let killed = std::panic::AssertUnwindSafe(held.hold(&alice, look));
        assert!(killed.catch_unwind().await.is_err());
        let mut next = Held::new(noted.clone(), dir.path()).unwrap();
        assert_eq!(state(&next).await, FoundState::Running);
        assert_eq!(state(&next).await, FoundState::Paused, "thawed once");
        File::create(dir.path().join("held/alice")).unwrap();
        next.thaw_within = Duration::ZERO;
        noted.frozen_fast.store(usize::MAX, Ordering::Relaxed);
        assert_eq!(state(&next).await, FoundState::Stopped(ExitKind::Gone));
        assert_eq!(noted.taken().last(), Some(&"stop"));
    }
}
