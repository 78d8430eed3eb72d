//! The Docker runtime. `make integration-test` runs these; without a daemon they fail.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use orchestrator::config::{Config, DockerConfig, RuntimeKind};
use orchestrator::runtime::docker::DockerRuntime;
use orchestrator::runtime::folder::Owner;
use orchestrator::runtime::select;
use orchestrator::runtime::{Runtime, RuntimeError};
use tempfile::TempDir;

use crate::rules;
use crate::tools::{VERSIONS, eventually, read, spec, tenant, write};
use protocol::containers::{BOOT, INSTALLATION, ROLE, ROLE_NAMESPACE, TENANT};

/// One installation on the daemon; everything of it is removed at the end, also of a failed test.
struct Home {
    dir: TempDir,
    network: String,
    slots: usize,
}

fn home(slots: usize) -> Home {
    let dir = TempDir::new().unwrap();
    let unique = dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    let network = format!("sq-test-{}", unique.to_lowercase());
    Home { dir, network, slots }
}

impl Home {
    async fn runtime(&self) -> DockerRuntime {
        let config = DockerConfig {
            network: self.network.clone(),
            network_pool: self.slots,
            ..Config::default().docker
        };
        let owner = Owner { uid: 10001, gid: 10001 };
        DockerRuntime::connect(self.dir.path(), owner, config)
            .await
            .expect("these tests need a Docker daemon")
    }

    /// Containers on the network of this installation, slots included.
    fn containers(&self, filter: &str) -> Vec<String> {
        let label = docker(&[
            "network",
            "inspect",
            "-f",
            &format!("{{{{index .Labels \"{INSTALLATION}\"}}}}"),
            &self.network,
        ]);
        let label = format!("label={INSTALLATION}={}", label.trim());
        let found = docker(&["ps", "-aq", "--no-trunc", "--filter", &label, "--filter", filter]);
        found.lines().map(str::to_owned).collect()
    }

