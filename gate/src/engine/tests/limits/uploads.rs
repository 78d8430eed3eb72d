//! Request bodies: their use of storage and of the body budget.

#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn upload_counts_towards_storage_at_its_end() {
    let bytes_per_s = protocol::ByteLimit::Unlimited;
    let free = Limits { bytes_per_s, ..Limits::default() };
    let mut host = with(Limits { storage_bytes: 5_000_000, concurrency: 6, ..free });
    let path = |n: usize| format!("/api/v2/insert?p=p{n}&c=1.1.1/1.1.1/1.1.1");
    let auth = key(1);
    let headers = [("authorization", auth.as_str()), ("content-length", "2000000")];
    let uploads: Vec<StreamId> =
        (0..12).map(|n| host.request("POST", &path(n), &headers, false)).collect();
    assert!(uploads.iter().all(|id| host.is_forwarded(*id)));
    for id in &uploads {
        host.body(*id, &vec![b'x'; 1_999_999], false);
    }
    // Measurements show an empty disk while the uploads last.
    for _ in 0..40 {
        host.tick(SECOND);
        for path in ["/v1/usage", "/v1/lease"] {
            match host.call_to(path) {
                Some(_) if path == "/v1/usage" => acknowledge(&mut host),
                Some(_) => host.respond(path, &granted("alice", 30_000)),
                None => {}
            }
        }
    }
    for id in &uploads {
        host.body(*id, b"x", true);
    }
    let passed = uploads.iter().filter(|id| host.is_forwarded(**id)).count();
    assert_eq!((passed, host.status(uploads[11])), (2, Some(507)));
    // SQ has confirmed both, so the next measurement contains what it has stored.
    for id in &uploads[..2] {
        host.response_head(*id, false, &FromSq { status: 200, content_length: 5 });
        host.end(*id);
    }
    host.tick(SECOND);
    let sequence = report(&host).sequence;
    let measured = format!(r#"{{"sequence":{sequence},"notices":{{"alice":{{}}}}}}"#);
    host.respond("/v1/usage", measured.as_bytes());
    let one_more = host.request("POST", &path(20), &headers, false);
    assert!(host.is_forwarded(one_more), "nothing was stored after all");
}

/// Starts an upload that announces `length`.
fn upload(host: &mut Host, length: Option<&str>) -> StreamId {
    let auth = key(1);
    let mut headers = vec![("authorization", auth.as_str())];
    headers.extend(length.map(|length| ("content-length", length)));
    host.request("POST", "/api/v2/insert?p=a&c=1.1.1/1.1.1/1.1.1", &headers, false)
}

fn is_busy(host: &Host, id: StreamId) -> bool {
    matches!(host.seen(id), Seen::Answered(reply) if reply.body.contains("database-busy"))
}

#[test]
fn announced_uploads_stay_within_the_body_budget() {
    let bytes_per_s = protocol::ByteLimit::Unlimited;
    let mut host = with(Limits { bytes_per_s, ..Limits::default() });
    let uploads: Vec<StreamId> = (0..12).map(|_| upload(&mut host, Some("2000000"))).collect();
    let (taken, refused) = uploads.split_at(8);
    assert!(taken.iter().all(|id| host.is_forwarded(*id)), "two rounds of four");
    for id in refused {
        let Seen::Answered(reply) = host.seen(*id) else { panic!("{:?}", host.seen(*id)) };
        assert_eq!((reply.status, value(&reply.headers, "retry-after")), (503, "1"));
        assert!(is_busy(&host, *id), "{}", reply.body);
    }
    let read = host.get(&key(1));
    assert!(host.is_forwarded(read), "what has no body needs no room");
    host.end(taken[0]);
    host.end(refused[0]);
    let next = upload(&mut host, Some("2000000"));
    let one_more = upload(&mut host, Some("1"));
    assert!(host.is_forwarded(next), "finished uploads free room, refused ones took none");
    assert!(is_busy(&host, one_more));
}

#[test]
fn unannounced_upload_takes_budget_as_it_comes() {
    let mut host = with(Limits::default());
    let uploads: Vec<StreamId> = (0..20).map(|_| upload(&mut host, None)).collect();
    assert!(uploads.iter().all(|id| host.is_forwarded(*id)), "nothing has come yet");
    let chunk = vec![b'x'; 1_000_000];
    for id in &uploads {
        host.body(*id, &chunk, false);
    }
    let (taken, refused) = uploads.split_at(16);
    assert!(taken.iter().all(|id| host.is_forwarded(*id)));
    assert!(refused.iter().all(|id| is_busy(&host, *id)));
}
