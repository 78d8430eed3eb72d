//! Who reaches tenants, and whom they reach. Without root, a Docker daemon and `nft` these tests
//! fail; `make integration-test` runs them.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use orchestrator::runtime::{Endpoint, FirewallState, Runtime};

use crate::docker::{Installation, docker};
use crate::process;
use crate::tools::{
    USERS, eventually, firewall_table, read, remove_firewall_rules, spec, tenant, write,
};

/// A user of this host who has nothing to do with the gateway.
const OTHER_UID: u32 = 65_534;

/// Bound on the refusal of a connection.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// Bound on the restoration of rules that someone deleted.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);

/// Program that connects to `$1`, port `$2`, sends `$3`, and prints the start of the response. Gives
/// up after two seconds without a connection.
fn probe(address: SocketAddr, request: &str) -> Command {
    let script = "exec 3<>/dev/tcp/$1/$2 && printf \"$3\" >&3 && timeout 1 head -c 9 <&3";
    let mut command = Command::new("timeout");
    command.args(["2", "bash", "-c", script, "probe"]);
    command.args([&address.ip().to_string(), &address.port().to_string(), request]);
    command
}

/// A request that reads all with the instance's key.
fn request_with_key(at: &Endpoint) -> String {
    let key = at.key.expose();
    format!(
        "GET /api/v2/version HTTP/1.1\\r\\nHost: sq\\r\\nAuthorization: Bearer {key}\\r\\n\\r\\n"
    )
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// True if a user of this host gets a response of SQ.
fn user_reaches(uid: u32, at: &Endpoint) -> bool {
    let output = probe(at.address, &request_with_key(at)).uid(uid).output().unwrap();
    stdout(&output).starts_with("HTTP/1.1 ")
}

/// Runs a program in the tenant's network namespace.
fn in_network_of(home: &Installation, name: &str, command: &Command) -> Output {
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &home.container_of(name)]);
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-t", pid.trim(), "-n"]).arg(command.get_program()).args(command.get_args());
    nsenter.output().expect("nsenter")
}

/// All IPv4 addresses of this host: loopback, bridges and the outside.
fn host_addresses() -> Vec<IpAddr> {
    let listed = Command::new("ip").args(["-4", "-o", "addr"]).output().expect("ip");
    let addresses: Vec<IpAddr> = stdout(&listed)
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .collect();
    assert!(addresses.len() > 1, "{addresses:?}");
    addresses
}

fn delete_table(home: &Installation) {
    let table = firewall_table(home.dir.path());
    let deleted = Command::new("nft").args(["delete", "table", "inet", &table]).output().unwrap();
    assert!(deleted.status.success(), "{deleted:?}");
}

#[tokio::test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
async fn other_user_cannot_reach_a_tenant() {
    // With a prepared network and without one.
    for pool in [0, 1] {
        let home = Installation::with_pool(pool);
        let runtime = home.runtime_with_full_pool().await;
        let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
        assert!(user_reaches(0, &alice), "the probe must be able to succeed");
        let start = Instant::now();
        assert!(!user_reaches(OTHER_UID, &alice), "pool of {pool}");
        assert!(start.elapsed() < REFUSED_WITHIN, "refused after {:?}", start.elapsed());
        write(&alice, "as before").await;
        assert_eq!(read(&alice).await, "as before");
    }
}

#[tokio::test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
async fn tenant_reaches_no_listener_of_the_host() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    for address in host_addresses() {
        let connect = probe(SocketAddr::new(address, port), "");
        in_network_of(&home, "alice", &connect);
        let connected = listener.accept();
        assert!(connected.is_err(), "alice reaches {address}: {connected:?}");
    }
    let own = probe(SocketAddr::new(host_addresses()[0], port), "").output();
    assert!(own.is_ok() && listener.accept().is_ok(), "the probe must be able to succeed");
}

#[tokio::test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
async fn deleted_rules_are_restored_within_a_second() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    for _ in 0..3 {
        delete_table(&home);
        let start = Instant::now();
        eventually("the rules are restored", async || {
            (!user_reaches(OTHER_UID, &alice)).then_some(())
        })
        .await;
        assert!(start.elapsed() < RESTORED_WITHIN, "restored after {:?}", start.elapsed());
    }
    eventually("the rules are read back", async || {
        (runtime.firewall() == FirewallState::InForce).then_some(())
    })
    .await;
    write(&alice, "as before").await;
}

#[tokio::test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
async fn network_made_again_is_closed_again() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    docker(&["network", "rm", &home.network]);
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    assert!(user_reaches(0, &alice), "the probe must be able to succeed");
    assert!(!user_reaches(OTHER_UID, &alice));
    runtime.stop(&tenant("alice")).await.unwrap();
}

