//! Asks a running orchestrator over its admin HTTP, for the commands.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

/// The longest an answer may take: storage of ten thousand tenants is looked at.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer: 100 000 tenants of 400 bytes.
const ANSWER_MAX_BYTES: usize = 64 << 20;

/// Why there is no answer, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The URL can't be used.
    #[error("{0:?} is no URL such as http://127.0.0.1:7102; give one by --admin or SQ_ADMIN")]
    Url(String),
    /// Nobody answers.
    #[error(
        "no orchestrator answers at {admin} ({reason}): start one with `orchestrator serve`, or \
         say where it listens by --admin or SQ_ADMIN"
    )]
    Unreachable {
        /// Where.
        admin: String,
        /// Why.
        reason: String,
    },
    /// It answered no.
    #[error("{text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
}

/// `GET` of a path.
pub async fn get(admin: &str, path: &str) -> Result<Bytes, AdminError> {
    ask(admin, Method::GET, path).await
}

/// `POST` without a body to a path.
pub async fn post(admin: &str, path: &str) -> Result<Bytes, AdminError> {
    ask(admin, Method::POST, path).await
}

async fn ask(admin: &str, method: Method, path: &str) -> Result<Bytes, AdminError> {
    let base = admin.trim_end_matches('/');
    let bad = || AdminError::Url(admin.to_owned());
    let uri: Uri = format!("{base}{path}").parse().map_err(|_| bad())?;
    if uri.scheme_str() != Some("http") {
        return Err(bad());
    }
    let request = Request::builder().method(method).uri(uri);
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| bad())?;
    let answer = tokio::time::timeout(PATIENCE, exchange(request)).await;
    let unreachable = |reason| AdminError::Unreachable { admin: base.to_owned(), reason };
    let (status, body) = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => return Err(unreachable(reason)),
        Err(_) => return Err(unreachable(format!("no answer in {} s", PATIENCE.as_secs()))),
    };
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    Err(AdminError::Refused { status, text: format!("{base}{path} answers {status}: {text}") })
}

async fn exchange(request: Request<Empty<Bytes>>) -> Result<(u16, Bytes), String> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request).await.map_err(|e| root_cause(&e))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await;
    Ok((status, body.map_err(|e| e.to_string())?.to_bytes()))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
