//! The signals that end a program.

use std::pin::Pin;
use std::task::Poll;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Returns a future that resolves at SIGINT, SIGTERM or SIGHUP. From this call on these signals no
/// longer end the process directly.
pub fn shutdown() -> Result<impl Future<Output = ()> + Send> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<Signal> = kinds.into_iter().map(signal).collect::<std::io::Result<_>>()?;
    Ok(std::future::poll_fn(move |context| {
        let received =
            signals.iter_mut().any(|signal| Pin::new(signal).poll_recv(context).is_ready());
        if received { Poll::Ready(()) } else { Poll::Pending }
    }))
}
