//! Rate, quotas, storage and metering.

use protocol::usage::bounds::REPORT_ROWS;
use protocol::{
    CountLimit, FilterConfig, LeaseResponse, Limits, TenantNotice, UsageReport, Verdict,
};
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::test_host::{
    FromSq, Host, MS, SECOND, Seen, changes, config, granted, key, verdict, verified,
};
use crate::effect::{Headers, StreamId};
use crate::engine::metric_names;
use crate::limits::usage::GONE;

mod bytes;
mod quotas;
mod uploads;

fn value<'a>(headers: &'a Headers, name: &str) -> &'a str {
    headers.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value.as_ref())
}

/// A VM with an open feed, and alice with these limits.
fn with(limits: Limits) -> Host {
    configured(config(), limits)
}

fn configured(config: FilterConfig, limits: Limits) -> Host {
    let mut host = Host::new(config);
    host.tick(0);
    host.respond("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.respond("/v1/verify", &verified(1, Some(Verdict { limits, ..verdict("alice") })));
    host.respond("/v1/lease", &granted("alice", 30_000));
    host.end(id);
    host
}

fn write(host: &mut Host) -> StreamId {
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2&s=x";
    host.request("GET", path, &[("authorization", &*key(1))], true)
}

/// The report in flight.
fn report(host: &Host) -> UsageReport {
    let call = &host.calls[&host.call_to("/v1/usage").unwrap()].0;
    serde_json::from_str(call.body.as_deref().unwrap()).unwrap()
}

fn acknowledge(host: &mut Host) {
    let sequence = report(host).sequence;
    host.respond("/v1/usage", format!("{{\"sequence\":{sequence}}}").as_bytes());
}

#[test]
fn write_takes_its_cost_and_read_one_token() {
    let mut host =
        with(Limits { write_cost: 10, burst: 32, requests_per_s: 1, ..Limits::default() });
    let writes = (0..4).map(|_| write(&mut host)).collect::<Vec<_>>();
    let passed = writes.iter().filter(|id| host.is_forwarded(**id)).count();
    assert_eq!((passed, host.status(writes[3])), (3, Some(429)), "31 tokens were left");
    let read = host.get(&key(1));
    assert!(host.is_forwarded(read), "the last token is left for a read");
    let read = host.get(&key(1));
    assert_eq!(host.status(read), Some(429));
}

#[test]
fn malformed_request_costs_a_token() {
    let mut host = with(Limits { burst: 2, requests_per_s: 1, ..Limits::default() });
    let garbage = |host: &mut Host| {
        let id = host.request("GET", "/api/v2/nonsense", &[("authorization", &*key(1))], true);
        host.status(id)
    };
    assert_eq!(garbage(&mut host), Some(404));
    assert_eq!(garbage(&mut host), Some(429));
}

#[test]
fn client_that_leaves_while_waiting_is_counted() {
    let mut host = with(Limits::default());
    host.tick(SECOND);
    acknowledge(&mut host);
    host.tick(31 * SECOND);
    let id = host.get(&key(1));
    assert_eq!(host.seen(id), &Seen::Waiting, "no lease any more");
    host.end(id);
    host.tick(SECOND);
    let counters = &report(&host).rows[0].counters;
    assert_eq!(counters.refused.get(GONE), Some(&1));
    assert_eq!((counters.requests(), counters.status[0]), (2, 2));
}

#[test]
fn metered_counter_equals_the_reports() {
    let mut host = with(Limits { burst: 3, requests_per_s: 1, ..Limits::default() });
    let own =
        |host: &mut Host, path| host.request("GET", path, &[("authorization", &*key(1))], true);
    // Forwarded, refused, refused for the rate; then two that do not count: the own page, no key.
    let mut ids = vec![host.get(&key(1)), own(&mut host, "/api/v2/nonsense"), host.get(&key(1))];
    ids.extend([own(&mut host, "/api/v2/version"), host.get("nonsense")]);
    for id in ids {
        host.end(id);
    }
    host.tick(SECOND);
    let reported: u64 = report(&host).rows.iter().map(|row| row.counters.requests()).sum();
    let at = metric_names().iter().position(|name| name == "sq_gate.metered").unwrap();
    assert_eq!((host.gate.take_metrics().nth(at), reported), (Some(reported), 4));
}

#[test]
fn rows_beyond_one_report_follow_at_once() {
    let mut host = with(Limits::default());
    host.tick(SECOND);
    acknowledge(&mut host);
    // One row per tenant. Aborted requests need no lease.
    for n in 0..u32::try_from(REPORT_ROWS).unwrap() + 10 {
        let fate = crate::limits::usage::Fate::Gone;
        let served = crate::limits::usage::Served {
            fate,
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            service_us: 0,
        };
        let verdict = std::rc::Rc::new(verdict(&format!("t{n}")));
        host.gate.usage.record(&verdict, &served, host.now / SECOND);
    }
    host.tick(SECOND);
    assert_eq!(report(&host).rows.len(), REPORT_ROWS);
    acknowledge(&mut host);
    assert_eq!(report(&host).rows.len(), 10, "without a tick in between");
    acknowledge(&mut host);
    assert_eq!(host.call_to("/v1/usage"), None, "then once a second");
    host.tick(500 * MS);
    assert_eq!(host.call_to("/v1/usage"), None);
}

/// A VM whose lease on alice has expired and whose counters are all reported. Alice has a quota of
/// `requests_per_day`.
fn without_a_lease(config: FilterConfig, requests_per_day: CountLimit) -> Host {
    let mut host = configured(config, Limits { requests_per_day, ..Limits::default() });
    host.tick(SECOND);
    acknowledge(&mut host);
    host.tick(31 * SECOND);
    host
}

#[test]
fn wake_is_counted_only_by_its_waker() {
    let wakes = |waker: bool| {
        let mut host = without_a_lease(config(), CountLimit::Unlimited);
        let ids: Vec<StreamId> = (0..20).map(|_| host.get(&key(1))).collect();
        let mut answer: LeaseResponse = serde_json::from_slice(&granted("alice", 30_000)).unwrap();
        answer.waker = waker;
        host.respond("/v1/lease", &serde_json::to_vec(&answer).unwrap());
        for id in &ids {
            let Seen::Forwarded(headers) = host.seen(*id) else { panic!("{:?}", host.seen(*id)) };
            assert!(value(headers, "x-sq-response-timing").contains("wake;desc=start;dur=300"));
        }
        for id in ids {
            host.end(id);
        }
        host.tick(SECOND);
        report(&host).rows[0].counters.wakes.clone()
    };
    assert_eq!(wakes(true), [(protocol::WakeKind::Start, 1)].into());
    assert_eq!(wakes(false), [].into());
}
