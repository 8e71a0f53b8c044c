//! Tasks: futures run by embassy's executor on the one processor we use, which sleeps when none has anything to do.

#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::Future;
use core::mem;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll};
use core::time::Duration;

use embassy_executor::Spawner;
use embassy_executor::raw::{AvailableTask, Executor, TaskStorage};
use spin::Mutex;
use x86_64::instructions::interrupts;

use crate::platform::interrupts::{Event, lines};
use crate::platform::time;

type Boxed = Pin<Box<dyn Future<Output = ()>>>;
type Storage = TaskStorage<Boxed>;

/// Every storage ever made. A task that ends leaves its storage to the next one.
static STORAGES: Mutex<Vec<&'static Storage>> = Mutex::new(Vec::new());
static EXECUTOR: spin::Once<SingleProcessor> = spin::Once::new();
/// Something was woken since the executor last looked.
static PENDING: AtomicBool = AtomicBool::new(false);
static SERVED: Mutex<Vec<&'static dyn EndOfRound>> = Mutex::new(Vec::new());
/// How many [`Unfinished`] there are.
static UNFINISHED: AtomicUsize = AtomicUsize::new(0);
/// How many [`Shutdown`] there are.
static ENDING: AtomicUsize = AtomicUsize::new(0);
/// How long the machine stays on for what is unfinished, and how often that is looked at then.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(60);
const SHUTDOWN_POLL: Duration = Duration::from_millis(5);
/// In counts of the time-stamp counter.
static SLEPT: AtomicU64 = AtomicU64::new(0);
static SLEEPS: AtomicU64 = AtomicU64::new(0);

/// An executor that is reached from one processor only.
struct SingleProcessor(Executor);

// SAFETY: the other processors are parked; interrupt handlers only reach the executor through wakers, which may be
// used from anywhere.
unsafe impl Send for SingleProcessor {}
// SAFETY: as above.
unsafe impl Sync for SingleProcessor {}

/// What the executor calls when something is woken, from a task or from an interrupt handler.
#[unsafe(export_name = "__pender")]
fn pender(_: *mut ()) {
    PENDING.store(true, Ordering::Release);
}

/// Starts a task. It runs until its future is done; the first time after the caller next awaits.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let future: Boxed = Box::pin(future);
    let mut storages = STORAGES.lock();
    let free = storages
        .iter()
        .find_map(|storage| AvailableTask::claim(storage));
    let task = free.unwrap_or_else(|| {
        let storage: &'static Storage = Box::leak(Box::new(TaskStorage::new()));
        storages.push(storage);
        AvailableTask::claim(storage).expect("a storage just made is free")
    });
    spawner().spawn(task.initialize(|| future));
}

/// Something that must come to its end before the machine is switched off, and has not yet: see [`Shutdown::finished`].
pub struct Unfinished(());

impl Unfinished {
    /// Something more.
    pub fn begin() -> Self {
        UNFINISHED.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The machine is about to be switched off, as long as this is there: nothing is begun that must come to its end.
pub struct Shutdown(());

impl Shutdown {
    /// From now on [`is_shutting_down`] says so.
    pub fn begin() -> Self {
        ENDING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Waits until nothing is left that must not be cut off, but not for ever; says whether it is so.
    pub async fn finished(&self) -> bool {
        let start = time::now();
        loop {
            // Who was just told to stop begins to end what it does only then.
            time::after(SHUTDOWN_POLL).await;
            if UNFINISHED.load(Ordering::Relaxed) == 0 {
                return true;
            }
            if start.elapsed() > SHUTDOWN_PATIENCE {
                return false;
            }
        }
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        ENDING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the machine is about to be switched off: what could go on for long must come to its end now.
pub fn is_shutting_down() -> bool {
    ENDING.load(Ordering::Relaxed) > 0
}

/// What a task will give: a future that any other task may wait for.
struct Slot<T> {
    given: Event,
    value: Cell<Option<T>>,
}

/// What work that was begun will give. The work comes to its end even if this is dropped.
pub struct Promise<T>(Rc<Slot<T>>);

impl<T> Promise<T> {
    fn new() -> Self {
        let (given, value) = (Event::new(), Cell::new(None));
        Self(Rc::new(Slot { given, value }))
    }
}

impl<T> Slot<T> {
    fn give(&self, value: T) {
        self.value.set(Some(value));
        self.given.raise();
    }
}

impl<T> Future for Promise<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        while self.0.given.poll_wait(context).is_ready() {
            if let Some(value) = self.0.value.take() {
                return Poll::Ready(value);
            }
        }
        Poll::Pending
    }
}

/// Begins work in a task of its own. If nobody waits for its result any more, `unclaimed` gets it.
pub fn begin<T: 'static>(
    work: impl Future<Output = T> + 'static,
    unclaimed: impl FnOnce(T) + 'static,
) -> Promise<T> {
    let promise = Promise::new();
    let (slot, unfinished) = (promise.0.clone(), Unfinished::begin());
    spawn(async move {
        let given = work.await;
        match Rc::strong_count(&slot) {
            1 => unclaimed(given),
            _ => slot.give(given),
        }
        drop(unfinished);
    });
    promise
}

/// Runs work to its end, even if the caller is dropped before.
pub async fn to_the_end<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    begin(work, drop).await
}

/// A value for one piece of work after the other, in the order in which they are given. Each comes to its end, even if
/// whoever gave it is dropped before; the value is never lost on the way.
pub struct InTurn<T>(Promise<T>);

impl<T: 'static> InTurn<T> {
    /// The value, with no work yet.
    pub fn new(value: T) -> Self {
        let free = Promise::new();
        free.0.give(value);
        Self(free)
    }

