//! The rules of a request, as a client meets them.

mod properties;

use super::*;
use crate::RefusalKind;
use crate::http::endpoint;
use protocol::SqVersion;
#[cfg(target_family = "wasm")]
use wasm_bindgen_test::wasm_bindgen_test as test;

const ROOT: &str = "1.1.1/1.1.1/1.1.1";

fn head<'a>(
    method: &'a str,
    path: &'a (impl AsRef<[u8]> + ?Sized),
    body: Option<&str>,
) -> Head<'a> {
    Head {
        method,
        path: path.as_ref(),
        content_length: body.map(|body| body.len() as u64),
        has_body: body.is_some_and(|body| !body.is_empty()),
        content_type: None,
    }
}

/// Parses a request and checks its body, as the engine does.
fn check(
    method: &str,
    path: &(impl AsRef<[u8]> + ?Sized),
    body: Option<&str>,
) -> Result<Request, Refusal> {
    check_in(method, path, body.map(str::as_bytes).map(|body| vec![body]), SqVersion::V0_6_0)
}

fn check_in(
    method: &str,
    path: &(impl AsRef<[u8]> + ?Sized),
    chunks: Option<Vec<&[u8]>>,
    sq: SqVersion,
) -> Result<Request, Refusal> {
    let length = chunks.as_ref().map(|chunks| chunks.iter().map(|c| c.len() as u64).sum());
    let head = Head {
        method,
        path: path.as_ref(),
        content_length: length,
        has_body: length.is_some_and(|length| length > 0),
        content_type: None,
    };
    let request = parse(&head, &Limits::default(), sq)?;
    if let Some(mut body) = request.body() {
        for chunk in chunks.unwrap_or_default() {
            body.on_chunk(chunk)?;
        }
        body.on_end()?;
    }
    Ok(request)
}

/// An example as it stands in a refusal: `METHOD PATH[ with the body BODY]`.
fn try_example(example: &str) -> Result<Request, Refusal> {
    let (line, body) = match example.split_once(" with the body ") {
        Some((line, body)) => (line, Some(body)),
        None => (example, None),
    };
    let (method, path) = line.split_once(' ').unwrap();
    check(method, path, body)
}

fn refused(method: &str, path: &str, body: Option<&str>) -> Refusal {
    match check(method, path, body) {
        Err(refusal) => refusal,
        Ok(request) => panic!("{method} {path} {body:?} became {}", request.path()),
    }
}

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "get"];

#[test]
fn each_row_takes_its_example_and_method_only() {
    for endpoint in Endpoint::ALL {
        for rule in endpoint.rules() {
            let request = try_example(rule.example).unwrap();
            assert_eq!(request.endpoint, endpoint, "{}", rule.example);
        }
        for method in METHODS {
            let allowed = endpoint.allow().split(", ").any(|allowed| allowed == method);
            let path = format!("{BASE}{}", endpoint.name());
            let outcome = check(method, &path, None).map(|_| ()).map_err(|refusal| refusal.kind);
            let not_allowed = outcome == Err(RefusalKind::MethodNotAllowed);
            assert_eq!(!not_allowed, allowed && method != "OPTIONS", "{method} {path}");
        }
    }
}

/// A value that each parameter takes.
fn value_of(param: endpoint::Param) -> &'static str {
    match param.name() {
        "p" => "index",
        "s" => "hello",
        "limit" => "10",
        "algo" => "checksum",
        _ => ROOT,
    }
}

