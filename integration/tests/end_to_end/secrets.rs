//! No client's key is anywhere on the gateway host: not on disk, in a log, in an admin interface or
//! in a process's arguments or environment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use harness::client::TOC;
use harness::host::docker;
use harness::host::processes;
use harness::{Client, Http, Runtime, Stack, StackBuilder, until};

use crate::suite::{Case, On, case};

/// Bits that let other users and the group pass through a folder.
const PASS_BITS: u32 = 0o011;
/// Ends of names of files that contain nothing private.
const PUBLIC: [&str; 5] = [".crt", ".pem", ".toml", ".wasm", ".yaml"];
/// Deadline for the requests to be in Envoy's access log.
const LOGGED: Duration = Duration::from_secs(20);

fn two_tenants() -> StackBuilder {
    Stack::builder().log_every_request().tenant("alice").tenant("bob")
}

fn two_tenants_old_sq() -> StackBuilder {
    two_tenants().sq("0.5.0")
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case!(On::Own(two_tenants), no_key_is_found_on_the_gateway_host),
        case!(On::Own(two_tenants_old_sq), no_key_reaches_sq_that_prints_headers),
        case!(On::Own(two_tenants), files_and_memory_are_private),
    ]
}

/// SQ 0.5.0 prints every header that it receives.
async fn no_key_reaches_sq_that_prints_headers(stack: Arc<Stack>) -> Result<()> {
    no_key_is_found_on_the_gateway_host(stack).await
}

async fn no_key_is_found_on_the_gateway_host(stack: Arc<Stack>) -> Result<()> {
    let mut secrets = Secrets::default();
    let mut request_ids = Vec::new();
    for tenant in ["alice", "bob"] {
        let key = stack.key(tenant)?;
        secrets.add(key);
        request_ids.extend(use_everywhere(&stack, key).await?);
    }
    ensure!(secrets.check("a key", stack.key("alice")?).is_err(), "the search finds nothing");
    // The access log has a line per request, written a moment after its end.
    until("all requests to be in the access log", LOGGED, || async {
        let log = stack.envoy.log().ok()?;
        request_ids.iter().all(|id| log.contains(id)).then_some(())
    })
    .await?;
    secrets.check("Envoy's log", stack.envoy.log()?)?;
    let files = check_files(&stack.dir, &secrets)?;
    ensure!(files > 10, "only {files} files were searched");
    for page in ["/stats", "/clusters", "/server_info"] {
        check_page(stack.envoy.admin(), page, &secrets).await?;
    }
    for page in ["/v1/tenants", "/v1/usage"] {
        check_page(stack.orchestrator.admin(), page, &secrets).await?;
    }
    check_page(stack.envoy.metrics(), "/stats/prometheus", &secrets).await?;
    check_page(stack.orchestrator.metrics(), "/metrics", &secrets).await?;
    check_containers(&stack, &secrets)?;
    check_processes(&stack, &secrets)
}

/// Files with secrets, usage or texts are for their owner only, and no daemon leaves a core dump.
async fn files_and_memory_are_private(stack: Arc<Stack>) -> Result<()> {
    stack.tenant("alice")?.update("note", "text").await?.expect_ok()?;
    until("alice's phext to be copied", LOGGED, || async {
        stack.orchestrator.state().join("vault/alice/good/note.phext").exists().then_some(())
    })
    .await?;
    let files = check_modes(&stack.dir)?;
    ensure!(files > 5, "only {files} were checked");
    for service in [stack.orchestrator.service(), stack.relay.service()] {
        let pid = service.process()?.pid();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core = core.context("no limit of core files")?;
        ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
    }
    Ok(())
}

/// Checks that other users cannot read a file below `dir`: because of its own mode, or because a folder
/// above it lets them not pass. Public files are left out. Returns the number of files and such folders.
fn check_modes(dir: &Path) -> Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        let mode = meta.mode() & 0o777;
        let passable = PASS_BITS & mode != 0;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if meta.is_dir() && !passable {
            files += 1;
        } else if meta.is_dir() {
            files += check_modes(&path)?;
        } else if meta.is_file() && !PUBLIC.iter().any(|end| name.ends_with(end)) {
            let exposed = mode & 0o077;
            ensure!(exposed == 0, "{} has mode {mode:o}", path.display());
            files += 1;
        }
    }
    Ok(files)
}

/// Byte strings that must not occur anywhere.
#[derive(Default)]
struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// Adds a key, and half of its digits, because a part of a key must not occur either.
    fn add(&mut self, key: &str) {
        self.0.push(key.as_bytes().to_vec());
        self.0.push(key.as_bytes()["pmb-v1-".len()..][..16].to_vec());
    }

    /// Fails if a secret occurs in `bytes`, which are the contents of `place`.
    fn check(&self, place: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let bytes = bytes.as_ref();
        for secret in &self.0 {
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            ensure!(!found, "a key is in {place}");
        }
        Ok(())
    }
}

/// Checks every file below `dir` and returns their number.
fn check_files(dir: &Path, secrets: &Secrets) -> Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files += check_files(&path, secrets)?;
        } else if let Ok(bytes) = fs::read(&path) {
            secrets.check(&path.display().to_string(), bytes)?;
            files += 1;
        }
    }
    Ok(files)
}

async fn check_page(admin: &Client, page: &str, secrets: &Secrets) -> Result<()> {
    let response = admin.get(page).await?.expect_ok()?;
    secrets.check(page, &response.body)
}

fn check_containers(stack: &Stack, secrets: &Secrets) -> Result<()> {
    let mut containers = Vec::from_iter(stack.envoy.container());
    if stack.runtime == Runtime::Docker {
        containers.extend(docker::containers(&stack.labels())?);
    }
    for id in containers {
        for command in ["inspect", "logs"] {
            let output = docker::run_with_stderr(&[command, &id])?;
            secrets.check(&format!("the output of docker {command} {id}"), output)?;
        }
    }
    Ok(())
}

fn check_processes(stack: &Stack, secrets: &Secrets) -> Result<()> {
    for program in ["relay", "orchestrator", "envoy", "sq"] {
        for pid in processes::with_argument_below(&stack.dir, &[program]) {
            for file in ["cmdline", "environ"] {
                let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                secrets.check(&format!("the {file} of {program}"), bytes)?;
            }
        }
    }
    Ok(())
}

/// Sends the key in every way, right and wrong, and returns the ids of the requests.
async fn use_everywhere(stack: &Stack, key: &str) -> Result<Vec<String>> {
    let bearer = format!("Bearer {key}");
    let client = stack.client(Http::One)?;
    let mut responses = Vec::new();
    for (name, value) in
        [("authorization", &*bearer), ("authorization", key), ("x-sq-api-key", key)]
    {
        responses.push(client.get_with_headers(TOC, &[(name, value)]).await?.expect_ok()?);
    }
    let client = client.key(key);
    let misplaced = [("authorization-foo", &*bearer), ("x-sq-key", key)];
    responses.push(client.get_with_headers(TOC, &misplaced).await?);
    for path in [
        &*format!("/api/v2/toc?p=index&key={key}"),
        &format!("/api/v2/{key}"),
        &format!("/{key}/api/v2/toc"),
        &format!("/api/v2/select?p={key}&c=1.1.1/1.1.1/1.1.1"),
    ] {
        responses.push(client.get(path).await?);
    }
    responses.push(client.post(TOC, key.to_owned()).await?);
    let mut ids = Vec::new();
    for response in responses {
        let id = response.header("x-request-id");
        if id.len() < 16 {
            bail!("{response:?} has no request id");
        }
        ids.push(id.to_owned());
    }
    Ok(ids)
}
