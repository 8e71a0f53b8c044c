//! The operations of a sound device that is shared by tasks.

use alloc::string::String;
use alloc::vec::Vec;

use super::info::{ControlInfo, Kind};
use super::pcm::{Direction, Params};
use super::playback::Session;
use super::{Capture, Playback, Request, Sound};
use crate::asynchronous::Asynchronous;
use crate::driver::Driver;
use crate::error::{Cause, Error, Result};
use crate::transport::Transport;

/// A method per operation; what is rarely needed goes through [`Asynchronous::perform`].
impl<T: Transport> Asynchronous<Sound<T>> {
    /// Asks for everything that the device has: streams, jacks, channel maps and control elements. What it answered is in
    /// [`Sound::items`], and so is what it would not answer: that is no error, but of the streams.
    ///
    /// To be called once before anything else, and again after a restart.
    ///
    /// # Errors
    ///
    /// Nothing is known of the streams, or the device is stopped.
    pub async fn query(&self) -> Result<()> {
        for kind in Kind::ALL {
            let count = self.with(|sound| kind.count(&sound.config()));
            if count == 0 {
                continue;
            }
            let asked = self.request(Request::info(kind, count)).await;
            match asked {
                Err(error) if kind == Kind::Streams => return Err(error),
                Err(error) => log::debug!("{error}"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Makes an output stream ready: the next thing is to write frames to it.
    ///
    /// # Errors
    ///
    /// There is no such output stream, it doesn't offer the parameters, somebody else has it ([`Cause::Busy`]), or the
    /// device refuses.
    pub async fn play(&self, stream: u32, params: Params) -> Result<Playback<'_, T>> {
        self.check_direction(stream, Direction::Output)?;
        Ok(Playback::new(Session::open(self, stream, params).await?))
    }

    /// Makes an input stream ready and starts it: the next thing is to read frames from it.
    ///
    /// # Errors
    ///
    /// As [`Self::play`].
    pub async fn record(&self, stream: u32, params: Params) -> Result<Capture<'_, T>> {
        self.check_direction(stream, Direction::Input)?;
        Capture::start(Session::open(self, stream, params).await?).await
    }

    /// Gives a jack another association and sequence.
    ///
    /// # Errors
    ///
    /// The jack can't be, or the device refuses.
    pub async fn remap_jack(&self, jack: u32, association: u32, sequence: u32) -> Result<()> {
        let request = Request::remap_jack(jack, association, sequence);
        self.request(request).await?;
        Ok(())
    }

    /// What the values of an enumerated control element are called.
    ///
    /// # Errors
    ///
    /// There is no such element, it isn't enumerated, or the device refuses.
    pub async fn control_items(&self, control: u32) -> Result<Vec<String>> {
        let info = self.control_info(control)?;
        let request = self.request(Request::enum_items(control, &info)).await?;
        Ok(request.names().collect())
    }

    /// The values of a control element, as many bytes as [`ControlInfo::value_len`] says.
    ///
    /// # Errors
    ///
    /// There is no such element, it can't be read, or the device refuses.
    pub async fn read_control(&self, control: u32) -> Result<Vec<u8>> {
        let info = self.control_info(control)?;
        let request = self.request(Request::read_control(control)).await?;
        let values = request.answer().get(..info.value_len());
        Ok(values.unwrap_or_default().to_vec())
    }

    /// Gives a control element other values.
    ///
    /// # Errors
    ///
    /// There is no such element, it can't be written or not with so many bytes, or the device refuses.
    pub async fn write_control(&self, control: u32, values: &[u8]) -> Result<()> {
        let info = self.control_info(control)?;
        let request = Request::write_control(control, &info, values);
        self.request(request).await?;
        Ok(())
    }

    fn control_info(&self, control: u32) -> Result<ControlInfo> {
        let found = self.with(|sound| sound.items().controls.get(control).cloned());
        found.ok_or_else(|| self.fail(Cause::InvalidParameter("no such control is known")))
    }

    fn check_direction(&self, stream: u32, wanted: Direction) -> Result<()> {
        let info = self.with(|sound| sound.items().streams.get(stream).copied());
        match info {
            Some(info) if info.direction == wanted => Ok(()),
            Some(_) => Err(self.fail(Cause::InvalidParameter("the stream flows the other way"))),
            None => Err(self.fail(Cause::InvalidParameter("no such stream is known"))),
        }
    }

    async fn request(&self, request: Result<Request, Cause>) -> Result<Request> {
        let request = request.map_err(|cause| self.fail(cause))?;
        Ok(self.perform(request).await?)
    }

    fn fail(&self, cause: Cause) -> Error {
        self.with(|sound| sound.error(cause))
    }
}
