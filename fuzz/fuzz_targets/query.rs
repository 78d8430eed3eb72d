//! Any method and path: refused, or rebuilt into a request that is accepted and rebuilt unchanged.

#![no_main]

use gate::http::request::{Head, parse};
use libfuzzer_sys::fuzz_target;
use protocol::{Limits, SqVersion};

fuzz_target!(|input: (&str, &[u8], Option<u64>, bool)| {
    let (method, path, content_length, has_body) = input;
    let limits = Limits::default();
    let sq = SqVersion::V0_6_0;
    // Half of the inputs begin with the common prefix, beyond which the parser branches.
    let path = if has_body { path.to_owned() } else { [b"/api/v2/", path].concat() };
    let method = ["GET", "POST", "DELETE", method][method.len() % 4];
    let head = Head { method, path: &path, content_length, has_body, content_type: None };
    let Ok(request) = parse(&head, &limits, sq) else { return };
    assert!(path.is_ascii(), "accepted: {path:?}");
    let rebuilt = request.path();
    let has_body = request.method() == "POST";
    let head = Head {
        method: request.method(),
        path: rebuilt.as_bytes(),
        content_length: None,
        has_body,
        content_type: None,
    };
    let again = parse(&head, &limits, sq).expect("a rebuilt request is accepted");
    assert_eq!((again.path(), again.method()), (rebuilt, request.method()));
    assert_eq!((again.access, &again.phext), (request.access, &request.phext));
});
