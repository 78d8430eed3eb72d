//! docs/quickstart.md: each program works as it is printed.

use std::fs;
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use harness::host::tools;
use harness::{Stack, StackBuilder};

use crate::sq_alone::blocking;
use crate::suite::{Case, On, case};

fn one_tenant() -> StackBuilder {
    Stack::builder().tenant("alice")
}

pub(crate) fn cases() -> Vec<Case> {
    let stack = On::Shared("quickstart", one_tenant);
    vec![
        case!(stack, shell_commands_work_as_printed),
        case!(stack, python_program_works_as_printed),
        case!(stack, javascript_program_works_as_printed),
        case!(stack, rust_program_works_as_printed),
    ]
}

/// The page's block in this language.
fn block(language: &str) -> Result<String> {
    let page = fs::read_to_string(tools::root().join("docs/quickstart.md"))?;
    let (_, rest) = page.split_once(&format!("```{language}\n")).context("no such block")?;
    Ok(rest.split("```").next().unwrap_or_default().to_owned())
}

/// Runs a program with the settings that the page names, and checks what it prints.
async fn check(stack: &Stack, program: &str, args: &[&str], expected: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).env("SQ_URL", stack.url()).env("SQ_KEY", stack.key("alice")?);
    // Each of them trusts the development authority as it would the host's own.
    for name in ["CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"] {
        command.env(name, stack.certs.ca());
    }
    command.env("PYTHONPATH", tools::python());
    let program = program.to_owned();
    let Output { status, stdout, stderr } =
        blocking(move || command.output().with_context(|| format!("this test needs {program}")))
            .await?;
    let stdout = String::from_utf8_lossy(&stdout);
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{status}\n{stdout}\n{stderr}");
    for text in expected {
        ensure!(stdout.contains(text), "{text:?} is missing in:\n{stdout}\n{stderr}");
    }
    Ok(())
}

async fn shell_commands_work_as_printed(stack: Arc<Stack>) -> Result<()> {
    let script = format!("set -euo pipefail\n{}", block("sh")?);
    let expected = ["hello, phext", "* 1.1.1/1.1.1/1.1.1: hello, phext", "Removed 12 bytes"];
    check(&stack, "bash", &["-c", &script], &expected).await
}

async fn python_program_works_as_printed(stack: Arc<Stack>) -> Result<()> {
    let script = block("python")?;
    check(&stack, "python3", &["-c", &script], &["Updated 11 bytes\nfrom Python\n"]).await
}

async fn javascript_program_works_as_printed(stack: Arc<Stack>) -> Result<()> {
    let script = block("js")?;
    check(&stack, "node", &["-e", &script], &["Updated 15 bytes\nfrom JavaScript\n"]).await
}

async fn rust_program_works_as_printed(stack: Arc<Stack>) -> Result<()> {
    let source = tools::root().join("integration/examples/quickstart.rs");
    ensure!(block("rust")? == fs::read_to_string(source)?, "the page has another program");
    let program = tools::workspace_binary("examples/quickstart")?.display().to_string();
    check(&stack, &program, &[], &["Updated 9 bytes\nfrom Rust\n"]).await
}
