//! The operations of an entropy device that is shared by tasks.

use super::{Request, Rng};
use crate::asynchronous::Asynchronous;
use crate::driver::Driver;
use crate::error::Result;
use crate::transport::Transport;

/// Buffers of the caller's own go through [`Asynchronous::perform`].
impl<T: Transport> Asynchronous<Rng<T>> {
    /// One answer of the device: fills the beginning of `bytes`, and says how much of it. That is at least one byte, unless
    /// `bytes` is empty.
    ///
    /// # Errors
    ///
    /// The device gave nothing.
    pub async fn read(&self, bytes: &mut [u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let request = Request::for_bytes(bytes.len());
        let request = request.map_err(|cause| self.with(|rng| rng.error(cause)))?;
        Ok(self.perform(request).await?.copy_to(bytes))
    }

    /// Fills `bytes`, with as many answers as it takes: no more than there are bytes.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`]; `bytes` may be filled in part.
    pub async fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let given = self.read(rest).await?;
            rest = rest.get_mut(given..).unwrap_or_default();
        }
        Ok(())
    }
}