    /// Gives a piece of work, to be done after those before it. For `unclaimed` see [`begin`].
    pub fn next<R: 'static>(
        &mut self,
        work: impl AsyncFnOnce(&mut T) -> R + 'static,
        unclaimed: impl FnOnce(R) + 'static,
    ) -> Promise<R> {
        let after = Promise::new();
        let slot = after.0.clone();
        let before = mem::replace(&mut self.0, after);
        let work = async move {
            let mut value = before.await;
            let result = work(&mut value).await;
            slot.give(value);
            result
        };
        begin(work, unclaimed)
    }

    /// Gives the last piece of work, which does away with the value.
    pub fn last<R: 'static>(
        self,
        work: impl AsyncFnOnce(T) -> R + 'static,
        unclaimed: impl FnOnce(R) + 'static,
    ) -> Promise<R> {
        begin(async move { work(self.0.await).await }, unclaimed)
    }
}

/// Something that is served between the tasks: at the end of each round of the executor, in which every task that was woken
/// has run, and the processor has slept if none was woken meanwhile.
pub trait EndOfRound: Sync {
    /// Does what has come up, and what the tasks left to be done. Says whether there is more to do, once the tasks have had
    /// their turn.
    fn end_round(&self) -> bool;

    /// Called with interrupts off, right before the processor sleeps: does what the tasks left to be done, and from here on
    /// an interrupt must end the sleep if something comes up. Says whether it may sleep; not if something has come up already.
    fn prepare_to_sleep(&self) -> bool;
}

/// Has `served` served for as long as the kernel runs.
pub fn serve(served: &'static dyn EndOfRound) {
    SERVED.lock().push(served);
}

fn end_round() {
    let mut more = false;
    for served in SERVED.lock().iter() {
        more |= served.end_round();
    }
    if more {
        PENDING.store(true, Ordering::Release);
    }
}

/// How long the processor has slept, and how often it fell asleep.
pub fn idle() -> (Duration, u64) {
    let slept = time::duration_of(SLEPT.load(Ordering::Relaxed));
    (slept, SLEEPS.load(Ordering::Relaxed))
}

/// Runs the tasks for ever.
pub fn run() -> ! {
    let executor = executor();
    loop {
        PENDING.store(false, Ordering::Relaxed);
        // SAFETY: only this loop polls, and it never returns; nothing the executor calls gets here.
        unsafe { executor.poll() };
        sleep();
        // Whatever ended the sleep wakes its task here, so that one round serves it.
        end_round();
        time::wake_due();
        lines::unmask();
    }
}

