//! For every request that the gate accepts, SQ does what the client meant.
//!
//! A model of a tenant (phexts as maps of coordinates to text) and a real SQ execute the same random
//! operations. SQ receives the request that the gate rebuilt from one of the many forms in which a
//! client may write it. Responses, files on disk and every scroll must agree, also after reloads and
//! restarts. The gate must refuse each request on which the model and SQ would differ.
//!
//! Operations are random but reproducible:
//! `SEED=… cargo test -p integration --test differential`.

// A failing test panics, and so do its helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "differential/client.rs"]
mod client;
#[path = "differential/model.rs"]
mod model;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use client::{Client, Operation, Place};
use gate::http::request::{Head, parse};
use harness::bare_sq::BareSq;
use model::Model;
use protocol::{Limits, SqVersion};

/// Operations for each version of SQ.
const OPERATIONS: usize = 4000;
/// Operations between two comparisons of all scrolls and files.
const COMPARE_EVERY: usize = 200;
/// Operations between two restarts of SQ.
const RESTART_EVERY: usize = 500;

fn seed() -> u64 {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs())
    })
}

#[test]
fn new_sq_does_what_the_client_meant() {
    run("0.6.0");
}

#[test]
fn old_sq_does_what_the_client_meant() {
    run("0.5.0");
}

fn run(version: &str) {
    let seed = seed();
    println!("SQ {version}: SEED={seed}");
    let started = Instant::now();
    let mut sq = BareSq::start(version).unwrap();
    let release = SqVersion::parse(version).unwrap();
    let mut client = Client::new(seed);
    let mut model = Model::default();
    let mut accepted = 0;
    let mut refused = 0;
    for count in 1..=OPERATIONS {
        let operation = client.operation();
        if execute(&sq, release, &mut client, &mut model, &operation) {
            accepted += 1;
        } else {
            refused += 1;
        }
        if count % RESTART_EVERY == 0 {
            sq.restart().unwrap();
        }
        if count % COMPARE_EVERY == 0 {
            compare(&sq, &model, count);
        }
    }
    println!(
        "SQ {version}: {accepted} accepted, {refused} refused, {} scrolls, {:.1} s",
        model.scrolls(),
        started.elapsed().as_secs_f64()
    );
    assert!(
        accepted > OPERATIONS / 2 && refused > OPERATIONS / 20,
        "{accepted} accepted, {refused} refused"
    );
}

/// Sends one operation through the gate to SQ, and executes it on the model. Returns true if the gate
/// accepted it.
fn execute(
    sq: &BareSq,
    release: SqVersion,
    client: &mut Client,
    model: &mut Model,
    operation: &Operation,
) -> bool {
    let mut checksum_of = |place: &Place, right: bool| match model.scroll(&operation.phext, place) {
        Some(text) if right => checksum(sq, text),
        _ => "0".repeat(32),
    };
    let written = client.write(operation, &mut checksum_of);
    let head = Head {
        method: written.method,
        path: written.path.as_bytes(),
        content_length: written.body.as_ref().map(|body| body.len() as u64),
        has_body: written.body.as_ref().is_some_and(|body| !body.is_empty()),
        content_type: None,
    };
    let body = written.body.as_deref();
    let parsed = parse(&head, &Limits::default(), release).and_then(|request| {
        if let Some(mut check) = request.body() {
            check.on_chunk(body.unwrap_or_default())?;
            check.on_end()?;
        }
        Ok(request)
    });
    let request = match (parsed, operation.must_be_refused(release)) {
        (Ok(request), false) => request,
        (Err(_), true) => return false,
        (Ok(request), true) => panic!("accepted: {operation:?} as {written:?}: {}", request.path()),
        (Err(refusal), false) => panic!("refused: {operation:?} as {written:?}: {refusal:?}"),
    };
    let phext = request.phext.clone().unwrap();
    let before = sq.stored(&phext).len() as u64;
    let sent = (request.method() == "POST").then(|| body.unwrap_or_default());
    let response = sq.send(request.method(), &request.path(), sent).unwrap();
    assert_eq!(response.status, 200, "{operation:?}: {}", response.text());
    // The file must not grow by more than the gate counts against the tenant's storage.
    let growth = request.growth_bytes() + sent.map_or(0, |body| body.len() as u64);
    let after = sq.stored(&phext).len() as u64;
    assert!(after <= before + growth, "{operation:?}: {before} + {growth} < {after}");
    let shown = request.response_rule().on_body(&response.body);
    model.apply(operation, &String::from_utf8(shown).unwrap(), &|text| checksum(sq, text));
    true
}

/// SQ's checksum of a text, computed as the checksum of a phext with only this text.
fn checksum(sq: &BareSq, text: &str) -> String {
    std::fs::write(sq.file("checksum"), text).unwrap();
    sq.send("GET", "/api/v2/load?p=checksum", None).unwrap();
    sq.send("GET", "/api/v2/checksum?p=checksum", None).unwrap().text()
}

/// Compares every scroll and every file with the model.
fn compare(sq: &BareSq, model: &Model, count: usize) {
    for (phext, scrolls) in model.phexts() {
        assert_eq!(
            String::from_utf8_lossy(&sq.stored(phext)),
            model.file(phext),
            "after {count}: the file of {phext:?}"
        );
        for (coordinate, text) in scrolls {
            let path = format!("/api/v2/select?p={}&c={coordinate}", client::encode_all(phext));
            let response = sq.send("GET", &path, None).unwrap();
            assert_eq!(&response.text(), text, "after {count}: {phext:?} {coordinate}");
        }
    }
}
