//! What a request lends to the device, as the payload names it: [`Payload`] and [`Chain`].

use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;

use super::loans::Loans;
use crate::buffer::Buffer;
use crate::dma::{Access, Lent};
use crate::error::Cause;

/// What a request carries: the buffers that it lends to the device, and whatever the driver wants back with them.
///
/// It owns all that it lends (`'static`): a queue that is dropped while the device may still use it leaks its payloads,
/// and with a borrow in one of them the memory would be freed all the same.
///
/// ```compile_fail
/// use vringlet::Buffer;
/// use vringlet::authoring::queue::{Chain, Payload};
///
/// struct Borrowed<'b>(&'b mut Buffer);
/// impl Payload for Borrowed<'_> {
///     fn segments<'a>(&'a mut self, chain: &mut Chain<'a>) {
///         chain.writable(&mut *self.0);
///     }
/// }
/// ```
pub trait Payload: Send + 'static {
    /// Names the segments in order, readable ones first. Called once, just before the queue takes the payload.
    ///
    /// The buffers are borrowed from `self` and only described; the queue owns `self` until the device is done.
    fn segments<'a>(&'a mut self, chain: &mut Chain<'a>);
}

/// A payload without segments, for requests that are header and footer only.
impl Payload for () {
    fn segments<'a>(&'a mut self, _: &mut Chain<'a>) {}
}

/// Takes down the segments that a payload names.
pub struct Chain<'a> {
    named: &'a mut Loans,
    problem: Option<Cause>,
    /// Segments are borrowed for `'a`, writable ones uniquely.
    _segments: PhantomData<&'a mut Buffer>,
}

impl<'a> Chain<'a> {
    /// Has `payload` name its segments to `named`, which is empty. Nothing is lent by that.
    #[inline(always)]
    pub(super) fn collect(
        payload: &'a mut impl Payload,
        named: &'a mut Loans,
    ) -> Result<(), Cause> {
        let mut chain = Chain {
            named,
            problem: None,
            _segments: PhantomData,
        };
        payload.segments(&mut chain);
        match chain.problem {
            Some(cause) => Err(cause),
            None => Ok(()),
        }
    }

    #[inline(always)]
    fn name(&mut self, bytes: NonNull<[u8]>, access: Access) {
        if bytes.is_empty() {
            self.problem = Some(Cause::EmptyRequest);
        }
        self.named.push(Lent::named(bytes, access));
    }

    /// A segment for the device to read.
    #[inline(always)]
    pub fn readable(&mut self, buffer: &'a Buffer) {
        self.name(buffer.as_raw(), Access::Readable);
    }

    /// The bytes `range` of a buffer for the device to read.
    pub fn readable_part(&mut self, buffer: &'a Buffer, range: Range<usize>) {
        match buffer.get(range) {
            Some(part) => self.name(NonNull::from(part), Access::Readable),
            None => self.problem = Some(Cause::InvalidParameter("segment outside its buffer")),
        }
    }

    /// A whole buffer for the device to read, as segments of at most `max` bytes.
    #[inline(always)]
    pub fn readable_pieces(&mut self, buffer: &'a Buffer, max: usize) {
        if buffer.len() <= max {
            return self.readable(buffer);
        }
        self.readable_chunks(buffer, max);
    }

    /// A segment for the device to write.
    #[inline(always)]
    pub fn writable(&mut self, buffer: &'a mut Buffer) {
        self.name(buffer.as_raw(), Access::Writable);
    }

    /// A whole buffer for the device to write, as segments of at most `max` bytes.
    #[inline(always)]
    pub fn writable_pieces(&mut self, buffer: &'a mut Buffer, max: usize) {
        if buffer.len() <= max {
            return self.writable(buffer);
        }
        self.writable_chunks(buffer, max);
    }

    #[cold]
    fn readable_chunks(&mut self, buffer: &'a Buffer, max: usize) {
        for piece in buffer.chunks(max.max(1)) {
            self.name(NonNull::from(piece), Access::Readable);
        }
    }

    #[cold]
    fn writable_chunks(&mut self, buffer: &'a mut Buffer, max: usize) {
        for piece in buffer.chunks_mut(max.max(1)) {
            self.name(NonNull::from(piece), Access::Writable);
        }
    }
}
