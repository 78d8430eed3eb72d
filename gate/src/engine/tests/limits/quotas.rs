//! Quotas per day and month, and of writes.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn own_usage_takes_a_token_but_no_quota() {
    let limits = Limits {
        requests_per_day: CountLimit::Count(1),
        burst: 3,
        requests_per_s: 1,
        ..Limits::default()
    };
    let mut host = with(limits);
    let read = host.get(&key(1));
    assert_eq!(host.status(read), Some(429), "the day is used up");
    let look = |host: &mut Host| {
        host.request("GET", "/api/v2/usage", &[("authorization", &*key(1))], true)
    };
    let id = look(&mut host);
    host.respond("/v1/usage/alice", b"{}");
    assert_eq!(host.status(id), Some(200));
    host.end(id);
    let id = look(&mut host);
    let Seen::Answered(reply) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    assert_eq!((reply.status, value(&reply.headers, "ratelimit")), (429, "\"burst\";r=0;t=3"));
    host.end(id);
    host.tick(SECOND);
    assert_eq!(report(&host).rows[0].counters.requests(), 1, "it is in no sum");
}

#[test]
fn reports_are_urgent_near_the_end_of_quota() {
    let mut host = with(Limits { requests_per_day: CountLimit::Count(1), ..Limits::default() });
    host.tick(SECOND);
    acknowledge(&mut host);
    let id = host.get(&key(1));
    assert!(host.is_forwarded(id));
    host.end(id);
    host.tick(240 * MS);
    assert_eq!(host.call_to("/v1/usage"), None);
    host.tick(20 * MS);
    assert_eq!(report(&host).rows[0].counters.reads, 2);
}

#[test]
fn idle_vm_learns_of_quota_used_up_elsewhere() {
    let mut host = with(Limits { requests_per_day: CountLimit::Count(100), ..Limits::default() });
    host.tick(SECOND);
    acknowledge(&mut host);
    host.tick(SECOND);
    assert_eq!(report(&host).rows, [], "no rows, but it still asks for news");
    let ends = host.now / SECOND + 60;
    let sequence = report(&host).sequence;
    let news = format!(
        r#"{{"sequence":{sequence},"notices":{{"alice":{{"requests_day":100,"day_ends_s":{ends}}}}}}}"#
    );
    host.respond("/v1/usage", news.as_bytes());
    let id = host.get(&key(1));
    let Seen::Answered(reply) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    assert_eq!((reply.status, value(&reply.headers, "retry-after")), (429, "60"));
}

#[test]
fn notice_without_ledger_keeps_the_known_use() {
    let mut host = with(Limits { requests_per_day: CountLimit::Count(100), ..Limits::default() });
    let in_flight = host.get(&key(1));
    assert!(host.is_forwarded(in_flight));
    host.tick(SECOND);
    let sequence = report(&host).sequence;
    let ends = host.now / SECOND + 600;
    let used_up = format!(
        r#"{{"sequence":{sequence},"notices":{{"alice":{{"requests_day":100,"day_ends_s":{ends}}}}}}}"#
    );
    host.respond("/v1/usage", used_up.as_bytes());
    while host.call_to("/v1/lease").is_none() {
        host.tick(SECOND);
    }
    // No counts and no end of the day: the orchestrator has just been started.
    host.respond("/v1/lease", &granted("alice", 30_000));
    let id = host.get(&key(1));
    assert_eq!(host.status(id), Some(429));
}

/// A notice of `requests_day` used, ten minutes before the end of the day.
fn used(host: &Host, requests_day: u64) -> TenantNotice {
    let day_ends_s = host.now / SECOND + 600;
    TenantNotice { requests_day, day_ends_s, ..TenantNotice::default() }
}

fn grant(host: &mut Host, notice: TenantNotice) {
    let mut answer: LeaseResponse = serde_json::from_slice(&granted("alice", 30_000)).unwrap();
    answer.notice = notice;
    host.respond("/v1/lease", &serde_json::to_vec(&answer).unwrap());
}

/// The orchestrator refuses a lease for the quota.
fn refuse_lease(host: &mut Host, notice: &TenantNotice) {
    let notice = serde_json::to_string(notice).unwrap();
    let no = format!(r#"{{"kind":"quota","retry_after_s":600,"notice":{notice}}}"#);
    let id = host.call_to("/v1/lease").unwrap();
    host.done(id, Ok((429, no.as_bytes())));
}

#[test]
fn quota_is_judged_by_the_lease_notice() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let ids: Vec<StreamId> = (0..50).map(|_| host.get(&key(1))).collect();
    let used = used(&host, 100);
    grant(&mut host, used);
    assert!(ids.iter().all(|id| host.status(*id) == Some(429)), "the day was used up");
}

