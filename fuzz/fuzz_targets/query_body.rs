//! Coordinates of `query`: SQ's own splitting of every accepted body yields coordinates in range.

#![no_main]

use gate::http::request::Coordinate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if !fuzz::is_accepted("/api/v2/query?p=a", body) {
        return;
    }
    let text = std::str::from_utf8(body).expect("ASCII");
    let items = text.split([',', '\n', ';']).map(str::trim).filter(|item| !item.is_empty());
    let mut count = 0;
    for item in items {
        assert!(Coordinate::parse(item).is_some(), "{item:?}");
        count += 1;
    }
    assert!(count > 0);
});
