//! The operation of a pmem device with one user, who waits. What `wait` is, [`Blocking`] says.

use super::{Flush, Pmem};
use crate::blocking::Blocking;
use crate::error::Result;
use crate::transport::Transport;

impl<T: Transport> Blocking<Pmem<T>> {
    /// Makes everything persistent that was written to the region before.
    ///
    /// # Errors
    ///
    /// The device could not. What of it is persistent is not known then, and a later flush that succeeds says nothing
    /// about it: write it again.
    pub fn flush(&mut self, wait: impl FnMut() -> bool) -> Result<()> {
        self.perform(Flush, wait)?;
        Ok(())
    }
}