#[test]
fn tenant_over_quota_is_asked_about_each_second() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let asked = host.made["/v1/lease"];
    let id = host.get(&key(1));
    let call = host.call_to("/v1/lease").unwrap();
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"within_quotas\":true"));
    let used = used(&host, 100);
    refuse_lease(&mut host, &used);
    let Seen::Answered(reply) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    assert_eq!((reply.status, value(&reply.headers, "retry-after")), (429, "600"));
    assert!(reply.body.contains("quota-exceeded"), "{}", reply.body);
    for _ in 0..9 {
        host.tick(100 * MS);
        let id = host.get(&key(1));
        assert_eq!(host.status(id), Some(429));
    }
    assert_eq!(host.made["/v1/lease"], asked + 1);
    host.tick(200 * MS);
    let id = host.get(&key(1));
    assert_eq!(host.seen(id), &Seen::Waiting, "the quota may have been raised since");
}

#[test]
fn raised_tier_is_refused_for_one_second_only() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let id = host.get(&key(1));
    let fewer = used(&host, 99);
    refuse_lease(&mut host, &fewer);
    let Seen::Answered(reply) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    assert_eq!((reply.status, value(&reply.headers, "retry-after")), (429, "1"));
    let id = host.get(&key(1));
    assert_eq!(host.seen(id), &Seen::Waiting, "asked again");
}

#[test]
fn waiting_request_gets_warning_and_shadow_mark() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let id = host.get(&key(1));
    let nearly = used(&host, 89);
    grant(&mut host, nearly);
    let Seen::Forwarded(headers) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    let warning = value(headers, "x-sq-response-quota-warning");
    assert_eq!(warning, "\"day\";used=90;limit=100;t=600");

    let mut host =
        without_a_lease(FilterConfig { shadow: true, ..config() }, CountLimit::Count(100));
    let id = host.get(&key(1));
    let call = host.call_to("/v1/lease").unwrap();
    assert!(host.calls[&call].0.body.as_deref().unwrap().contains("\"within_quotas\":false"));
    let used = used(&host, 100);
    grant(&mut host, used);
    let Seen::Forwarded(headers) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    assert_eq!(value(headers, "x-sq-response-would-refuse"), "quota-exceeded");
}

#[test]
fn closed_ledger_refuses_no_request() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let id = host.get(&key(1));
    grant(&mut host, TenantNotice::default());
    assert!(host.is_forwarded(id));
}

#[test]
fn requests_in_flight_use_the_quota() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let ids: Vec<StreamId> = (0..40).map(|_| host.get(&key(1))).collect();
    let nearly = used(&host, 99);
    grant(&mut host, nearly);
    let passed = ids.iter().filter(|id| host.is_forwarded(**id)).count();
    assert_eq!(passed, 1, "one is left of the day");
    let again = host.get(&key(1));
    assert_eq!(host.status(again), Some(429), "nor does a lease change that");
}

#[test]
fn writes_in_flight_use_only_the_write_quota() {
    let mut host = with(Limits { writes_per_day: CountLimit::Count(2), ..Limits::default() });
    let writes: Vec<StreamId> = (0..4).map(|_| write(&mut host)).collect();
    let passed = writes.iter().filter(|id| host.is_forwarded(**id)).count();
    assert_eq!((passed, host.status(writes[2])), (2, Some(429)));
    let read = host.get(&key(1));
    assert!(host.is_forwarded(read));
}

#[test]
fn report_in_doubt_is_not_counted_twice() {
    let mut host = without_a_lease(config(), CountLimit::Count(100));
    let id = host.get(&key(1));
    let forty = used(&host, 40);
    grant(&mut host, forty);
    let ids: Vec<StreamId> = (0..39).map(|_| host.get(&key(1))).collect();
    for id in ids.into_iter().chain([id]) {
        host.end(id);
    }
    host.tick(SECOND);
    assert_eq!(report(&host).rows[0].counters.reads, 41, "one of them is known");
    // The ledger contains the report, and a lease shows that before the response to the report.
    let short = host.call_to("/v1/lease");
    assert_eq!(short, None);
    while host.call_to("/v1/lease").is_none() {
        host.tick(SECOND);
    }
    let eighty = used(&host, 80);
    grant(&mut host, eighty);
    let passed: Vec<StreamId> = (0..30).map(|_| host.get(&key(1))).collect();
    let passed = passed.iter().filter(|id| host.is_forwarded(**id)).count();
    assert_eq!(passed, 20, "80 of 100 were used, not 120");
}
