//! Connections that wait to be accepted.
//!
//! smoltcp has no backlog: one socket in LISTEN state takes one connection, and a SYN that finds none is answered by a
//! reset. So each listener keeps exactly one listening socket, and the stack puts a new one in its place between one
//! frame and the next ([`Backlog::update`]). Connections that arrive faster than they are served wait, established, up
//! to the listener's limit; stale half-open ones make room for new ones when the limit is reached.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::{Context, Waker};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};

use crate::platform::memory::heap;

/// A peer that acknowledges nothing for so long is gone.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// A silent peer is asked this often whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A handshake that takes longer may be given up for another one.
const HANDSHAKE: Duration = Duration::from_secs(1);
/// A buffer of that size takes a good part of a small machine's memory.
const LARGE_BYTES: usize = 64 * 1024;

/// The bytes a connection may hold in each direction.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Received and not yet read: the receive window.
    pub receive: usize,
    /// Written and not yet acknowledged.
    pub send: usize,
}

/// The stack's side of a [`Listener`](super::tcp::Listener).
pub(super) struct Backlog {
    port: u16,
    buffers: Buffers,
    limit: usize,
    listening: Option<SocketHandle>,
    /// Connections that nobody serves yet, the half-open ones among them, and when they came.
    waiting: VecDeque<(SocketHandle, Instant)>,
    serving: usize,
    acceptor: Option<Waker>,
}

impl Backlog {
    /// Nothing listens before the first [`update`](Self::update).
    pub(super) fn new(port: u16, buffers: Buffers, limit: usize) -> Self {
        Self {
            port,
            buffers,
            limit,
            listening: None,
            waiting: VecDeque::new(),
            serving: 0,
            acceptor: None,
        }
    }

    /// Whether connections wait for somebody to serve them.
    pub(super) fn is_crowded(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A connection that was accepted is over.
    pub(super) fn served(&mut self) {
        self.serving = self.serving.saturating_sub(1);
    }

    /// Whether [`update`](Self::update) has nothing to do: nobody waits, and one socket listens.
    pub(super) fn is_settled(&self, sockets: &SocketSet<'static>) -> bool {
        let listens = |handle| state(sockets, handle) == State::Listen;
        self.waiting.is_empty() && self.listening.is_some_and(listens)
    }

    /// Whether connections wait, which may fail meanwhile, or there was no room for them.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.listening.is_none()
    }

    /// Puts a listening socket in the place of one that was taken, forgets connections that failed, and tells the
    /// acceptor.
    pub(super) fn update(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        if let Some(taken) = self
            .listening
            .take_if(|handle| state(sockets, *handle) != State::Listen)
        {
            self.waiting.push_back((taken, now));
        }
        self.waiting.retain(|(handle, _)| {
            let failed = state(sockets, *handle) == State::Closed;
            if failed {
                sockets.remove(*handle);
            }
            !failed
        });
        if self.listening.is_none() {
            self.make_room(sockets, now);
            self.listen(sockets);
        }
        if self
            .waiting
            .iter()
            .any(|(handle, _)| state(sockets, *handle) != State::SynReceived)
        {
            self.acceptor.take().into_iter().for_each(Waker::wake);
        }
    }

    /// At the limit, the oldest connection that should not be half-open any more goes: a flood of SYNs must not keep
    /// everyone else out.
    fn make_room(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        if self.waiting.len() + self.serving < self.limit {
            return;
        }
        let overdue = |(handle, since): &(SocketHandle, Instant)| {
            *since + HANDSHAKE <= now && state(sockets, *handle) == State::SynReceived
        };
        let oldest = self.waiting.iter().position(overdue);
        if let Some((handle, _)) = oldest.and_then(|index| self.waiting.remove(index)) {
            sockets.remove(handle);
        }
    }

    fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        if self.waiting.len() + self.serving >= self.limit {
            return;
        }
        // Without memory there is no listening socket until the next packet or the next connection that ends.
        self.listening = new_socket(self.buffers).and_then(|mut socket| {
            socket.listen(self.port).ok()?;
            Some(sockets.add(socket))
        });
    }

    /// The longest waiting connection that is complete.
    pub(super) fn accept(
        &mut self,
        sockets: &SocketSet<'static>,
        context: &mut Context<'_>,
    ) -> Option<SocketHandle> {
        let complete = |(handle, _): &(SocketHandle, Instant)| {
            !matches!(state(sockets, *handle), State::SynReceived | State::Closed)
        };
        let longest = self.waiting.iter().position(complete);
        let accepted = longest.and_then(|index| self.waiting.remove(index));
        match accepted {
            Some(_) => self.serving += 1,
            None => self.acceptor = Some(context.waker().clone()),
        }
        accepted.map(|(handle, _)| handle)
    }
}

fn state(sockets: &SocketSet<'_>, handle: SocketHandle) -> State {
    sockets.get::<Socket<'_>>(handle).state()
}

/// A socket that is in no set yet; `None` without memory for its buffers.
pub(super) fn new_socket(buffers: Buffers) -> Option<Socket<'static>> {
    let buffer = |length| Some(SocketBuffer::new(filled(length, 0)?));
    let mut socket = Socket::new(buffer(buffers.receive)?, buffer(buffers.send)?);
    socket.set_timeout(Some(PEER_TIMEOUT));
    socket.set_keep_alive(Some(KEEP_ALIVE));
    // Writers hand over what belongs together; waiting for more would only wait for the peer's delayed acknowledgement.
    socket.set_nagle_enabled(false);
    socket.set_congestion_control(CongestionControl::Reno);
    Some(socket)
}

/// So many of `value`, if there is memory for them.
pub(super) fn filled<T: Clone>(length: usize, value: T) -> Option<Vec<T>> {
    let mut filled = match length * size_of::<T>() {
        // What is that large must not take what can't be refused.
        LARGE_BYTES.. => heap::room(length)?,
        _ => {
            let mut small = Vec::new();
            small.try_reserve_exact(length).ok()?;
            small
        }
    };
    filled.resize(length, value);
    Some(filled)
}
