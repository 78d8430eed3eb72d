//! The ranch's relay as a process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpStream;

use crate::client::Client;
use crate::host::certs::Certs;
use crate::host::tools;
use crate::parts::service::Service;
use crate::registry::Registry;

/// Deadline for the port to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A relay that serves a registry file.
pub struct Relay {
    port: u16,
    service: Service,
    client: Client,
}

impl Relay {
    /// Writes `relay.toml` into `dir`; nothing runs yet.
    pub fn new(dir: &Path, port: u16, certs: &Certs, registry: &Registry) -> Result<Self> {
        let config = dir.join("relay.toml");
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\n\n[tls]\ncert = '{}'\nkey = '{}'\nclient_ca = '{}'\n\n\
             [source]\nfile = '{}'\n",
            certs.cert("relay").display(),
            certs.key("relay").display(),
            certs.ca().display(),
            registry.file().display()
        );
        fs::write(&config, text)?;
        let args = ["serve".into(), "--config".into(), config.display().to_string()];
        let program = tools::workspace_binary("relay")?;
        let service = Service::new("relay", program, args.into(), &dir.join("logs"));
        let client =
            Client::with_certificate(&format!("https://127.0.0.1:{port}"), certs, "gateway")?;
        Ok(Self { port, service, client })
    }

    /// Starts the process and waits until it accepts connections.
    pub async fn start(&self) -> Result<()> {
        let process = self.service.start()?;
        let port = self.port;
        // Requests need a client certificate, so an accepted connection has to suffice.
        let accepts = || async move { TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
        process.ready(START_TIMEOUT, accepts).await
    }

    /// A client with a gateway's certificate, which the relay accepts.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The service that runs it.
    pub fn service(&self) -> &Service {
        &self.service
    }
}
