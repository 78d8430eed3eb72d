//! The signals that ask a program to end.

use std::pin::Pin;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves at SIGINT, SIGTERM or SIGHUP. From this call on they do not end the process by
/// themselves.
pub fn shutdown() -> Result<impl Future<Output = ()> + Send> {
    let mut all: Vec<Signal> =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<std::io::Result<_>>()?;
    Ok(std::future::poll_fn(move |context| {
        let came = all.iter_mut().any(|signal| Pin::new(signal).poll_recv(context).is_ready());
        if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    }))
}
