//! Tokens for bytes that are answered or rewritten, and the quota of answered bytes.

use protocol::ByteLimit;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::effect::Reply;

const MB: usize = 1_000_000;

/// A VM whose alice has a phext `index` of these bytes.
fn with_phext(limits: Limits, bytes: u64) -> Host {
    let mut host = with(limits);
    tell(&mut host, |notice| notice.phexts = [("index".to_owned(), bytes)].into());
    host
}

/// Answers the next report with a notice.
fn tell(host: &mut Host, change: impl FnOnce(&mut TenantNotice)) {
    host.tick(SECOND);
    let mut notice =
        TenantNotice { day_ends_s: host.now / SECOND + 600, ..TenantNotice::default() };
    change(&mut notice);
    let sequence = report(host).sequence;
    let notices = [(protocol::TenantId::parse("alice").unwrap(), notice)].into();
    let response = protocol::UsageResponse { sequence, quarantined: 0, notices };
    host.respond("/v1/usage", &serde_json::to_vec(&response).unwrap());
}

fn send(host: &mut Host, method: &str, path: &str) -> StreamId {
    host.request(method, &format!("/api/v2/{path}"), &[("authorization", &*key(1))], true)
}

/// Sends a request and lets SQ respond with this many bytes.
fn serve(host: &mut Host, path: &str, bytes: usize) {
    let id = send(host, "GET", path);
    assert!(host.is_forwarded(id), "{path}: {:?}", host.seen(id));
    let pieces: Vec<_> = vec![b'x'; bytes].chunks(16_384).map(<[u8]>::to_vec).collect();
    host.sq_responds(id, 200, &pieces);
    host.end(id);
}

/// Tokens left, as the next request shows them.
fn left(host: &mut Host) -> String {
    let id = send(host, "GET", "version");
    let Seen::Answered(reply) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    let left = value(&reply.headers, "ratelimit").to_owned();
    host.end(id);
    left
}

fn refusal(host: &mut Host, path: &str) -> Reply {
    let id = send(host, "GET", path);
    let Seen::Answered(reply) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    reply.clone()
}

const SELECT: &str = "select?p=index&c=1.1.1/1.1.1/1.1.1";
const INSERT: &str = "insert?p=index&c=1.1.1/1.1.1/1.1.1&s=x";

#[test]
fn ordinary_requests_cost_one_token() {
    let mut host = with_phext(Limits::default(), 300_000);
    host.tick(10 * SECOND);
    for path in ["toc?p=other", SELECT, INSERT, "checksum?p=index", "where?p=index"] {
        let id = send(&mut host, if path.starts_with("where") { "POST" } else { "GET" }, path);
        host.end(id);
    }
    serve(&mut host, SELECT, 64 << 10);
    serve(&mut host, SELECT, 100_000);
    assert_eq!(left(&mut host), "\"burst\";r=42;t=1", "eight requests");
}

#[test]
fn answered_megabytes_are_owed() {
    let mut host = with(Limits::default());
    host.tick(10 * SECOND);
    serve(&mut host, SELECT, 2 * MB);
    assert_eq!(left(&mut host), "\"burst\";r=29;t=3", "20 for the bytes, and this one");
    serve(&mut host, SELECT, 4 * MB);
    let reply = refusal(&mut host, SELECT);
    assert_eq!((reply.status, value(&reply.headers, "retry-after")), (429, "2"), "12 are owed");
    host.tick(SECOND);
    assert_eq!(refusal(&mut host, SELECT).status, 429);
    host.tick(SECOND);
    serve(&mut host, SELECT, 1);
}

#[test]
fn client_that_disconnects_pays_for_its_part() {
    let mut host = with(Limits::default());
    host.tick(10 * SECOND);
    let id = send(&mut host, "GET", SELECT);
    let piece = vec![b'x'; MB];
    host.gate.on_response_body(id, piece.len(), false, || piece.clone());
    host.end(id);
    assert_eq!(left(&mut host), "\"burst\";r=39;t=2");
}

#[test]
fn small_change_pays_for_the_rewritten_phext() {
    let mut host = with_phext(Limits::default(), 4_000_000);
    host.tick(10 * SECOND);
    let id = send(&mut host, "GET", INSERT);
    let Seen::Forwarded(headers) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    let header = value(headers, "x-sq-response-ratelimit");
    assert_eq!(header, "\"burst\";r=40;t=1", "10 tokens: a quarter of 4 MB");
    host.sq_responds(id, 200, &[b"Inserted 1 bytes".to_vec()]);
    host.end(id);
    for _ in 0..4 {
        serve(&mut host, INSERT, 16);
    }
    assert_eq!(refusal(&mut host, INSERT).status, 429);
}

#[test]
fn upload_of_unknown_length_pays_at_its_end() {
    let mut host = with(Limits::default());
    host.tick(10 * SECOND);
    let headers = [("authorization", &*key(1))];
    let id = host.request("POST", "/api/v2/update?p=new&c=1.1.1/1.1.1/1.1.1", &headers, false);
    host.body(id, &vec![b'x'; 2 * MB], true);
    assert_eq!(left(&mut host), "\"burst\";r=44;t=1", "5 for the write, and this one");
}

#[test]
fn whole_reads_pay_before_and_not_twice() {
    for (path, cost) in
        [("get?p=index", 20), ("toc?p=index", 20), ("delta?p=index", 20), ("load?p=index", 5)]
    {
        let mut host = with_phext(Limits::default(), 2_000_000);
        host.tick(10 * SECOND);
        serve(&mut host, path, if cost == 20 { 2 * MB } else { 16 });
        let expected = format!("\"burst\";r={};t", 49 - cost);
        let left = left(&mut host);
        assert!(left.starts_with(&expected), "{path}: {left}");
    }
}

#[test]
fn unlimited_bytes_cost_one_token() {
    let unlimited = Limits { bytes_per_s: ByteLimit::Unlimited, ..Limits::default() };
    let mut host = with_phext(unlimited, 4_000_000);
    host.tick(10 * SECOND);
    serve(&mut host, "toc?p=index", 4 * MB);
    assert_eq!(left(&mut host), "\"burst\";r=48;t=1");
}

#[test]
fn answered_bytes_use_up_the_day_for_reads() {
    let egress_bytes_per_day = ByteLimit::Bytes(1_000_000);
    let mut host = with(Limits { egress_bytes_per_day, ..Limits::default() });
    tell(&mut host, |notice| notice.bytes_out_day = 899_990);
    serve(&mut host, SELECT, 100_010);
    let reply = refusal(&mut host, SELECT);
    assert_eq!((reply.status, value(&reply.headers, "retry-after")), (429, "600"));
    assert!(reply.body.contains("egress-quota-exceeded"), "{}", reply.body);
    serve(&mut host, INSERT, 16);
}

#[test]
fn clients_are_warned_of_answered_bytes() {
    let egress_bytes_per_day = ByteLimit::Bytes(1_000_000);
    let mut host = with(Limits { egress_bytes_per_day, ..Limits::default() });
    tell(&mut host, |notice| notice.bytes_out_day = 800_000);
    let id = send(&mut host, "GET", SELECT);
    let Seen::Forwarded(headers) = host.seen(id) else { panic!("{:?}", host.seen(id)) };
    let warning = value(headers, protocol::headers::response::WARNING);
    assert_eq!(warning, "\"egress-day\";used=800000;limit=1000000;t=600");
}
