//! Fibers: code that is not asynchronous and waits for devices all the same, on a stack of its own, while other tasks go
//! on. For libraries that know nothing of tasks: they call a function of ours for bytes, and that function [`wait`]s.
//!
//! ```text
//!   task                          fiber (its own stack)
//!   run(code).await  ---------->  code()  ->  library  ->  wait(disk.read(..))
//!                    <- pending -                          the disk is not done
//!   other tasks ...
//!                    -- woken -->                          the disk is done: wait returns
//!                    <- result --  code returns
//! ```

#![allow(unsafe_code)]

use core::cell::RefCell;
use core::future::Future;
use core::pin::{Pin, pin};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use core::task::{Context, Poll, Waker};

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::memory::stack::Stack;

/// What a fiber is told when it runs on.
enum Resume {
    /// Something may be done; here is who wants to be woken.
    Poll(Waker),
    /// Nobody wants its result any more: every wait fails from now on.
    Abandoned,
}

/// A fiber as it sees itself.
struct Running {
    yielder: *const Yielder<Resume, ()>,
    told: RefCell<Resume>,
}

/// The fiber that runs now. The kernel runs on one processor, and interrupt handlers use no fibers.
static RUNNING: AtomicPtr<Running> = AtomicPtr::new(null_mut());

/// Why a wait came to nothing: whoever wanted the fiber's result is gone, or nobody is on a fiber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

impl core::fmt::Display for Abandoned {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("broken off")
    }
}

impl core::error::Error for Abandoned {}

/// No stack could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStack;

/// Code on its way on a fiber: a future of what it returns.
///
/// When this is dropped before its end, the code is told by every [`wait`], and runs to its end before `drop` returns: it
/// must come to an end once nothing can be waited for any more.
pub struct Fiber<T>(Coroutine<Resume, (), T, Stack>);

/// Runs code on a fiber.
///
/// # Errors
///
/// No memory for a stack.
pub fn run<T: 'static>(code: impl FnOnce() -> T + 'static) -> Result<Fiber<T>, NoStack> {
    let stack = Stack::take().ok_or(NoStack)?;
    Ok(Fiber(Coroutine::with_stack(stack, move |yielder, told| {
        let running = Running {
            yielder,
            told: RefCell::new(told),
        };
        RUNNING.store((&raw const running).cast_mut(), Ordering::Relaxed);
        code()
    })))
}

/// Waits, on a fiber, for what a future gives.
///
/// # Errors
///
/// The fiber was abandoned, or this is no fiber.
pub fn wait<F: Future>(future: F) -> Result<F::Output, Abandoned> {
    let current = RUNNING.load(Ordering::Relaxed);
    // SAFETY: it is null, or points to the value on the stack of the fiber that runs now, which lives until that fiber's
    // code returns: whoever resumes a fiber puts back what was there before as soon as it stops.
    let Some(running) = (unsafe { current.as_ref() }) else {
        return Err(Abandoned);
    };
    let mut future = pin!(future);
    loop {
        let waker = match &*running.told.borrow() {
            Resume::Poll(waker) => waker.clone(),
            Resume::Abandoned => return Err(Abandoned),
        };
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(output);
        }
        // SAFETY: the yielder lives as long as the fiber, and it is this fiber that runs.
        let told = unsafe { &*running.yielder }.suspend(());
        RUNNING.store(current, Ordering::Relaxed);
        running.told.replace(told);
    }
}

impl<T> Fiber<T> {
    fn resume(&mut self, told: Resume) -> Poll<T> {
        let outer = RUNNING.load(Ordering::Relaxed);
        let result = self.0.resume(told);
        RUNNING.store(outer, Ordering::Relaxed);
        match result {
            CoroutineResult::Yield(()) => Poll::Pending,
            CoroutineResult::Return(output) => Poll::Ready(output),
        }
    }
}

impl<T> Future for Fiber<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.resume(Resume::Poll(cx.waker().clone()))
    }
}

impl<T> Drop for Fiber<T> {
    fn drop(&mut self) {
        while self.0.started() && !self.0.done() {
            let _ = self.resume(Resume::Abandoned);
        }
    }
}
