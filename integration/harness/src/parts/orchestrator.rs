//! The orchestrator as a process, and what an operator asks it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Answer;
use crate::Client;
use crate::host::tools;
use crate::parts::service::Service;
use crate::stack::{Lifecycle, Runtime};
use crate::until;

/// Longest wait for readiness: it finds its tenants again first.
const START: Duration = Duration::from_secs(30);

/// Ports of one orchestrator.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Leases and usage, asked by the filter.
    pub gate: u16,
    /// Delta xDS, asked by Envoy.
    pub xds: u16,
    /// Asked by operators.
    pub admin: u16,
}

/// An orchestrator with its own data root and state.
pub struct Orchestrator {
    service: Service,
    admin: Client,
    admin_url: String,
    data: PathBuf,
    state: PathBuf,
}

impl Orchestrator {
    /// Writes `orchestrator.toml` into `dir`; nothing runs yet.
    pub fn new(
        dir: &Path,
        ports: Ports,
        runtime: Runtime,
        sq_version: &str,
        lifecycle: &Lifecycle,
        network: &str,
    ) -> Result<Self> {
        let (data, state) = (dir.join("data"), dir.join("state"));
        fs::create_dir_all(&data)?;
        fs::create_dir_all(&state)?;
        let Ports { gate, xds, admin } = ports;
        let mut text = format!(
            "data_root = '{}'\nstate_dir = '{}'\nsq_version = \"{sq_version}\"\n\n\
             [listen]\ngate = \"127.0.0.1:{gate}\"\nxds = \"127.0.0.1:{xds}\"\n\
             admin = \"127.0.0.1:{admin}\"\n\n[runtime]\nkind = \"{}\"\n\n",
            data.display(),
            state.display(),
            runtime.name()
        );
        match runtime {
            Runtime::Process => {
                write!(text, "[process]\nsq = '{}'\n\n", tools::sq(sq_version)?.display())?;
            }
            Runtime::Docker => write!(text, "[docker]\nnetwork = \"{network}\"\n\n")?,
        }
        text += &lifecycle.to_toml();
        let config = dir.join("orchestrator.toml");
        fs::write(&config, text)?;
        let args = ["serve".into(), "--config".into(), config.display().to_string()];
        let logs = dir.join("logs");
        let service = Service::new("orchestrator", tools::own("orchestrator")?, args.into(), &logs);
        let admin_url = format!("http://127.0.0.1:{admin}");
        Ok(Self { service, admin: Client::plain(&admin_url)?, admin_url, data, state })
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) -> Result<()> {
        let part = self.service.start()?;
        part.ready(START, || async {
            self.admin.get("/readyz").await.is_ok_and(|answer| answer.ok())
        })
        .await
    }

    /// Its process.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// `http://127.0.0.1:…` of its admin API.
    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// A client of its admin API.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// Tenants' folders.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its own files.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What it knows of a tenant; `None`: nothing yet.
    pub async fn tenant(&self, tenant: &str) -> Result<Option<Value>> {
        let answer = self.admin.get("/v1/tenants").await?;
        ensure!(answer.ok(), "{}", answer.text());
        let all: Value = serde_json::from_slice(&answer.body)?;
        let list = all.get("tenants").unwrap_or(&all).as_array().context("not a list")?;
        Ok(list.iter().find(|t| t["tenant"] == tenant).cloned())
    }

    /// The state of a tenant, such as `awake`; `None`: it is not known.
    pub async fn state_of(&self, tenant: &str) -> Result<Option<String>> {
        let found = self.tenant(tenant).await?;
        Ok(found.and_then(|t| t["state"].as_str().map(str::to_owned)))
    }

    /// Asks for sleep.
    pub async fn sleep(&self, tenant: &str) -> Result<Answer> {
        self.admin.post(&format!("/v1/tenants/{tenant}/sleep"), "").await
    }

    /// Asks for sleep until the tenant is asleep: a renewal of a lease under way wakes it again.
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

    /// The value of one metric with its labels, such as `sq_orchestrator_tenants{kind="awake"}`; 0 when it is
    /// absent.
    pub async fn labelled(&self, metric: &str) -> Result<f64> {
        let text = self.admin.get("/metrics").await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        Ok(value.map_or(Ok(0.0), str::parse)?)
    }

    /// The value of a metric, summed over its labels; 0 when it is absent.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.admin.get("/metrics").await?.text();
        Ok(sum_of(&text, name))
    }
}

/// Sum over the lines of Prometheus' text format whose metric is `name`.
pub fn sum_of(text: &str, name: &str) -> f64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with('{') || rest.starts_with(' ')).then_some(())?;
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
        assert!((sum_of(text, "a_total") - 5.0).abs() < f64::EPSILON);
    }
}
