//! No customer's key lies anywhere on the gateway's host.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use harness::host::docker;
use harness::{Http, Runtime, Stack, StackBuilder, until};

use crate::suite::{Case, On, case};

/// Longest wait until what was asked is in Envoy's access log.
const LOGGED: Duration = Duration::from_secs(20);

fn two_tenants() -> StackBuilder {
    Stack::builder().tenant("alice").tenant("bob")
}

pub(crate) fn cases() -> Vec<Case> {
    let old: fn() -> StackBuilder = || two_tenants().sq("0.5.0");
    vec![
        case!(On::Own(two_tenants), no_key_is_on_the_disk_in_a_log_or_in_an_inspection),
        // SQ 0.5.0 prints every header that it gets.
        case!(On::Own(old), no_key_reaches_an_sq_that_prints_its_headers),
    ]
}

async fn no_key_reaches_an_sq_that_prints_its_headers(stack: Arc<Stack>) -> Result<()> {
    no_key_is_on_the_disk_in_a_log_or_in_an_inspection(stack).await
}

async fn no_key_is_on_the_disk_in_a_log_or_in_an_inspection(stack: Arc<Stack>) -> Result<()> {
    let (mut secrets, mut asked) = (Vec::new(), Vec::new());
    for name in ["alice", "bob"] {
        let key = stack.key(name)?;
        asked.extend(use_everywhere(&stack, key).await?);
        secrets.push(key.as_bytes().to_vec());
        // A part of it is as bad.
        secrets.push(key.as_bytes()["pmb-v1-".len()..][..16].to_vec());
    }
    let has = |bytes: &[u8]| {
        secrets.iter().any(|secret| bytes.windows(secret.len()).any(|window| window == secret))
    };
    ensure!(has(stack.key("alice")?.as_bytes()), "the search finds nothing at all");
    // The likeliest place: a line per request, written a moment later.
    until("all requests to be in the access log", LOGGED, || async {
        let log = stack.envoy.log().ok()?;
        asked.iter().all(|id| log.contains(id)).then_some(())
    })
    .await?;
    ensure!(!has(stack.envoy.log()?.as_bytes()), "a key is in Envoy's log");
    let mut files = 0;
    search(&stack.dir, &mut |path, bytes| {
        files += 1;
        ensure!(!has(bytes), "a key is in {}", path.display());
        Ok(())
    })?;
    ensure!(files > 10, "only {files} files were searched");
    for page in ["/config_dump?include_eds", "/stats", "/clusters", "/listeners", "/server_info"] {
        let text = stack.envoy.admin().get(page).await?.expect_ok()?;
        ensure!(!has(&text.body), "a key is in Envoy's {page}");
    }
    for page in ["/v1/tenants", "/v1/usage", "/metrics"] {
        let text = stack.orchestrator.admin().get(page).await?.expect_ok()?;
        ensure!(!has(&text.body), "a key is in the orchestrator's {page}");
    }
    let mut containers = Vec::from_iter(stack.envoy.container());
    if stack.runtime == Runtime::Docker {
        containers.extend(docker::containers(&stack.labels())?);
    }
    for id in containers {
        for question in [["inspect", &id], ["logs", &id]] {
            let said = docker::run_with_stderr(&question)?;
            ensure!(!has(said.as_bytes()), "a key is in docker {question:?}");
        }
    }
    for part in ["relay", "orchestrator", "envoy", "sq"] {
        for pid in harness::host::processes::with_argument_below(&stack.dir, &[part]) {
            for file in ["cmdline", "environ"] {
                let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                ensure!(!has(&bytes), "a key is in the {file} of {part}");
            }
        }
    }
    Ok(())
}

/// Sends the key every way there is, also the wrong ones; the names of the requests.
async fn use_everywhere(stack: &Stack, key: &str) -> Result<Vec<String>> {
    let bearer = format!("Bearer {key}");
    let client = stack.client(Http::One)?;
    let toc = "/api/v2/toc?p=index";
    let mut answers = Vec::new();
    for (name, value) in
        [("authorization", &*bearer), ("authorization", key), ("x-sq-api-key", key)]
    {
        let answer = client.get_with_headers(toc, &[(name, value)]).await?.expect_ok()?;
        answers.push(answer);
    }
    let client = client.key(key);
    answers.push(
        client.get_with_headers(toc, &[("authorization-foo", &bearer), ("x-sq-key", key)]).await?,
    );
    for path in [
        &*format!("/api/v2/toc?p=index&key={key}"),
        &format!("/api/v2/{key}"),
        &format!("/{key}/api/v2/toc"),
        &format!("/api/v2/select?p={key}&c=1.1.1/1.1.1/1.1.1"),
    ] {
        answers.push(client.get(path).await?);
    }
    answers.push(client.post("/api/v2/toc?p=index", key.to_owned()).await?);
    let names = answers.iter().map(|answer| answer.header("x-request-id").to_owned());
    let names: Vec<String> = names.collect();
    ensure!(names.iter().all(|name| name.len() >= 16), "requests without a name: {names:?}");
    Ok(names)
}

/// Calls `look` with every file below `dir`.
fn search(dir: &Path, look: &mut impl FnMut(&Path, &[u8]) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            search(&path, look)?;
        } else if let Ok(bytes) = fs::read(&path) {
            look(&path, &bytes)?;
        }
    }
    Ok(())
}
