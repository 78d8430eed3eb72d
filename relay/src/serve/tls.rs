//! Mutual TLS: the server's certificate, the CA of those who may ask, and their renewal.
//!
//! The three files are looked at once a second. When they have changed and settled they are read
//! anew, and connections that were made with the old ones end; what can't be used is logged, the old
//! ones stay, and it is tried again each second: what was in the way may have been no part of the
//! files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{error, info};

use crate::serve::metrics::{Metrics, Outcome, count};
use crate::source::file::{Settling, Signature};

/// Where the PEM files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and what leads to its CA.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CAs that sign gateways' certificates.
    pub client_ca: PathBuf,
}

/// Why the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not there, not readable or not PEM.
    #[error("{0}: {1}")]
    File(PathBuf, pem::Error),
    /// No certificate in it.
    #[error("{0}: no certificate in it")]
    Empty(PathBuf),
    /// A certificate can't be used as a CA.
    #[error("{0}: {1}")]
    Ca(PathBuf, rustls::Error),
    /// The CAs can't be used.
    #[error("client_ca: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// Certificate and key don't belong together, or rustls does not take them.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

impl TlsFiles {
    /// Reads the files.
    pub fn load(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.client_ca)? {
            roots.add(ca).map_err(|e| TlsError::Ca(self.client_ca.clone(), e))?;
        }
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|e| TlsError::File(self.key.clone(), e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.cert)?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session shows no certificate: one that has ended would go on.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn signatures(&self) -> [Option<Signature>; 3] {
        [&self.cert, &self.key, &self.client_ca].map(|path| Signature::of(path).ok())
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |e| TlsError::File(path.to_owned(), e);
    let read = CertificateDer::pem_file_iter(path).map_err(file)?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(file)?;
    if certificates.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(certificates) }
}

/// Keeps what new connections use up to date with the files.
#[derive(Debug)]
pub struct Renewal {
    files: TlsFiles,
    settling: Settling<[Option<Signature>; 3]>,
    /// Why what the files say now is not in use.
    trouble: Option<String>,
    publish: watch::Sender<Arc<ServerConfig>>,
    metrics: Arc<Metrics>,
}

impl Renewal {
    /// Reads the files for the first time.
    pub fn new(
        files: TlsFiles,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, watch::Receiver<Arc<ServerConfig>>), TlsError> {
        let mut settling = Settling::default();
        settling.take(files.signatures());
        let (publish, configs) = watch::channel(Arc::new(files.load()?));
        Ok((Self { files, settling, trouble: None, publish, metrics }, configs))
    }

    /// Follows the files until dropped.
    pub async fn run(mut self) -> Result<(), JoinError> {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.look().await?;
        }
    }

    /// Looks once, apart from the runtime's threads: on a network folder it may take for ever.
    async fn look(&mut self) -> Result<(), JoinError> {
        let files = self.files.clone();
        let now = spawn_blocking(move || files.signatures()).await?;
        if !self.settling.settled(now) && self.trouble.is_none() {
            return Ok(());
        }
        self.settling.take(now);
        let files = self.files.clone();
        match spawn_blocking(move || files.load()).await? {
            Ok(config) => {
                count(&self.metrics.certificates, Outcome::good);
                info!("the certificates were read again");
                self.trouble = None;
                self.publish.send_replace(Arc::new(config));
            }
            Err(e) => self.refused(e.to_string()),
        }
        Ok(())
    }

    fn refused(&mut self, why: String) {
        if self.trouble.as_ref() != Some(&why) {
            count(&self.metrics.certificates, Outcome::refused);
            error!(why, "the certificates can't be used: the old ones stay");
        }
        self.trouble = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn certificates_that_could_not_be_read_are_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: dir.path().join("crt"),
            key: dir.path().join("key"),
            client_ca: dir.path().join("ca"),
        };
        let made = rcgen::generate_simple_self_signed(["relay".to_owned()]).unwrap();
        let good = made.cert.pem();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        std::fs::write(&files.client_ca, &good).unwrap();
        std::fs::write(&files.cert, &good).unwrap();
        let (mut renewal, _configs) = Renewal::new(files.clone(), Arc::default()).unwrap();
        std::fs::write(&files.cert, "no certificate").unwrap();
        for _ in 0..5 {
            renewal.look().await.unwrap();
        }
        assert!(renewal.trouble.is_some());
        let counted = |renewal: &Renewal, line: &str| renewal.metrics.encode().contains(line);
        let refused = "sq_relay_certificate_loads_total{outcome=\"refused\"} 1\n";
        assert!(counted(&renewal, refused), "once, however often it is tried");
        // What was in the way has gone, and the files are those that were looked at.
        std::fs::write(&files.cert, &good).unwrap();
        renewal.settling.take(files.signatures());
        renewal.look().await.unwrap();
        assert_eq!(renewal.trouble, None);
        assert!(counted(&renewal, "sq_relay_certificate_loads_total{outcome=\"good\"} 1\n"));
        renewal.look().await.unwrap();
        assert!(counted(&renewal, "sq_relay_certificate_loads_total{outcome=\"good\"} 1\n"));
    }
}