/// Sleeps until an interrupt comes, unless something was woken.
fn sleep() {
    // With interrupts off, nothing can be woken between the look and the sleep: `sti` takes effect after the `hlt`
    // that follows it has begun, so an interrupt that waits ends the sleep at once.
    interrupts::disable();
    let woken = || PENDING.load(Ordering::Acquire);
    let awake = woken()
        || lines::any_fired()
        || !SERVED.lock().iter().all(|served| served.prepare_to_sleep())
        // By what was just served.
        || woken();
    if awake || !time::arm() {
        interrupts::enable();
        return;
    }
    let start = time::tsc();
    interrupts::enable_and_hlt();
    SLEPT.fetch_add(time::tsc().wrapping_sub(start), Ordering::Relaxed);
    SLEEPS.fetch_add(1, Ordering::Relaxed);
}

fn executor() -> &'static Executor {
    &EXECUTOR
        .call_once(|| SingleProcessor(Executor::new(core::ptr::null_mut())))
        .0
}

fn spawner() -> Spawner {
    executor().spawner()
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use core::cell::RefCell;

    use embassy_futures::yield_now;

    use super::*;

    /// The tests share one executor.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Runs the tasks until none has anything to do.
    fn run_until_idle() {
        while PENDING.swap(false, Ordering::Relaxed) {
            // SAFETY: the tests hold `ALONE`, and nothing that the executor calls gets here.
            unsafe { executor().poll() };
        }
    }

    /// Polls a future once, which is not done then, and drops it.
    fn begin_and_drop(future: impl Future) {
        let mut future = core::pin::pin!(future);
        let polled = future
            .as_mut()
            .poll(&mut Context::from_waker(core::task::Waker::noop()));
        assert!(polled.is_pending());
    }

    #[test]
    fn work_finishes_when_nobody_waits_for_it() {
        let _alone = ALONE.lock();
        let done = Rc::new(Cell::new(false));
        let theirs = done.clone();
        begin_and_drop(to_the_end(async move {
            yield_now().await;
            theirs.set(true);
        }));
        assert_eq!(UNFINISHED.load(Ordering::Relaxed), 1);
        run_until_idle();
        assert!(done.get());
        assert_eq!(UNFINISHED.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn pieces_of_work_run_in_order_even_if_their_waiters_are_dropped() {
        let _alone = ALONE.lock();
        let mut turns = InTurn::new(Vec::new());
        let unclaimed = Rc::new(RefCell::new(Vec::new()));
        for number in 0..5 {
            let unclaimed = unclaimed.clone();
            let piece = turns.next(
                async move |done: &mut Vec<u32>| {
                    // The first ones take the longest.
                    for _ in number..5 {
                        yield_now().await;
                    }
                    done.push(number);
                    number
                },
                move |number| unclaimed.borrow_mut().push(number),
            );
            match number {
                // Before it begins, and in its middle.
                0..3 => begin_and_drop(piece),
                _ => drop(piece),
            }
        }
        // The owner goes away as well: the last piece has the value all the same.
        let all = Rc::new(RefCell::new(Vec::new()));
        let theirs = all.clone();
        drop(turns.last(async move |done| *theirs.borrow_mut() = done, drop));
        assert!(UNFINISHED.load(Ordering::Relaxed) > 0);
        run_until_idle();
        assert_eq!(*all.borrow(), [0, 1, 2, 3, 4]);
        assert_eq!(*unclaimed.borrow(), [0, 1, 2, 3, 4]);
        assert_eq!(UNFINISHED.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn whoever_waits_gets_the_result() {
        let _alone = ALONE.lock();
        let results = Rc::new(RefCell::new(vec![]));
        let theirs = results.clone();
        spawn(async move {
            let mut turns = InTurn::new(1);
            let silent = |_| panic!("somebody waits");
            for factor in [2, 3] {
                let piece = turns.next(
                    async move |value: &mut i32| {
                        *value *= factor;
                        *value
                    },
                    silent,
                );
                let product = piece.await;
                theirs.borrow_mut().push(product);
            }
            let value = turns.last(async |value| value, silent).await;
            theirs.borrow_mut().push(value);
        });
        run_until_idle();
        assert_eq!(*results.borrow(), [2, 6, 6]);
    }

    #[test]
    fn a_shutdown_lasts_while_its_guard_exists() {
        let _alone = ALONE.lock();
        assert!(!is_shutting_down());
        let shutdown = Shutdown::begin();
        assert!(is_shutting_down());
        drop(shutdown);
        assert!(!is_shutting_down());
    }
}
