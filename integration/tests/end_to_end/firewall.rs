//! The firewall: only Envoy, the orchestrator and root reach a tenant, and tenants open no
//! connection. The cases need root, as `nft` and `nsenter` do.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::client::TOC;
use harness::host::{docker, firewall};
use harness::{Stack, StackBuilder, until};

use crate::suite::{Case, On, case};

/// A user of this host who has nothing to do with the gateway.
const OTHER_UID: u32 = 65_534;

/// Port of SQ in its container.
const SQ_PORT: u16 = 1337;

/// Bound on the refusal of a connection.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// Bound on the restoration of rules that someone deleted.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);

/// Time in which a connection that nothing forbids is open.
const CONNECT_TIMEOUT_S: &str = "1";

/// Address of another host (RFC 5737), which nothing may be sent to.
const OTHER_HOST: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)), 80);

pub(crate) fn cases() -> Vec<Case> {
    let own = || On::Own(two_tenants);
    vec![
        case!(own(), other_users_cannot_reach_awake_tenants).docker_only().exclusive(),
        case!(own(), tenants_open_no_connection).docker_only(),
        case!(own(), deleted_firewall_rules_are_restored).docker_only().exclusive(),
    ]
}

fn two_tenants() -> StackBuilder {
    Stack::builder().tenant("alice").tenant("bob")
}

/// A program that succeeds if it can connect.
fn connect(to: SocketAddr) -> Command {
    let mut command = Command::new("timeout");
    command.args([CONNECT_TIMEOUT_S, "bash", "-c", "exec 3<>/dev/tcp/$0/$1"]);
    command.args([to.ip().to_string(), to.port().to_string()]);
    command
}

fn user_connects(uid: u32, to: SocketAddr) -> Result<bool> {
    Ok(connect(to).uid(uid).output()?.status.success())
}

/// Wakes a tenant and returns where its SQ listens.
async fn awake(stack: &Stack, tenant: &str) -> Result<SocketAddr> {
    stack.tenant(tenant)?.get(TOC).await?.expect_ok()?;
    let mut id = stack.sq_instance(tenant)?;
    let mode = docker::run(&["inspect", "--format", "{{.HostConfig.NetworkMode}}", &id])?;
    if let Some(holder) = mode.strip_prefix("container:") {
        holder.clone_into(&mut id);
    }
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = docker::run(&["inspect", "--format", format, &id])?;
    Ok(SocketAddr::new(address.parse().context(address)?, SQ_PORT))
}

/// The program in the network namespace of a tenant.
fn as_tenant(stack: &Stack, tenant: &str, command: &Command) -> Result<bool> {
    let id = stack.sq_instance(tenant)?;
    let pid = docker::run(&["inspect", "--format", "{{.State.Pid}}", &id])?;
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &pid, "--net"]);
    nsenter.arg(command.get_program()).args(command.get_args());
    Ok(nsenter.output().context("nsenter")?.status.success())
}

/// All IPv4 addresses of this host: the loopback, bridges, the outside.
fn host_addresses() -> Result<Vec<IpAddr>> {
    let listed = Command::new("ip").args(["-4", "-o", "addr"]).output().context("ip")?;
    let listed = String::from_utf8(listed.stdout)?;
    let words = listed.lines().filter_map(|line| line.split_whitespace().nth(3));
    let addresses = words.filter_map(|word| word.split('/').next()?.parse().ok());
    Ok(addresses.filter(|address: &IpAddr| !address.is_loopback()).collect())
}

async fn other_users_cannot_reach_awake_tenants(stack: Arc<Stack>) -> Result<()> {
    for tenant in ["alice", "bob"] {
        let sq = awake(&stack, tenant).await?;
        ensure!(user_connects(0, sq)?, "the probe does not reach {sq} even as root");
        let start = Instant::now();
        ensure!(!user_connects(OTHER_UID, sq)?, "uid {OTHER_UID} reaches {tenant} at {sq}");
        ensure!(start.elapsed() < REFUSED_WITHIN, "refused after {:?}", start.elapsed());
        stack.tenant(tenant)?.get(TOC).await?.expect_ok()?;
    }
    Ok(())
}

async fn tenants_open_no_connection(stack: Arc<Stack>) -> Result<()> {
    awake(&stack, "alice").await?;
    let bob = awake(&stack, "bob").await?;
    // Envoy listens on all addresses of this host.
    let addresses = host_addresses()?;
    ensure!(addresses.len() > 1, "no bridge among the addresses of this host: {addresses:?}");
    for address in addresses {
        let envoy = SocketAddr::new(address, stack.listen.https);
        ensure!(connect(envoy).output()?.status.success(), "this host does not reach {envoy}");
        ensure!(!as_tenant(&stack, "alice", &connect(envoy))?, "alice reaches {envoy}");
    }
    for other in [bob, OTHER_HOST] {
        ensure!(!as_tenant(&stack, "alice", &connect(other))?, "alice reaches {other}");
    }
    Ok(())
}

async fn deleted_firewall_rules_are_restored(stack: Arc<Stack>) -> Result<()> {
    let sq = awake(&stack, "alice").await?;
    let in_force =
        || async { stack.orchestrator.metric("sq_orchestrator_firewall_in_force").await };
    ensure!(in_force().await? > 0.0, "no rules");
    let table = firewall::table(stack.orchestrator.data());
    let deleted = Command::new("nft").args(["delete", "table", "inet", &table]).status()?;
    ensure!(deleted.success(), "there was no table {table}");
    until("the rules to be back", RESTORED_WITHIN, || async {
        (!user_connects(OTHER_UID, sq).ok()?).then_some(())
    })
    .await?;
    until("the rules to be read back", RESTORED_WITHIN, || async {
        (in_force().await.ok()? > 0.0).then_some(())
    })
    .await?;
    stack.tenant("alice")?.get(TOC).await?.expect_ok()?;
    Ok(())
}
