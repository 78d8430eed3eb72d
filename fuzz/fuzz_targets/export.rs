//! Any phext in any chunks: the export is valid JSON with all of its text.

#![no_main]

use gate::http::response::export::Export;
use gate::http::text::is_break;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, u8)| {
    let (phext, cut) = input;
    let bytes = phext.as_bytes();
    let (left, right) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let mut export = Export::default();
    let mut out = export.on_chunk(left);
    out.extend(export.on_chunk(right));
    out.extend(export.on_end());
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&out).expect("valid JSON");
    let text: String = rows.iter().filter_map(|row| row["scroll"].as_str()).collect();
    assert_eq!(text, phext.chars().filter(|c| !is_break_char(*c)).collect::<String>());
});

fn is_break_char(c: char) -> bool {
    u8::try_from(c).is_ok_and(is_break)
}
