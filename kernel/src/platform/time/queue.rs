//! Timers waiting for their time, the earliest last, so that taking it moves nothing.

use alloc::vec::Vec;
use core::task::Waker;

/// Timers ordered by deadline.
pub struct TimerQueue {
    timers: Vec<Entry>,
    next_id: u64,
}

struct Entry {
    deadline: u64,
    id: u64,
    waker: Waker,
}

impl TimerQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            timers: Vec::new(),
            next_id: 0,
        }
    }

    /// Sets a timer, or replaces the waker of the one with this id and deadline. Returns its id.
    pub fn set(&mut self, id: Option<u64>, deadline: u64, waker: &Waker) -> u64 {
        if let Some(id) = id
            && let Ok(place) = self.find(deadline, id)
        {
            self.timers[place].waker.clone_from(waker);
            return id;
        }
        let id = self.next_id;
        self.next_id += 1;
        let place = self.find(deadline, id).unwrap_or_else(|place| place);
        let waker = waker.clone();
        self.timers.insert(
            place,
            Entry {
                deadline,
                id,
                waker,
            },
        );
        id
    }

    /// Takes a timer out, if it is still there.
    pub fn cancel(&mut self, deadline: u64, id: u64) {
        if let Ok(place) = self.find(deadline, id) {
            self.timers.remove(place);
        }
    }

    /// Takes out one timer whose deadline is not after `now`.
    pub fn pop_due(&mut self, now: u64) -> Option<Waker> {
        self.timers
            .pop_if(|timer| timer.deadline <= now)
            .map(|timer| timer.waker)
    }

    /// The earliest deadline.
    pub fn earliest(&self) -> Option<u64> {
        self.timers.last().map(|timer| timer.deadline)
    }

    fn find(&self, deadline: u64, id: u64) -> Result<usize, usize> {
        self.timers
            .binary_search_by(|timer| (deadline, id).cmp(&(timer.deadline, timer.id)))
    }
}

impl Default for TimerQueue {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn timers_come_out_when_due_earliest_first() {
        let counts = [(); 4].map(|()| Arc::new(Count::default()));
        let mut queue = TimerQueue::new();
        for (deadline, count) in [30, 10, 20, 10].into_iter().zip(&counts) {
            queue.set(None, deadline, &Waker::from(count.clone()));
        }
        let woken = || {
            counts
                .each_ref()
                .map(|count| count.0.load(Ordering::Relaxed))
        };
        assert_eq!(queue.earliest(), Some(10));
        assert!(queue.pop_due(9).is_none());
        queue.pop_due(10).unwrap().wake();
        assert_eq!(woken(), [0, 1, 0, 0]);
        queue.pop_due(10).unwrap().wake();
        assert_eq!(woken(), [0, 1, 0, 1]);
        assert!(queue.pop_due(19).is_none());
        queue.pop_due(99).unwrap().wake();
        queue.pop_due(99).unwrap().wake();
        assert_eq!(woken(), [1, 1, 1, 1]);
        assert!(queue.pop_due(u64::MAX).is_none());
    }

    #[test]
    fn setting_again_replaces_the_waker_and_cancelling_removes_it() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut queue = TimerQueue::new();
        let id = queue.set(None, 5, &Waker::from(first.clone()));
        assert_eq!(queue.set(Some(id), 5, &Waker::from(second.clone())), id);
        let other = queue.set(None, 5, Waker::noop());
        queue.cancel(5, other);
        queue.cancel(5, other);
        queue.pop_due(5).unwrap().wake();
        assert!(queue.pop_due(5).is_none());
        assert_eq!(
            (
                first.0.load(Ordering::Relaxed),
                second.0.load(Ordering::Relaxed)
            ),
            (0, 1)
        );
        // Fired already: setting it again is a new timer.
        assert_ne!(queue.set(Some(id), 5, Waker::noop()), id);
    }
}
