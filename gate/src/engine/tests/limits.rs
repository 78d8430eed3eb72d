//! What requests cost, and what is told of them.

use protocol::{FilterConfig, LeaseResponse, Limits, TenantNotice, UsageReport, Verdict};
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::test_host::{
    FromSq, Host, MS, SECOND, Seen, changes, config, granted, key, verdict, verified,
};
use crate::effect::{Headers, StreamId};
use crate::engine::metric_names;
use crate::limits::usage::{GONE, REPORT_ROWS};

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
    host.answer("/v1/changes", &changes(1, &[]));
    let id = host.get(&key(1));
    host.answer("/v1/verify", &verified(1, Some(Verdict { limits, ..verdict("alice") })));
    host.answer("/v1/lease", &granted("alice", 30_000));
    host.end(id);
    host
}

fn write(host: &mut Host) -> StreamId {
    let path = "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.2&s=x";
    host.request("GET", path, &[("authorization", &*key(1))], true)
}

/// The report on its way.
fn report(host: &Host) -> UsageReport {
    let call = &host.calls[&host.call_to("/v1/usage").unwrap()].0;
    serde_json::from_str(call.body.as_deref().unwrap()).unwrap()
}

fn acknowledge(host: &mut Host) {
    let sequence = report(host).sequence;
    host.answer("/v1/usage", format!("{{\"sequence\":{sequence}}}").as_bytes());
}

#[test]
fn a_write_takes_what_a_write_costs_and_a_read_one() {
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
fn what_is_no_request_costs_a_token_and_is_refused_for_the_rate_first() {
    let mut host = with(Limits { burst: 2, requests_per_s: 1, ..Limits::default() });
    let garbage = |host: &mut Host| {
        let id = host.request("GET", "/api/v2/nonsense", &[("authorization", &*key(1))], true);
        host.status(id)
    };
    assert_eq!(garbage(&mut host), Some(404));
    assert_eq!(garbage(&mut host), Some(429));
}

#[test]
fn a_client_that_leaves_while_it_waits_is_counted() {
    let mut host = with(Limits::default());
    host.tick(SECOND);
    acknowledge(&mut host);
    host.tick(31 * SECOND);
    let id = host.get(&key(1));
    assert_eq!(host.seen(id), &Seen::Paused, "no lease any more");
    host.end(id);
    host.tick(SECOND);
    let counters = &report(&host).rows[0].counters;
    assert_eq!(counters.refused.get(GONE), Some(&1));
    assert_eq!((counters.requests(), counters.status[0]), (2, 2));
}

#[test]
fn as_many_requests_are_metered_as_reports_have() {
    let mut host = with(Limits { burst: 3, requests_per_s: 1, ..Limits::default() });
    let own =
        |host: &mut Host, path| host.request("GET", path, &[("authorization", &*key(1))], true);
    // Forwarded, refused, refused for the rate; nobody's: the tenant's own page, no key.
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
fn what_one_report_has_no_room_for_goes_with_the_next_at_once() {
    let mut host = with(Limits::default());
    host.tick(SECOND);
    acknowledge(&mut host);
    // Refused, each as a tenant of its own: no lease is needed.
    for n in 0..u32::try_from(REPORT_ROWS).unwrap() + 10 {
        let fate = crate::limits::usage::Fate::Gone;
        let (status, bytes_in, bytes_out, service_us) = Default::default();
        let served = crate::limits::usage::Served { fate, status, bytes_in, bytes_out, service_us };
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

/// Alice with so many requests a day, at a VM that has no lease on her any more, and all that it
/// has counted is reported.
fn without_a_lease(config: FilterConfig, requests_per_day: u64) -> Host {
    let mut host = configured(config, Limits { requests_per_day, ..Limits::default() });
    host.tick(SECOND);
    acknowledge(&mut host);
    host.tick(31 * SECOND);
    host
}

#[test]
fn a_wake_is_counted_once_and_only_where_it_is_put_down_to() {
    let wakes = |waker: bool| {
        let mut host = without_a_lease(config(), 0);
        let ids: Vec<StreamId> = (0..20).map(|_| host.get(&key(1))).collect();
        let mut answer: LeaseResponse = serde_json::from_slice(&granted("alice", 30_000)).unwrap();
        answer.waker = waker;
        host.answer("/v1/lease", &serde_json::to_vec(&answer).unwrap());
        for id in &ids {
            let Seen::Forwarded(headers) = host.seen(*id) else { panic!("{:?}", host.seen(*id)) };
            assert!(value(headers, "x-sq-answer-timing").contains("wake;desc=start;dur=300"));
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
