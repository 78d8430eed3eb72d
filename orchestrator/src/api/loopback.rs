//! Who may ask on loopback: programs of this host. A web page that one of its users looks at is none,
//! though its browser can reach these ports: it says from where the page is, or to whom it thinks it
//! talks.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Refuses what a page asks that is from elsewhere (its `Origin`).
pub async fn no_pages(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return refused();
    }
    next.run(request).await
}

/// Refuses also what is asked under another name than this host's: a name of the page's own may
/// resolve to here.
pub async fn no_pages_by_name(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) || !is_for_us(request.headers()) {
        return refused();
    }
    next.run(request).await
}

fn is_for_us(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return false };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn refused() -> Response {
    let text = "for programs of this host: ask as 127.0.0.1 or localhost, and from no web page\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_ours() {
        for (host, ours) in [
            ("127.0.0.1:7102", true),
            ("localhost:7102", true),
            ("[::1]:7102", true),
            ("127.9.9.9", true),
            ("evil.example:7102", false),
            ("localhost.evil.example", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            assert_eq!(is_for_us(&headers), ours, "{host}");
        }
        assert!(!is_for_us(&HeaderMap::new()));
    }
}
