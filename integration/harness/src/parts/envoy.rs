//! Envoy with the operators' own `envoy/bootstrap.yaml`, as a process or in a container, and with
//! `standalone.yaml`.
//!
//! A file is loaded as it stands; exactly the literals that it names itself are replaced, and
//! each must be found, so that the file and this harness can't part unnoticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::Client;
use crate::host::certs::Certs;
use crate::host::tools;
use crate::options::{EnvoyHost, Listen};
use crate::parts::service::Service;
use crate::until;

/// Longest wait: Envoy compiles the filter once, and on a busy machine that takes a while.
const START: Duration = Duration::from_mins(1);

/// How long the old process of a hot restart finishes what is under way, and when it ends. The old
/// one is told the former at its own start, the new one the latter.
const HAND_OVER: [&str; 4] = ["--drain-time-s", "2", "--parent-shutdown-time-s", "4"];

/// How long the access log may lag behind; Envoy's default is ten seconds, and what fails in a test
/// is looked for at once.
const FLUSH_MS: &str = "200";

/// What a hot restart hands over; Envoy leaves it behind. Its base id and a 0 follow.
const SHARED_MEMORY: &str = "/dev/shm/envoy_shared_memory_";

/// The folder that the bootstrap expects.
const ETC: &str = "/etc/sq-gateway";

/// What Envoy is made of.
pub struct Setup<'a> {
    /// The folder for its files and log.
    pub dir: &'a Path,
    /// `node.id`: the gateway's name.
    pub node: &'a str,
    /// The development certificates.
    pub certs: &'a Certs,
    /// Ports of all parts.
    pub listen: Listen,
    /// Worker threads.
    pub workers: u32,
    /// `filter.wasm`.
    pub filter: &'a Path,
    /// Further fields of the plugin's JSON.
    pub filter_config: &'a [(&'static str, String)],
    /// Further static clusters, as the end of the bootstrap.
    pub clusters: &'a str,
    /// Where it runs.
    pub host: EnvoyHost,
    /// Whether it can hand over to a successor.
    pub hot_restart: bool,
}

/// An Envoy.
pub struct Envoy {
    runner: Runner,
    admin: Client,
    admin_url: String,
    config: PathBuf,
    epochs: AtomicU32,
}

enum Runner {
    Process(Service),
    #[cfg(feature = "containers")]
    Container(Box<crate::parts::container::Container>),
}

impl Envoy {
    /// Writes its folder; nothing runs yet.
    pub fn new(setup: &Setup<'_>) -> Result<Self> {
        let etc = setup.dir.join("envoy");
        let config = etc.join("bootstrap.yaml");
        lay(&etc, setup)?;
        fs::write(&config, bootstrap(&etc, setup)?)?;
        Self::with(setup, config, None)
    }

    /// With `standalone.yaml`, which asks no orchestrator: alice's SQ listens on `sq_port` and was
    /// started with `key`.
    pub fn standalone(setup: &Setup<'_>, sq_port: u16, key: &str) -> Result<Self> {
        let etc = setup.dir.join("envoy");
        let config = etc.join("standalone.yaml");
        lay(&etc, setup)?;
        fs::write(&config, standalone(&etc, setup, sq_port)?)?;
        Self::with(setup, config, Some(("SQ_ALICE_KEY", key)))
    }

