//! [`Slot`]: one request's place in the queue, with its loans to the device.

use core::task::Waker;

use super::chain::{Chain, Payload};
use super::loans::Loans;
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
pub(super) struct Slot<P> {
    pub(super) state: State,
    /// There unless the slot is free.
    pub(super) payload: Option<P>,
    /// The loans of `payload`.
    loans: Loans,
    /// How many bytes the device may write.
    pub(super) room: u32,
    /// How many bytes the device says it wrote, once the request is done.
    pub(super) used_len: u32,
    /// Who is to be told when the request is done.
    pub(super) waker: Option<Waker>,
}

impl<P> Slot<P> {
    /// A free slot, before `next` in the list of them.
    pub(super) fn free(next: u16) -> Self {
        Self {
            state: State::Free { next },
            payload: None,
            loans: Loans::default(),
            room: 0,
            used_len: 0,
            waker: None,
        }
    }
}

impl<P: Payload> Slot<P> {
    /// Takes down what `payload` names, which is to be lent by [`Self::lend`].
    ///
    /// If naming panics, nothing was lent.
    #[inline(always)]
    pub(super) fn name(&mut self, payload: &mut P) -> Result<(), Cause> {
        self.loans.clear();
        Chain::collect(payload, &mut self.loans)
    }

    /// Lends what [`Self::name`] took down, readable segments first (spec 2.7.4.2), fewer than 2^32 bytes together, for a
    /// request with a footer of `footer_len` bytes. The caller puts the payload into the slot, or calls
    /// [`Self::take_back`], also after an error, for what was lent before it.
    #[inline(always)]
    pub(super) fn lend<D: DmaContext>(
        &mut self,
        context: &D,
        footer_len: u16,
    ) -> Result<(), Cause> {
        let mut sum = Sum::default();
        if let Some(first) = &mut self.loans.first {
            sum = sum.and(first)?;
            // SAFETY: the bytes belong to a `Buffer` that the payload owns. The payload goes into a slot of the queue, where
            // nothing can reach it, until `take_back`; a buffer's bytes do not move when the buffer does.
            unsafe { first.lend(context) }?;
        }
        if !self.loans.more.is_empty() {
            sum = self.lend_more(context, sum)?;
        }
        self.room = sum.writable as u32 + u32::from(footer_len);
        Ok(())
    }

    #[cold]
    fn lend_more<D: DmaContext>(&mut self, context: &D, mut sum: Sum) -> Result<Sum, Cause> {
        for loan in &mut self.loans.more {
            sum = sum.and(loan)?;
            // SAFETY: as for the first one.
            unsafe { loan.lend(context) }?;
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
        if total >= u64::from(u32::MAX - super::MAX_WRAPPING) {
            return Err(Cause::RequestTooLong);
        }
        Ok(Self { total, writable })
    }
}

impl<P> Slot<P> {
    /// How many bytes the device wrote, if that can be.
    #[inline(always)]
    pub(super) fn written(&self) -> Result<u32, Cause> {
        let (len, room) = (self.used_len, self.room);
        match len <= room {
            true => Ok(len),
            false => Err(Cause::BadUsedLength { len, room }),
        }
    }

    /// What is lent, in order.
    #[inline(always)]
    pub(super) fn loans(&self) -> &Loans {
        &self.loans
    }

    /// Ends the loans of this slot.
    #[inline(always)]
    pub(super) fn take_back<D: DmaContext>(&mut self, context: &D) {
        if let Some(first) = &mut self.loans.first {
            // SAFETY: the payload that owns the bytes is still alive (in the slot or the caller's hands), the device
            // returned the request or never saw it or was reset, and a queue has one context.
            unsafe { first.take_back(context) }
        }
        if !self.loans.more.is_empty() {
            self.take_back_more(context);
        }
    }

    #[cold]
    fn take_back_more<D: DmaContext>(&mut self, context: &D) {
        for loan in &mut self.loans.more {
            // SAFETY: as for the first one.
            unsafe { loan.take_back(context) }
        }
    }
}
