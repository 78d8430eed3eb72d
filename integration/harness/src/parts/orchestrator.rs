//! The orchestrator as a process, and a client of its admin API.

pub mod responses;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::client::Client;
use crate::client::response::Response;
use crate::host::{firewall, sockets, tools};
use crate::options::{Lifecycle, Runtime};
use crate::parts::orchestrator::responses::{MonthUsage, TenantStatus};
use crate::parts::service::Service;
use crate::until;

/// Deadline for readiness, which follows the adoption of running tenants.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of an orchestrator.
pub struct OrchestratorSetup<'a> {
    /// Folder for its config, data, state and log.
    pub dir: &'a Path,
    /// Folder of its sockets.
    pub sockets: &'a Path,
    /// Port of its metrics, on the loopback.
    pub metrics: u16,
    /// Runtime of the tenants' SQ.
    pub runtime: Runtime,
    /// Version of SQ, such as `0.6.0`.
    pub sq_version: &'a str,
    /// The `[lifecycle]` section.
    pub lifecycle: &'a Lifecycle,
    /// Name of the tenants' Docker network.
    pub network: &'a str,
    /// Further sections of the config, as TOML.
    pub further: &'a str,
}

/// An orchestrator with its own data root and state folder.
pub struct Orchestrator {
    service: Service,
    admin: Client,
    metrics: Client,
    sockets: PathBuf,
    data: PathBuf,
    state: PathBuf,
}

#[derive(Deserialize)]
struct Status {
    tenants: Vec<TenantStatus>,
}

impl Orchestrator {
    /// Writes `orchestrator.toml` and makes the folders; nothing runs yet.
    pub fn new(setup: &OrchestratorSetup<'_>) -> Result<Self> {
        let data = setup.dir.join("data");
        let state = setup.dir.join("state");
        fs::create_dir_all(&data)?;
        fs::create_dir_all(&state)?;
        let config = setup.dir.join("orchestrator.toml");
        fs::write(&config, config_text(setup, &data, &state)?)?;
        let args = ["serve".into(), "--config".into(), config.display().to_string()];
        let program = tools::workspace_binary("orchestrator")?;
        let service = Service::new("orchestrator", program, args.into(), &setup.dir.join("logs"));
        let admin = Client::unix(&sockets::orchestrator(setup.sockets, "admin"));
        let metrics = Client::plaintext(&format!("http://127.0.0.1:{}", setup.metrics))?;
        Ok(Self { service, admin, metrics, sockets: setup.sockets.to_owned(), data, state })
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&self) -> Result<()> {
        let process = self.service.start()?;
        let ready =
            || async { self.admin.get("/readyz").await.is_ok_and(|response| response.ok()) };
        process.ready(START_TIMEOUT, ready).await
    }

    /// The service that runs it.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Path of the socket `gate`, `xds` or `admin`.
    pub fn socket(&self, name: &str) -> PathBuf {
        sockets::orchestrator(&self.sockets, name)
    }

    /// A client of the admin API.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// A client of the gate API, which the filter uses.
    pub fn gate(&self) -> Client {
        Client::unix(&self.socket("gate"))
    }

    /// A client of the listener for Prometheus.
    pub fn metrics(&self) -> &Client {
        &self.metrics
    }

    /// The data root: a folder per tenant.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The status of a tenant; `None` if the orchestrator has not seen it yet.
    pub async fn tenant(&self, tenant: &str) -> Result<Option<TenantStatus>> {
        let status: Status = self.admin.get("/v1/tenants").await?.expect_ok()?.json()?;
        Ok(status.tenants.into_iter().find(|status| status.tenant == tenant))
    }

    /// The status of a tenant that the orchestrator must have seen.
    pub async fn tenant_status(&self, tenant: &str) -> Result<TenantStatus> {
        self.tenant(tenant).await?.with_context(|| format!("the orchestrator lists no {tenant}"))
    }

    /// The lifecycle state of a tenant, such as `awake`; `None` if it has not been seen yet.
    pub async fn state_of(&self, tenant: &str) -> Result<Option<String>> {
        Ok(self.tenant(tenant).await?.map(|status| status.state))
    }

    /// The present month of all tenants, from the ledger.
    pub async fn month_usage(&self) -> Result<MonthUsage> {
        self.admin.get("/v1/usage").await?.expect_ok()?.json()
    }

    /// Requests that the tenant be put to sleep.
    pub async fn sleep(&self, tenant: &str) -> Result<Response> {
        self.admin.post(&format!("/v1/tenants/{tenant}/sleep"), "").await
    }

    /// Requests sleep until the tenant is asleep: a lease renewal in flight may wake it again.
    pub async fn put_to_sleep(&self, tenant: &str, within: Duration) -> Result<()> {
        until(format!("{tenant} to be asleep"), within, || async {
            match self.state_of(tenant).await.ok()??.as_str() {
                "asleep" => return Some(()),
                "awake" => drop(self.sleep(tenant).await.ok()?),
                _ => {}
            }
            None
        })
        .await
    }

    /// The value of one metric with its labels, such as
    /// `sq_orchestrator_tenants{kind="awake"}`; 0 if it is absent.
    pub async fn labelled_metric(&self, metric: &str) -> Result<f64> {
        let text = self.metrics.get("/metrics").await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    /// The value of a metric, summed over its labels; 0 if it is absent.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics.get("/metrics").await?.text();
        Ok(metric_sum(&text, name))
    }
}

fn config_text(setup: &OrchestratorSetup<'_>, data: &Path, state: &Path) -> Result<String> {
    let sq_version = setup.sq_version;
    let socket = |name| sockets::orchestrator(setup.sockets, name).display().to_string();
    let mut text = format!(
        "data_root = '{}'\nstate_dir = '{}'\nsq_version = \"{sq_version}\"\n\n\
         [listen]\ngate = '{}'\nxds = '{}'\nadmin = '{}'\nmetrics = \"127.0.0.1:{}\"\n\n\
         [runtime]\nkind = \"{}\"\n\n",
        data.display(),
        state.display(),
        socket("gate"),
        socket("xds"),
        socket("admin"),
        setup.metrics,
        setup.runtime.name()
    );
    match setup.runtime {
        Runtime::Process => {
            write!(text, "[process]\nsq = '{}'\n\n", tools::sq(sq_version)?.display())?;
        }
        Runtime::Docker => {
            let firewall = if firewall::is_permitted() { "required" } else { "off" };
            let network = setup.network;
            write!(text, "[docker]\nnetwork = \"{network}\"\nfirewall = \"{firewall}\"\n\n")?;
        }
    }
    Ok(text + &setup.lifecycle.to_toml() + setup.further)
}

/// Sums a metric over its labels in a text of Prometheus' exposition format.
pub fn metric_sum(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            // A longer name may begin with this one.
            if !rest.starts_with('{') && !rest.starts_with(' ') {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# TYPE a counter\na_total{k=\"1\"} 2\na_total{k=\"2\"} 3\na_total_x 7\n";
        assert!((metric_sum(text, "a_total") - 5.0).abs() < f64::EPSILON);
    }
}
