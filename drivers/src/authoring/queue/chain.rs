//! What a request lends to the device, as the payload names it: [`Payload`] and [`Chain`].

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;

use crate::buffer::Buffer;
use crate::dma::{Direction, Lent};
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
/// Most requests have one, so that is kept apart, where no memory is needed for it; several are a list, and are dealt with by
/// functions that are not inlined.
pub struct Chain<'a> {
    only: Option<Lent>,
    /// Empty if there is an only one.
    several: &'a mut Vec<Lent>,
    problem: Option<Cause>,
    /// Segments are borrowed for `'a`, writable ones uniquely.
    _segments: PhantomData<&'a mut Buffer>,
}

impl<'a> Chain<'a> {
    /// Has `payload` name its segments. Gives the only one (if there is none, they are all in `several`), and what is wrong with
    /// them. Nothing is lent by that.
    #[inline(always)]
    pub(super) fn collect(
        payload: &'a mut impl Payload,
        several: &'a mut Vec<Lent>,
    ) -> (Option<Lent>, Option<Cause>) {
        several.clear();
        let mut chain = Chain {
            only: None,
            several,
            problem: None,
            _segments: PhantomData,
        };
        payload.segments(&mut chain);
        (chain.only, chain.problem)
    }

    #[inline(always)]
    fn name(&mut self, bytes: NonNull<[u8]>, direction: Direction) {
        let named = Lent::named(bytes, direction);
        self.only = match self.only {
            None if self.several.is_empty() => Some(named),
            only => push(self.several, only, named),
        };
    }

    /// A segment for the device to read.
    #[inline(always)]
    pub fn readable(&mut self, buffer: &'a Buffer) {
        self.name(buffer.as_raw(), Direction::ToDevice);
    }

    /// The bytes `range` of a buffer for the device to read.
    pub fn readable_part(&mut self, buffer: &'a Buffer, range: Range<usize>) {
        match buffer.get(range) {
            Some(part) => self.name(NonNull::from(part), Direction::ToDevice),
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
        self.name_all(pieces, Direction::ToDevice);
    }

    /// A segment for the device to write.
    #[inline(always)]
    pub fn writable(&mut self, buffer: &'a mut Buffer) {
        self.name(buffer.as_raw(), Direction::FromDevice);
    }

    /// A whole buffer for the device to write, as segments of at most `max` bytes.
    #[inline(always)]
    pub fn writable_pieces(&mut self, buffer: &'a mut Buffer, max: usize) {
        if buffer.len() <= max {
            return self.writable(buffer);
        }
        let pieces = buffer.chunks_mut(max.max(1)).map(NonNull::from);
        self.name_all(pieces, Direction::FromDevice);
    }

    #[inline(always)]
    fn name_all(&mut self, pieces: impl Iterator<Item = NonNull<[u8]>>, direction: Direction) {
        let pieces = pieces.map(|piece| Lent::named(piece, direction));
        self.only = push_all(self.several, self.only, pieces);
    }
}

/// Adds `named` to the list, behind what was the only one so far, if there was one. Gives the only one that there is now: none. (By
/// value, so that what is inlined above can keep it in registers.)
#[cold]
fn push(several: &mut Vec<Lent>, only: Option<Lent>, named: Lent) -> Option<Lent> {
    push_all(several, only, core::iter::once(named))
}

/// The same with any number of them.
#[cold]
fn push_all(
    several: &mut Vec<Lent>,
    only: Option<Lent>,
    named: impl Iterator<Item = Lent>,
) -> Option<Lent> {
    several.extend(only.into_iter().chain(named));
    None
}
