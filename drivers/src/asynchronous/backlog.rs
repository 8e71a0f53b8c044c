//! [`Backlog`]: requests that wait for room in the queue, in the order in which they came.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;

use super::Ticket;
use crate::driver::Failed;

/// What is in a place of the backlog.
pub(super) enum Entry<R> {
    /// Nothing.
    Free,
    /// A request that waits, and who waits for it.
    Waiting(R, Waker),
    /// The driver has taken the request that was here.
    Started(Ticket),
    /// It never will.
    Refused(Failed<R>),
}

/// Requests that wait for room. Each has a place until its future has seen what became of it.
pub(super) struct Backlog<R> {
    entries: Vec<Entry<R>>,
    free: Vec<usize>,
    /// The places of those that wait, oldest first.
    waiting: VecDeque<usize>,
}

impl<R> Backlog<R> {
    pub(super) const fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Whether nothing waits.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a request behind all others. Gives its place.
    pub(super) fn push(&mut self, request: R, waker: &Waker) -> usize {
        let entry = Entry::Waiting(request, waker.clone());
        let place = match self.free.pop() {
            Some(place) => {
                self.set(place, entry);
                place
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.waiting.push_back(place);
        place
    }

    /// Takes the request that has waited longest; its place stays its own.
    pub(super) fn pop(&mut self) -> Option<(usize, R, Waker)> {
        while let Some(place) = self.waiting.pop_front() {
            if let Some(entry) = self.entries.get_mut(place)
                && let Entry::Waiting(request, waker) = core::mem::replace(entry, Entry::Free)
            {
                return Some((place, request, waker));
            }
        }
        None
    }

    /// Undoes [`Self::pop`].
    pub(super) fn push_front(&mut self, place: usize, request: R, waker: Waker) {
        self.set(place, Entry::Waiting(request, waker));
        self.waiting.push_front(place);
    }

    /// Says what became of the request in `place`.
    pub(super) fn set(&mut self, place: usize, entry: Entry<R>) {
        if let Some(old) = self.entries.get_mut(place) {
            *old = entry;
        }
    }

    /// What became of the request in `place`, which is free then; if it still waits, `waker` will be woken when it does no
    /// longer, and the waker that this replaced comes back.
    pub(super) fn look(&mut self, place: usize, waker: &Waker) -> Result<Entry<R>, Option<Waker>> {
        match self.entries.get_mut(place) {
            Some(Entry::Waiting(_, known)) => {
                let same = known.will_wake(waker);
                Err((!same).then(|| core::mem::replace(known, waker.clone())))
            }
            Some(_) => Ok(self.remove(place)),
            None => Err(None),
        }
    }

    /// Nobody waits for the request in `place` any more.
    pub(super) fn remove(&mut self, place: usize) -> Entry<R> {
        let Some(entry) = self.entries.get_mut(place) else {
            return Entry::Free;
        };
        let entry = core::mem::replace(entry, Entry::Free);
        if matches!(entry, Entry::Waiting(..)) {
            self.waiting.retain(|waiting| *waiting != place);
        }
        self.free.push(place);
        entry
    }
}
