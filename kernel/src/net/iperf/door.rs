//! Who comes in: a connection is to say by its cookie which test it belongs to.

use alloc::boxed::Box;
use core::convert::Infallible;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;

use embassy_futures::select::{Either, select};
use embedded_io_async::{Read, Write};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::control::State;
use super::{MAX_STREAMS, STEP};
use crate::net::clock::{Clock, within};
use crate::net::tcp::{Listener, TcpStream};

/// Connections that have not said yet what they are.
const MAX_STRANGERS: usize = 8;
/// All connections: those of a test, the one that controls it, and strangers.
pub(super) const LIMIT: usize = MAX_STREAMS + 1 + MAX_STRANGERS;

/// What the connections of one test have in common.
pub(super) type Cookie = [u8; 37];

/// A connection, and the test it belongs to.
pub(super) struct Visitor {
    pub(super) stream: TcpStream,
    pub(super) cookie: Cookie,
    /// The first one that came has the lowest number.
    pub(super) number: u64,
}

impl Visitor {
    /// Says that another test is running.
    pub(super) async fn turn_away(self) {
        let mut stream = &self.stream;
        // There is room for one byte, and nothing more to be done for a client that does not read it.
        let _ = stream.write(&[State::AccessDenied as u8]).await;
        self.stream.close();
    }
}

pub(super) struct Door<'a, C> {
    listener: &'a Listener,
    clock: C,
    strangers: FuturesUnordered<Pin<Box<dyn Future<Output = Option<Visitor>>>>>,
    came: u64,
}

impl<'a, C: Clock> Door<'a, C> {
    pub(super) fn new(listener: &'a Listener, clock: C) -> Self {
        Self {
            listener,
            clock,
            strangers: FuturesUnordered::new(),
            came: 0,
        }
    }

    /// The next connection that has said what it is. None is lost if this is dropped.
    pub(super) async fn next(&mut self) -> Visitor {
        poll_fn(|context| {
            loop {
                while self.strangers.len() < MAX_STRANGERS
                    && let Poll::Ready(stream) = self.listener.poll_accept(context)
                {
                    self.came += 1;
                    let (clock, number) = (self.clock, self.came);
                    self.strangers.push(Box::pin(async move {
                        let cookie = within(clock, STEP, read_cookie(&stream)).await??;
                        Some(Visitor {
                            stream,
                            cookie,
                            number,
                        })
                    }));
                }
                match self.strangers.poll_next_unpin(context) {
                    Poll::Ready(Some(Some(visitor))) => return Poll::Ready(visitor),
                    // One that said nothing is gone: there is room for another.
                    Poll::Ready(Some(None)) => {}
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Does `work`, and lets nobody in meanwhile.
    pub(super) async fn turn_away_during<F: Future>(&mut self, work: F) -> F::Output {
        match select(work, self.turn_all_away()).await {
            Either::First(output) => output,
            Either::Second(never) => match never {},
        }
    }

    async fn turn_all_away(&mut self) -> Infallible {
        loop {
            self.next().await.turn_away().await;
        }
    }
}

async fn read_cookie(stream: &TcpStream) -> Option<Cookie> {
    let mut cookie = [0; 37];
    let mut reader = stream;
    reader.read_exact(&mut cookie).await.ok()?;
    Some(cookie)
}
