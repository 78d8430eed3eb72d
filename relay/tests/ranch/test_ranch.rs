//! A ranch in a temporary folder: CA, certificates, registry, and relays in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::{ApiKey, TenantId, TierName};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use relay::Config;
use relay::config::SourceConfig;
use relay::edit::{Document, NewTenant};
use relay::serve::connection::ConnectionLimits;
use relay::serve::tls::TlsFiles;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::Client;

/// A certificate with its private key, as PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A CA that signs certificates.
pub(crate) struct Ca {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, name: &str) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { cert, key: key.serialize_pem() }
    }
}

/// The folder with everything that a relay needs.
pub(crate) struct TestRanch {
    pub(crate) dir: TempDir,
    pub(crate) ca: Ca,
}

/// A relay that is serving.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), relay::serve::RunError>>,
}

pub(crate) fn key(n: u8) -> ApiKey {
    ApiKey::from_random([n; 16])
}

pub(crate) fn id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

impl TestRanch {
    /// Creates a ranch with the tenants alice (key 1, free) and bob (key 2, pro).
    pub(crate) fn new() -> Self {
        let ranch = Self { dir: tempfile::tempdir().unwrap(), ca: Ca::new() };
        ranch.renew_certificate(&ranch.ca);
        ranch.trust(&ranch.ca);
        ranch.save(&registry(&[("alice", 1, "free"), ("bob", 2, "pro")]));
        ranch
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn registry(&self) -> PathBuf {
        self.path("registry.phext")
    }

    /// Saves like most editors: to a new file, which is renamed over the old one.
    pub(crate) fn save(&self, text: &str) {
        replace(&self.registry(), text);
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.registry()).unwrap()
    }

    pub(crate) fn renew_certificate(&self, ca: &Ca) {
        let pair = ca.sign("localhost");
        replace(&self.path("relay.key"), &pair.key);
        replace(&self.path("relay.crt"), &pair.cert);
    }

    pub(crate) fn trust(&self, ca: &Ca) {
        replace(&self.path("ca.crt"), &ca.pem);
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            listen: ([127, 0, 0, 1], 0).into(),
            tls: TlsFiles {
                cert: self.path("relay.crt"),
                key: self.path("relay.key"),
                client_ca: self.path("ca.crt"),
            },
            clients: Vec::new(),
            connections: ConnectionLimits {
                max: 1024,
                idle: Duration::from_secs(75),
                age: Duration::from_hours(1),
            },
            source: SourceConfig::File(self.registry()),
            hold: Duration::from_secs(5),
            last_good: self.path("registry.phext.last-good"),
        }
    }

    /// A client with the certificate of a gateway.
    pub(crate) fn client(&self, relay: &Running) -> Client {
        let pair = self.ca.sign("gateway");
        Client::new(relay.address, &self.ca.pem, Some(&pair))
    }

    /// Starts a relay and waits until it verifies keys.
    pub(crate) async fn serve(&self) -> (Running, Client) {
        let relay = start(self.config()).await;
        let client = self.client(&relay);
        until("ready", || async {
            client.get("/readyz").await.is_ok_and(|response| response.status == 200)
        })
        .await;
        (relay, client)
    }
}

/// The template with these tenants: name, number of the key, tier.
pub(crate) fn registry(tenants: &[(&str, u8, &str)]) -> String {
    let mut document = Document::parse(relay::TEMPLATE.as_bytes()).unwrap();
    for (name, n, tier) in tenants {
        let tier = TierName::parse(tier).unwrap();
        let new = NewTenant { id: id(name), tier, key: key(*n).hash(), lines: Vec::new() };
        document = document.add(&new).unwrap();
    }
    document.text().to_owned()
}

pub(crate) async fn start(config: Config) -> Running {
    let listener = TcpListener::bind(config.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    let task = tokio::spawn(relay::run(config, listener, shutdown));
    Running { address, stop: Some(stop), task }
}

impl Running {
    /// Stops the relay and waits for its end.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap().unwrap();
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// Polls until `done`, or fails after ten seconds.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(10), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
