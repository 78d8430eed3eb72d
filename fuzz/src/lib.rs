//! Runs a body through its check, whole and in pieces.

use gate::http::request::{Head, parse};
use protocol::{Limits, SqVersion};

/// Returns whether a POST with this body is accepted; the same for all ways of cutting it.
pub fn is_accepted(path: &str, body: &[u8]) -> bool {
    let path = path.as_bytes();
    let head =
        Head { method: "POST", path, content_length: None, has_body: true, content_type: None };
    let request = parse(&head, &Limits::default(), SqVersion::V0_6_0).expect("a good head");
    let judge = |length: usize| {
        let mut check = request.body().expect("a check");
        body.chunks(length).all(|chunk| check.on_chunk(chunk).is_ok()) && check.on_end().is_ok()
    };
    let whole = judge(body.len().max(1));
    assert_eq!(whole, judge(1));
    assert_eq!(whole, judge(3));
    whole
}
