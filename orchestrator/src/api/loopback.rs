//! Keeps web pages away from the loopback listener of metrics, which is for programs on this host.
//!
//! A page that a user of the host opens is not one of them, although its browser can reach the port.
//! The browser gives it away: by the `Origin` header, or by the name in `Host` under which it thinks
//! it is talking to the page's own server (DNS rebinding). No page can reach the Unix sockets.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Refuses requests that carry an `Origin` or name a host other than this one: a name of the page's
/// own domain may resolve to a loopback address.
pub(super) async fn reject_web_pages(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) || !names_this_host(request.headers()) {
        let text = "only for programs on this host: use 127.0.0.1 or localhost, and no web page\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

fn names_this_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return false };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_accepted() {
        for (host, accepted) in [
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
            assert_eq!(names_this_host(&headers), accepted, "{host}");
        }
        assert!(!names_this_host(&HeaderMap::new()));
    }
}
