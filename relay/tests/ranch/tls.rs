//! Admission of clients by their certificates.

use crate::client::Client;
use crate::test_ranch::{Ca, TestRanch, key, until};

#[tokio::test]
async fn only_certificates_of_our_ca_are_served() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let none = Client::new(relay.address, &ranch.ca.pem, None);
    let other = Client::new(relay.address, &ranch.ca.pem, Some(&Ca::new().sign("gateway")));
    for path in ["/healthz", "/readyz", "/metrics", "/v1/changes"] {
        assert!(none.get(path).await.is_err(), "{path} without a certificate");
        assert!(other.get(path).await.is_err(), "{path} with one of another CA");
        assert!(client.get(path).await.is_ok(), "{path}");
    }
    let metrics = client.get("/metrics").await.unwrap().body;
    assert!(metrics.contains("sq_relay_tls_handshakes_failed_total 8"), "{metrics}");
    relay.stop().await;
}

#[tokio::test]
async fn plain_http_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ranch = TestRanch::new();
    let (relay, _) = ranch.serve().await;
    let mut stream = tokio::net::TcpStream::connect(relay.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    assert!(!response.starts_with(b"HTTP"), "{response:?}");
    relay.stop().await;
}

#[tokio::test]
async fn renewed_certificates_apply_to_new_connections() {
    let ranch = TestRanch::new();
    let (relay, client) = ranch.serve().await;
    let next = Ca::new();
    ranch.trust(&next);
    let pair = next.sign("gateway");
    let renewed = Client::new(relay.address, &ranch.ca.pem, Some(&pair));
    until("the new CA is trusted", || async { renewed.get("/healthz").await.is_ok() }).await;
    assert!(client.get("/healthz").await.is_err(), "the old CA is not");
    ranch.renew_certificate(&next);
    let both = Client::new(relay.address, &next.pem, Some(&pair));
    until("the new certificate is shown", || async { both.get("/healthz").await.is_ok() }).await;

    std::fs::write(ranch.path("relay.crt"), "no certificate").unwrap();
    until("the fault is counted", || async {
        let metrics = both.get("/metrics").await.unwrap().body;
        metrics.contains("sq_relay_certificate_loads_total{outcome=\"refused\"} 1")
    })
    .await;
    assert!(both.verdict(&key(1)).await.is_some(), "the last good one stays");
    relay.stop().await;
}
