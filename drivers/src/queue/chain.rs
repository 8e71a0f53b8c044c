//! What a request lends to the device: collecting the segments, and ending the loans.

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;

use virtio_drivers::Hal;

use crate::buffer::Buffer;
use crate::dma::{Access, Lent};
use crate::error::Cause;

/// One segment as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) access: Access,
}

/// What a request carries: the buffers that it lends to the device, and whatever the driver wants back with them.
pub trait Payload: Send {
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
    named: &'a mut dyn FnMut(NonNull<[u8]>, Access),
    problem: Option<Cause>,
    /// Segments are borrowed for `'a`, writable ones uniquely.
    _segments: PhantomData<&'a mut Buffer>,
}

impl<'a> Chain<'a> {
    /// A segment for the device to read.
    pub fn readable(&mut self, buffer: &'a Buffer) {
        (self.named)(buffer.as_raw(), Access::Readable);
    }

    /// The bytes `range` of a buffer for the device to read.
    pub fn readable_part(&mut self, buffer: &'a Buffer, range: Range<usize>) {
        match buffer.get(range) {
            Some(part) => (self.named)(NonNull::from(part), Access::Readable),
            None => self.problem = Some(Cause::InvalidParameter("segment outside its buffer")),
        }
    }

    /// A whole buffer for the device to read, as segments of at most `max` bytes.
    pub fn readable_pieces(&mut self, buffer: &'a Buffer, max: usize) {
        for piece in buffer.chunks(max.max(1)) {
            (self.named)(NonNull::from(piece), Access::Readable);
        }
    }

    /// A segment for the device to write.
    pub fn writable(&mut self, buffer: &'a mut Buffer) {
        (self.named)(buffer.as_raw(), Access::Writable);
    }

    /// A whole buffer for the device to write, as segments of at most `max` bytes.
    pub fn writable_pieces(&mut self, buffer: &'a mut Buffer, max: usize) {
        for piece in buffer.chunks_mut(max.max(1)) {
            (self.named)(NonNull::from(piece), Access::Writable);
        }
    }
}

/// One request's place in the queue.
pub(super) struct Slot<P> {
    /// There while the request is in flight.
    pub(super) payload: Option<P>,
    /// The loans of `payload`; kept for its allocation.
    lent: Vec<Lent>,
    /// Bytes that the device may write.
    pub(super) room: u32,
}

impl<P> Default for Slot<P> {
    fn default() -> Self {
        Self {
            payload: None,
            lent: Vec::new(),
            room: 0,
        }
    }
}

impl<P: Payload> Slot<P> {
    /// Lends what `payload` names to the device and appends it to `descriptors`. The caller puts the payload into the
    /// slot, or calls [`Self::take_back`].
    pub(super) fn lend<H: Hal>(
        &mut self,
        payload: &mut P,
        descriptors: &mut Vec<Descriptor>,
    ) -> Result<(), Cause> {
        let lent = &mut self.lent;
        let mut empty = false;
        let mut named = |bytes: NonNull<[u8]>, access| {
            if bytes.is_empty() {
                empty = true;
                return;
            }
            // SAFETY: the bytes belong to a `Buffer` inside the payload (or one that it borrows for ever). The payload
            // goes into a slot of the queue, where nothing can reach it, until `take_back`; a buffer's bytes do not move
            // when the buffer does.
            let loan = unsafe { Lent::new::<H>(bytes, access) };
            descriptors.push(Descriptor {
                address: loan.address(),
                // Too long a segment is found with the total, in `writable_len`.
                len: u32::try_from(loan.len()).unwrap_or(u32::MAX),
                access,
            });
            lent.push(loan);
        };
        let problem = describe(payload, &mut named);
        match problem {
            Some(cause) => Err(cause),
            None if empty => Err(Cause::EmptyRequest),
            None => Ok(()),
        }
    }
}

/// Has `payload` name its segments to `named`.
fn describe<P: Payload>(
    payload: &mut P,
    named: &mut dyn FnMut(NonNull<[u8]>, Access),
) -> Option<Cause> {
    let mut chain = Chain {
        named,
        problem: None,
        _segments: PhantomData,
    };
    payload.segments(&mut chain);
    chain.problem
}

impl<P> Slot<P> {
    /// Ends the loans of this slot.
    pub(super) fn take_back<H: Hal>(&mut self) {
        for loan in self.lent.drain(..) {
            // SAFETY: the payload that owns the bytes is still alive (in the slot or the caller's hands), the device
            // returned the request or never saw it or was reset, and a queue has one `H`.
            unsafe { loan.take_back::<H>() }
        }
    }
}

/// Checks a whole chain: at least one segment and at most `max`, readable ones first (spec 2.7.4.2), fewer than 2^32
/// bytes. Gives the bytes that the device may write.
pub(super) fn writable_len(chain: &[Descriptor], max: usize) -> Result<u32, Cause> {
    if chain.is_empty() {
        return Err(Cause::EmptyRequest);
    }
    if chain.len() > max {
        return Err(Cause::TooManySegments {
            segments: chain.len(),
            max,
        });
    }
    let mut total = 0u32;
    let mut writable = 0u32;
    for segment in chain {
        total = total
            .checked_add(segment.len)
            .ok_or(Cause::RequestTooLong)?;
        match segment.access {
            Access::Writable => writable += segment.len,
            Access::Readable if writable > 0 => {
                return Err(Cause::InvalidParameter(
                    "readable segment behind a writable",
                ));
            }
            Access::Readable => {}
        }
    }
    if total == u32::MAX {
        return Err(Cause::RequestTooLong);
    }
    Ok(writable)
}
