//! A development CA and the certificates that it signs: the gateway's server certificate, the
//! relay's server certificate and the gateway's client certificate.
//!
//! Private keys have mode 0600, and the folder has mode 0700. The CA's own key is not stored, so
//! no further certificate can be signed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::host::files;

/// A folder of certificates and private keys, all in PEM.
#[derive(Debug, Clone)]
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Generates a new CA and three certificates in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        files::create_private_dir(dir)?;
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
        host_names: &[&str],
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<()> {
        let host_names: Vec<String> = host_names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(host_names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, ca)?;
        fs::write(self.cert(name), cert.pem())?;
        files::write_private(&self.key(name), key.serialize_pem().as_bytes())
    }

    fn file(&self, name: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{name}.{extension}"))
    }

    /// The folder of all files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA certificate that clients trust.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_are_closed_to_other_users() {
        let dir = tempfile::tempdir().unwrap();
        let certs = Certs::create(&dir.path().join("pki")).unwrap();
        assert_eq!(files::mode(certs.dir()), 0o700);
        for name in ["server", "relay", "gateway"] {
            assert_eq!(files::mode(&certs.key(name)), 0o600, "{name}");
        }
    }
}