#[test]
fn each_parameter_is_required_once() {
    for endpoint in Endpoint::ALL {
        for rule in endpoint.rules() {
            let (line, body) = rule
                .example
                .split_once(" with the body ")
                .map_or((rule.example, None), |(l, b)| (l, Some(b)));
            let method = line.split_once(' ').unwrap().0;
            let all = |skip: Option<endpoint::Param>| {
                let pairs: Vec<String> = (rule.required.iter())
                    .filter(|param| Some(**param) != skip)
                    .map(|param| format!("{}={}&", param.name(), value_of(*param)))
                    .collect();
                format!("{BASE}{}?{}", endpoint.name(), pairs.concat())
            };
            for param in endpoint::Param::ALL {
                let name = param.name();
                let value = value_of(param);
                if rule.required.contains(&param) {
                    let refusal = refused(method, &all(Some(param)), body);
                    assert_eq!(refusal.parameter.as_deref(), Some(name), "{method} {endpoint:?}");
                }
                if rule.takes(param) {
                    let twice = format!("{}{name}={value}&{name}={value}", all(Some(param)));
                    let refusal = refused(method, &twice, body);
                    assert!(refusal.detail.contains("more than once"), "{}", refusal.detail);
                } else if rule.dropped.contains(&param) {
                    let path = format!("{}{name}={value}&{name}=name", all(None));
                    let request = check(method, &path, body).unwrap();
                    assert!(!request.path().contains(&format!("{name}=")), "{}", request.path());
                } else {
                    let refusal = refused(method, &format!("{}{name}={value}", all(None)), body);
                    assert!(refusal.detail.contains("it is unknown"), "{}", refusal.detail);
                }
            }
            let refusal = refused(method, &format!("{}content=x", all(None)), body);
            assert_eq!(refusal.parameter.as_deref(), Some("content"));
        }
    }
}