#[tokio::test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
async fn installations_keep_their_own_rules() {
    let homes = [Installation::new(), Installation::new()];
    let first = homes[0].runtime().await;
    let alice = first.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let second = homes[1].runtime().await;
    let bob = second.start(spec("bob", "0.6.0")).await.unwrap().endpoint;
    drop(second);
    delete_table(&homes[1]);
    assert!(user_reaches(OTHER_UID, &bob), "the probe must be able to succeed");
    assert!(!user_reaches(OTHER_UID, &alice));
}

/// `setpriv` takes the capability to make rules from an orchestrator that is root otherwise.
#[test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
fn start_without_rules_is_refused() {
    let home = Installation::new();
    let dir = home.dir.path();
    let config = |firewall: &str| {
        format!(
            "data_root = '{0}/data'\nstate_dir = '{0}/state'\n[listen]\ngate = '{0}/run/gate.sock'\n\
             xds = '{0}/run/xds.sock'\nadmin = '{0}/run/admin.sock'\nmetrics = '127.0.0.1:0'\n\
             [docker]\nnetwork = \"{1}\"\n{firewall}",
            dir.display(),
            home.network
        )
    };
    fs::create_dir(dir.join("data")).unwrap();
    fs::write(dir.join("required.toml"), config("")).unwrap();
    fs::write(dir.join("off.toml"), config("firewall = \"off\"\n")).unwrap();
    let serve = |file: &str, seconds: &str| {
        let mut command = Command::new("timeout");
        command.args([seconds, "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
        command.arg(env!("CARGO_BIN_EXE_orchestrator")).args(["serve", "--config"]);
        let output = command.arg(dir.join(file)).output().expect("setpriv");
        let text = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&text).into_owned())
    };
    let (status, text) = serve("required.toml", "20");
    assert!(!status.success() && status.code() != Some(124), "{status}: {text}");
    for part in ["docker.firewall", "not permitted", "CAP_NET_ADMIN", "firewall = \"off\""] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    // By name it runs without, and says so.
    let (_, text) = serve("off.toml", "5");
    assert!(
        text.contains("docker.firewall is off") && text.contains("orchestrator ready"),
        "{text}"
    );
}

/// A network namespace that is linked to this host as another host would be. Dropping it removes it.
struct OtherHost {
    name: String,
    /// This host's address on the link.
    address: IpAddr,
}

impl OtherHost {
    fn new() -> Self {
        let id = std::process::id();
        let name = format!("sq-test-{id}");
        // 198.18.0.0/15 is reserved for tests of networks.
        let subnet = format!("198.18.{}", id % 256);
        let here = format!("sqt{id}a");
        let there = format!("sqt{id}b");
        for command in [
            format!("netns add {name}"),
            format!("link add {here} type veth peer name {there} netns {name}"),
            format!("addr add {subnet}.1/24 dev {here}"),
            format!("link set {here} up"),
            format!("-n {name} addr add {subnet}.2/24 dev {there}"),
            format!("-n {name} link set {there} up"),
        ] {
            let done = Command::new("ip").args(command.split(' ')).output().expect("ip");
            assert!(done.status.success(), "ip {command}: {done:?}");
        }
        Self { name, address: format!("{subnet}.1").parse().unwrap() }
    }

    /// True if a connection to this host gets through.
    fn reaches(&self, port: u16) -> bool {
        let script = "exec 3<>/dev/tcp/$0/$1";
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &self.name, "timeout", "2", "bash", "-c", script]);
        ip.args([self.address.to_string(), port.to_string()]);
        ip.output().expect("ip").status.success()
    }
}

impl Drop for OtherHost {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "del", &self.name]).status().unwrap();
    }
}

#[tokio::test]
#[ignore = "root and Docker are needed: `make integration-test` runs it"]
async fn other_host_cannot_reach_a_process() {
    let home = process::Installation::new();
    let runtime = home.runtime().closed_to_other_hosts().await;
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let other_host = OtherHost::new();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let open = listener.local_addr().unwrap();
    assert!(other_host.reaches(open.port()), "the probe must be able to succeed");
    assert!(!other_host.reaches(alice.address.port()));
    write(&alice, "from this host").await;

    // Nor does any of SQ's users connect to anything.
    let loopback = SocketAddr::from(([127, 0, 0, 1], open.port()));
    let connected = probe(loopback, "").uid(USERS.first).output().unwrap();
    let error = String::from_utf8_lossy(&connected.stderr).into_owned();
    assert!(error.contains("Connection refused"), "{error}");
    remove_firewall_rules(&home.data());
}
