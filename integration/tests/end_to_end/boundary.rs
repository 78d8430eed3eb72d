//! The trust boundary inside the gateway host: what another local user can do to the gateway, and
//! what a process of an admitted user can do to an Envoy whose name it claims.

mod silent_envoy;
mod tcp_listeners;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::client::TOC;
use harness::host::docker;
use harness::{Lifecycle, Stack, StackBuilder, until};
use hyper::Method;
use rustix::process::geteuid;

use crate::suite::{Case, On, case};
use silent_envoy::SilentEnvoy;

/// A user that the settings do not name: `nobody` on most systems.
const OTHER_USER: u32 = 65_534;
/// Exit code of curl if it cannot connect.
const CANNOT_CONNECT: i32 = 7;
const PATIENCE: Duration = Duration::from_secs(30);
/// Bound on a wake beside a silent Envoy of the same name: half of the patience after which it would
/// be refused.
const WAKE_LIMIT: Duration = Duration::from_secs(4);
/// Bound on the first pause of an Envoy whose stream was cut, which is one second.
const PAUSE: Duration = Duration::from_millis(900);

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

fn short_ack_timeout() -> StackBuilder {
    one_tenant().lifecycle(Lifecycle::short_leases().duration_ms("ack_timeout", 3_000))
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(one_tenant), other_users_reach_no_socket),
        case!(On::Own(one_tenant), other_users_are_refused_despite_open_modes),
        case!(On::Own(one_tenant), envoy_neither_logs_more_nor_shows_keys),
        case!(On::Own(one_tenant), tcp_listeners_are_https_and_metrics),
        case!(On::Own(short_ack_timeout), silent_envoy_delays_no_wake).exclusive(),
    ]
}

/// A request to one of the stack's sockets.
struct Attack {
    socket: PathBuf,
    method: &'static str,
    path: &'static str,
    body: String,
}

/// Requests to the orchestrator that end metering for all tenants, wake an invented tenant, put a
/// tenant to sleep, and read tenants and their keys.
fn attacks_on_orchestrator(stack: &Stack) -> Vec<Attack> {
    let socket = |name| stack.orchestrator.socket(name);
    let usage = |source: &str| {
        let hour = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs() / 3_600;
        format!(
            "{{\"gateway\":\"gateway-1\",\"source\":\"{source}\",\"sequence\":1,\"rows\":[{{\
             \"tenant\":\"alice\",\"tier\":\"free\",\"limits\":{{}},\"hour\":{hour},\
             \"counters\":{{\"reads\":9223372036854775807}}}}]}}"
        )
    };
    let lease = "{\"gateway\":\"gateway-1\",\"tenant\":\"ghost\",\"tier\":\"free\",\
                 \"limits\":{\"memory_bytes\":68719476736}}";
    let attack = |name, method, path, body: &str| Attack {
        socket: socket(name),
        method,
        path,
        body: body.to_owned(),
    };
    vec![
        attack("gate", "POST", "/v1/usage", &usage("a-1")),
        attack("gate", "POST", "/v1/usage", &usage("b-1")),
        attack("gate", "POST", "/v1/lease", lease),
        attack("xds", "GET", "/", ""),
        attack("admin", "GET", "/v1/tenants", ""),
        attack("admin", "POST", "/v1/tenants/alice/sleep?force=true", ""),
    ]
}

/// Requests to Envoy that log customers' keys, show instances' keys, and end Envoy.
fn attacks_on_envoy(stack: &Stack) -> Vec<Attack> {
    let attack = |method, path| Attack {
        socket: stack.envoy.admin_socket().to_owned(),
        method,
        path,
        body: String::new(),
    };
    vec![
        attack("POST", "/logging?http=debug"),
        attack("GET", "/config_dump?include_eds"),
        attack("POST", "/quitquitquit"),
        attack("POST", "/drain_listeners"),
    ]
}

