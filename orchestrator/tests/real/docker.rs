//! The Docker runtime: the contract of all runtimes, and its own rules. Without a daemon these tests
//! fail; `make integration-test` runs them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use orchestrator::config::{Config, DockerConfig, RuntimeKind, SeccompProfile};
use orchestrator::runtime::docker::DockerRuntime;
use orchestrator::runtime::{ExitKind, FoundState, Runtime, RuntimeError, select};
use protocol::containers::{BOOT, INSTALLATION, ROLE, ROLE_NAMESPACE, TENANT};
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::contract;
use crate::tools::{
    USERS, VERSIONS, eventually, read, remove_firewall_rules, spec, sq_pattern, tenant, write,
};

/// Held by tests that change or read the host's count of kills for lack of memory.
static OOM_KILLS_OF_THE_HOST: Mutex<()> = Mutex::const_new(());

/// One installation on the daemon. Dropping it removes everything of it, after a failed test too.
pub(crate) struct Installation {
    pub(crate) dir: TempDir,
    state: TempDir,
    pub(crate) network: String,
    network_pool: usize,
    seccomp: SeccompProfile,
}

impl Installation {
    pub(crate) fn new() -> Self {
        Self::with_pool(0)
    }

    pub(crate) fn with_pool(network_pool: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let unique = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.');
        let network = format!("sq-test-{}", unique.to_lowercase());
        let seccomp = SeccompProfile::BuiltIn;
        Self { dir, state: TempDir::new().unwrap(), network, network_pool, seccomp }
    }

    fn with_seccomp(seccomp: SeccompProfile) -> Self {
        let mut home = Self::new();
        home.seccomp = seccomp;
        home
    }

    pub(crate) async fn runtime(&self) -> DockerRuntime {
        let config = DockerConfig {
            network: self.network.clone(),
            network_pool: self.network_pool,
            seccomp: self.seccomp.clone(),
            ..Config::default().docker
        };
        DockerRuntime::connect(self.dir.path(), self.state.path(), USERS, config, vec![0])
            .await
            .expect("these tests need a Docker daemon")
    }

    /// A runtime whose pool of prepared networks is full.
    pub(crate) async fn runtime_with_full_pool(&self) -> DockerRuntime {
        let runtime = self.runtime().await;
        eventually("the pool is full", async || {
            (runtime.free_networks() == self.network_pool).then_some(())
        })
        .await;
        runtime
    }

    /// Ids of the installation's containers to which a filter of Docker applies.
    fn containers(&self, filter: &str) -> Vec<String> {
        let format = format!("{{{{index .Labels \"{INSTALLATION}\"}}}}");
        let installation = docker(&["network", "inspect", "-f", &format, &self.network]);
        let label = format!("label={INSTALLATION}={}", installation.trim());
        let found = docker(&["ps", "-aq", "--no-trunc", "--filter", &label, "--filter", filter]);
        found.lines().map(str::to_owned).collect()
    }

    pub(crate) fn container_of(&self, name: &str) -> String {
        self.containers(&format!("label={TENANT}={name}")).remove(0)
    }

    /// Ids of the containers that hold prepared networks.
    fn network_holders(&self) -> Vec<String> {
        self.containers(&format!("label={ROLE}={ROLE_NAMESPACE}"))
    }

    fn all_containers(&self) -> Vec<String> {
        self.containers("name=sq-")
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        for id in self.all_containers() {
            docker(&["rm", "-f", &id]);
        }
        docker(&["network", "rm", &self.network]);
        remove_firewall_rules(self.dir.path());
    }
}

