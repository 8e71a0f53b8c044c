//! [`Capture`]: an input stream as a [`FrameSource`].

use super::frames::FrameSource;
use super::pcm::{Layout, Params};
use super::playback::Session;
use super::request::Request;
use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::transport::Transport;

/// An input stream: records frames and gives them.
///
/// It runs from the beginning, so frames must be taken at the pace at which they come: if all periods are full, the
/// device has nowhere to put more.
pub struct Capture<'a, T: Transport> {
    session: Session<'a, T>,
    /// The period that is being read: its frames end at `len`, and begin at `done`.
    current: Option<Buffer>,
    len: usize,
    done: usize,
}

impl<'a, T: Transport> Capture<'a, T> {
    /// Gives the device all periods and starts the stream.
    pub(super) async fn start(session: Session<'a, T>) -> Result<Self> {
        let mut this = Self {
            session,
            current: None,
            len: 0,
            done: 0,
        };
        this.send();
        this.session.start().await?;
        Ok(this)
    }

    /// Which stream.
    pub fn stream(&self) -> u32 {
        self.session.stream()
    }

    /// What it was opened with.
    pub fn params(&self) -> Params {
        self.session.params
    }

    /// Stops and releases the stream. Frames that were not taken are lost.
    ///
    /// # Errors
    ///
    /// The device refuses. The stream is ended as far as can be.
    pub async fn close(self) -> Result<()> {
        self.session.close().await
    }

    /// Gives the device all periods that it doesn't have.
    fn send(&mut self) {
        while let Some(buffer) = self.session.spare() {
            let request = Request::record(self.session.stream(), buffer);
            self.session.send(request);
            if self.session.has_failed() {
                return;
            }
        }
    }
}

impl<T: Transport> FrameSource for Capture<'_, T> {
    type Error = Error;

    fn layout(&self) -> Layout {
        self.session.params.layout()
    }

    async fn frames(&mut self) -> Result<&[u8]> {
        while self.done >= self.len {
            if let Some(buffer) = self.current.take() {
                self.session.give_back(buffer);
            }
            self.send();
            let Some(len) = self.session.oldest().await? else {
                // A device that kept all periods has no frames any more.
                return Ok(&[]);
            };
            self.current = self.session.spare();
            (self.len, self.done) = (self.session.params.layout().whole_frames(len), 0);
        }
        let current = self.current.as_deref().unwrap_or_default();
        Ok(current.get(self.done..self.len).unwrap_or_default())
    }

    fn consume(&mut self, len: usize) {
        self.done = self.done.saturating_add(len).min(self.len);
        // The device gets it back at once, not when somebody asks for more.
        if self.done == self.len {
            if let Some(buffer) = self.current.take() {
                self.session.give_back(buffer);
            }
            self.send();
        }
    }
}
