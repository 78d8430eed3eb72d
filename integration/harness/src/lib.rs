//! Builders that start the whole gateway from its real parts, and clients that talk to it.
//!
//! A [`Stack`] is a relay, an orchestrator and an Envoy as separate processes, in one temporary
//! folder and on free ports. Dropping it ends all of them and every tenant that they started, so a
//! test needs no cleanup. A test reads like this:
//!
//! ```no_run
//! use harness::client::TOC;
//! use harness::{Stack, Tier};
//!
//! # async fn test() -> anyhow::Result<()> {
//! let slow = Tier::new("slow").set("burst", 1).set("requests-per-s", 1);
//! let stack = Stack::builder().tier(slow).tenant_in_tier("alice", "slow").start().await?;
//! let alice = stack.tenant("alice")?;
//! alice.update("notes", "hello").await?.expect_ok()?;
//! let problem = alice.get(TOC).await?.expect_problem(429, "rate-limited")?;
//! anyhow::ensure!(problem.retry_after_s == Some(1), "{problem:?}");
//! let status = stack.orchestrator.tenant_status("alice").await?;
//! anyhow::ensure!(status.state == "awake" && status.wakes == 1, "{status:?}");
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`stack`] | the whole gateway and its builder |
//! | [`options`] | choices that the parts share: runtime, ports, lifecycle settings, Envoy's host |
//! | [`registry`] | tiers, tenants and the registry file |
//! | [`client`] | HTTPS and Unix socket client, typed responses, raw TLS connections, constant load |
//! | [`parts`] | relay, orchestrator (with its admin API) and Envoy as processes |
//! | [`bare_sq`] | SQ without the gateway, for comparison |
//! | [`host`] | this machine: certificates, Docker, ports, processes, programs, sockets |
//! | [`poll`] | waiting for a condition without fixed sleeps |
//!
//! The variables `RUNTIME`, `ENVOY_HOST`, `SQ_VERSION`, `FILTER_WASM`, `TOOLS_DIR` and `BIN_DIR`
//! select the programs that run; see [`options`] and [`host::tools`].

pub mod bare_sq;
pub mod client;
pub mod host;
pub mod options;
pub mod parts;
pub mod poll;
pub mod registry;
pub mod stack;

pub use client::load::Load;
pub use client::response::Response;
pub use client::{Client, Http};
pub use options::{EnvoyHost, Lifecycle, Listen, Runtime};
pub use poll::{holds, until};
pub use registry::{Registry, Tier};
pub use stack::{Stack, StackBuilder};
