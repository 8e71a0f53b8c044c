//! Limits to what some code may have of the heap: whoever runs such code says whose [`Quota`] is charged meanwhile.

#![allow(unsafe_code)]

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// So many bytes of the heap at a time, and how many of them are taken.
pub struct Quota {
    limit: usize,
    taken: AtomicUsize,
}

/// Whose memory is allocated now; null: nobody's, and without a limit. The kernel runs on one processor.
static CHARGED: AtomicPtr<Quota> = AtomicPtr::new(null_mut());

impl Quota {
    /// Nothing of it is taken yet.
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: AtomicUsize::new(0),
        }
    }

    /// Bytes that were allocated and not given back.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.taken().saturating_add(bytes);
        let may = taken <= self.limit;
        if may {
            self.taken.store(taken, Ordering::Relaxed);
        }
        may
    }

    fn give_back(&self, bytes: usize) {
        let taken = self.taken().saturating_sub(bytes);
        self.taken.store(taken, Ordering::Relaxed);
    }
}

/// From now on this quota is charged, or none.
///
/// # Safety
///
/// It lives until another one is charged, or none.
pub unsafe fn charge(quota: Option<&Quota>) {
    let quota = quota.map_or(null_mut(), |quota| (&raw const *quota).cast_mut());
    CHARGED.store(quota, Ordering::Relaxed);
}

fn charged<'a>() -> Option<&'a Quota> {
    // SAFETY: whoever called `charge` keeps it alive for as long as it is charged.
    unsafe { CHARGED.load(Ordering::Relaxed).as_ref() }
}

/// Whether so many bytes may be allocated. They count as taken if so.
pub(super) fn may_take(bytes: usize) -> bool {
    charged().is_none_or(|quota| quota.take(bytes))
}

/// So many bytes were given back.
pub(super) fn give_back(bytes: usize) {
    if let Some(quota) = charged() {
        quota.give_back(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_the_limit_at_a_time() {
        let quota = Quota::new(100);
        assert!(quota.take(60));
        assert!(!quota.take(41));
        assert!(quota.take(40));
        assert!(!quota.take(usize::MAX));
        quota.give_back(30);
        assert_eq!(quota.taken(), 70);
        assert!(quota.take(30));
    }
}
