//! The text of a scroll: accepted only if it is UTF-8, not empty, and has no separator.

#![no_main]

use gate::http::text::is_break;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let good = !body.is_empty()
        && std::str::from_utf8(body).is_ok()
        && !body.iter().any(|byte| is_break(*byte));
    let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1";
    assert_eq!(fuzz::is_accepted(path, body), good);
});
