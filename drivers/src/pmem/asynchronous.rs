//! The operation of a pmem device that is shared by tasks.

use super::{Flush, Pmem};
use crate::asynchronous::Asynchronous;
use crate::error::Result;
use crate::transport::Transport;

impl<T: Transport> Asynchronous<Pmem<T>> {
    /// Makes everything persistent that was written to the region before the future is first polled.
    ///
    /// # Errors
    ///
    /// The device could not. What of it is persistent is not known then, and a later flush that succeeds says nothing
    /// about it: write it again.
    pub async fn flush(&self) -> Result<()> {
        self.perform(Flush).await?;
        Ok(())
    }
}
