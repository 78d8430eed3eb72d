//! A development CA and what it signs: the gateway's server certificate, the relay's server
//! certificate and the gateway's client certificate.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// Where the certificates lie; every file is PEM.
#[derive(Debug, Clone)]
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Makes a new CA and three certificates in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "SQ gateway development CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let certs = Self { dir: dir.to_owned() };
        fs::write(certs.ca(), ca.pem())?;
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        certs.sign(&ca, "server", &["localhost", "127.0.0.1", "::1"], server.clone())?;
        certs.sign(&ca, "relay", &["relay", "localhost", "127.0.0.1"], server)?;
        certs.sign(&ca, "gateway", &["gateway"], client)?;
        Ok(certs)
    }

    fn sign(
        &self,
        ca: &CertifiedIssuer<'_, KeyPair>,
        name: &str,
        names: &[&str],
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let mut params =
            CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, ca)?;
        fs::write(self.file(name, "crt"), cert.pem())?;
        fs::write(self.file(name, "key"), key.serialize_pem())?;
        Ok(())
    }

    fn file(&self, name: &str, ending: &str) -> PathBuf {
        self.dir.join(format!("{name}.{ending}"))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA that clients trust.
    pub fn ca(&self) -> PathBuf {
        self.file("ca", "crt")
    }

    /// The certificate of `server`, `relay` or `gateway`.
    pub fn cert(&self, name: &str) -> PathBuf {
        self.file(name, "crt")
    }

    /// The private key of `server`, `relay` or `gateway`.
    pub fn key(&self, name: &str) -> PathBuf {
        self.file(name, "key")
    }
}
