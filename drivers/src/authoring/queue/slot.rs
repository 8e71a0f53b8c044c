//! [`Slot`]: one request's place in the queue, with its loans to the device.

use alloc::vec::Vec;
use core::task::Waker;

use super::Done;
use super::chain::Payload;
use super::record::{MAX_WRAPPING, Places, Record};
use crate::dma::{DmaContext, Lent};
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
    /// The loan of a payload that makes only one.
    only: Lent,
    /// The loans of any other. Keeps its allocation.
    pub(super) several: Vec<Lent>,
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
            only: Lent::none(),
            several: Vec::new(),
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

    /// Lends the only segment that a payload named, or else those in `several`, readable ones first (spec 2.7.4.2), none of them
    /// empty, fewer than 2^32 bytes together, for a request with a footer of `footer_len` bytes. The caller puts the payload
    /// into the slot. After an error nothing is lent.
    #[inline(always)]
    pub(super) fn lend(
        &mut self,
        context: &D,
        only: Option<Lent>,
        footer_len: usize,
    ) -> Result<(), Cause> {
        let Some(only) = only else {
            return self.lend_several(context, footer_len);
        };
        let sum = Sum::default().and(&only)?;
        // SAFETY: the bytes belong to a `Buffer` that the payload owns. The payload goes into a slot of the queue, where nothing
        // can reach it, until `take_back`; a buffer's bytes do not move when the buffer does.
        unsafe { self.only.lend(only, context) }?;
        self.room = sum.writable as u32 + footer_len as u32;
        Ok(())
    }

    #[cold]
    fn lend_several(&mut self, context: &D, footer_len: usize) -> Result<(), Cause> {
        let mut sum = Sum::default();
        let lent = self.several.iter_mut().try_for_each(|loan| {
            sum = sum.and(loan)?;
            // SAFETY: as for an only one.
            unsafe { loan.lend(*loan, context) }
        });
        self.room = sum.writable as u32 + footer_len as u32;
        lent.inspect_err(|_| self.take_back(context))
    }

    /// What is lent: the `only` one, if that was said when it was, or the others.
    #[inline(always)]
    pub(super) fn loans(&self, only: bool) -> &[Lent] {
        match only {
            true => core::slice::from_ref(&self.only),
            false => &self.several,
        }
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
        let total = self.total.saturating_add(len);
        // Some is left for header and footer.
        let most = u64::from(u32::MAX - MAX_WRAPPING);
        if !(1..most).contains(&len) || total >= most {
            return Err(match len {
                0 => Cause::EmptyRequest,
                _ => Cause::RequestTooLong,
            });
        }
        let writable = match loan.is_writable() {
            true => self.writable + len,
            false if self.writable > 0 => {
                return Err(Cause::InvalidParameter(
                    "readable segment behind a writable",
                ));
            }
            false => 0,
        };
        Ok(Self { total, writable })
    }
}

impl<P, D: DmaContext> Slot<P, D> {
    /// The request, if it is done.
    #[inline(always)]
    pub(super) fn done(&mut self, places: &Places) -> Option<Done<'_, P>> {
        if self.state != State::Done {
            return None;
        }
        let (len, room) = (self.used_len, self.room);
        let written = match len <= room {
            true => Ok(len),
            false => Err(Cause::BadUsedLength { len, room }),
        };
        let footer = self.record.status(places);
        let payload = self.payload.as_mut()?;
        Some(Done {
            payload,
            written,
            room,
            footer,
        })
    }

    /// Ends the loans of this slot.
    #[inline(always)]
    pub(super) fn take_back(&mut self, context: &D) {
        // SAFETY: the payload that owns the bytes is still alive (in the slot or the caller's hands), the device returned the
        // request or never saw it or was reset, and a queue has one context.
        unsafe { self.only.take_back(context) }
        if !self.several.is_empty() {
            self.take_back_several(context);
        }
    }

    #[cold]
    fn take_back_several(&mut self, context: &D) {
        for loan in &mut self.several {
            // SAFETY: as for an only one.
            unsafe { loan.take_back(context) }
        }
    }
}
