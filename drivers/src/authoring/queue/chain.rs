//! What a request lends to the device, as the payload names it: [`Payload`] and [`Chain`].

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;

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
///
/// Most requests have one, so that is kept apart from the others, where no memory is needed for it; the others are dealt with
/// by functions that are not inlined.
pub struct Chain<'a> {
    first: Option<Lent>,
    /// There are none without a first.
    more: &'a mut Vec<Lent>,
    problem: Option<Cause>,
    /// Segments are borrowed for `'a`, writable ones uniquely.
    _segments: PhantomData<&'a mut Buffer>,
}

impl<'a> Chain<'a> {
    /// Has `payload` name its segments: the first becomes `first`, and the others go into `more`. Nothing is lent by that.
    #[inline(always)]
    pub(super) fn collect(
        payload: &'a mut impl Payload,
        first: &mut Option<Lent>,
        more: &'a mut Vec<Lent>,
    ) -> Result<(), Cause> {
        more.clear();
        let mut chain = Chain {
            first: None,
            more,
            problem: None,
            _segments: PhantomData,
        };
        payload.segments(&mut chain);
        *first = chain.first;
        match chain.problem {
            Some(cause) => Err(cause),
            None => Ok(()),
        }
    }

    #[inline(always)]
    fn name(&mut self, bytes: NonNull<[u8]>, access: Access) {
        let named = Lent::named(bytes, access);
        match self.first {
            None => self.first = Some(named),
            Some(_) => push(self.more, named),
        }
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
        let pieces = buffer.chunks(max.max(1)).map(NonNull::from);
        self.name_all(pieces, Access::Readable);
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
        let pieces = buffer.chunks_mut(max.max(1)).map(NonNull::from);
        self.name_all(pieces, Access::Writable);
    }

    #[inline(always)]
    fn name_all(&mut self, pieces: impl Iterator<Item = NonNull<[u8]>>, access: Access) {
        let pieces = pieces.map(|piece| Lent::named(piece, access));
        self.first = push_all(self.first.take(), self.more, pieces);
    }
}

#[cold]
fn push(more: &mut Vec<Lent>, named: Lent) {
    more.push(named);
}

/// Names `pieces`, of which the first comes first if there is no `first` yet; gives that. (By value, so that what is inlined
/// above can keep it in registers.)
#[cold]
fn push_all(
    first: Option<Lent>,
    more: &mut Vec<Lent>,
    mut pieces: impl Iterator<Item = Lent>,
) -> Option<Lent> {
    let first = first.or_else(|| pieces.next());
    more.extend(pieces);
    first
}