    fn container_of(&self, name: &str) -> String {
        self.containers(&format!("label={TENANT}={name}")).remove(0)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for id in self.containers("name=sq-") {
            docker(&["rm", "-f", &id]);
        }
        docker(&["network", "rm", &self.network]);
    }
}

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn an_instance_lives_through_its_states() {
    for version in VERSIONS {
        let home = home(0);
        let runtime = home.runtime().await;
        let again = async || home.runtime().await;
        rules::an_instance_lives_through_its_states(runtime, again, version).await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn an_instance_lives_through_its_states_in_network_slots() {
    let home = home(2);
    let runtime = home.runtime().await;
    eventually("slots are ready", async || (runtime.free_networks() == 2).then_some(())).await;
    let again = async || home.runtime().await;
    rules::an_instance_lives_through_its_states(runtime, again, "0.6.0").await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn a_death_is_told_once_and_a_stop_is_not() {
    for version in VERSIONS {
        let home = home(0);
        let runtime = home.runtime().await;
        rules::a_death_is_told_once_and_a_stop_is_not(&runtime, version, async || {
            docker(&["kill", &home.container_of("bob")]);
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn a_tenant_that_uses_up_its_memory_dies_alone() {
    for version in VERSIONS {
        let home = home(0);
        let runtime = home.runtime().await;
        rules::a_tenant_that_uses_up_its_memory_dies_alone(&runtime, version).await;
    }
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn a_running_instance_can_be_given_more_memory() {
    let home = home(0);
    rules::a_running_instance_can_be_given_more_memory(&home.runtime().await).await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn a_container_is_hardened_and_limited() {
    let home = home(0);
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let format = "{{.Config.User}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} \
                  {{.HostConfig.PidsLimit}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} \
                  {{.HostConfig.SecurityOpt}} {{.HostConfig.LogConfig.Type}} \
                  {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Privileged}}";
    let seen = docker(&["inspect", "-f", format, &home.container_of("alice")]);
    let wanted = "10001:10001 67108864 67108864 600 true [ALL] [no-new-privileges] none  false";
    assert_eq!(seen.trim_end().replace(" no false", "  false"), wanted);
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn no_tenant_reaches_another() {
    let home = home(1);
    let runtime = home.runtime().await;
    eventually("a slot is ready", async || (runtime.free_networks() == 1).then_some(())).await;
    // One in a slot, one the plain way or in the next slot.
    let alice = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let bob = runtime.start(spec("bob", "0.6.0")).await.unwrap().endpoint;
    write(&alice, "mine").await;
    write(&bob, "his").await;
    assert_eq!((read(&alice).await, read(&bob).await), ("mine".to_owned(), "his".to_owned()));
    assert!(reaches(&home, "alice", alice.address), "the tool must reach what is there");
    assert!(!reaches(&home, "alice", bob.address), "alice reaches bob");
    assert!(!reaches(&home, "bob", alice.address), "bob reaches alice");
    assert!(!reaches(&home, "bob", "192.0.2.1:80".parse().unwrap()), "bob reaches the world");
}

/// Whether a connection from the tenant's network to `address` comes about.
fn reaches(home: &Home, name: &str, address: SocketAddr) -> bool {
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
async fn a_used_slot_is_thrown_away_and_replaced() {
    let home = home(1);
    let runtime = home.runtime().await;
    let ready = async || (runtime.free_networks() == 1).then_some(());
    eventually("a slot is ready", ready).await;
    let slot = home.containers(&format!("label={ROLE}={ROLE_NAMESPACE}")).remove(0);
    let endpoint = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    let mode = docker(&["inspect", "-f", "{{.HostConfig.NetworkMode}}", &endpoint.instance.0]);
    assert_eq!(mode.trim(), format!("container:{slot}"));

    // A tenant that dies and comes back keeps its address.
    docker(&["kill", &endpoint.instance.0]);
    let again = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    assert_eq!(again.address, endpoint.address);

    runtime.stop(&tenant("alice")).await.unwrap();
    eventually("the used slot is gone", async || {
        let slots = home.containers(&format!("label={ROLE}={ROLE_NAMESPACE}"));
        (slots.len() == 1 && !slots.contains(&slot)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn a_start_that_fails_leaves_no_slot_behind() {
    let home = home(1);
    let runtime = home.runtime().await;
    eventually("a slot is ready", async || (runtime.free_networks() == 1).then_some(())).await;
    let slot = home.containers(&format!("label={ROLE}={ROLE_NAMESPACE}")).remove(0);
    let endpoint = runtime.start(spec("alice", "0.6.0")).await.unwrap().endpoint;
    docker(&["kill", &endpoint.instance.0]);
    let folder = home.dir.path().join("alice");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "not a folder").unwrap();
    runtime.start(spec("alice", "0.6.0")).await.unwrap_err();
    eventually("its slot is gone", async || {
        let slots = home.containers(&format!("label={ROLE}={ROLE_NAMESPACE}"));
        (!slots.contains(&slot)).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn another_runtime_begins_when_the_first_has_ended() {
    let home = home(0);
    let mut config = Config {
        data_root: home.dir.path().join("data"),
        state_dir: home.dir.path().join("state"),
        runtime: RuntimeKind::Docker,
        ..Config::default()
    };
    config.docker.network.clone_from(&home.network);
    config.docker.network_pool = 0;
    config.process.sq = crate::tools::sq_pattern();
    fs::create_dir_all(&config.data_root).unwrap();
    let record = Path::new("run-record");
    select::choose(&config, None, record)
        .await
        .unwrap()
        .start(spec("alice", "0.6.0"))
        .await
        .unwrap();
    config.runtime = RuntimeKind::Process;
    let runtime = select::choose(&config, Some("docker"), record).await.unwrap();
    assert_eq!(home.containers("name=sq-"), [""; 0]);
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    config.runtime = RuntimeKind::Auto;
    let runtime = select::choose(&config, Some("process"), record).await.unwrap();
    assert_eq!(runtime.describe().kind, "process", "as before, though Docker answers");
    config.runtime = RuntimeKind::Docker;
    select::choose(&config, Some("process"), record).await.unwrap();
    assert_eq!(fs::read_dir(config.state_dir.join("process")).unwrap().count(), 0);
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn deaths_while_nobody_watched_are_found() {
    let home = home(0);
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    drop(runtime);
    docker(&["kill", &home.container_of("alice")]);
    let runtime = home.runtime().await;
    let found = runtime.list().await.unwrap().remove(0);
    let exit = orchestrator::runtime::ExitKind::Crashed(137);
    assert_eq!(found.state, orchestrator::runtime::FoundState::Stopped(exit));
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn what_an_earlier_boot_left_is_told_from_what_died_in_this_one() {
    let home = home(0);
    let runtime = home.runtime().await;
    runtime.start(spec("alice", "0.6.0")).await.unwrap();
    let id = home.container_of("alice");
    let shown = |what| docker(&["inspect", "--format", what, &id]).trim().to_owned();
    let labels: serde_json::Value =
        serde_json::from_str(&shown("{{json .Config.Labels}}")).unwrap();
    let (name, image) = (shown("{{.Name}}"), shown("{{.Config.Image}}"));
    docker(&["rm", "--force", &id]);
    let mut again = vec!["run".to_owned(), "--name".to_owned(), name[1..].to_owned()];
    for (label, value) in labels.as_object().unwrap() {
        let value = if label == BOOT { "another" } else { value.as_str().unwrap() };
        again.extend(["--label".to_owned(), format!("{label}={value}")]);
    }
    // It says how it is used, and ends.
    again.extend([image, "/exo/sq".to_owned()]);
    docker(&again.iter().map(String::as_str).collect::<Vec<_>>());
    let found = home.runtime().await.list().await.unwrap().remove(0);
    assert_eq!(found.state, orchestrator::runtime::FoundState::FromEarlierBoot);
}

#[tokio::test]
#[ignore = "a Docker daemon is needed: `make integration-test` runs it"]
async fn what_cannot_be_started_is_said_clearly_and_leaves_nothing() {
    let home = home(0);
    let runtime = home.runtime().await;
    let missing = runtime.start(spec("alice", "9.9.9")).await.unwrap_err();
    assert!(matches!(&missing, RuntimeError::Missing(text) if text.contains("make setup")));
    fs::write(home.dir.path().join("bob"), "not a folder").unwrap();
    let unwritable = runtime.start(spec("bob", "0.6.0")).await.unwrap_err();
    assert!(matches!(&unwritable, RuntimeError::Unwritable { .. }), "{unwritable}");
    assert_eq!(runtime.list().await.unwrap(), []);
    assert_eq!(home.containers("name=sq-"), [""; 0]);
}
