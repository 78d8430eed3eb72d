//! Mutual TLS: the relay's certificate, the CAs of its clients, and their reload.
//!
//! The three files are checked every second. When they have changed and settled they are read again,
//! and connections made with the earlier ones end. If the new ones can't be used, or have ended, the fault is logged
//! once, the earlier ones stay in use, and reading is retried every second: the cause may lie outside
//! the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::calendar::rfc3339;
use protocol::time::DAY_S;
use rustls::crypto::ring::default_provider;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{error, info, warn};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::metrics::{Metrics, Outcome, count};
use crate::clock::now_s;
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
    /// The private key is encrypted.
    #[error(
        "{0}: the private key is encrypted, and nobody is there to enter its passphrase; decrypt it \
         with `openssl pkey -in {0} -out NEW`"
    )]
    Encrypted(PathBuf),
    /// A certificate of the file can't be parsed.
    #[error("{0}: {1}")]
    Certificate(PathBuf, String),
    /// A certificate of the file has ended, so that no gateway would accept it.
    #[error("{0}: the certificate ended at {1}; renew it, or correct the clock of this host")]
    Ended(PathBuf, String),
    /// A certificate of the file is not valid yet.
    #[error("{0}: the certificate begins at {1}; is the clock of this host right?")]
    Early(PathBuf, String),
    /// The certificate does not match the key, or rustls does not support them.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// Interval between two checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Remaining time of a certificate at which its load is logged as a warning.
const ENDS_SOON_S: u64 = 14 * DAY_S;

impl TlsFiles {
    /// Reads the files. Also returns the time at which the certificate ends, in seconds since 1970.
    fn load(&self) -> Result<(ServerConfig, u64), TlsError> {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        for ca in read_certificates(&self.client_ca)? {
            roots.add(ca).map_err(|error| TlsError::Ca(self.client_ca.clone(), error))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let certificates = read_certificates(&self.cert)?;
        let end_s = check_validity(&self.cert, &certificates, now_s())?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, read_key(&self.key)?)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session shows no certificate, so that an expired one would stay in use.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        warn_if_open_to_others(&self.key);
        Ok((config, end_s))
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

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        // PKCS#8 has it in the label, the older forms in a header.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.contains("ENCRYPTED") {
            TlsError::Encrypted(path.to_owned())
        } else {
            TlsError::File(path.to_owned(), error)
        }
    })
}

/// Refuses a certificate, or a chain with one, that is not valid at `now_s`. Returns the earliest end.
fn check_validity(path: &Path, chain: &[CertificateDer<'_>], now_s: u64) -> Result<u64, TlsError> {
    let mut end_s = u64::MAX;
    for certificate in chain {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| TlsError::Certificate(path.to_owned(), error.to_string()))?;
        let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let validity = parsed.validity();
        let from_s = seconds(validity.not_before);
        let to_s = seconds(validity.not_after);
        if to_s < now_s {
            return Err(TlsError::Ended(path.to_owned(), rfc3339(to_s)));
        }
        if from_s > now_s {
            return Err(TlsError::Early(path.to_owned(), rfc3339(from_s)));
        }
        end_s = end_s.min(to_s);
    }
    Ok(end_s)
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
        let (config, end_s) = files.load()?;
        note_end(&metrics, end_s);
        let (configs, receiver) = watch::channel(Arc::new(config));
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
            Ok((config, end_s)) => {
                note_end(&self.metrics, end_s);
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

/// Shows in the metrics when the certificate in use ends, and warns if that is soon.
fn note_end(metrics: &Metrics, end_s: u64) {
    metrics.certificate_end_s.set(end_s);
    if end_s < now_s() + ENDS_SOON_S {
        warn!(end = rfc3339(end_s), "certificate ends soon: renew it");
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
    /// Files of a relay whose self-signed certificate is valid in these years.
    fn files_valid(dir: &Path, from: i32, to: i32) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["relay".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let certificate = params.self_signed(&key).unwrap().pem();
        let files =
            TlsFiles { cert: dir.join("crt"), key: dir.join("key"), client_ca: dir.join("ca") };
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.client_ca, &certificate).unwrap();
        std::fs::write(&files.cert, certificate).unwrap();
        files
    }

    #[tokio::test]
    async fn an_ended_certificate_never_replaces_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = files_valid(dir.path(), 2020, 2100);
        let metrics = Arc::<Metrics>::default();
        let (mut reloader, configs) =
            CertificateReloader::new(files, Arc::clone(&metrics)).unwrap();
        let end = "sq_relay_certificate_end_timestamp_seconds 4102444800\n";
        assert!(metrics.encode().contains(end), "{}", metrics.encode());
        for (from, to, reason) in
            [(2020, 2021, "ended at 2021-01-01"), (2090, 2100, "begins at 2090-01-01")]
        {
            let files = files_valid(dir.path(), from, to);
            reloader.settling.take(files.versions());
            reloader.fault = Some(String::new());
            reloader.check().await.unwrap();
            let fault = reloader.fault.as_ref().unwrap();
            assert!(fault.contains(reason), "{fault}");
            assert!(!configs.has_changed().unwrap());
            assert!(metrics.encode().contains(end), "of the one in use");
            let refused = CertificateReloader::new(files, Arc::default()).unwrap_err();
            assert!(refused.to_string().contains(reason), "{refused}");
        }
    }

    #[test]
    fn an_encrypted_key_is_called_encrypted() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n\
             AAAA\n-----END EC PRIVATE KEY-----\n",
        ] {
            let files = files_valid(dir.path(), 2020, 2100);
            std::fs::write(&files.key, text).unwrap();
            let refused = files.load().unwrap_err();
            assert!(matches!(refused, TlsError::Encrypted(_)), "{refused}");
        }
    }
}
