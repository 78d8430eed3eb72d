//! Writes a scroll and reads it back.

use std::env;
use std::error::Error;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("SQ_URL")?;
    let key = env::var("SQ_KEY")?;
    let https =
        HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(https);
    for (method, endpoint, text) in
        [(Method::POST, "update", "from Rust"), (Method::GET, "select", "")]
    {
        let request = Request::builder()
            .method(method)
            .uri(format!("{url}/api/v2/{endpoint}?p=notes&c=1.1.1/1.1.1/1.1.4"))
            .header("authorization", format!("Bearer {key}"))
            .body(Full::new(Bytes::from(text)))?;
        let response = client.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let body = String::from_utf8_lossy(&body);
        if !status.is_success() {
            return Err(format!("{status}: {body}").into());
        }
        println!("{body}");
    }
    Ok(())
}
