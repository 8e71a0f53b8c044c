//! The operations of a disk that is shared by tasks.

use alloc::vec::Vec;
use core::future::Future;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::{Blk, Request};
use crate::asynchronous::{Asynchronous, Perform};
use crate::buffer::Buffer;
use crate::driver::{Driver, Failed, Finished};
use crate::error::Result;
use crate::transport::Transport;

/// A method per operation; requests with several buffers go through [`Asynchronous::perform`].
impl<T: Transport> Asynchronous<Blk<T>> {
    /// Fills `buffer` with what is on the disk from `sector` on.
    ///
    /// # Errors
    ///
    /// The buffer comes back with the error, unless the device kept it.
    #[inline]
    pub fn read(&self, sector: u64, buffer: Buffer) -> Transfer<'_, T> {
        Transfer(self.perform(Request::read(sector, buffer)))
    }

    /// Writes `buffer` to the disk from `sector` on. Stable once done if the cache mode is write-through, else after the
    /// next flush.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    #[inline]
    pub fn write(&self, sector: u64, buffer: Buffer) -> Transfer<'_, T> {
        Transfer(self.perform(Request::write(sector, buffer)))
    }

    /// Makes all writes stable that are done.
    ///
    /// # Errors
    ///
    /// [`crate::Cause::Unsupported`] if there is no cache to flush, or the device fails.
    pub async fn flush(&self) -> Result<()> {
        self.perform(Request::flush()).await?;
        Ok(())
    }

    /// Says that the contents of ranges of sectors no longer matter.
    ///
    /// # Errors
    ///
    /// [`crate::Cause::Unsupported`] without DISCARD, ranges that are not on the disk, or more or longer ones than the device
    /// takes, no memory, or the device fails.
    pub async fn discard(&self, ranges: &[Range<u64>]) -> Result<()> {
        let request = Request::discard(ranges);
        let request = request.map_err(|cause| self.with(|blk| blk.error(cause)))?;
        self.perform(request).await?;
        Ok(())
    }

    /// Makes ranges of sectors zero. With `unmap` the device may give the space back to its storage.
    ///
    /// # Errors
    ///
    /// As for [`Self::discard`], with WRITE_ZEROES.
    pub async fn write_zeroes(&self, ranges: &[Range<u64>], unmap: bool) -> Result<()> {
        let request = Request::write_zeroes(ranges, unmap);
        let request = request.map_err(|cause| self.with(|blk| blk.error(cause)))?;
        self.perform(request).await?;
        Ok(())
    }

    /// The device's name: at most 20 bytes.
    ///
    /// # Errors
    ///
    /// No memory, or the device fails or has no name ([`crate::Cause::Unsupported`]).
    pub async fn get_id(&self) -> Result<Vec<u8>> {
        let request = Request::get_id();
        let request = request.map_err(|cause| self.with(|blk| blk.error(cause)))?;
        Ok(self.perform(request).await?.id().to_vec())
    }
}

/// A read or write of one buffer, which comes back when it is done. See [`Asynchronous::read`] and [`Asynchronous::write`].
#[must_use = "nothing happens before a future is polled"]
pub struct Transfer<'a, T: Transport>(Perform<'a, Blk<T>>);

impl<T: Transport> Future for Transfer<'_, T> {
    type Output = Result<Buffer, Failed<Buffer>>;

    // Fetching a result is put in place, since it would take as much to hand it over; submitting is not.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let perform = &mut self.get_mut().0;
        match perform.fetch() {
            // Of the whole request, only the buffer is moved.
            Some(Finished {
                result: Ok(()),
                request,
                ..
            }) => Poll::Ready(Ok(one_buffer(request))),
            Some(finished) => Poll::Ready(failed(finished)),
            None => advance(perform, context),
        }
    }
}

#[inline(never)]
fn advance<T: Transport>(
    perform: &mut Perform<'_, Blk<T>>,
    context: &mut Context<'_>,
) -> Poll<Result<Buffer, Failed<Buffer>>> {
    perform.advance(context, with_buffer)
}

#[cold]
#[inline(never)]
fn failed(finished: Finished<Request>) -> Result<Buffer, Failed<Buffer>> {
    with_buffer(finished.into_result())
}

/// The one buffer of a read or write that is over.
pub(super) fn with_buffer(
    result: Result<Request, Failed<Request>>,
) -> Result<Buffer, Failed<Buffer>> {
    match result {
        Ok(request) => Ok(one_buffer(request)),
        Err(failed) => Err(failed.map(one_buffer)),
    }
}

/// A request made with one buffer has one; an empty one allocates nothing.
#[inline(always)]
fn one_buffer(request: Request) -> Buffer {
    let buffer = request.into_buffer();
    buffer.unwrap_or_else(|| Buffer::from(Vec::new()))
}
