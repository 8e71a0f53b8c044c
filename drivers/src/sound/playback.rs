//! [`Playback`]: an output stream as a [`FrameSink`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use super::Sound;
use super::frames::FrameSink;
use super::pcm::{Layout, Params};
use super::request::Request;
use crate::asynchronous::{Asynchronous, Perform};
use crate::buffer::Buffer;
use crate::driver::{Driver, Failed};
use crate::error::{Cause, Error, Result};
use crate::transport::Transport;

/// The periods of one stream, and its life from SET_PARAMS to RELEASE.
///
/// Dropping it ends the stream in the driver's own time ([`Sound::end`]).
pub(super) struct Session<'a, T: Transport> {
    face: &'a Asynchronous<Sound<T>>,
    stream: u32,
    claim: u64,
    pub(super) params: Params,
    running: bool,
    /// What the device has, oldest first.
    sent: VecDeque<Perform<'a, Sound<T>>>,
    /// What it doesn't have, nor anybody else.
    spare: Vec<Buffer>,
    /// What went wrong with a period that nobody waited for.
    failed: Option<Error>,
}

impl<'a, T: Transport> Session<'a, T> {
    /// Makes a stream ready for its frames, with memory for all its periods.
    pub(super) async fn open(
        face: &'a Asynchronous<Sound<T>>,
        stream: u32,
        params: Params,
    ) -> Result<Self> {
        let fail = |cause| face.with(|sound| sound.error(cause));
        let count = params.periods() as usize;
        let mut spare = Vec::new();
        let mut sent = VecDeque::new();
        spare
            .try_reserve_exact(count)
            .map_err(|_| fail(Cause::NoMemory))?;
        sent.try_reserve_exact(count)
            .map_err(|_| fail(Cause::NoMemory))?;
        for _ in 0..count {
            let buffer = Buffer::zeroed(params.period_bytes() as usize);
            spare.push(buffer.ok_or(fail(Cause::NoMemory))?);
        }
        let claim = face.with(|sound| sound.claim(stream))?;
        let this = Self {
            face,
            stream,
            claim,
            params,
            running: false,
            sent,
            spare,
            failed: None,
        };
        this.command(Request::set_params(stream, params)).await?;
        this.command(Request::prepare(stream)).await?;
        Ok(this)
    }

    fn error(&self, cause: Cause) -> Error {
        self.face.with(|sound| sound.error(cause))
    }

    async fn command(&self, request: Result<Request, Cause>) -> Result<()> {
        let request = request.map_err(|cause| self.error(cause))?;
        self.face.perform(request).await?;
        Ok(())
    }

    pub(super) async fn start(&mut self) -> Result<()> {
        if !self.running {
            self.command(Request::start(self.stream)).await?;
            self.running = true;
        }
        Ok(())
    }

    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    /// A period that the device does not have.
    pub(super) fn spare(&mut self) -> Option<Buffer> {
        self.spare.pop()
    }

    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.spare.push(buffer);
    }

    pub(super) fn has_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether something went wrong with a period that nobody waited for.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Hands a period to the device. The owner of the driver kicks for it.
    pub(super) fn send(&mut self, request: Request) {
        let mut perform = self.face.perform(request);
        // Nobody waits for it now; who does later leaves a waker.
        let context = &mut Context::from_waker(Waker::noop());
        match Pin::new(&mut perform).poll(context) {
            Poll::Pending => self.sent.push_back(perform),
            Poll::Ready(result) => {
                if let Err(error) = self.take(result) {
                    self.failed.get_or_insert(error);
                }
            }
        }
    }

    /// Waits for the oldest period with the device, which is among the spare ones then. Gives how many bytes of it are
    /// frames. Dropping the future loses nothing.
    pub(super) async fn oldest(&mut self) -> Result<Option<usize>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let Some(perform) = self.sent.front_mut() else {
            return Ok(None);
        };
        let result = poll_fn(|context| Pin::new(&mut *perform).poll(context)).await;
        self.sent.pop_front();
        self.take(result).map(Some)
    }

    fn take(&mut self, result: Result<Request, Failed<Request>>) -> Result<usize> {
        let (request, result) = match result {
            Ok(request) => (Some(request), Ok(())),
            Err(failed) => (failed.request, Err(failed.error)),
        };
        let (buffer, len) = match request.and_then(Request::into_frames) {
            Some((buffer, len)) => (Some(buffer), len),
            None => (None, 0),
        };
        self.spare.extend(buffer);
        result.map(|()| len)
    }

    /// Stops and releases the stream.
    pub(super) async fn close(self) -> Result<()> {
        if self.running {
            self.command(Request::stop(self.stream)).await?;
        }
        self.command(Request::release(self.stream)).await
    }
}

