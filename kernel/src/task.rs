//! Tasks: futures run by embassy's executor on the one processor we use, which sleeps when none has anything to do.

#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use embassy_executor::Spawner;
use embassy_executor::raw::{AvailableTask, Executor, TaskStorage};
use spin::Mutex;
use x86_64::instructions::interrupts;

use crate::interrupts::{Event, lines};
use crate::time;

type Boxed = Pin<Box<dyn Future<Output = ()>>>;
type Storage = TaskStorage<Boxed>;

/// Every storage ever made. A task that ends leaves its storage to the next one.
static STORAGES: Mutex<Vec<&'static Storage>> = Mutex::new(Vec::new());
static EXECUTOR: spin::Once<SingleProcessor> = spin::Once::new();
/// Something was woken since the executor last looked.
static PENDING: AtomicBool = AtomicBool::new(false);
static SERVED: Mutex<Vec<&'static dyn EndOfRound>> = Mutex::new(Vec::new());
/// Work that must come to its end.
static WORK: AtomicUsize = AtomicUsize::new(0);
/// How long the machine stays on for it, and how often it is looked at then.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const SETTLE_POLL: Duration = Duration::from_millis(5);
static SLEPT_NANOS: AtomicU64 = AtomicU64::new(0);
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

/// Starts a task that must come to its end before the machine is switched off: see [`settled`].
pub fn spawn_work(work: impl Future<Output = ()> + 'static) {
    WORK.fetch_add(1, Ordering::Relaxed);
    spawn(async move {
        work.await;
        WORK.fetch_sub(1, Ordering::Relaxed);
    });
}

/// Waits until all work is done that must not be cut off, but not for ever; says whether it is.
pub async fn settled() -> bool {
    let start = time::now();
    loop {
        // Who was just told to stop has work only then.
        time::after(SETTLE_POLL).await;
        if WORK.load(Ordering::Relaxed) == 0 {
            return true;
        }
        if start.elapsed() > SETTLE_PATIENCE {
            return false;
        }
    }
}

/// Runs work to its end, even if the caller is dropped before.
pub async fn to_the_end<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    let ours = Rc::new((Event::new(), Cell::new(None)));
    let theirs = ours.clone();
    spawn_work(async move {
        let (done, result) = &*theirs;
        result.set(Some(work.await));
        done.raise();
    });
    let (done, result) = &*ours;
    loop {
        done.wait().await;
        if let Some(result) = result.take() {
            return result;
        }
    }
}

/// Something that is served between the tasks: at the end of each round of the executor, in which every task that was woken
/// has run.
pub trait EndOfRound: Sync {
    /// Does what has come up. Says whether there is more to do, once the tasks have had their turn.
    fn end_round(&self) -> bool;

    /// Called with interrupts off, right before the processor sleeps: from here on an interrupt must end the sleep if
    /// something comes up. Says whether it may sleep; not if something has come up already.
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
    let slept = Duration::from_nanos(SLEPT_NANOS.load(Ordering::Relaxed));
    (slept, SLEEPS.load(Ordering::Relaxed))
}

/// Runs the tasks for ever.
pub fn run() -> ! {
    let executor = executor();
    loop {
        PENDING.store(false, Ordering::Relaxed);
        // SAFETY: only this loop polls, and it never returns; nothing the executor calls gets here.
        unsafe { executor.poll() };
        end_round();
        time::wake_due();
        lines::settle();
        sleep();
    }
}

/// Sleeps until an interrupt comes, unless something was woken.
fn sleep() {
    // With interrupts off, nothing can be woken between the look and the sleep: `sti` takes effect after the `hlt`
    // that follows it has begun, so an interrupt that waits ends the sleep at once.
    interrupts::disable();
    let awake = PENDING.load(Ordering::Acquire)
        || lines::restless()
        || !SERVED.lock().iter().all(|served| served.prepare_to_sleep());
    if awake || !time::arm() {
        interrupts::enable();
        return;
    }
    let start = time::now();
    interrupts::enable_and_hlt();
    SLEPT_NANOS.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
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