pub(crate) fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn instance_passes_through_all_states() {
    for version in VERSIONS {
        let home = Installation::new();
        let runtime = home.runtime().await;
        let reopen = async || home.runtime().await;
        contract::instance_passes_through_all_states(runtime, reopen, version).await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn instance_in_prepared_network_passes_through_all_states() {
    let home = Installation::with_pool(2);
    let runtime = home.runtime_with_full_pool().await;
    let reopen = async || home.runtime().await;
    contract::instance_passes_through_all_states(runtime, reopen, "0.6.0").await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn death_is_an_event_and_stop_is_none() {
    for version in VERSIONS {
        let home = Installation::new();
        let runtime = home.runtime().await;
        let kill = async || {
            docker(&["kill", &home.container_of("bob")]);
        };
        contract::death_is_an_event_and_stop_is_none(&runtime, version, kill).await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn each_tenant_is_a_user_of_its_own() {
    let home = Installation::new();
    contract::each_tenant_is_a_user_of_its_own(&home.runtime().await, home.dir.path()).await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn folder_of_the_old_single_user_moves() {
    let home = Installation::new();
    let reopen = async || home.runtime().await;
    contract::folder_of_the_old_single_user_moves(reopen, home.dir.path()).await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn key_is_on_no_command_line() {
    let home = Installation::new();
    contract::key_is_on_no_command_line(&home.runtime().await).await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn key_file_is_private_and_ends_with_its_container() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    let endpoint = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let key = endpoint.key.expose();
    let path = home.state.path().join("instance-keys/alice.json");
    assert!(fs::read_to_string(&path).unwrap().contains(key));
    assert!(!docker(&["inspect", &endpoint.instance.0]).contains(key));
    // Neither another tenant nor the tenant's own user on the host comes near it.
    for uid in ["10001", "10002", "65534"] {
        let as_uid = ["--reuid", uid, "--regid", uid, "--clear-groups", "cat"];
        let read = Command::new("setpriv").args(as_uid).arg(&path).output().unwrap();
        assert!(!read.status.success(), "uid {uid} reads the key");
    }

    // A start that fails leaves no key behind, nor does an orchestrator that was killed.
    runtime.start(spec("bob", "9.9.9")).await.unwrap_err();
    fs::write(path.with_file_name("carol.json"), "left by a crash").unwrap();
    drop(runtime);
    let runtime = home.runtime().await;
    let keys = || fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(keys(), 1, "the key of the running container stays");
    assert_eq!(runtime.list().await.unwrap()[0].endpoint, Some(endpoint));
    runtime.stop(&tenant("alice")).await.unwrap();
    assert_eq!(keys(), 0);
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn kill_by_the_host_is_no_lack_of_memory() {
    let _alone = OOM_KILLS_OF_THE_HOST.lock().await;
    for version in VERSIONS {
        let home = Installation::new();
        let runtime = home.runtime().await;
        let kill = async || {
            let pid = runtime.pid(&tenant("bob")).await.unwrap().unwrap().to_string();
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        };
        contract::death_is_an_event_and_stop_is_none(&runtime, version, kill).await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn out_of_memory_kills_one_tenant_only() {
    let _alone = OOM_KILLS_OF_THE_HOST.lock().await;
    for version in VERSIONS {
        let home = Installation::new();
        contract::out_of_memory_kills_one_tenant_only(&home.runtime().await, version).await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn resize_raises_the_memory_limit() {
    let home = Installation::new();
    contract::resize_raises_the_memory_limit(&home.runtime().await).await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn container_is_hardened_and_limited() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let format = "{{.Config.User}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} \
                  {{.HostConfig.PidsLimit}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} \
                  {{index .HostConfig.SecurityOpt 0}} {{.HostConfig.LogConfig.Type}} \
                  {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Privileged}} \
                  {{.HostConfig.Ulimits}} {{.HostConfig.DNS}} {{.HostConfig.CPUShares}} \
                  {{index .HostConfig.SecurityOpt 1}}";
    let inspected = docker(&["inspect", "-f", format, &home.container_of("alice")]);
    let expected = "10002:10002 67108864 67108864 600 true [ALL] no-new-privileges none  false \
                    [core=0:0] [198.51.100.53] 1024 ";
    let (properties, profile) = inspected.split_once("seccomp=").unwrap();
    assert_eq!(properties.replace(" no false", "  false"), expected);
    let profile: serde_json::Value = serde_json::from_str(profile).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn tenants_reach_neither_each_other_nor_the_world() {
    let home = Installation::with_pool(1);
    let runtime = home.runtime_with_full_pool().await;
    // The first one gets the prepared network; the second one is on the bridge, or in the next.
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let bob = runtime.start(spec("bob", "0.6.0")).await.unwrap().endpoint;
    write(&alice, "alice's").await;
    write(&bob, "bob's").await;
    assert_eq!(read(&alice).await, "alice's");
    assert_eq!(read(&bob).await, "bob's");
    assert!(reaches(&home, "alice", alice.address), "the check must be able to succeed");
    assert!(!reaches(&home, "alice", bob.address), "alice reaches bob");
    assert!(!reaches(&home, "bob", alice.address), "bob reaches alice");
    assert!(!reaches(&home, "bob", "192.0.2.1:80".parse().unwrap()), "bob reaches the world");
}

/// System calls that succeed or fail for another reason with Docker's profile, where code in
/// a tenant's container makes them.
const CALLS_OF_DOCKERS_PROFILE: [&str; 8] =
    ["connect", "fast_open", "datagram", "netlink", "unix", "symlink", "mknod", "ptrace"];

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn container_makes_no_call_but_sqs() {
    let calls = calls_in_container(SeccompProfile::BuiltIn).await;
    assert_eq!(calls["socket"], 0, "the probe must be able to succeed: {calls:?}");
    for (call, error) in &calls {
        // Programs try another call where the kernel does not know this one.
        let expected = match call.as_str() {
            "socket" => 0,
            "clone3" => Errno::NOSYS.raw_os_error(),
            _ => Errno::PERM.raw_os_error(),
        };
        assert_eq!(*error, expected, "{call}");
    }
    let permissive = calls_in_container(SeccompProfile::Docker).await;
    assert_eq!(permissive.len(), calls.len());
    for call in CALLS_OF_DOCKERS_PROFILE {
        assert_ne!(permissive[call], Errno::PERM.raw_os_error(), "{call} with Docker's profile");
    }
}

/// Runs `forbidden_calls.c` in a tenant's container and returns the error of each call.
async fn calls_in_container(seccomp: SeccompProfile) -> BTreeMap<String, i32> {
    let home = Installation::with_seccomp(seccomp);
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    compile(include_str!("forbidden_calls.c"), &home.dir.path().join("alice/probe"));
    let id = home.container_of("alice");
    let output = docker(&["exec", "--workdir", "/data/alice", &id, "/data/alice/probe"]);
    let call = |line: &str| {
        let (name, error) = line.split_once(' ')?;
        Some((name.to_owned(), error.parse().ok()?))
    };
    let calls: BTreeMap<String, i32> = output.lines().filter_map(call).collect();
    assert_eq!(calls.len(), 22, "{output}");
    calls
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn weight_of_the_tier_shares_processors_and_disks() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    for (name, weight) in [("light", 10), ("ordinary", 100), ("heavy", 1_000)] {
        let mut spec = spec(name, "0.6.0");
        spec.limits.weight = weight;
        runtime.start(spec).await.unwrap();
        let id = home.container_of(name);
        let format = "{{.HostConfig.CPUShares}} {{.HostConfig.BlkioWeight}} {{.State.Pid}}";
        let inspected = docker(&["inspect", "-f", format, &id]);
        let [cpu, disk, pid] = inspected.split_whitespace().collect::<Vec<_>>()[..] else {
            panic!("{inspected}");
        };
        let shares = weight * 1_024 / 100;
        assert_eq!(cpu, shares.to_string(), "{name}");
        // Where the kernel has no weights, none is requested, and the container starts all the same.
        let has_weights = !runtime.describe().notes.iter().any(|note| note.contains("disk time"));
        let expected = if has_weights { 10 + weight / 10 } else { 0 };
        assert_eq!(disk, expected.to_string(), "{name}");
        let expected = if is_cgroup_v2() { cpu_weights(shares) } else { vec![shares.to_string()] };
        assert!(
            expected.contains(&cpu_weight_of(pid)),
            "{name}: {} of {expected:?}",
            cpu_weight_of(pid)
        );
    }
}

/// Code in both containers keeps all processors busy.
#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn heavier_tenant_gets_more_processor_time() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    let mut pids = Vec::new();
    for (name, weight) in [("light", 100), ("heavy", 1_000)] {
        let mut spec = spec(name, "0.6.0");
        spec.limits.weight = weight;
        runtime.start(spec).await.unwrap();
        compile("int main(void) { for (;;); }", &home.dir.path().join(name).join("spin"));
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            docker(&["exec", "-d", &home.container_of(name), &format!("/data/{name}/spin")]);
        }
        pids.push(runtime.pid(&tenant(name)).await.unwrap().unwrap().to_string());
    }
    let [light, heavy] = &pids[..] else { panic!("two tenants") };
    let before = [processor_ms(light), processor_ms(heavy)];
    let spent = || [processor_ms(light) - before[0], processor_ms(heavy) - before[1]];
    eventually("both have used processor time", async || {
        (spent().iter().sum::<u64>() > 5_000).then_some(())
    })
    .await;
    let [light, heavy] = spent();
    println!("weights 100 and 1000 got {light} and {heavy} ms of processor time");
    assert!(heavy > 2 * light, "{light} and {heavy} ms");
}

/// Compiles a C program that needs no library where it runs.
fn compile(source: &str, program: &Path) {
    let mut cc = Command::new("cc");
    cc.args(["-static", "-Wall", "-Werror", "-x", "c", "-", "-o"]).arg(program);
    let mut cc = cc.stdin(Stdio::piped()).spawn().unwrap();
    cc.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(cc.wait().unwrap().success(), "cc");
}

/// Processor time that the group of a process has used.
fn processor_ms(pid: &str) -> u64 {
    if !is_cgroup_v2() {
        return group_file(pid, "cpuacct", "cpuacct.usage").trim().parse::<u64>().unwrap()
            / 1_000_000;
    }
    let stat = group_file(pid, "cpu", "cpu.stat");
    let usage_us = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    usage_us.parse::<u64>().unwrap() / 1_000
}

fn is_cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What container runtimes make of shares in cgroup v2: until 2025 linear, then logarithmic.
fn cpu_weights(shares: u32) -> Vec<String> {
    let linear = 1 + (shares - 2) * 9_999 / 262_142;
    let exponent = f64::from(shares).log2();
    let curved = 10_f64.powf((exponent.powi(2) + 125.0 * exponent) / 612.0 - 7.0 / 34.0).ceil();
    vec![linear.to_string(), curved.to_string()]
}

/// The kernel's share of processor time for the group of a process.
fn cpu_weight_of(pid: &str) -> String {
    let name = if is_cgroup_v2() { "cpu.weight" } else { "cpu.shares" };
    group_file(pid, "cpu", name).trim().to_owned()
}

/// Content of a file in the group of a process. cgroup v2 has one group for all controllers.
fn group_file(pid: &str, controller: &str, name: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let folder = groups.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let root = match controllers {
            "" if is_cgroup_v2() => "/sys/fs/cgroup".to_owned(),
            _ if controllers.split(',').any(|name| name == controller) => {
                format!("/sys/fs/cgroup/{controller}")
            }
            _ => return None,
        };
        Some(format!("{root}{group}"))
    });
    fs::read_to_string(format!("{}/{name}", folder.unwrap())).unwrap()
}

/// Asks for SQ at `address` from inside the tenant's network namespace.
fn reaches(home: &Installation, name: &str, address: SocketAddr) -> bool {
    let pid = docker(&["inspect", "-f", "{{.State.Pid}}", &home.container_of(name)]);
    let probe = format!(
        "exec 3<>/dev/tcp/{}/{} && printf 'GET /api/v2/version HTTP/1.1\\r\\n\\r\\n' >&3 && cat <&3",
        address.ip(),
        address.port()
    );
    let output = Command::new("nsenter")
        .args(["-t", pid.trim(), "-n", "timeout", "2", "bash", "-c", &probe])
        .output()
        .expect("nsenter");
    String::from_utf8_lossy(&output.stdout).contains(" 401 ")
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn used_network_is_discarded_and_replaced() {
    let home = Installation::with_pool(1);
    let runtime = home.runtime_with_full_pool().await;
    let holder = home.network_holders().remove(0);
    let endpoint = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let mode = docker(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", &endpoint.instance.0]);
    assert_eq!(mode.trim(), format!("container:{holder}"));

    // A tenant that dies and is started again keeps its address.
    docker(&["kill", &endpoint.instance.0]);
    let again = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    assert_eq!(again.address, endpoint.address);

    runtime.stop(&tenant("alice")).await.unwrap();
    eventually("the used network is replaced", async || {
        let holders = home.network_holders();
        (holders.len() == 1 && !holders.contains(&holder)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn failed_start_leaves_no_network_behind() {
    let home = Installation::with_pool(1);
    let runtime = home.runtime_with_full_pool().await;
    let holder = home.network_holders().remove(0);
    let endpoint = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    docker(&["kill", &endpoint.instance.0]);
    let folder = home.dir.path().join("alice");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "not a folder").unwrap();
    runtime.start(spec("alice", "0.6.0")).await.unwrap_err();
    eventually("the network is removed", async || {
        (!home.network_holders().contains(&holder)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn adopted_network_is_removed_without_a_pool() {
    let mut home = Installation::with_pool(1);
    let runtime = home.runtime_with_full_pool().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let mode = "{{.HostConfig.NetworkMode}}";
    let mode = docker(&["inspect", "-f", mode, &home.container_of("alice")]);
    let holder = mode.trim().strip_prefix("container:").unwrap().to_owned();
    drop(runtime);

    home.network_pool = 0;
    let runtime = home.runtime().await;
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Running);
    runtime.stop(&tenant("alice")).await.unwrap();
    eventually("the network is removed", async || {
        (!home.network_holders().contains(&holder)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn changed_runtime_stops_the_instances_of_the_old() {
    let home = Installation::new();
    let mut config = Config {
        data_root: home.dir.path().join("data"),
        state_dir: home.dir.path().join("state"),
        runtime: RuntimeKind::Docker,
        ..Config::default()
    };
    config.docker.network.clone_from(&home.network);
    config.docker.network_pool = 0;
    config.process.sq = sq_pattern();
    fs::create_dir_all(&config.data_root).unwrap();
    let record = Path::new("run-record");
    let runtime = select::choose(&config, None, record).await.unwrap();
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    // Two runtimes of one installation would replace each other's firewall rules.
    drop(runtime);

    config.runtime = RuntimeKind::Process;
    let runtime = select::choose(&config, Some("docker"), record).await.unwrap();
    assert_eq!(home.all_containers(), [""; 0]);
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    drop(runtime);

    config.runtime = RuntimeKind::Docker;
    select::choose(&config, Some("process"), record).await.unwrap();
    assert_eq!(fs::read_dir(config.state_dir.join("process")).unwrap().count(), 0);
    remove_firewall_rules(&config.data_root);
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn death_between_two_runtimes_is_found() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    drop(runtime);
    docker(&["kill", &home.container_of("alice")]);
    let runtime = home.runtime().await;
    let found = runtime.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::Stopped(ExitKind::Crashed(137)));
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn instance_of_an_earlier_boot_is_recognized() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let id = home.container_of("alice");
    let inspect = |format| docker(&["inspect", "--format", format, &id]).trim().to_owned();
    let labels: serde_json::Value =
        serde_json::from_str(&inspect("{{json .Config.Labels}}")).unwrap();
    let name = inspect("{{.Name}}");
    let image = inspect("{{.Config.Image}}");
    docker(&["rm", "--force", &id]);

    // A container with the same name and labels, but for the boot. Without arguments SQ prints its
    // usage and exits.
    let mut again = vec!["run".to_owned(), "--name".to_owned(), name[1..].to_owned()];
    for (label, value) in labels.as_object().unwrap() {
        let value = if label == BOOT { "another" } else { value.as_str().unwrap() };
        again.extend(["--label".to_owned(), format!("{label}={value}")]);
    }
    again.extend([image, "/exo/sq".to_owned()]);
    docker(&again.iter().map(String::as_str).collect::<Vec<_>>());
    let found = home.runtime().await.list().await.unwrap().remove(0);
    assert_eq!(found.state, FoundState::FromEarlierBoot);
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn failed_start_is_explained_and_leaves_nothing() {
    let home = Installation::new();
    let runtime = home.runtime().await;
    let missing = runtime.start(spec("alice", "9.9.9")).await.unwrap_err();
    assert!(matches!(&missing, RuntimeError::Missing(text) if text.contains("make setup")));
    fs::write(home.dir.path().join("bob"), "not a folder").unwrap();
    let unwritable = runtime.start(spec("bob", "0.6.0")).await.unwrap_err();
    assert!(matches!(&unwritable, RuntimeError::Unwritable { .. }), "{unwritable}");
    assert_eq!(runtime.list().await.unwrap(), []);
    assert_eq!(home.all_containers(), [""; 0]);
}