/// Exit code and output of curl, run as another user; the output ends with the HTTP status.
async fn as_other_user(attack: &Attack) -> Result<(i32, String)> {
    ensure!(geteuid().is_root(), "only root can run a program as another user");
    let mut command = Command::new("curl");
    command.uid(OTHER_USER).gid(OTHER_USER).current_dir("/");
    command.args(["--silent", "--max-time", "10", "--write-out", "%{http_code}", "--unix-socket"]);
    command.arg(&attack.socket).args(["--request", attack.method, "--data", &attack.body]);
    command.args(["--header", "content-type: application/json"]);
    command.arg(format!("http://localhost{}", attack.path));
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let code = output.status.code().context("curl was killed")?;
    Ok((code, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Fails unless the stack serves and meters alice, and knows no invented tenant.
async fn check_unharmed(stack: &Stack) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.get(TOC).await?.expect_ok()?;
    alice.get("/api/v2/usage").await?.expect_ok()?;
    let month = stack.orchestrator.month_usage().await?;
    ensure!(month.total.reads < 1_000, "{month:?}");
    ensure!(stack.orchestrator.tenant("ghost").await?.is_none(), "an invented tenant was woken");
    ensure!(stack.orchestrator.tenant_status("alice").await?.state == "awake");
    Ok(())
}

async fn other_users_reach_no_socket(stack: Arc<Stack>) -> Result<()> {
    check_unharmed(&stack).await?;
    let mut attacks = attacks_on_orchestrator(&stack);
    attacks.extend(attacks_on_envoy(&stack));
    for attack in &attacks {
        let (code, output) = as_other_user(attack).await?;
        ensure!(code == CANNOT_CONNECT, "{}: exit code {code}, {output}", attack.path);
    }
    // Metrics are for all users of the host, and name no tenant.
    for client in [stack.orchestrator.metrics(), stack.envoy.metrics()] {
        for path in ["/v1/tenants", "/v1/usage", "/stats", "/config_dump", "/clusters", "/logging"]
        {
            client.get(path).await?.expect_status(404)?;
        }
    }
    let metrics = stack.orchestrator.metrics().get("/metrics").await?.expect_ok()?.text();
    let stats = stack.envoy.metrics().get("/stats/prometheus").await?.expect_ok()?.text();
    ensure!(!metrics.contains("alice") && !stats.contains("alice"), "a metric names a tenant");
    check_unharmed(&stack).await
}

/// The kernel's word on the user counts, even where the modes let everyone connect.
async fn other_users_are_refused_despite_open_modes(stack: Arc<Stack>) -> Result<()> {
    check_unharmed(&stack).await?;
    let attacks = attacks_on_orchestrator(&stack);
    for attack in attacks.iter().chain(&attacks_on_envoy(&stack)) {
        open_modes(&attack.socket)?;
    }
    for attack in &attacks {
        let (code, output) = as_other_user(attack).await?;
        ensure!(code != 0 && output == "000", "{}: exit code {code}, {output}", attack.path);
    }
    // They were connected: it is the orchestrator that has refused them.
    for (socket, count) in [("gate", 3.0), ("xds", 1.0), ("admin", 2.0)] {
        let metric = format!("sq_orchestrator_refused_peers_total{{kind=\"{socket}\"}}");
        let refused = stack.orchestrator.labelled_metric(&metric).await?;
        ensure!(refused >= count, "{metric} is {refused}");
    }
    // Envoy does not look at the user, but serves none of these paths to anyone.
    for attack in &attacks_on_envoy(&stack) {
        let (code, output) = as_other_user(attack).await?;
        ensure!(code == 0 && output.ends_with("403"), "{}: {code}, {output}", attack.path);
    }
    check_unharmed(&stack).await
}

/// Lets every user connect to a socket.
fn open_modes(socket: &Path) -> Result<()> {
    fs::set_permissions(socket, Permissions::from_mode(0o666))?;
    for folder in socket.ancestors().skip(1).take(2) {
        fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

async fn envoy_neither_logs_more_nor_shows_keys(stack: Arc<Stack>) -> Result<()> {
    let admin = stack.envoy.admin();
    for path in ["/logging?http=debug", "/logging?level=trace", "/config_dump", "/listeners"] {
        for method in [Method::GET, Method::POST] {
            admin.send(method, path, &[], "".into()).await?.expect_status(403)?;
        }
    }
    let alice = stack.tenant("alice")?;
    let response = alice.get(TOC).await?.expect_ok()?;
    let id = response.header("x-request-id").to_owned();
    until("the request to be in the access log", PATIENCE, || async {
        stack.envoy.log().ok()?.contains(&id).then_some(())
    })
    .await?;
    let digits = stack.key("alice")?.trim_start_matches("pmb-v1-");
    ensure!(!stack.envoy.log()?.contains(digits), "alice's key is in Envoy's log");
    admin.get("/stats?filter=server.live").await?.expect_ok()?;
    Ok(())
}

async fn tcp_listeners_are_https_and_metrics(stack: Arc<Stack>) -> Result<()> {
    let orchestrator = stack.orchestrator.service().process()?.pid();
    let envoy = match stack.envoy.container() {
        Some(id) => docker::run(&["inspect", "--format", "{{.State.Pid}}", &id])?.parse()?,
        None => stack.envoy.pid()?,
    };
    let listen = stack.listen;
    let mut of_envoy = [listen.https, listen.envoy_metrics];
    of_envoy.sort_unstable();
    ensure!(tcp_listeners::of(orchestrator)? == [listen.orchestrator_metrics]);
    ensure!(tcp_listeners::of(envoy)? == of_envoy);
    Ok(())
}

/// A process that an operator has admitted may claim an Envoy's name. It must not keep the Envoy's
/// tenants asleep, and may delay their stops only now and then.
async fn silent_envoy_delays_no_wake(stack: Arc<Stack>) -> Result<()> {
    let alice = stack.tenant("alice")?;
    alice.update("index", "here").await?.expect_ok()?;
    let orchestrator = &stack.orchestrator;
    orchestrator.put_to_sleep("alice", PATIENCE).await?;
    let silent = SilentEnvoy::connect(&orchestrator.socket("xds"), "gateway-1").await?;
    expect_streams(&stack, 2.0).await?;

    let began = Instant::now();
    alice.select("index").await?.expect_text(200, "here")?;
    let woken = began.elapsed();
    println!("a wake beside a silent Envoy of the same name: {woken:.1?} of {WAKE_LIMIT:.1?}");
    ensure!(woken < WAKE_LIMIT, "the wake took {woken:?}");

    // Its stream is cut once a stop waits for it, and a new one is not served at once.
    let returned = async {
        silent.ended(PATIENCE).await?;
        let cut = Instant::now();
        expect_streams(&stack, 1.0).await?;
        let again = SilentEnvoy::connect(&orchestrator.socket("xds"), "gateway-1").await?;
        expect_streams(&stack, 2.0).await?;
        anyhow::Ok((again, cut.elapsed()))
    };
    let stopped = orchestrator.put_to_sleep("alice", PATIENCE);
    let ((again, pause), ()) = tokio::try_join!(returned, stopped)?;
    ensure!(pause >= PAUSE, "the silent Envoy is served again after {pause:?}");
    drop(again);
    expect_streams(&stack, 1.0).await
}

async fn expect_streams(stack: &Stack, count: f64) -> Result<()> {
    until(format!("{count} Envoys to be connected"), PATIENCE, || async {
        let streams = stack.orchestrator.metric("sq_orchestrator_xds_streams").await.ok()?;
        ((streams - count).abs() < f64::EPSILON).then_some(())
    })
    .await
}
