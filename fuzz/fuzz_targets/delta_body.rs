//! Lines of `delta`: SQ's lenient parser reads every accepted line, in range.

#![no_main]

use gate::http::request::Coordinate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if !fuzz::is_accepted("/api/v2/delta?p=a", body) {
        return;
    }
    let text = std::str::from_utf8(body).expect("ASCII");
    for line in text.lines().filter(|line| !line.is_empty()) {
        let parts: Vec<&str> = line.split(": ").collect();
        assert_eq!(parts.len(), 2, "{line:?}");
        assert!(Coordinate::parse(parts[0]).is_some() && parts[1].len() == 32, "{line:?}");
    }
});