/// Requests that are refused, with what they are refused for.
const REFUSED: &[(&str, &str, Option<&str>, RefusalKind)] = &[
    ("GET", "/", None, RefusalKind::UnknownEndpoint),
    ("GET", "/api/v2/selectXYZ?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::UnknownEndpoint),
    ("GET", "/api/v2/select/?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::UnknownEndpoint),
    ("GET", "/api/v2/%73elect?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::UnknownEndpoint),
    ("GET", "/favicon.ico", None, RefusalKind::UnknownEndpoint),
    ("PUT", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::MethodNotAllowed),
    ("HEAD", "/api/v2/delete?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::MethodNotAllowed),
    ("GET", "/api/v2/toc?p=index#x", None, RefusalKind::BadRequest),
    ("GET", "/api/v2/toc?p=in dex", None, RefusalKind::BadRequest),
    ("GET", "/api/v2/toc?p=%ff", None, RefusalKind::BadRequest),
    ("GET", "/api/v2/toc?p=%00", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/toc?p=..%2fother", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/toc?p=", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/toc?p", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/update?p=index&c=root&s=x", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.0&s=x", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1000&s=x", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1&s=%17", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/insert?p=index&c=1.1.1/1.1.1/1.1.1&s=", None, RefusalKind::BadParameter),
    ("POST", "/api/v2/insert?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::BadBody),
    ("POST", "/api/v2/update?p=index&c=1.1.1/1.1.1/1.1.1", None, RefusalKind::BadBody),
    ("POST", "/api/v2/insert?p=index&c=1.1.1/1.1.1/1.1.1", Some(""), RefusalKind::BadBody),
    ("POST", "/api/v2/insert?p=index&c=1.1.1/1.1.1/1.1.1", Some("a\u{1f}"), RefusalKind::BadBody),
    (
        "POST",
        "/api/v2/insert?p=index&c=1.1.1/1.1.1/1.1.1&s=a",
        Some("b"),
        RefusalKind::BadParameter,
    ),
    ("GET", "/api/v2/toc?p=index", Some("x"), RefusalKind::BadBody),
    ("DELETE", "/api/v2/delete?p=index&c=1.1.1/1.1.1/1.1.1", Some("x"), RefusalKind::BadBody),
    ("POST", "/api/v2/delta?p=index", Some("1.1.1/1.1.1/1.1.1000: 0"), RefusalKind::BadBody),
    ("POST", "/api/v2/delta?p=index", Some("* 1.1.1/1.1.1/1.1.1: a"), RefusalKind::BadBody),
    ("POST", "/api/v2/delta?p=index", Some("\n\n"), RefusalKind::BadBody),
    ("GET", "/api/v2/query?p=index", None, RefusalKind::BadParameter),
    ("GET", "/api/v2/query?p=index&from=1.1.1/1.1.1/1.1.1", None, RefusalKind::BadParameter),
    (
        "GET",
        "/api/v2/query?p=index&from=2.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/1.1.1",
        None,
        RefusalKind::BadParameter,
    ),
    ("GET", "/api/v2/query?p=index&set=1.1.1/1.1.1/1.1.1,", None, RefusalKind::BadParameter),
    (
        "GET",
        "/api/v2/query?p=index&set=1.1.1/1.1.1/1.1.1&limit=-1",
        None,
        RefusalKind::BadParameter,
    ),
    (
        "GET",
        "/api/v2/query?p=index&set=1.1.1/1.1.1/1.1.1&limit=10001",
        None,
        RefusalKind::BadParameter,
    ),
    ("POST", "/api/v2/query?p=index", Some("1.1.1;1.1.1;1.1.1"), RefusalKind::BadBody),
    ("POST", "/api/v2/query?p=index", Some(" , \n"), RefusalKind::BadBody),
    ("POST", "/api/v2/query?p=index", Some("1.1.1/1.1.1/1.1.1 1"), RefusalKind::BadBody),
    ("POST", "/api/v2/where?p=index&algo=md5", Some("x"), RefusalKind::BadParameter),
    ("POST", "/api/v2/where?p=index&algo=xor", Some("x"), RefusalKind::BadParameter),
    ("POST", "/api/v2/where?algo=checksum", Some("x"), RefusalKind::BadParameter),
    ("POST", "/api/v2/delete?p=index&c=1.1.1/1.1.1/1.1.1", Some("x"), RefusalKind::BadBody),
];

#[test]
fn ambiguous_requests_are_refused_with_a_valid_example() {
    for (method, path, body, kind) in REFUSED {
        let refusal = refused(method, path, *body);
        assert_eq!(refusal.kind, *kind, "{method} {path}: {}", refusal.detail);
        let example = refusal.example.expect(path);
        assert!(try_example(example).is_ok(), "{example}");
    }
}

/// Requests that are taken: method, path, body, then SQ's method and path.
const TAKEN: &[(&str, &str, Option<&str>, &str, &str)] = &[
    ("GET", "toc?p=index", None, "GET", "toc?p=index"),
    ("HEAD", "select?c=1.1.1;2.2.2;3.3.3&p=a", None, "GET", "select?p=a&c=1.1.1/2.2.2/3.3.3"),
    ("DELETE", "delete?p=a&c=1.1.1/1.1.1/1.1.1", None, "GET", "delete?p=a&c=1.1.1/1.1.1/1.1.1"),
    ("GET", "get?%70=a%20b+c", None, "GET", "get?p=a%20b%20c"),
    ("GET", "get?p=100%&", None, "GET", "get?p=100%25"),
    (
        "POST",
        "insert?p=a&c=1.1.1/1.1.1/1.1.1&s=a%26c%3D9",
        None,
        "GET",
        "insert?p=a&c=1.1.1/1.1.1/1.1.1&s=a%26c%3D9",
    ),
    (
        "POST",
        "update?p=a&c=01.1.1/1.1.1/1.1.1",
        Some("body"),
        "POST",
        "update?p=a&c=1.1.1/1.1.1/1.1.1",
    ),
    ("GET", "update?p=a&c=1.1.1/1.1.1/1.1.1&s=", None, "GET", "delete?p=a&c=1.1.1/1.1.1/1.1.1"),
    ("POST", "update?p=a&c=1.1.1/1.1.1/1.1.1", Some(""), "GET", "delete?p=a&c=1.1.1/1.1.1/1.1.1"),
    ("GET", "json-export?p=a", None, "GET", "get?p=a"),
    (
        "GET",
        "query?p=a&to=2.1.1/1.1.1/1.1.1&from=1.1.1/1.1.1/1.1.1",
        None,
        "GET",
        "query?p=a&from=1.1.1/1.1.1/1.1.1&to=2.1.1/1.1.1/1.1.1&limit=10000",
    ),
    (
        "GET",
        "query?p=a&set=1.1.1;1.1.1;1.1.1;2.2.2/2.2.2;2.2.2&limit=007",
        None,
        "GET",
        "query?p=a&set=1.1.1/1.1.1/1.1.1,2.2.2/2.2.2/2.2.2&limit=7",
    ),
    ("POST", "query?p=a", Some("1.1.1/1.1.1/1.1.1 ;\r\n 1.1.1/1.1.1/1.1.2"), "POST", "query?p=a"),
    ("POST", "where?p=a", Some("text"), "POST", "where?p=a&algo=checksum"),
    (
        "POST",
        "where?p=a&algo=checksum&limit=9",
        Some("b"),
        "POST",
        "where?p=a&algo=checksum&limit=9",
    ),
    ("POST", "delete?p=a&c=1.1.1/1.1.1/1.1.1", None, "GET", "delete?p=a&c=1.1.1/1.1.1/1.1.1"),
    ("GET", "toc?p=a&c=1.1.1/1.1.1/1.1.1", None, "GET", "toc?p=a"),
    ("GET", "get?c=a.1.1/user.name/1.1.1&p=a", None, "GET", "get?p=a"),
    (
        "POST",
        "delta?p=a&c=1.1.1/1.1.1/1.1.1",
        Some("1.1.1/1.1.1/1.1.1: 99aa06d3014798d86001c324468d497f"),
        "POST",
        "delta?p=a",
    ),
];

#[test]
fn accepted_requests_are_rewritten() {
    for (method, path, body, sq_method, sq_path) in TAKEN {
        let request = check(method, &format!("{BASE}{path}"), *body).unwrap();
        assert_eq!(request.method(), *sq_method, "{path}");
        assert_eq!(request.path(), format!("{BASE}{sq_path}"));
    }
}

#[test]
fn undeclared_length_is_checked_at_the_end() {
    let open = |method, path| {
        let head = Head { has_body: true, ..head(method, path, None) };
        parse(&head, &Limits::default(), SqVersion::V0_6_0).unwrap().body().unwrap()
    };
    let mut none = open("DELETE", "/api/v2/delete?p=a&c=1.1.1/1.1.1/1.1.1");
    assert!(none.on_end().is_ok());
    assert!(none.on_chunk(b"x").is_err());
    let mut text = open("POST", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1");
    assert!(text.on_end().is_err());
    let mut both = open("POST", "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1&s=x");
    assert!(both.on_end().is_ok());
    assert!(both.on_chunk(b"x").is_err());
}

#[test]
fn forms_and_other_charsets_are_refused() {
    for (content_type, good) in [
        (None, true),
        (Some("application/x-www-form-urlencoded"), true),
        (Some("text/plain; charset=UTF-8"), true),
        (Some("text/plain; charset=\"utf-8\"; x=y"), true),
        (Some("text/plain; charset=utf-16"), false),
        (Some("text/plain; charset=iso-8859-1"), false),
        (Some("Multipart/Form-Data; boundary=x"), false),
    ] {
        let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1";
        let head = Head { content_type, ..head("POST", path, Some("hello")) };
        let outcome = parse(&head, &Limits::default(), SqVersion::V0_6_0);
        assert_eq!(outcome.is_ok(), good, "{content_type:?}");
    }
}

#[test]
fn large_body_is_refused_at_head_and_chunk() {
    let limits = Limits { body_bytes: 4, ..Limits::default() };
    let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1";
    let told = head("POST", path, Some("12345"));
    let refusal = parse(&told, &limits, SqVersion::V0_6_0).unwrap_err();
    assert_eq!((refusal.kind, refusal.used_and_cap), (RefusalKind::BodyTooLarge, Some((5, 4))));
    let untold = Head { content_length: None, ..told };
    let mut body = parse(&untold, &limits, SqVersion::V0_6_0).unwrap().body().unwrap();
    assert!(body.on_chunk(b"1234").is_ok());
    assert_eq!(body.on_chunk(b"5").unwrap_err().kind, RefusalKind::BodyTooLarge);
}

#[test]
fn small_delta_cannot_cause_a_gigantic_response() {
    let hash = "0".repeat(32);
    let lines = |line: &dyn Fn(u16) -> String| {
        (1..=900).map(|n| format!("{}: {hash}\n", line(n))).collect::<Vec<_>>().concat()
    };
    let far = lines(&|n| format!("{n}.900.900/900.900.900/900.900.900"));
    let refusal = refused("POST", "/api/v2/delta?p=a", Some(&far));
    assert!(refusal.detail.contains("too far apart"), "{}", refusal.detail);
    let near = lines(&|n| format!("900.900.900/900.900.900/900.900.{n}"));
    assert!(check("POST", "/api/v2/delta?p=a", Some(&near)).is_ok());
}

#[test]
fn query_is_refused_on_sq_0_5_0() {
    let path = format!("{BASE}query?p=a&set={ROOT}");
    let refusal = check_in("GET", &path, None, SqVersion::V0_5_0).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::NotImplemented);
}

#[test]
fn write_counts_its_delimiters_and_delete_nothing() {
    let growth = |method, path: &str, body| {
        let request = check(method, path, body).unwrap();
        (request.access, request.growth_bytes())
    };
    let far = "999.999.999/999.999.999/999.999.999";
    let get = format!("{BASE}insert?p=a&c={far}&s=h%C3%A9");
    assert_eq!(growth("GET", &get, None), (Access::Write, 8982 + 3));
    let post = format!("{BASE}update?p=a&c={far}");
    assert_eq!(growth("POST", &post, Some("body")), (Access::Write, 8982));
    assert_eq!(growth("POST", &post, Some("")), (Access::Delete, 0));
    let delete = format!("{BASE}delete?p=a&c={far}");
    assert_eq!(growth("DELETE", &delete, None), (Access::Delete, 0));
}

#[test]
fn raw_bytes_outside_ascii_are_refused() {
    for path in [&b"/api/v2/toc?p=caf\xe9"[..], b"/api/v2/toc?p=caf\xc3\xa9", b"/api/v2/\xff?p=a"] {
        let refusal = check("GET", path, None).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::BadRequest, "{path:?}");
    }
    let encoded = check("GET", "/api/v2/toc?p=caf%c3%a9", None).unwrap();
    assert_eq!(encoded.phext.as_deref(), Some("café"));
}

#[test]
fn length_without_a_body_is_refused() {
    for path in [
        "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1",
        "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1&s=x",
        "/api/v2/delta?p=a",
        "/api/v2/query?p=a",
        "/api/v2/query?p=a&from=1.1.1/1.1.1/1.1.1&to=1.1.1/1.1.1/1.1.2",
        "/api/v2/where?p=a",
    ] {
        let head = Head { content_length: Some(5), has_body: false, ..head("POST", path, None) };
        assert!(parse(&head, &Limits::default(), SqVersion::V0_6_0).is_err(), "{path}");
    }
}

#[test]
fn form_with_parameters_is_refused() {
    let path = "/api/v2/update?p=a&c=1.1.1/1.1.1/1.1.1";
    let form = Some("application/x-www-form-urlencoded");
    let check = |content_type, chunks: &[&[u8]]| {
        let head = Head { content_type, has_body: true, ..head("POST", path, None) };
        let mut body = parse(&head, &Limits::default(), SqVersion::V0_6_0)?.body().unwrap();
        chunks.iter().try_for_each(|chunk| body.on_chunk(chunk))?;
        body.on_end()
    };
    for chunks in [&[&b"s=my+text"[..]][..], &[b"p=a&c=1"], &[b"", b"s", b"", b"=x"], &[b"c="]] {
        let refusal = check(form, chunks).unwrap_err();
        assert!(refusal.detail.contains("it is a form"), "{}", refusal.detail);
        assert!(check(Some("text/plain"), chunks).is_ok());
    }
    // What curl sends of any text.
    for chunks in [&[&b"hello"[..]][..], &[b"s"], &[b"sp=1"], &[b"ss=", b"s="], &[b"=", b"s="]] {
        assert!(check(form, chunks).is_ok(), "{chunks:?}");
    }
}

#[test]
fn name_for_a_coordinate_is_shown_the_way() {
    let refusal = refused("GET", "/api/v2/select?p=a&c=a.1.1/user.name/1.1.1", None);
    assert!(refusal.detail.contains("/api/v2/where?p="), "{}", refusal.detail);
    let refusal = refused("GET", "/api/v2/select?p=a&c=1.1.1/1.1.1/1.1.0", None);
    assert!(!refusal.detail.contains("where"), "{}", refusal.detail);
}
