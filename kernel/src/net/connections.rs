//! Serving many connections in one task.

use core::convert::Infallible;
use core::future::poll_fn;
use core::task::Poll;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::tcp::{Listener, TcpStream};

/// Runs `handle` on every connection, at most `at_once` at a time; further ones wait in the listener's backlog.
pub(super) async fn serve<F>(
    listener: &Listener,
    at_once: usize,
    handle: impl Fn(TcpStream) -> F,
) -> Infallible
where
    F: Future<Output = ()>,
{
    let mut connections = FuturesUnordered::new();
    poll_fn(|context| {
        loop {
            while connections.len() < at_once
                && let Poll::Ready(stream) = listener.poll_accept(context)
            {
                connections.push(handle(stream));
            }
            match connections.poll_next_unpin(context) {
                // One ended: there is room for another.
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}
