//! gRPC, which SQ does not speak.
//!
//! If a request has gRPC's content type, Envoy turns each response that it makes itself, the filter's
//! refusals included, into one without a body: status 200, `grpc-status`, and the problem document in
//! `grpc-message`. A client that knows nothing of gRPC would take a refused write for done. The gate
//! refuses such requests as a whole, and the shell puts the status back.

/// Returns whether Envoy takes a request with this content type for gRPC.
pub fn is_grpc(content_type: &str) -> bool {
    let rest = content_type.strip_prefix("application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// Reads the status from the problem document in a `grpc-message`; `None` if it has none.
pub fn status_of(message: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(message).ok()?;
    let (_, rest) = text.split_once("\"status\":")?;
    let status = rest.trim_start().get(..3)?.parse().ok()?;
    (400..600).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Refusal, RefusalKind};
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn only_envoys_grpc_types_count() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc+"] {
            assert!(is_grpc(grpc), "{grpc}");
        }
        for other in ["application/grpc-web", "application/grpc; charset=utf-8", "text/plain", ""] {
            assert!(!is_grpc(other), "{other}");
        }
    }

    #[test]
    fn status_is_that_of_the_document() {
        let refusal = Refusal::new(RefusalKind::Grpc);
        let document = refusal.to_json("urn:sq:problem:");
        assert_eq!(status_of(document.as_bytes()), Some(415));
        assert_eq!(status_of(br#"{"title":"x", "status": 429,"detail":""}"#), Some(429));
        for other in
            ["", "upstream reset", r#"{"status":200}"#, r#"{"status":4"#, r#"{"status":x}"#]
        {
            assert_eq!(status_of(other.as_bytes()), None, "{other}");
        }
    }
}
