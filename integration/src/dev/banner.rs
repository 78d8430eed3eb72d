//! The text that a newcomer sees when the stack is ready: addresses, and commands to try.

use std::path::Path;

use harness::host::{docker, firewall, tools};
use harness::{Runtime, Stack};

use super::Options;
use super::demo::shell_quoted;

/// Builds the text. Lines that begin with two spaces below "Try" can be pasted into a shell.
pub(super) fn text(stack: &Stack, options: &Options, env_file: &Path) -> String {
    let curl = "curl --cacert \"$SQ_CA\" -H \"Authorization: Bearer $SQ_KEY_ALICE\"";
    format!(
        "\nThe SQ cloud gateway is ready: https://localhost:{https}

  Envoy         0.0.0.0:{https} (HTTPS), admin socket {envoy_admin}
  relay         127.0.0.1:{relay} (mutual TLS only), registry {registry}
  orchestrator  admin socket {admin}
  SQ {version}      {runtime}
  tenants       alice and bob (tier free); keys in {env}
  logs          {logs}

Try in another terminal:
  . {env}
  {curl} \"$SQ_URL/api/v2/insert?p=notes&c=1.1.1/1.1.1/1.1.1&s=hello\"
  {curl} \"$SQ_URL/api/v2/select?p=notes&c=1.1.1/1.1.1/1.1.1\"
Suspend alice, who gets 403 within a second, then resume her:
  {relay_bin} registry suspend --file \"$SQ_REGISTRY\" alice
  {relay_bin} registry resume --file \"$SQ_REGISTRY\" alice
List the tenants and put alice to sleep; her next request wakes her:
  {orchestrator_bin} status --admin \"$SQ_ADMIN\"
  {orchestrator_bin} sleep --admin \"$SQ_ADMIN\" alice
Read Envoy's statistics, and what Prometheus scrapes:
  curl --unix-socket \"$ENVOY_ADMIN\" \"http://localhost/stats?filter=sq_gate\"
  curl \"$ENVOY_METRICS\" \"$SQ_METRICS\"
Ctrl-C or 'make stop' ends all of it; data and registry stay in {dir}.",
        https = stack.listen.https,
        envoy_admin = stack.envoy.admin_socket().display(),
        relay = stack.listen.relay,
        registry = stack.registry.file().display(),
        admin = stack.orchestrator.socket("admin").display(),
        version = options.sq_version,
        runtime = runtime_text(stack.runtime),
        env = shell_quoted(&env_file.display().to_string()),
        logs = stack.dir.join("logs").display(),
        dir = stack.dir.display(),
        relay_bin = binary("relay"),
        orchestrator_bin = binary("orchestrator"),
    )
}

fn runtime_text(runtime: Runtime) -> String {
    match runtime {
        Runtime::Docker => {
            let version = docker::daemon().unwrap_or_default();
            if firewall::is_permitted() {
                return format!("containers of Docker {version}, closed by firewall rules");
            }
            format!(
                "containers of Docker {version}; FIREWALL OFF, because only root may make rules: \
                 every user of this host reaches them"
            )
        }
        Runtime::Process => "processes, because RUNTIME=process (no memory limits)".to_owned(),
    }
}

fn binary(name: &str) -> String {
    let path = tools::workspace_binary(name).unwrap_or_else(|_| name.into());
    shell_quoted(&path.display().to_string())
}