impl<T: Transport> Drop for Session<'_, T> {
    fn drop(&mut self) {
        let (stream, claim) = (self.stream, self.claim);
        self.face.with(|sound| sound.end(stream, claim));
    }
}

/// An output stream: takes frames and plays them.
///
/// The stream starts when all its periods are full, or with [`FrameSink::flush`]. A period goes to the device when it is
/// full; the last one of all with the flush.
pub struct Playback<'a, T: Transport> {
    session: Session<'a, T>,
    /// The period that is being filled.
    current: Option<Buffer>,
    filled: usize,
}

impl<'a, T: Transport> Playback<'a, T> {
    pub(super) fn new(session: Session<'a, T>) -> Self {
        Self {
            session,
            current: None,
            filled: 0,
        }
    }

    /// Which stream.
    pub fn stream(&self) -> u32 {
        self.session.stream()
    }

    /// What it was opened with.
    pub fn params(&self) -> Params {
        self.session.params
    }

    /// Waits for the oldest period that the device has, and begins the stream first if that has not been done; `false`: the
    /// device has none. For those who must know when each of them is done; others write frames, and flush. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    ///
    /// The device failed to play the period, or is stopped.
    pub async fn take_back(&mut self) -> Result<bool> {
        if self.session.has_sent() {
            self.session.start().await?;
        }
        Ok(self.session.oldest().await?.is_some())
    }

    /// Stops and releases the stream at once: frames that were not played are lost. Flush first to hear them all, and mind
    /// the device's latency: what it has used up is not always heard.
    ///
    /// # Errors
    ///
    /// The device refuses. The stream is ended as far as can be.
    pub async fn close(self) -> Result<()> {
        self.session.close().await
    }

    /// Hands what is filled to the device.
    fn send(&mut self) {
        let len = core::mem::take(&mut self.filled);
        if let Some(buffer) = self.current.take() {
            let request = Request::play(self.session.stream(), buffer, len);
            self.session.send(request);
        }
    }
}

impl<T: Transport> FrameSink for Playback<'_, T> {
    type Error = Error;

    fn layout(&self) -> Layout {
        self.session.params.layout()
    }

    async fn space(&mut self) -> Result<&mut [u8]> {
        while self.current.is_none() {
            self.current = self.session.spare();
            if self.current.is_none() {
                self.session.start().await?;
                let came = self.session.oldest().await?;
                // No period is left of a device that kept them all.
                came.ok_or(self.session.error(Cause::QueueBroken))?;
            }
        }
        let current = self.current.as_deref_mut().unwrap_or_default();
        Ok(current.get_mut(self.filled..).unwrap_or_default())
    }

    fn commit(&mut self, len: usize) {
        let period = self.current.as_ref().map_or(0, |buffer| buffer.len());
        self.filled = self.filled.saturating_add(len).min(period);
        if self.filled == period {
            self.send();
        }
    }

    async fn flush(&mut self) -> Result<()> {
        if self.filled > 0 {
            self.send();
        }
        while self.take_back().await? {}
        Ok(())
    }
}
