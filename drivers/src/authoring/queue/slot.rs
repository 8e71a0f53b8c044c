//! [`Slot`]: one request's place in the queue, with its loans to the device.

use alloc::vec::Vec;
use core::task::Waker;

use super::chain::Payload;
use super::record::{MAX_WRAPPING, Record};
use super::ring::Descriptor;
use crate::dma::{Access, DmaContext, Lent};
use crate::error::Cause;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is none. Free slots are a list, in which this is the next one's id.
    Free { next: u16 },
    /// With the device, or made available to it.
    InFlight,
    /// Back, and not taken yet.
    Done,
}

/// One request's place in the queue.
pub(super) struct Slot<P, D: DmaContext> {
    pub(super) state: State,
    /// There unless the slot is free.
    pub(super) payload: Option<P>,
    /// What it has in the queue's shared memory.
    pub(super) record: Record<D>,
    /// The first loan of `payload`, if there is one.
    first: Option<Lent>,
    /// The other loans. Keeps its allocation.
    pub(super) more: Vec<Lent>,
    /// How many bytes the device may write.
    pub(super) room: u32,
    /// How many bytes the device says it wrote, once the request is done.
    pub(super) used_len: u32,
    /// Who is to be told when the request is done.
    pub(super) waker: Option<Waker>,
}

impl<P, D: DmaContext> Slot<P, D> {
    /// A free slot, before `next` in the list of them.
    pub(super) fn free(next: u16, record: Record<D>) -> Self {
        Self {
            state: State::Free { next },
            payload: None,
            record,
            first: None,
            more: Vec::new(),
            room: 0,
            used_len: 0,
            waker: None,
        }
    }
}

impl<P: Payload, D: DmaContext> Slot<P, D> {
    /// Puts a payload into the slot, which has none, out of its place. It is moved once: [`Option::take`] would move it out of
    /// the way first, and a large one costs what a request does.
    #[inline(always)]
    pub(super) fn put(&mut self, payload: &mut Option<P>) {
        let place: *mut Option<P> = &mut self.payload;
        // SAFETY: the two are different, as both are borrowed uniquely. What is copied is given up where it was, so there is
        // one of it; what it is copied over is not dropped, and is `None` anyway.
        unsafe {
            place.copy_from_nonoverlapping(payload, 1);
            core::ptr::write(payload, None);
        }
    }

    /// Lends `first` and what is in `more`, readable segments first (spec 2.7.4.2), none of them empty, fewer than 2^32 bytes
    /// together, for a request with a footer of `footer_len` bytes. All was named by one payload. The caller puts it into the
    /// slot, or calls [`Self::take_back`], also after an error, for what was lent before it.
    ///
    /// Gives where the device finds the first.
    #[inline(always)]
    pub(super) fn lend(
        &mut self,
        context: &D,
        first: Option<Lent>,
        footer_len: usize,
    ) -> Result<Option<Descriptor>, Cause> {
        let mut sum = Sum::default();
        let mut descriptor = None;
        if let Some(first) = first {
            sum = sum.and(&first)?;
            // SAFETY: the bytes belong to a `Buffer` that the payload owns. The payload goes into a slot of the queue, where
            // nothing can reach it, until `take_back`; a buffer's bytes do not move when the buffer does.
            let first = unsafe { first.lend(context) }?;
            descriptor = Some(Descriptor::from(&first));
            self.first = Some(first);
        } else {
            self.first = None;
        }
        if !self.more.is_empty() {
            sum = self.lend_more(context, sum)?;
        }
        self.room = sum.writable as u32 + footer_len as u32;
        Ok(descriptor)
    }

    #[cold]
    fn lend_more(&mut self, context: &D, mut sum: Sum) -> Result<Sum, Cause> {
        for loan in &mut self.more {
            sum = sum.and(loan)?;
            // SAFETY: as for the first one.
            *loan = unsafe { loan.lend(context) }?;
        }
        Ok(sum)
    }
}

/// The bytes of the segments of a request so far.
#[derive(Clone, Copy, Default)]
struct Sum {
    total: u64,
    writable: u64,
}

impl Sum {
    /// With those of one more.
    #[inline(always)]
    fn and(self, loan: &Lent) -> Result<Self, Cause> {
        let len = loan.len() as u64;
        if len == 0 {
            return Err(Cause::EmptyRequest);
        }
        let total = self.total + len;
        let writable = match loan.access() {
            Access::Writable => self.writable + len,
            Access::Readable if self.writable > 0 => {
                return Err(Cause::InvalidParameter(
                    "readable segment behind a writable",
                ));
            }
            Access::Readable => 0,
        };
        // Some is left for header and footer.
        if total >= u64::from(u32::MAX - MAX_WRAPPING) {
            return Err(Cause::RequestTooLong);
        }
        Ok(Self { total, writable })
    }
}

impl<P, D: DmaContext> Slot<P, D> {
    /// How many bytes the device wrote, if that can be.
    #[inline(always)]
    pub(super) fn written(&self) -> Result<u32, Cause> {
        let (len, room) = (self.used_len, self.room);
        match len <= room {
            true => Ok(len),
            false => Err(Cause::BadUsedLength { len, room }),
        }
    }

    /// Ends the loans of this slot.
    #[inline(always)]
    pub(super) fn take_back(&mut self, context: &D) {
        if let Some(first) = &mut self.first {
            // SAFETY: the payload that owns the bytes is still alive (in the slot or the caller's hands), the device
            // returned the request or never saw it or was reset, and a queue has one context.
            unsafe { first.take_back(context) }
        }
        if !self.more.is_empty() {
            self.take_back_more(context);
        }
    }

    #[cold]
    fn take_back_more(&mut self, context: &D) {
        for loan in &mut self.more {
            // SAFETY: as for the first one.
            unsafe { loan.take_back(context) }
        }
    }
}