    fn with(setup: &Setup<'_>, config: PathBuf, env: Option<(&'static str, &str)>) -> Result<Self> {
        let workers = setup.workers.to_string();
        let mut args = ["-c", &config.display().to_string(), "--concurrency", &workers]
            .into_iter()
            .chain(["--log-level", "info", "--file-flush-interval-msec", FLUSH_MS])
            .map(str::to_owned)
            .collect::<Vec<_>>();
        if setup.hot_restart {
            args.extend(first_of_many(&config));
            args.extend(HAND_OVER.map(str::to_owned));
        } else {
            args.push("--disable-hot-restart".to_owned());
        }
        let logs = setup.dir.join("logs");
        let runner = match setup.host {
            EnvoyHost::Process => {
                let service = Service::new("envoy", tools::envoy()?, args, &logs);
                Runner::Process(match env {
                    Some((name, value)) => service.env(name, value),
                    None => service,
                })
            }
            #[cfg(feature = "containers")]
            EnvoyHost::Container => Runner::Container(Box::new(
                crate::parts::container::Container::new(setup.dir, args),
            )),
            #[cfg(not(feature = "containers"))]
            EnvoyHost::Container => bail!("ENVOY_HOST=container needs the feature `containers`"),
        };
        let admin_url = format!("http://127.0.0.1:{}", setup.listen.envoy_admin);
        let admin = Client::plaintext(&admin_url)?;
        Ok(Self { runner, admin, admin_url, config, epochs: AtomicU32::new(0) })
    }

    /// Starts it and waits until it serves.
    pub async fn start(&self) -> Result<()> {
        let ready = || async { self.admin.get("/ready").await.is_ok_and(|answer| answer.ok()) };
        match &self.runner {
            Runner::Process(service) => service.start()?.ready(START, ready).await,
            #[cfg(feature = "containers")]
            Runner::Container(container) => {
                container.start().await?;
                let look = || async { ready().await.then_some(()) };
                crate::until("Envoy in its container", START, look)
                    .await
                    .with_context(|| container.tail())
            }
        }
    }

    /// A hot restart: a new process takes the sockets over, the old one ends what is under way.
    pub async fn hot_restart(&self) -> Result<()> {
        let service = match &self.runner {
            Runner::Process(service) => service,
            #[cfg(feature = "containers")]
            Runner::Container(_) => bail!("no hot restart out of a container"),
        };
        let base = fs::read_to_string(base_id(&self.config))?;
        let epoch = self.epochs.fetch_add(1, Ordering::Relaxed) + 1;
        let mut args: Vec<String> = service.args().to_vec();
        let own = first_of_many(&self.config);
        args.retain(|arg| !own.contains(arg));
        args.extend(["--base-id".to_owned(), base.trim().to_owned()]);
        args.extend(["--restart-epoch".to_owned(), epoch.to_string()]);
        let (new, old) = service.start_successor(&args)?;
        let serves = || async {
            let info = self.admin.get("/server_info").await.map(|a| a.text()).unwrap_or_default();
            info.contains(&format!("\"restart_epoch\": {epoch}")) && info.contains("LIVE")
        };
        new.ready(START, serves).await?;
        let Some(old) = old else { return Ok(()) };
        until("the old Envoy to end", START, || async { old.ended().map(drop) }).await
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.epochs.store(0, Ordering::Relaxed);
        match &self.runner {
            Runner::Process(service) => service.kill(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.kill(),
        }
        if let Ok(base) = fs::read_to_string(base_id(&self.config)) {
            let _ = fs::remove_file(format!("{SHARED_MEMORY}{}0", base.trim()));
        }
    }

    /// SIGTERM.
    pub fn stop(&self) {
        match &self.runner {
            Runner::Process(service) => service.stop(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.kill(),
        }
    }

    /// An error when it does not run any more.
    pub fn check(&self) -> Result<()> {
        match &self.runner {
            Runner::Process(service) => service.process()?.check(),
            #[cfg(feature = "containers")]
            Runner::Container(_) => Ok(()),
        }
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        match &self.runner {
            Runner::Process(service) => service.tail(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.tail(),
        }
    }

    /// All of its log, the access log with it.
    pub fn log(&self) -> Result<String> {
        match &self.runner {
            Runner::Process(service) => service.log(),
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.log(),
        }
    }

    /// The id of its container; `None`: it is a process.
    pub fn container(&self) -> Option<String> {
        match &self.runner {
            Runner::Process(_) => None,
            #[cfg(feature = "containers")]
            Runner::Container(container) => container.id(),
        }
    }

    /// Its process id; fails in a container.
    pub fn pid(&self) -> Result<i32> {
        match &self.runner {
            Runner::Process(service) => Ok(service.process()?.pid()),
            #[cfg(feature = "containers")]
            Runner::Container(_) => bail!("Envoy runs in a container"),
        }
    }

    /// A client of its admin API.
    pub fn admin(&self) -> &Client {
        &self.admin
    }

    /// `http://127.0.0.1:…` of its admin API.
    pub fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// The bootstrap it was started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The value of a counter or gauge; 0 when it is absent.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let text = self.admin.get(&format!("/stats?filter=^{name}$")).await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.map_or(Ok(0), str::parse)?)
    }
}

/// Arguments of an Envoy that begins a row of successors.
fn first_of_many(config: &Path) -> [String; 3] {
    ["--use-dynamic-base-id".to_owned(), "--base-id-path".to_owned(), base_id(config)]
}

/// Where Envoy writes which shared memory it uses, for its successor.
fn base_id(config: &Path) -> String {
    config.with_extension("base-id").display().to_string()
}

/// Lays what an operator has in `/etc/sq-gateway` beside the configuration.
fn lay(etc: &Path, setup: &Setup<'_>) -> Result<()> {
    let tls = etc.join("tls");
    fs::create_dir_all(&tls)?;
    fs::create_dir_all(etc.join("sds"))?;
    let certs = setup.certs;
    for (from, to) in [
        (certs.cert("server"), "server.pem"),
        (certs.key("server"), "server.key"),
        (certs.ca(), "relay-ca.pem"),
        (certs.cert("gateway"), "relay-client.pem"),
        (certs.key("gateway"), "relay-client.key"),
    ] {
        fs::copy(&from, tls.join(to)).with_context(|| from.display().to_string())?;
    }
    let wasm = etc.join("filter.wasm");
    fs::copy(setup.filter, &wasm).with_context(|| setup.filter.display().to_string())?;
    let here = etc.display().to_string();
    for file in fs::read_dir(tools::root().join("envoy/sds"))? {
        let file = file?;
        let text = replace_all(&fs::read_to_string(file.path())?, &[(ETC, &here)])?;
        fs::write(etc.join("sds").join(file.file_name()), text)?;
    }
    Ok(())
}

fn port(port: u16) -> String {
    format!("port_value: {port}")
}

/// `bootstrap.yaml` for this setup.
fn bootstrap(etc: &Path, setup: &Setup<'_>) -> Result<String> {
    let listen = setup.listen;
    let mut text = replace_all(
        &fs::read_to_string(tools::root().join("envoy/bootstrap.yaml"))?,
        &[
            (ETC, &etc.display().to_string()),
            ("port_value: 8443", &port(listen.https)),
            ("port_value: 9901", &port(listen.envoy_admin)),
            ("port_value: 7443", &port(listen.relay)),
            ("port_value: 7100", &port(listen.orchestrator.gate)),
            ("port_value: 7101", &port(listen.orchestrator.xds)),
            ("id: gateway-1", &format!("id: {}", setup.node)),
        ],
    )?;
    for (name, value) in setup.filter_config {
        text = with_field(&text, name, value)?;
    }
    Ok(text + setup.clusters)
}

/// `standalone.yaml` for this setup, and an SQ of alice.
fn standalone(etc: &Path, setup: &Setup<'_>, sq_port: u16) -> Result<String> {
    let listen = setup.listen;
    replace_all(
        &fs::read_to_string(tools::root().join("envoy/standalone.yaml"))?,
        &[
            (ETC, &etc.display().to_string()),
            ("port_value: 8443", &port(listen.https)),
            ("port_value: 9901", &port(listen.envoy_admin)),
            ("port_value: 7443", &port(listen.relay)),
            ("port_value: 1337", &port(sq_port)),
        ],
    )
}

/// Replaces each literal wherever it stands outside of comments' first mention; each must be found.
fn replace_all(text: &str, literals: &[(&str, &str)]) -> Result<String> {
    // In two steps, or a port put in could be taken for the next literal.
    let mut text = text.to_owned();
    for (number, (from, _)) in literals.iter().enumerate() {
        ensure!(text.contains(from), "{from:?} is not in the bootstrap any more");
        text = text.replace(from, &format!("\u{0}{number}\u{0}"));
    }
    for (number, (_, to)) in literals.iter().enumerate() {
        text = text.replace(&format!("\u{0}{number}\u{0}"), to);
    }
    Ok(text)
}

/// Adds a field to the plugin's JSON, which begins with its orchestrator's cluster.
fn with_field(text: &str, name: &str, value: &str) -> Result<String> {
    let anchor = "\"orchestrator_cluster\"";
    if !text.contains(anchor) {
        bail!("{anchor} is not in the bootstrap any more");
    }
    Ok(text.replace(anchor, &format!("\"{name}\": {value}, {anchor}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_that_is_gone_is_an_error() {
        assert!(replace_all("port_value: 1", &[("port_value: 2", "x")]).is_err());
    }

    /// From the first filter to the clusters, without comments and the plugin's own configuration.
    fn chain(file: &str) -> Vec<String> {
        let text = fs::read_to_string(tools::root().join("envoy").join(file)).unwrap();
        let (_, text) = text.split_once("http_filters:").unwrap();
        let (text, _) = text.split_once("\n  clusters:").unwrap();
        let (before, rest) = text.split_once("value: |").unwrap();
        let (_, after) = rest.split_once('}').unwrap();
        let lines = before
            .lines()
            .chain(after.lines())
            .map(|line| line.split_once(" #").map_or(line, |(line, _)| line).trim_end().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn the_standalone_chain_is_the_bootstraps_but_for_how_long_it_is_tried_again() {
        let mut bootstrap = chain("bootstrap.yaml");
        bootstrap.retain(|line| !line.contains("retriable_status_codes:"));
        for line in &mut bootstrap {
            *line =
                line.replace(",retriable-status-codes", "").replace("retries: 100", "retries: 12");
        }
        assert_eq!(chain("standalone.yaml"), bootstrap);
    }

    #[test]
    fn a_replacement_is_not_replaced_again() {
        let text = replace_all("a b", &[("a", "b"), ("b", "c")]).unwrap();
        assert_eq!(text, "b c");
    }
}
