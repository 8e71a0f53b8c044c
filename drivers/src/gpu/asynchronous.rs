//! The operations of a GPU that is shared by tasks.

use alloc::vec::Vec;

use super::{Change, Cursor, Gpu, Request, Screen};
use crate::asynchronous::Asynchronous;
use crate::driver::Driver;
use crate::error::Result;
use crate::transport::Transport;

/// A method per operation. The pointer is moved by [`Asynchronous::with`], since nobody need wait for that.
impl<T: Transport> Asynchronous<Gpu<T>> {
    /// Asks how the displays are arranged and what they say about themselves, and gives what changed since the last time.
    ///
    /// # Errors
    ///
    /// As the request. A display that says nothing sensible about itself is no error.
    pub async fn refresh(&self) -> Result<Vec<Change>> {
        self.perform(Request::display_info()).await?;
        for scanout in self.with(|gpu| gpu.heads_with_edid()) {
            if let Err(failed) = self.perform(Request::edid(scanout)).await {
                log::warn!("{}", failed.error);
            }
        }
        Ok(self.with(Gpu::take_changes))
    }

    /// Shows what was drawn on a screen. Says whether there was anything.
    ///
    /// The future may be dropped at any time; the next one shows what this one did not.
    ///
    /// # Errors
    ///
    /// As the request, or [`crate::Cause::Busy`] while an earlier one for this screen isn't over.
    pub async fn present(&self, screen: &mut Screen<T::Dma>) -> Result<bool> {
        let request = screen.present();
        match request.map_err(|cause| self.with(|gpu| gpu.error(cause)))? {
            Some(request) => self.perform(request).await?,
            None => return Ok(false),
        };
        Ok(true)
    }

    /// Turns a screen off and gives back its memory.
    ///
    /// # Errors
    ///
    /// As the request. The memory stays until the device is reset then.
    pub async fn close(&self, screen: Screen<T::Dma>) -> Result<()> {
        self.perform(screen.close()).await?;
        Ok(())
    }

    /// Gives a pointer's picture to the device, so that it can be used ([`Gpu::set_cursor`]).
    ///
    /// # Errors
    ///
    /// As the request.
    pub async fn load(&self, cursor: &Cursor<T::Dma>) -> Result<()> {
        let request = cursor.load();
        let request = request.map_err(|cause| self.with(|gpu| gpu.error(cause)))?;
        self.perform(request).await?;
        Ok(())
    }
}
