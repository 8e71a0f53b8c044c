//! The ring formats. Which one a queue has is chosen by negotiation; what is the same for all is in [`super::Queue`].

mod split;

use super::record::{Entry, Places, Record, Shape};
use crate::dma::{DmaContext, Lent, Part};
use crate::error::Cause;
use crate::features::{Negotiated, RingFeatures};
use crate::transport::QueueAddresses;

use self::split::SplitRing;

/// One segment as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) is_writable: bool,
}

impl From<&Lent> for Descriptor {
    #[inline]
    fn from(loan: &Lent) -> Self {
        Self {
            address: loan.address(),
            // All loans of a request together are shorter than 4 GiB.
            len: loan.len() as u32,
            is_writable: loan.is_writable(),
        }
    }
}

/// A request that the device says it used. Both are unverified: the id is one that the ring gave out, or none at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) id: u32,
    pub(super) len: u32,
}

/// The ring of one queue.
///
/// Requests have ids below [`Self::size`], which the queue chooses and never uses for two at the same time. Which
/// descriptors a request takes is the ring's business.
pub(super) enum Ring<D: DmaContext> {
    /// Spec 2.7.
    Split(SplitRing<D>),
}

/// Calls the same method of whichever ring it is.
macro_rules! ring {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Split(ring) => ring.$method($($argument),*),
        }
    };
}

impl<D: DmaContext> Ring<D> {
    /// The size nearest to `wanted` that a queue of at most `max` descriptors can have, if there is one.
    pub(super) fn fit(wanted: u16, max: u16) -> Option<u16> {
        SplitRing::<D>::fit(wanted, max)
    }

    /// Allocates a ring of `size` descriptors, which [`Self::fit`] found to be possible, and in the same memory a record of
    /// so many entries for each request.
    pub(super) fn new(
        dma: &D,
        size: u16,
        negotiated: Negotiated,
        record_len: usize,
    ) -> Result<Self, Cause> {
        let has = |feature: RingFeatures| negotiated.has(feature.bits());
        let indirect = has(RingFeatures::INDIRECT_DESC);
        let event_idx = has(RingFeatures::EVENT_IDX);
        SplitRing::new(dma, size, indirect, event_idx, record_len).map(Self::Split)
    }

    /// The memory for the records of all requests.
    pub(super) fn records(&self) -> &Part<[Entry], D> {
        ring!(self.records())
    }

    /// Number of descriptors.
    #[inline]
    pub(super) fn size(&self) -> u16 {
        ring!(self.size())
    }

    pub(super) fn addresses(&self) -> QueueAddresses {
        ring!(self.addresses())
    }

    /// Whether there are descriptors for a request of so many segments, if it matters how many they are.
    #[inline(always)]
    pub(super) fn has_room(&self, segments: impl FnOnce() -> usize) -> bool {
        ring!(self.has_room(segments))
    }

    /// Prepares the record of request `id` for requests of a shape, which have at least one segment and at most
    /// [`Self::size`].
    pub(super) fn prepare(
        &mut self,
        dma: &D,
        id: u16,
        record: &mut Record<D>,
        places: &Places,
        shape: Shape,
    ) -> Result<(), Cause> {
        ring!(self.prepare(dma, id, record, places, shape))
    }

    /// Adds a request, for which there is room, with its loans; its record is prepared for its shape. The device does not see it
    /// before [`Self::publish`].
    #[inline(always)]
    pub(super) fn add(&mut self, id: u16, record: &Record<D>, places: &Places, loans: &[Lent]) {
        ring!(self.add(id, record, places, loans));
    }

    /// Gives back the descriptors of a request that [`Self::next_used`] returned and the queue found in flight.
    #[inline]
    pub(super) fn free(&mut self, id: u16) {
        ring!(self.free(id));
    }

    /// Makes what was added visible. Says whether the device wants to be notified of it; `None` if nothing was added.
    #[inline]
    pub(super) fn publish(&mut self) -> Option<bool> {
        ring!(self.publish())
    }

    /// Whether [`Self::next_used`] would find something.
    #[inline]
    pub(super) fn has_used(&self) -> bool {
        ring!(self.has_used())
    }

    /// Whether all `in_flight` requests were used.
    pub(super) fn all_used(&self, in_flight: u16) -> bool {
        ring!(self.all_used(in_flight))
    }

    /// Takes the next request that the device used, of `in_flight` that there are.
    #[inline]
    pub(super) fn next_used(&mut self, in_flight: u16) -> Result<Option<Used>, Cause> {
        ring!(self.next_used(in_flight))
    }

    /// Asks for an interrupt once `after` more requests than one are used. The caller checks [`Self::has_used`] then.
    #[inline]
    pub(super) fn enable_interrupts(&mut self, after: u16) {
        ring!(self.enable_interrupts(after));
    }

    #[inline]
    pub(super) fn disable_interrupts(&mut self) {
        ring!(self.disable_interrupts());
    }

    /// Gives all shared memory up without freeing it.
    pub(super) fn leak(&self) {
        ring!(self.leak());
    }
}
