//! Pages that need no key, wake no tenant and are the same for everybody.

use super::response::TEXT;

/// A page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: &'static str,
}

/// All pages.
pub(crate) const PAGES: [Page; 4] = [
    // For load balancers, which cannot send a key: this Envoy and its filter respond.
    Page { path: "/healthz", content_type: TEXT, body: "ok\n" },
    // The name in SQ's community docs.
    Page { path: "/health", content_type: TEXT, body: "ok\n" },
    // For agents that know only this host's name.
    Page { path: "/llms.txt", content_type: TEXT, body: include_str!("pages/llms.txt") },
    // There is nothing for crawlers: every other path needs a key.
    Page { path: "/robots.txt", content_type: TEXT, body: "User-agent: *\nDisallow: /api/\n" },
];

/// The page at a path, whatever its query.
pub(crate) fn find(path: &[u8]) -> Option<&'static Page> {
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    PAGES.iter().find(|page| page.path.as_bytes() == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::endpoint::Endpoint;
    #[cfg(target_family = "wasm")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn page_is_found_by_its_whole_path() {
        assert_eq!(find(b"/healthz").map(|page| page.body), Some("ok\n"));
        assert_eq!(find(b"/healthz?x=1").map(|page| page.path), Some("/healthz"));
        for path in [&b"/"[..], b"", b"/healthz/", b"/healthzz", b"/api/v2/toc?p=/healthz"] {
            assert_eq!(find(path), None);
        }
    }

    #[test]
    fn agents_page_names_every_endpoint() {
        let page = find(b"/llms.txt").unwrap();
        for endpoint in Endpoint::ALL {
            let path = format!("/api/v2/{}", endpoint.name());
            assert!(page.body.contains(&path), "{path} is not in llms.txt");
        }
    }
}
