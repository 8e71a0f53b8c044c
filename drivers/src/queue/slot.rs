//! [`Slot`]: one request's place in the queue, with its loans to the device.

use alloc::vec::Vec;
use core::task::Waker;

use super::chain::{Chain, Payload};
use crate::dma::{Access, DmaContext, Lent};
use crate::error::Cause;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    Free,
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
    /// The loans of `payload`, kept for its allocation.
    loans: Vec<Lent>,
    /// How many bytes of the payload the device may write.
    pub(super) room: u32,
    /// How many bytes the device says it wrote, once the request is done.
    pub(super) used_len: u32,
    /// Who is to be told when the request is done.
    pub(super) waker: Option<Waker>,
}

impl<P> Default for Slot<P> {
    fn default() -> Self {
        Self {
            state: State::Free,
            payload: None,
            loans: Vec::new(),
            room: 0,
            used_len: 0,
            waker: None,
        }
    }
}

impl<P: Payload> Slot<P> {
    /// Lends what `payload` names to the device: at most `max` segments, readable ones first (spec 2.7.4.2), fewer than
    /// 2^32 bytes together. The caller puts the payload into the slot, or calls [`Self::take_back`], also after
    /// an error, for what was lent before it.
    ///
    /// If naming panics, nothing was lent.
    #[inline(always)]
    pub(super) fn lend<D: DmaContext>(
        &mut self,
        context: &D,
        payload: &mut P,
        max: usize,
    ) -> Result<(), Cause> {
        self.loans.clear();
        Chain::collect(payload, &mut self.loans)?;
        if self.loans.len() > max {
            return Err(Cause::TooManySegments {
                segments: self.loans.len(),
                max,
            });
        }
        let (mut total, mut writable) = (0u64, 0u64);
        for loan in &mut self.loans {
            total += loan.len() as u64;
            match loan.access() {
                Access::Writable => writable += loan.len() as u64,
                Access::Readable if writable > 0 => {
                    return Err(Cause::InvalidParameter(
                        "readable segment behind a writable",
                    ));
                }
                Access::Readable => {}
            }
            // Some is left for header and footer.
            if total >= u64::from(u32::MAX - super::MAX_WRAPPING) {
                return Err(Cause::RequestTooLong);
            }
            // SAFETY: the bytes belong to a `Buffer` that the payload owns. The payload goes into a slot of the queue, where
            // nothing can reach it, until `take_back`; a buffer's bytes do not move when the buffer does.
            unsafe { loan.lend(context) }?;
        }
        self.room = writable as u32;
        Ok(())
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
    pub(super) fn loans(&self) -> &[Lent] {
        &self.loans
    }

    /// Ends the loans of this slot.
    #[inline(always)]
    pub(super) fn take_back<D: DmaContext>(&mut self, context: &D) {
        for loan in &mut self.loans {
            // SAFETY: the payload that owns the bytes is still alive (in the slot or the caller's hands), the device
            // returned the request or never saw it or was reset, and a queue has one context.
            unsafe { loan.take_back(context) }
        }
        self.loans.clear();
    }
}
