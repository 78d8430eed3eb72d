//! Mutual TLS: the relay's certificate, the CAs of its clients, and their reload.
//!
//! The three files are checked every second. When they have changed and settled they are read again,
//! and connections made with the earlier ones end. If the new ones can't be used, the fault is logged
//! once, the earlier ones stay in use, and reading is retried every second: the cause may lie outside
//! the files.

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

use super::metrics::{Metrics, Outcome, count};
use crate::secret_file::warn_if_open_to_others;
use crate::source::settling::{FileVersion, Settling};

/// Paths of the PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The relay's certificate and its chain.
    pub cert: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// The CAs that sign the gateways' certificates.
    pub client_ca: PathBuf,
}

/// Reasons why the files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is absent, unreadable or not PEM.
    #[error("{0}: {1}")]
    File(PathBuf, pem::Error),
    /// The file contains no certificate.
    #[error("{0}: the file has no certificate in PEM form")]
    Empty(PathBuf),
    /// A certificate of the file can't be used as a CA.
    #[error("{0}: {1}")]
    Ca(PathBuf, rustls::Error),
    /// The CAs can't verify clients.
    #[error("client_ca: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The certificate does not match the key, or rustls does not support them.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// Interval between two checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl TlsFiles {
    /// Reads the files.
    fn load(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        for ca in read_certificates(&self.client_ca)? {
            roots.add(ca).map_err(|error| TlsError::Ca(self.client_ca.clone(), error))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsError::File(self.key.clone(), error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(read_certificates(&self.cert)?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session shows no certificate, so that an expired one would stay in use.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        warn_if_open_to_others(&self.key);
        Ok(config)
    }

    fn versions(&self) -> FileVersions {
        [&self.cert, &self.key, &self.client_ca].map(|path| FileVersion::of(path).ok())
    }
}

/// Versions of the three files; `None` for one that can't be read.
type FileVersions = [Option<FileVersion>; 3];

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let to_error = |error| TlsError::File(path.to_owned(), error);
    let certificates = CertificateDer::pem_file_iter(path).map_err(to_error)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(to_error)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(certificates)
}

/// Reloads the certificates for new connections when the files change.
#[derive(Debug)]
pub(super) struct CertificateReloader {
    files: TlsFiles,
    settling: Settling<FileVersions>,
    /// The fault of the current files; `None` while they are in use.
    fault: Option<String>,
    configs: watch::Sender<Arc<ServerConfig>>,
    metrics: Arc<Metrics>,
}

impl CertificateReloader {
    /// Reads the files for the first time.
    pub(super) fn new(
        files: TlsFiles,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, watch::Receiver<Arc<ServerConfig>>), TlsError> {
        let mut settling = Settling::default();
        settling.take(files.versions());
        let (configs, receiver) = watch::channel(Arc::new(files.load()?));
        Ok((Self { files, settling, fault: None, configs, metrics }, receiver))
    }

    /// Follows the files until dropped.
    pub(super) async fn run(mut self) -> Result<(), JoinError> {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            self.check().await?;
        }
    }

    /// Checks once, on a blocking thread: a network folder may not respond.
    async fn check(&mut self) -> Result<(), JoinError> {
        let files = self.files.clone();
        let versions = spawn_blocking(move || files.versions()).await?;
        let has_settled = self.settling.observe(versions);
        if !has_settled && self.fault.is_none() {
            return Ok(());
        }
        self.settling.take(versions);
        let files = self.files.clone();
        match spawn_blocking(move || files.load()).await? {
            Ok(config) => {
                count(&self.metrics.certificate_loads, Outcome::good);
                info!("certificates were reloaded");
                self.fault = None;
                self.configs.send_replace(Arc::new(config));
            }
            Err(error) => self.refuse(error.to_string()),
        }
        Ok(())
    }

    fn refuse(&mut self, fault: String) {
        // The same fault is counted and logged once, although reading is retried every second.
        if self.fault.as_ref() != Some(&fault) {
            count(&self.metrics.certificate_loads, Outcome::refused);
            error!(error = fault, "certificates can't be used: the earlier ones stay in use");
        }
        self.fault = Some(fault);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(reloader: &CertificateReloader, outcome: &str) -> bool {
        let line = format!("certificate_loads_total{{outcome=\"{outcome}\"}} 1\n");
        reloader.metrics.encode().contains(&line)
    }

    #[tokio::test]
    async fn refused_certificates_are_retried_and_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: dir.path().join("crt"),
            key: dir.path().join("key"),
            client_ca: dir.path().join("ca"),
        };
        let generated = rcgen::generate_simple_self_signed(["relay".to_owned()]).unwrap();
        let good = generated.cert.pem();
        std::fs::write(&files.key, generated.signing_key.serialize_pem()).unwrap();
        std::fs::write(&files.client_ca, &good).unwrap();
        std::fs::write(&files.cert, &good).unwrap();
        let (mut reloader, _configs) =
            CertificateReloader::new(files.clone(), Arc::default()).unwrap();
        std::fs::write(&files.cert, "no certificate").unwrap();
        for _ in 0..5 {
            reloader.check().await.unwrap();
        }
        assert!(reloader.fault.is_some());
        assert!(loads(&reloader, "refused"), "once, although reading is retried");
        // The cause goes away without a further change of the files.
        std::fs::write(&files.cert, &good).unwrap();
        reloader.settling.take(files.versions());
        reloader.check().await.unwrap();
        assert_eq!(reloader.fault, None);
        assert!(loads(&reloader, "good"));
        reloader.check().await.unwrap();
        assert!(loads(&reloader, "good"));
    }
}
