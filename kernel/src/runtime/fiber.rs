//! Fibers: code that is not asynchronous and waits for devices all the same, on a stack of its own, while other tasks go
//! on. For libraries that know nothing of tasks: they call a function of ours for bytes, and that function [`wait`]s.
//!
//! ```text
//!   task                          fiber (its own stack)
//!   run(.., code).await  ------>  code()  ->  library  ->  wait(disk.read(..))
//!                    <- pending -                          the disk is not done
//!   other tasks ...
//!                    -- woken -->                          the disk is done: wait returns
//!                    <- result --  code returns
//! ```
//!
//! What a library makes of bytes that somebody else wrote is not trusted either. On a fiber, a panic is an error of that
//! fiber alone ([`contain`]); code gets so much memory and no more ([`Quota`]); and when it runs for too long without
//! waiting, that is a panic ([`is_overdue`]). A fiber that ended so is never run again. What it had is lost, its stack and
//! its memory, so that when too much is lost no more fibers are to be had.

#![allow(unsafe_code)]

use core::cell::RefCell;
use core::fmt;
use core::future::Future;
use core::mem;
use core::pin::{Pin, pin};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use corosensei::{Coroutine, CoroutineResult, Yielder};
use x86_64::instructions::interrupts;

use crate::platform::memory::quota::{self, Quota};
use crate::platform::memory::stack::{self, Stack};
use crate::platform::time;
use crate::platform::traps::{self, Watchdog};

/// Bytes lost with fibers that failed, after which there are no more fibers.
const MAX_LOST_BYTES: usize = 8 << 20;
/// How long a fiber may run without waiting. Nothing else runs meanwhile.
const LONGEST_RUN: Duration = Duration::from_secs(5);

/// What a fiber is told when it runs on.
enum Resume {
    /// Something may be done; here is who wants to be woken.
    Poll(Waker),
    /// Nobody wants its result any more: every wait fails from now on.
    Abandoned,
}

/// What a fiber says when it stops.
enum Pause {
    /// It waits.
    Waiting,
    /// It panicked, and has so many bytes of memory.
    Failed(usize),
}

/// A fiber as it sees itself.
struct Running {
    yielder: *const Yielder<Resume, Pause>,
    told: RefCell<Resume>,
    /// What its code may allocate.
    quota: Quota,
}

/// The fiber whose code runs now; null while a device is asked on its behalf. The kernel runs on one processor, and
/// interrupt handlers use no fibers.
static RUNNING: AtomicPtr<Running> = AtomicPtr::new(null_mut());
/// Since when it runs without having waited, in nanoseconds since the kernel started.
static RESUMED: AtomicU64 = AtomicU64::new(0);
/// Bytes lost with fibers that failed.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Why a wait came to nothing: whoever wanted the fiber's result is gone, or nobody is on a fiber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken off")
    }
}

impl core::error::Error for Abandoned {}

/// No stack could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStack;

/// The code of a fiber panicked. The log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// Code on its way on a fiber: a future of what it returns.
///
/// When this is dropped before its end, the code is told by every [`wait`], and runs to its end before `drop` returns.
pub struct Fiber<T>(Option<Coroutine<Resume, Pause, T, Stack>>);

/// Has interrupts end the code of fibers that runs for too long.
pub fn init() {
    traps::watch(Watchdog {
        is_overdue,
        overrun,
    });
}

/// Runs code on a fiber. It may have allocated so many bytes at a time.
///
/// # Errors
///
/// No memory for a stack, or too much was lost with fibers that failed.
pub fn run<T: 'static>(
    max_bytes: usize,
    code: impl FnOnce() -> T + 'static,
) -> Result<Fiber<T>, NoStack> {
    if LOST.load(Ordering::Relaxed) > MAX_LOST_BYTES {
        return Err(NoStack);
    }
    let stack = Stack::take().ok_or(NoStack)?;
    let coroutine = Coroutine::with_stack(stack, move |yielder, told| {
        let running = Running {
            yielder,
            told: RefCell::new(told),
            quota: Quota::new(max_bytes),
        };
        set_running((&raw const running).cast_mut());
        code()
    });
    Ok(Fiber(Some(coroutine)))
}

