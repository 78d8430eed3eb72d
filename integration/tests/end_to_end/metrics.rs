//! `docs/metrics.md` lists every metric of a running gateway, and nothing else.
//!
//! `UPDATE_DOCS=1` makes the case write the page's tables instead of comparing them.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use gate::engine::metric_descriptions;
use harness::client::TOC;
use harness::host::tools;
use harness::{Client, Stack};

use crate::shared_stack::MAIN;
use crate::suite::{Case, case};

const PAGE: &str = "docs/metrics.md";
const END: &str = "<!-- end of the generated table -->\n";

pub(crate) fn cases() -> Vec<Case> {
    vec![case!(MAIN, metrics_page_lists_every_metric)]
}

/// Type and help text of each metric, by name.
type Metrics = BTreeMap<String, Description>;

#[derive(Default)]
struct Description {
    kind: String,
    help: String,
}

async fn metrics_page_lists_every_metric(stack: Arc<Stack>) -> Result<()> {
    stack.tenant("alice")?.get(TOC).await?.expect_ok()?;
    let parts = [
        ("sq_gate_", filter_metrics(&stack).await?),
        ("sq_orchestrator_", scrape(stack.orchestrator.metrics(), "/metrics").await?),
        ("sq_relay_", scrape(stack.relay.client(), "/metrics").await?),
    ];
    let path = tools::root().join(PAGE);
    let page = fs::read_to_string(&path).context(PAGE)?;
    let mut expected = page.clone();
    for (prefix, metrics) in &parts {
        for (name, description) in metrics {
            ensure!(name.starts_with(prefix), "{name} lacks the prefix {prefix}");
            ensure!(!description.kind.is_empty(), "{name} has no type");
            ensure!(!description.help.is_empty(), "{name} has no help text");
        }
        expected = replace_table(&expected, prefix, &table(metrics))?;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, expected)?;
        return Ok(());
    }
    ensure!(page == expected, "{PAGE} is out of date: run this case with UPDATE_DOCS=1");
    Ok(())
}

/// The metrics that Envoy exports for the filter. Envoy exports no help texts, so these are the
/// gate's.
async fn filter_metrics(stack: &Stack) -> Result<Metrics> {
    let mut metrics = scrape(stack.envoy.metrics(), "/stats/prometheus").await?;
    // All of Envoy's own metrics have this prefix; the filter's are exported as they are named.
    metrics.retain(|name, _| !name.starts_with("envoy_"));
    for (name, help) in metric_descriptions() {
        let exported = name.replace(['.', '-'], "_");
        let metric = metrics.get_mut(&exported);
        metric.with_context(|| format!("Envoy does not export {exported}"))?.help = help;
    }
    Ok(metrics)
}

/// The metrics of one endpoint that speaks Prometheus' text format or `OpenMetrics`.
async fn scrape(client: &Client, path: &str) -> Result<Metrics> {
    let text = client.get(path).await?.expect_ok()?.text();
    // Only OpenMetrics ends with this line; its counters have samples named `…_total`.
    let open_metrics = text.ends_with("# EOF\n");
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some((name, help)) = comment(line, "# HELP ") {
            let metric = metrics.entry(name.to_owned()).or_default();
            help.clone_into(&mut metric.help);
        } else if let Some((name, kind)) = comment(line, "# TYPE ") {
            let metric = metrics.entry(name.to_owned()).or_default();
            kind.clone_into(&mut metric.kind);
        }
    }
    ensure!(!metrics.is_empty(), "{path} has no metrics");
    let sampled = metrics.into_iter().map(|(name, description)| {
        let suffix = if open_metrics && description.kind == "counter" { "_total" } else { "" };
        (name + suffix, description)
    });
    Ok(sampled.collect())
}

/// Name and text of a comment line that starts with `keyword`.
fn comment<'a>(line: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(keyword)?.split_once(' ')
}

fn table(metrics: &Metrics) -> String {
    let mut rows = vec!["| metric | type | meaning |\n|---|---|---|\n".to_owned()];
    for (name, Description { kind, help }) in metrics {
        rows.push(format!("| `{name}` | {kind} | {help} |\n"));
    }
    rows.concat()
}

/// The page with another table for the metrics with `prefix`.
fn replace_table(page: &str, prefix: &str, table: &str) -> Result<String> {
    let begin = format!("<!-- generated table of {prefix} -->\n");
    let (before, rest) = page.split_once(&begin).with_context(|| format!("{PAGE}: {begin:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{PAGE}: {END:?}"))?;
    Ok(format!("{before}{begin}{table}{END}{after}"))
}
