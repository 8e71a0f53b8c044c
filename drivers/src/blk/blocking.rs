//! The operations of a disk with one user, who waits. What `wait` is, [`Blocking`] says.

use alloc::vec::Vec;
use core::ops::Range;

use super::asynchronous::with_buffer;
use super::{Blk, Request};
use crate::blocking::Blocking;
use crate::buffer::Buffer;
use crate::driver::{Driver, Failed};
use crate::error::Result;
use crate::transport::Transport;

/// A method per operation; requests with several buffers go through [`Blocking::perform`].
impl<T: Transport> Blocking<Blk<T>> {
    /// Fills `buffer` with what is on the disk from `sector` on.
    ///
    /// # Errors
    ///
    /// The buffer comes back with the error, unless the device kept it.
    pub fn read(
        &mut self,
        sector: u64,
        buffer: Buffer,
        wait: impl FnMut() -> bool,
    ) -> Result<Buffer, Failed<Buffer>> {
        with_buffer(self.perform(Request::read(sector, buffer), wait))
    }

    /// Writes `buffer` to the disk from `sector` on. Stable once done if the cache mode is write-through, else after the
    /// next flush.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn write(
        &mut self,
        sector: u64,
        buffer: Buffer,
        wait: impl FnMut() -> bool,
    ) -> Result<Buffer, Failed<Buffer>> {
        with_buffer(self.perform(Request::write(sector, buffer), wait))
    }

    /// Makes all writes stable that are done.
    ///
    /// # Errors
    ///
    /// [`crate::Cause::Unsupported`] if there is no cache to flush, or the device fails.
    /// [`crate::Cause::Timeout`] if `wait` ends first.
    pub fn flush(&mut self, wait: impl FnMut() -> bool) -> Result<()> {
        self.perform(Request::flush(), wait)?;
        Ok(())
    }

    /// Says that the contents of ranges of sectors no longer matter.
    ///
    /// # Errors
    ///
    /// [`crate::Cause::Unsupported`] without DISCARD, ranges that are not on the disk, or more or longer ones than the device
    /// takes, no memory, or the device fails.
    /// [`crate::Cause::Timeout`] if `wait` ends first.
    pub fn discard(&mut self, ranges: &[Range<u64>], wait: impl FnMut() -> bool) -> Result<()> {
        let request = Request::discard(ranges).map_err(|cause| self.driver().error(cause))?;
        self.perform(request, wait)?;
        Ok(())
    }

    /// Makes ranges of sectors zero. With `unmap` the device may give the space back to its storage.
    ///
    /// # Errors
    ///
    /// As for [`Self::discard`], with WRITE_ZEROES.
    pub fn write_zeroes(
        &mut self,
        ranges: &[Range<u64>],
        unmap: bool,
        wait: impl FnMut() -> bool,
    ) -> Result<()> {
        let request = Request::write_zeroes(ranges, unmap);
        let request = request.map_err(|cause| self.driver().error(cause))?;
        self.perform(request, wait)?;
        Ok(())
    }

    /// The device's name: at most 20 bytes.
    ///
    /// # Errors
    ///
    /// No memory, or the device fails or has no name ([`crate::Cause::Unsupported`]). [`crate::Cause::Timeout`] if `wait` ends first.
    pub fn get_id(&mut self, wait: impl FnMut() -> bool) -> Result<Vec<u8>> {
        let request = Request::get_id().map_err(|cause| self.driver().error(cause))?;
        Ok(self.perform(request, wait)?.id().to_vec())
    }
}
