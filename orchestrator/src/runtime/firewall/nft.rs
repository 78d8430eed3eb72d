//! The program `nft`: the only file that starts it.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Places of the program. A user's `PATH` often lacks the second one's folder.
const PROGRAMS: [&str; 2] = ["nft", "/usr/sbin/nft"];

/// Time-out of one run, which takes about 5 ms; the kernel makes transactions wait for each other.
const RUN_WITHIN: Duration = Duration::from_secs(10);

/// Loads a script in one transaction: all of it takes effect, or nothing does.
pub(super) async fn load(script: &str) -> Result<(), String> {
    run(&["-f", "-"], script).await.map(drop)
}

/// Lists a table without its counters; `None` if there is no such table.
pub(super) async fn list(table: &str) -> Result<Option<String>, String> {
    match run(&["--stateless", "list", "table", "inet", table], "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(error) if error.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

async fn run(args: &[&str], input: &str) -> Result<String, String> {
    let mut missing = None;
    for program in PROGRAMS {
        match timeout(RUN_WITHIN, output(program, args, input)).await {
            Err(_) => return Err(format!("nft did not end within {RUN_WITHIN:?}")),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => missing = Some(error),
            Ok(Err(error)) => return Err(format!("{program}: {error}")),
            Ok(Ok(output)) if output.status.success() => {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(Ok(output)) => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(text.lines().next().unwrap_or("nft failed").to_owned());
            }
        }
    }
    let error = missing.map_or_else(String::new, |error| error.to_string());
    Err(format!("the program nft is missing ({error}): install the package nftables"))
}

async fn output(program: &str, args: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    // Its end is the end of the input. A script is far smaller than the pipe's buffer.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await?;
    }
    child.wait_with_output().await
}
