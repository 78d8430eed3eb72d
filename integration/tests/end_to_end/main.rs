//! The whole gateway, end to end: real Envoy, relay, orchestrator and SQ, asked as clients ask.
//!
//! Every test runs on each runtime that is here, or on the one that `RUNTIME` names. Tests that
//! disturb nobody share a stack; a test that breaks something has one of its own. Run one by name:
//! `cargo test -p integration --test end_to_end -- process::a_revoked_key`.

// The suite has its own main, so Clippy does not see that all of this is tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod alone;
mod answers;
mod clients;
mod connections;
mod damage;
mod drills;
mod endpoints;
mod framing;
mod herds;
mod isolation;
mod lifecycle;
mod limits;
mod load;
mod metering;
mod quotas;
mod ranch;
mod ratelimit;
mod readme;
mod refusals;
mod routes;
mod secrets;
mod sleep;
mod storage;
mod survival;
mod unavailable;
mod world;

use std::process::ExitCode;

use world::{Case, World};

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(endpoints::cases());
    cases.extend(answers::cases());
    cases.extend(isolation::cases());
    cases.extend(refusals::cases());
    cases.extend(herds::cases());
    cases.extend(sleep::cases());
    cases.extend(lifecycle::cases());
    cases.extend(routes::cases());
    cases.extend(ranch::cases());
    cases.extend(limits::cases());
    cases.extend(quotas::cases());
    cases.extend(metering::cases());
    cases.extend(ratelimit::cases());
    cases.extend(survival::cases());
    cases.extend(unavailable::cases());
    cases.extend(secrets::cases());
    cases.extend(drills::cases());
    cases.extend(readme::cases());
    cases.extend(storage::cases());
    cases.extend(load::cases());
    cases.extend(clients::cases());
    cases.extend(framing::cases());
    cases.extend(connections::cases());
    cases.extend(damage::cases());
    cases
}

fn main() -> ExitCode {
    World::run(&cases())
}
