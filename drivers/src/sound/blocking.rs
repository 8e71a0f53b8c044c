//! The operations of a sound device with one user, who waits. What `wait` is, [`Blocking`] says.

use super::info::Kind;
use super::pcm::Params;
use super::{Request, Sound};
use crate::blocking::Blocking;
use crate::driver::Driver;
use crate::error::{Cause, Result};
use crate::transport::Transport;

/// A method per operation. Frames go through [`Driver::submit`] and [`Driver::poll`], since one period at a time is no sound.
impl<T: Transport> Blocking<Sound<T>> {
    /// Asks for everything that the device has; see `query` of the asynchronous face.
    ///
    /// # Errors
    ///
    /// Nothing is known of the streams.
    pub fn query(&mut self, mut wait: impl FnMut() -> bool) -> Result<()> {
        for kind in Kind::ALL {
            let count = kind.count(&self.driver().config());
            if count == 0 {
                continue;
            }
            let asked = self.request(Request::info(kind, count), &mut wait);
            match asked {
                Err(error) if kind == Kind::Streams => return Err(error),
                Err(error) => log::debug!("{error}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Says what a stream shall carry, and has the device get ready for it.
    ///
    /// # Errors
    ///
    /// As [`Self::start`], or the stream doesn't offer the parameters.
    pub fn prepare(
        &mut self,
        stream: u32,
        params: Params,
        mut wait: impl FnMut() -> bool,
    ) -> Result<()> {
        self.request(Request::set_params(stream, params), &mut wait)?;
        self.request(Request::prepare(stream), wait)
    }

    /// Has a stream run.
    ///
    /// # Errors
    ///
    /// There is no such stream, it is in no state for this, memory is short, the device refuses, or [`Cause::Timeout`].
    pub fn start(&mut self, stream: u32, wait: impl FnMut() -> bool) -> Result<()> {
        self.request(Request::start(stream), wait)
    }

    /// Has a stream stand still.
    ///
    /// # Errors
    ///
    /// There is no such stream, it is in no state for this, memory is short, the device refuses, or [`Cause::Timeout`].
    pub fn stop(&mut self, stream: u32, wait: impl FnMut() -> bool) -> Result<()> {
        self.request(Request::stop(stream), wait)
    }

    /// Ends a stream.
    ///
    /// # Errors
    ///
    /// There is no such stream, it is in no state for this, memory is short, the device refuses, or [`Cause::Timeout`].
    pub fn release(&mut self, stream: u32, wait: impl FnMut() -> bool) -> Result<()> {
        self.request(Request::release(stream), wait)
    }

    fn request(
        &mut self,
        request: Result<Request, Cause>,
        wait: impl FnMut() -> bool,
    ) -> Result<()> {
        let request = request.map_err(|cause| self.driver().error(cause))?;
        self.perform(request, wait)?;
        Ok(())
    }
}
