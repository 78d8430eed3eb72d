//! Firewall rules: only Envoy, the orchestrator and root reach SQ, and SQ opens no connection.
//!
//! ```text
//!  install ─► load all rules at once ─► read them back ─► in force ◄──────────────┐
//!                                                            │ a change, or 5 s   │ equal, or
//!                                                            └─► read them back ──┘ loaded again
//! ```
//!
//! The rules are read back from the kernel after they were loaded, whenever any rule on the host
//! changes, and every five seconds. Missing rules are loaded again, which takes about 30 ms
//! from the change. While that fails, no tenant is started or resumed. A wake only looks at a flag.
//!
//! Why nftables: docs/decisions/2026-12-01-firewall-by-nftables.md.

mod bridge;
mod changes;
mod nft;
mod rules;

use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;
use tracing::{error, warn};

use self::changes::Changes;
pub(super) use self::rules::Rules;
use crate::runtime::RuntimeError;

/// Interval of verification where no change is announced.
const VERIFY_EVERY: Duration = Duration::from_secs(5);

/// Pause after a verification, which bounds the work while rules change all the time.
const VERIFY_PAUSE: Duration = Duration::from_millis(100);

/// State of the firewall, for the log, the status and the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallState {
    /// The rules were in the kernel when they were last read back.
    InForce,
    /// They are missing and can't be restored at present; no tenant is started.
    Missing,
    /// There are none, by configuration or because this runtime can't have them here.
    Off,
}

/// The rules of one installation.
#[derive(Debug)]
pub(super) struct Firewall {
    table: String,
    /// Serializes loading and verification.
    installed: Mutex<Option<Installed>>,
    is_on: AtomicBool,
    is_in_force: AtomicBool,
}

/// Rules that were loaded.
#[derive(Debug)]
struct Installed {
    rules: Rules,
    /// The table as it was listed just after it was loaded.
    listing: String,
}

impl Firewall {
    /// A firewall without rules, until [`Firewall::install`].
    pub(super) fn off(installation: &str) -> Self {
        Self {
            table: rules::table_name(installation),
            installed: Mutex::default(),
            is_on: AtomicBool::new(false),
            is_in_force: AtomicBool::new(false),
        }
    }

    /// Makes these the installation's rules, and reads them back.
    pub(super) async fn install(&self, rules: Rules) -> Result<(), String> {
        let mut installed = self.installed.lock().await;
        self.is_on.store(true, Ordering::Release);
        if installed.as_ref().is_some_and(|present| present.rules == rules) {
            return self.verify_locked(&mut installed).await;
        }
        let loaded = self.load(rules).await;
        self.is_in_force.store(loaded.is_ok(), Ordering::Release);
        *installed = Some(loaded?);
        Ok(())
    }

    /// Reads the rules back, and loads them again if they are not as they were.
    async fn verify(&self) -> Result<(), String> {
        let mut installed = self.installed.lock().await;
        self.verify_locked(&mut installed).await
    }

    async fn verify_locked(&self, installed: &mut Option<Installed>) -> Result<(), String> {
        let Some(present) = installed else { return Ok(()) };
        let restored = self.restore(present).await;
        let was_in_force = self.is_in_force.swap(restored.is_ok(), Ordering::AcqRel);
        if let Err(error) = &restored
            && was_in_force
        {
            error!(
                table = self.table,
                error, "firewall rules are missing and can't be restored: no tenant is started"
            );
        }
        restored
    }

    async fn restore(&self, present: &mut Installed) -> Result<(), String> {
        check_host(&present.rules)?;
        if nft::list(&self.table).await?.as_ref() == Some(&present.listing) {
            return Ok(());
        }
        *present = self.load(present.rules.clone()).await?;
        warn!(table = self.table, "firewall rules were changed by someone else: restored");
        Ok(())
    }

    async fn load(&self, rules: Rules) -> Result<Installed, String> {
        check_host(&rules)?;
        nft::load(&rules.script(&self.table)).await?;
        let listing = nft::list(&self.table).await?.unwrap_or_default();
        if !rules.are_listed_in(&listing) {
            return Err(format!("table {} reads back otherwise than it was loaded", self.table));
        }
        Ok(Installed { rules, listing })
    }

    /// Fails unless the rules are in force or the firewall is off. Tries to restore missing ones.
    pub(super) async fn require(&self) -> Result<(), RuntimeError> {
        if self.state() != FirewallState::Missing {
            return Ok(());
        }
        self.verify().await.map_err(|error| RuntimeError::Failed(explanation(&error)))
    }

    /// Verifies the rules for as long as the runtime exists.
    pub(super) async fn watch(&self) {
        if !self.is_on.load(Ordering::Acquire) {
            return pending().await;
        }
        let changes = match Changes::subscribe() {
            Ok(changes) => Some(changes),
            Err(error) => {
                warn!(%error, "changes of firewall rules are not announced: read every 5 s");
                None
            }
        };
        loop {
            let change = async {
                match &changes {
                    Some(changes) => changes.next().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = change => {}
                () = sleep(VERIFY_EVERY) => {}
            }
            // A failure is logged and shown in the status.
            let _ = self.verify().await;
            sleep(VERIFY_PAUSE).await;
        }
    }

    pub(super) fn state(&self) -> FirewallState {
        if !self.is_on.load(Ordering::Acquire) {
            FirewallState::Off
        } else if self.is_in_force.load(Ordering::Acquire) {
            FirewallState::InForce
        } else {
            FirewallState::Missing
        }
    }

    /// Name of the table, of family `inet`.
    pub(super) fn table(&self) -> &str {
        &self.table
    }
}

fn check_host(rules: &Rules) -> Result<(), String> {
    match rules {
        Rules::Bridge { interface, .. } => bridge::check(interface),
        Rules::Processes { .. } => Ok(()),
    }
}

/// Text of a refusal, with what the operator can do.
pub(super) fn explanation(error: &str) -> String {
    format!(
        "docker.firewall: the rules that protect tenants can't be made or verified: {error}. Run \
         the orchestrator as root or with CAP_NET_ADMIN, on the daemon's host and with nftables \
         installed; `firewall = \"off\"` leaves tenants open to this host's users, for development"
    )
}
