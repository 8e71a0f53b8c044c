//! What all connections of the web servers share: room for long heads, and the account of what they did.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Bytes that all connections together may have of heads, beyond the first few KiB of each.
const MAX_LONG_HEAD_BYTES: usize = 256 << 10;

/// The servers of all interfaces.
#[derive(Default)]
pub struct Web {
    long_heads: AtomicUsize,
    requests: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
}

/// What became of requests and connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WebStats {
    /// Requests that were answered as they asked, or with the reason why not.
    pub requests: u64,
    /// What was no request, or too much of one: answered with the reason, and the connection ended.
    pub refused: u64,
    /// Connections that were ended because they lasted too long.
    pub cut: u64,
}

impl Web {
    /// Nothing was asked for yet.
    pub const fn new() -> Self {
        Self {
            long_heads: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    /// What became of requests and connections so far.
    pub fn stats(&self) -> WebStats {
        WebStats {
            requests: self.requests.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
        }
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    /// Room for so much more of a head; `false` if others have it.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let room = |taken: usize| {
            let taken = taken.checked_add(bytes)?;
            (taken <= MAX_LONG_HEAD_BYTES).then_some(taken)
        };
        let taken = self
            .long_heads
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        taken.is_ok()
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.long_heads.fetch_sub(bytes, Ordering::Relaxed);
    }
}
