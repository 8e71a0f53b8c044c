//! The operations of an entropy device with one user, who waits. What `wait` is, [`Blocking`] says.

use super::{Request, Rng};
use crate::blocking::Blocking;
use crate::driver::Driver;
use crate::error::Result;
use crate::transport::Transport;

/// Buffers of the caller's own go through [`Blocking::perform`].
impl<T: Transport> Blocking<Rng<T>> {
    /// One answer of the device: fills the beginning of `bytes`, and says how much of it. That is at least one byte, unless
    /// `bytes` is empty.
    ///
    /// # Errors
    ///
    /// The device gave nothing.
    pub fn read(&mut self, bytes: &mut [u8], wait: impl FnMut() -> bool) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let request = Request::for_bytes(bytes.len());
        let request = request.map_err(|cause| self.driver().error(cause))?;
        Ok(self.perform(request, wait)?.copy_to(bytes))
    }

    /// Fills `bytes`, with as many answers as it takes: no more than there are bytes. `wait` is for all of them.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`]; `bytes` may be filled in part.
    pub fn fill(&mut self, bytes: &mut [u8], mut wait: impl FnMut() -> bool) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let given = self.read(rest, &mut wait)?;
            rest = rest.get_mut(given..).unwrap_or_default();
        }
        Ok(())
    }
}