/// From now on this fiber's code runs, and its quota is charged; null: none. Gives the one that ran before.
fn set_running(running: *mut Running) -> *mut Running {
    // SAFETY: as in `wait`: it lives until another one is set.
    unsafe { quota::charge(running.as_ref().map(|running| &running.quota)) };
    RUNNING.swap(running, Ordering::Relaxed)
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
        // The device and its driver are no business of the fiber's: what they allocate is theirs, and what goes wrong
        // there is not contained here.
        set_running(null_mut());
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        if let Poll::Ready(output) = polled {
            set_running(current);
            return Ok(output);
        }
        // SAFETY: the yielder lives as long as the fiber, and it is this fiber that runs.
        let told = unsafe { &*running.yielder }.suspend(Pause::Waiting);
        set_running(current);
        running.told.replace(told);
    }
}

impl<T> Fiber<T> {
    fn resume(&mut self, told: Resume) -> Poll<Result<T, Failed>> {
        let Some(coroutine) = &mut self.0 else {
            return Poll::Ready(Err(Failed));
        };
        let outer = set_running(null_mut());
        RESUMED.store(time::now().as_nanos(), Ordering::Relaxed);
        time::wake_within(LONGEST_RUN);
        let result = coroutine.resume(told);
        set_running(outer);
        match result {
            CoroutineResult::Yield(Pause::Waiting) => Poll::Pending,
            CoroutineResult::Return(output) => Poll::Ready(Ok(output)),
            CoroutineResult::Yield(Pause::Failed(taken)) => {
                // Its frames are never left, so nothing of it may ever be dropped.
                mem::forget(self.0.take());
                LOST.fetch_add(taken + stack::BYTES as usize, Ordering::Relaxed);
                Poll::Ready(Err(Failed))
            }
        }
    }

    fn is_suspended(&self) -> bool {
        let coroutine = self.0.as_ref();
        coroutine.is_some_and(|coroutine| coroutine.started() && !coroutine.done())
    }
}

impl<T> Future for Fiber<T> {
    type Output = Result<T, Failed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.resume(Resume::Poll(cx.waker().clone()))
    }
}

impl<T> Drop for Fiber<T> {
    fn drop(&mut self) {
        while self.is_suspended() {
            let _ = self.resume(Resume::Abandoned);
        }
    }
}

/// The fiber whose code runs now, if `stack_pointer` is on its stack.
fn running_at(stack_pointer: u64) -> Option<&'static Running> {
    let current = RUNNING.load(Ordering::Relaxed);
    if current.is_null() {
        return None;
    }
    let stack = stack::containing(stack_pointer)?;
    // SAFETY: as in `wait`. It is on the stack that is in use, so it is this fiber that runs, and its code has not returned.
    unsafe { current.as_ref() }.filter(|_| stack.contains(&(current as u64)))
}

/// Part of a panic: if it is one of a fiber's code, it ends that fiber, and this does not return.
pub fn contain(report: &dyn fmt::Display) {
    let marker = 0u8;
    let Some(running) = running_at(&raw const marker as u64) else {
        return;
    };
    // With interrupts off it is not the fiber's code that panicked, but a handler, or something that must not be left.
    if !interrupts::are_enabled() {
        return;
    }
    set_running(null_mut());
    log::warn!("a fiber ends: {report}");
    loop {
        let taken = running.quota.taken();
        // SAFETY: the yielder lives as long as the fiber, whose frames are never left. It is not resumed again.
        unsafe { &*running.yielder }.suspend(Pause::Failed(taken));
    }
}

/// Part of every interrupt: whether it interrupted code of a fiber, with this stack pointer, that runs for too long. That
/// code must then go on in [`overrun`].
#[inline]
fn is_overdue(stack_pointer: u64) -> bool {
    running_at(stack_pointer).is_some() && has_run_for_too_long()
}

fn has_run_for_too_long() -> bool {
    let ran = time::now().as_nanos() - RESUMED.load(Ordering::Relaxed);
    let overdue = u128::from(ran) > LONGEST_RUN.as_nanos();
    if !overdue {
        time::wake_within(LONGEST_RUN);
    }
    overdue
}

/// Where code of a fiber goes on that ran for too long.
extern "sysv64" fn overrun() -> ! {
    panic!("it ran for {} s without waiting", LONGEST_RUN.as_secs());
}
