//! The operations of a GPU with one user, who waits. What `wait` is, [`Blocking`] says.

use alloc::vec::Vec;

use super::{Change, Cursor, Gpu, Request, Screen};
use crate::blocking::Blocking;
use crate::driver::Driver;
use crate::error::Result;
use crate::transport::Transport;

/// A method per operation. The pointer is moved by [`Blocking::driver`], since nobody need wait for that.
impl<T: Transport> Blocking<Gpu<T>> {
    /// Asks how the displays are arranged and what they say about themselves, and gives what changed since the last time.
    ///
    /// # Errors
    ///
    /// As the request. A display that says nothing sensible about itself is no error.
    pub fn refresh(&mut self, mut wait: impl FnMut() -> bool) -> Result<Vec<Change>> {
        self.perform(Request::display_info(), &mut wait)?;
        for scanout in self.driver().heads_with_edid() {
            if let Err(failed) = self.perform(Request::edid(scanout), &mut wait) {
                log::warn!("{}", failed.error);
            }
        }
        Ok(self.driver().take_changes())
    }

    /// Shows what was drawn on a screen. Says whether there was anything.
    ///
    /// # Errors
    ///
    /// As the request; the next one shows what this one did not.
    pub fn present(
        &mut self,
        screen: &mut Screen<T::Dma>,
        wait: impl FnMut() -> bool,
    ) -> Result<bool> {
        let request = screen.present();
        match request.map_err(|cause| self.driver().error(cause))? {
            Some(request) => self.perform(request, wait)?,
            None => return Ok(false),
        };
        Ok(true)
    }

    /// Turns a screen off and gives back its memory.
    ///
    /// # Errors
    ///
    /// As the request. The memory stays until the device is reset then.
    pub fn close(&mut self, screen: Screen<T::Dma>, wait: impl FnMut() -> bool) -> Result<()> {
        self.perform(screen.close(), wait)?;
        Ok(())
    }

    /// Gives a pointer's picture to the device, so that it can be used ([`Gpu::set_cursor`]).
    ///
    /// # Errors
    ///
    /// As the request.
    pub fn load(&mut self, cursor: &Cursor<T::Dma>, wait: impl FnMut() -> bool) -> Result<()> {
        let request = cursor.load();
        let request = request.map_err(|cause| self.driver().error(cause))?;
        self.perform(request, wait)?;
        Ok(())
    }
}
