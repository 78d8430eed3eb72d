//! The commands of the README work as they are printed.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use harness::Stack;
use harness::host::tools;
use integration::dev;

use crate::suite::{Case, On, case};

pub(crate) fn cases() -> Vec<Case> {
    let demo = On::Own(|| Stack::builder().tenant("alice").tenant("bob"));
    vec![case!(demo, readme_commands_work_as_printed)]
}

/// The README's `sh` blocks in order. Blocks marked `console` are covered by other tests.
fn commands() -> Result<String> {
    let readme = fs::read_to_string(tools::root().join("README.md"))?;
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    Ok(blocks.collect())
}

async fn readme_commands_work_as_printed(stack: Arc<Stack>) -> Result<()> {
    let home = tempfile::tempdir()?;
    fs::create_dir_all(home.path().join("run"))?;
    fs::create_dir_all(home.path().join("target/release"))?;
    fs::write(home.path().join("run/demo.env"), dev::demo_env(&stack))?;
    for binary in ["relay", "orchestrator"] {
        let link = home.path().join("target/release").join(binary);
        symlink(tools::workspace_binary(binary)?, link)?;
    }
    let script = format!("set -euo pipefail\n{}", commands()?);
    let folder = home.path().to_owned();
    let output = tokio::task::spawn_blocking(move || {
        Command::new("bash").arg("-c").arg(script).current_dir(folder).output()
    })
    .await??;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    for expected in [
        "hello, phext",
        "* 1.1.1/1.1.1/1.1.2: hello, phext",
        "urn:sq:problem:bad-parameter",
        "\"example\":\"GET /api/v2/select?p=index&c=1.1.1/1.1.1/1.1.1\"",
        "TENANT",
    ] {
        ensure!(stdout.contains(expected), "{expected:?} is missing in:\n{stdout}");
    }
    Ok(())
}
