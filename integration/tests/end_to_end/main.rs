//! End-to-end tests of the gateway: real Envoy, relay, orchestrator and SQ, with requests as
//! clients send them.
//!
//! Every case runs on each runtime available here, or on the one that `RUNTIME` names. Cases that
//! leave a stack intact share one; a case that breaks something gets its own. To run one by name:
//! `cargo test -p integration --test end_to_end -- process::unencoded_phext_name`.

// This suite has its own main, so Clippy does not recognise it as test code.
#![allow(clippy::unwrap_used, clippy::panic)]

mod boundary;
mod clients;
mod compatibility;
mod connections;
mod damage;
mod drills;
mod endpoints;
mod fairness;
mod firewall;
mod first_writes;
mod framing;
mod herds;
mod hostile_clients;
mod http_standards;
mod isolation;
mod lifecycle;
mod limits;
mod load;
mod metering;
mod metrics;
mod poison;
mod quickstart;
mod quotas;
mod ranch;
mod ratelimit;
mod readme;
mod refusals;
mod responses;
mod routes;
mod secrets;
mod shared_stack;
mod skill;
mod sleep;
mod sparse_files;
mod sq_alone;
mod standstill;
mod storage;
mod suite;
mod survival;
mod unavailable;

use std::process::ExitCode;

use suite::Suite;

fn main() -> ExitCode {
    // The compiler warns of a module that is missing here: its `cases` is dead code.
    let cases = [
        endpoints::cases(),
        responses::cases(),
        isolation::cases(),
        refusals::cases(),
        herds::cases(),
        hostile_clients::cases(),
        sleep::cases(),
        lifecycle::cases(),
        routes::cases(),
        ranch::cases(),
        limits::cases(),
        quotas::cases(),
        fairness::cases(),
        metering::cases(),
        poison::cases(),
        metrics::cases(),
        ratelimit::cases(),
        survival::cases(),
        standstill::cases(),
        unavailable::cases(),
        secrets::cases(),
        boundary::cases(),
        drills::cases(),
        readme::cases(),
        storage::cases(),
        load::cases(),
        clients::cases(),
        quickstart::cases(),
        skill::cases(),
        compatibility::cases(),
        http_standards::cases(),
        framing::cases(),
        connections::cases(),
        damage::cases(),
        sparse_files::cases(),
        first_writes::cases(),
        firewall::cases(),
    ];
    Suite::run(&cases.into_iter().flatten().collect::<Vec<_>>())
}
