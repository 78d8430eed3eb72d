//! The cost of a request in bytes, which the tenant's rate is charged for.
//!
//! One token pays for [`Limits::token_bytes`](protocol::Limits::token_bytes), and ordinary requests
//! cost no more than the tokens that they take anyway. The cost is the larger of two numbers: the
//! bytes that the client is answered, which are counted as they pass, and the work that the request
//! makes for SQ, which is known before:
//!
//! | request | work |
//! |---|---|
//! | `get` `json-export` `toc` `delta` | the whole phext, and the body |
//! | `insert` `update` `delete`, `checksum` `status` `load` | a quarter of both |
//! | `select` `query` `where` | the body |
//!
//! SQ rewrites the whole phext for one byte, and reads or hashes all of it for a checksum. Measured
//! with SQ 0.6.0 on 4 MB, as `Limits::phext_max_bytes` weighs them, in scrolls of 20 bytes: `toc` and
//! `delta` take 80 to 95 ms of a core, a write or checksum about 15, `where` and `select` about two
//! or less: means of five requests in clock ticks of 10 ms, so only the order of magnitude counts.

use crate::http::request::{Access, Endpoint};

/// Bytes of a rewritten phext that cost as much as one answered byte. A disk takes several times as
/// many bytes per second as the network.
const REWRITTEN_PER_ANSWERED: u64 = 4;

/// The work of a request with `sent_bytes` on a phext of `phext_bytes`, in answered bytes.
pub(crate) fn work(endpoint: Endpoint, access: Access, phext_bytes: u64, sent_bytes: u64) -> u64 {
    let all_bytes = phext_bytes.saturating_add(sent_bytes);
    match (access, endpoint) {
        (Access::Write | Access::Delete, _)
        | (Access::Read, Endpoint::Checksum | Endpoint::Status | Endpoint::Load) => {
            all_bytes / REWRITTEN_PER_ANSWERED
        }
        (Access::Read, Endpoint::Get | Endpoint::JsonExport | Endpoint::Toc | Endpoint::Delta) => {
            all_bytes
        }
        (Access::Read, _) => sent_bytes,
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn whole_phext_counts_only_where_sq_takes_it() {
        for endpoint in Endpoint::ALL {
            let cost = work(endpoint, endpoint.access(), 3_600, 400);
            let expected = match endpoint {
                Endpoint::Insert
                | Endpoint::Update
                | Endpoint::Delete
                | Endpoint::Checksum
                | Endpoint::Status
                | Endpoint::Load => 1_000,
                Endpoint::Get | Endpoint::JsonExport | Endpoint::Toc | Endpoint::Delta => 4_000,
                Endpoint::Version
                | Endpoint::Usage
                | Endpoint::Select
                | Endpoint::Query
                | Endpoint::Where => 400,
            };
            assert_eq!(cost, expected, "{}", endpoint.name());
        }
    }
}
