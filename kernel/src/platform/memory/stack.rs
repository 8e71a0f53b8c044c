//! Stacks for code that waits in the middle of a call (see [`crate::runtime::fiber`]). Below each lies a page that is not mapped.

#![allow(unsafe_code)]

use alloc::vec::Vec;
use core::ops::Range;

use corosensei::stack::StackPointer;
use spin::Mutex;

use super::{PAGE_BYTES, paging};

/// Bytes of a stack, as many as the kernel's own has.
pub const BYTES: u64 = 128 << 10;

/// All stacks there are. What is mapped stays mapped, for the next who needs a stack.
static ALL: Mutex<Vec<Range<u64>>> = Mutex::new(Vec::new());
/// Those that nobody runs on.
static FREE: Mutex<Vec<Range<u64>>> = Mutex::new(Vec::new());

/// A stack that nobody else runs on, until it is dropped.
pub struct Stack(Range<u64>);

impl Stack {
    /// A stack; `None` when memory is short.
    pub fn take() -> Option<Self> {
        if let Some(free) = FREE.lock().pop() {
            return Some(Self(free));
        }
        let stack = paging::stack(BYTES).ok()?;
        ALL.lock().push(stack.clone());
        Some(Self(stack))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        FREE.lock().push(self.0.clone());
    }
}

// SAFETY: the range is mapped, for good, and belongs to this value alone; the page below it is mapped to nothing.
unsafe impl corosensei::stack::Stack for Stack {
    fn base(&self) -> StackPointer {
        StackPointer::new(self.0.end as usize).unwrap_or(StackPointer::MAX)
    }

    fn limit(&self) -> StackPointer {
        StackPointer::new(self.0.start as usize).unwrap_or(StackPointer::MAX)
    }
}

/// The stack that this address is on. Takes no lock that somebody may hold: it serves reports of crashes.
pub fn containing(address: u64) -> Option<Range<u64>> {
    let all = ALL.try_lock()?;
    all.iter().find(|stack| stack.contains(&address)).cloned()
}

/// Whether this address is in the page below a stack, which is not mapped. Takes no lock that somebody may hold.
pub fn is_below(address: u64) -> bool {
    let all = ALL.try_lock();
    all.is_some_and(|all| {
        let mut stacks = all.iter();
        stacks.any(|stack| (stack.start - PAGE_BYTES as u64..stack.start).contains(&address))
    })
}
