//! Any list of headers: no panic, and a key is found only in headers that may carry one.

#![no_main]

use gate::engine::head::RequestHead;
use gate::http::request::parse;
use gate::identity::credentials::CredentialFault;
use libfuzzer_sys::fuzz_target;
use protocol::key::KEY_BYTES;
use protocol::{KeyHash, Limits, SqVersion, headers};

const NAMES: [&str; 8] = [
    ":method",
    ":path",
    "authorization",
    headers::API_KEY,
    "content-length",
    "content-encoding",
    "origin",
    "access-control-request-method",
];

fuzz_target!(|input: (Vec<(u8, &str, Vec<u8>)>, bool)| {
    let (list, ends) = input;
    let list: Vec<(String, Vec<u8>)> = list
        .into_iter()
        .map(|(known, name, value)| {
            let known = NAMES.get(usize::from(known));
            (known.copied().map_or_else(|| name.to_ascii_lowercase(), str::to_owned), value)
        })
        .collect();
    let (head, key) = RequestHead::read(&list, ends);
    assert_eq!(head.ends, ends);
    assert!(!head.is_preflight || head.method == "OPTIONS");
    if parse(&head.as_request(), &Limits::default(), SqVersion::V0_6_0).is_ok() {
        assert!(head.path.is_ascii(), "accepted: {:?}", head.path);
        assert!(head.content_length.is_none_or(|length| length == 0) || !ends);
    }
    let may_carry = |name: &str| name == "authorization" || name == headers::API_KEY;
    let sent: Vec<&[u8]> = list
        .iter()
        .filter(|(name, _)| may_carry(name))
        .map(|(_, value)| value.as_slice())
        .collect();
    match key {
        Err(CredentialFault::Absent) => assert!(sent.is_empty()),
        Err(_) => assert!(!sent.is_empty()),
        Ok(hash) => {
            // All of them carry the same key, at their end.
            for value in sent {
                let value = value.trim_ascii();
                let key = &value[value.len().saturating_sub(KEY_BYTES)..];
                assert_eq!(KeyHash::of(key), hash);
            }
        }
    }
});
