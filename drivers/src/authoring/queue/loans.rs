//! [`Loans`]: what one request lends to the device.

use alloc::vec::Vec;

use crate::dma::Lent;

/// The loans of a request, in order.
///
/// Most requests have one, so nothing is allocated for the first, and who goes through them does that one by itself and
/// leaves the loop over the others to a function that is not inlined.
#[derive(Debug, Default)]
pub(super) struct Loans {
    pub(super) first: Option<Lent>,
    /// There are none without a first. Keeps its allocation.
    pub(super) more: Vec<Lent>,
}

impl Loans {
    #[inline(always)]
    pub(super) fn push(&mut self, loan: Lent) {
        match self.first {
            None => self.first = Some(loan),
            Some(_) => self.push_more(loan),
        }
    }

    #[cold]
    fn push_more(&mut self, loan: Lent) {
        self.more.push(loan);
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.first = None;
        self.more.clear();
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }
}
