//! Any bytes: a key only if they are the prefix and 32 hexadecimal digits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::ApiKey;

fuzz_target!(|bytes: &[u8]| {
    if ApiKey::check(bytes).is_err() {
        return;
    }
    let text = std::str::from_utf8(bytes).expect("ASCII");
    let digits = text.strip_prefix("pmb-v1-").expect("the prefix");
    assert!(digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    assert!(!format!("{:?}", ApiKey::parse(text)).contains(digits));
});
