//! Time: a monotonic clock on the calibrated time-stamp counter, the time of day, and timers as futures.
//!
//! There is no tick. The executor asks for the earliest timer before it lets the processor sleep and sets the local
//! APIC's timer to it; the interrupt only ends the sleep. So timers are touched by tasks and by the executor alone.

mod calibration;
pub mod queue;
mod wall;

pub use wall::wall;

use core::fmt;
use core::future::Future;
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Poll;
use core::time::Duration;

use embassy_futures::select::{Either, select};
use spin::Mutex;

use crate::platform::arch::cpu;
use crate::platform::interrupts::lapic;
use queue::TimerQueue;

const NANOS_PER_SECOND: u128 = 1_000_000_000;
/// The longest sleep: the one-shot timer's 32 bits hold four seconds at 1 GHz, and a needless wake-up now and then is
/// cheap.
const LONGEST_SLEEP: Duration = Duration::from_secs(3);

/// The counter when the kernel started.
static START: AtomicU64 = AtomicU64::new(0);
/// Counts per second (0 until calibrated).
static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per count, as a fraction of 2^32.
static NANOS_PER_COUNT: AtomicU64 = AtomicU64::new(0);
/// The local APIC timer's ticks per second.
static APIC_HZ: AtomicU64 = AtomicU64::new(0);

static TIMERS: Mutex<TimerQueue> = Mutex::new(TimerQueue::new());
/// The deadline of the earliest timer, for who looks without the lock. Changed under it.
static EARLIEST: AtomicU64 = AtomicU64::new(NEVER);
/// The deadline that the hardware timer is set for: [`NEVER`] if it is not set, [`SOONER`] if it is set for no timer.
static SET_FOR: AtomicU64 = AtomicU64::new(NEVER);
const NEVER: u64 = u64::MAX;
const SOONER: u64 = 0;

/// A point in time: nanoseconds since the kernel started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(u64);

impl Instant {
    /// Nanoseconds since the kernel started.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// Microseconds since the kernel started.
    pub fn as_micros(self) -> u64 {
        self.0 / 1000
    }

    /// From this instant to a later one; zero if it is not later.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }

    /// From this instant to now.
    pub fn elapsed(self) -> Duration {
        self.until(now())
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// The time was up before the future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

/// Notes when the kernel started. The clock stands still until [`init`].
pub fn start() {
    START.store(tsc(), Ordering::Relaxed);
}

/// Measures the time-stamp counter and the local APIC timer against a clock that is known.
pub fn init() {
    let rates = calibration::measure();
    lapic::use_deadline();
    TSC_HZ.store(rates.tsc_hz, Ordering::Relaxed);
    APIC_HZ.store(rates.apic_hz, Ordering::Relaxed);
    let nanos_per_count = (NANOS_PER_SECOND << 32) / u128::from(rates.tsc_hz.max(1));
    NANOS_PER_COUNT.store(nanos_per_count as u64, Ordering::Relaxed);
    wall::init();
    log::info!(
        "time: TSC {}.{:03} MHz ({}{}), timer {}",
        rates.tsc_hz / 1_000_000,
        rates.tsc_hz / 1000 % 1000,
        rates.source,
        if cpu::features().invariant_tsc {
            ", invariant"
        } else {
            ""
        },
        lapic::timer_kind(),
    );
}

/// Now.
pub fn now() -> Instant {
    let counts = tsc().wrapping_sub(START.load(Ordering::Relaxed));
    Instant(nanos(counts))
}

/// How long so many counts of the time-stamp counter take.
pub(crate) fn duration_of(counts: u64) -> Duration {
    Duration::from_nanos(nanos(counts))
}

fn nanos(counts: u64) -> u64 {
    let rate = u128::from(NANOS_PER_COUNT.load(Ordering::Relaxed));
    ((u128::from(counts) * rate) >> 32) as u64
}

/// Done when the duration has passed.
pub async fn after(duration: Duration) {
    until(now() + duration).await;
}

/// Done at that instant.
pub async fn until(deadline: Instant) {
    let mut timer = Timer { deadline, id: None };
    core::future::poll_fn(|context| {
        if now() >= deadline {
            return Poll::Ready(());
        }
        let set = |timers: &mut TimerQueue| timers.set(timer.id, deadline.0, context.waker());
        timer.id = Some(with_timers(set));
        Poll::Pending
    })
    .await;
}

/// The future's output, or [`TimedOut`] if it takes longer than the duration; the future is dropped then.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, TimedOut> {
    match select(pin!(future), pin!(after(duration))).await {
        Either::First(output) => Ok(output),
        Either::Second(()) => Err(TimedOut),
    }
}

/// Waits without giving the processor to anyone: for moments during bring-up and shut-down only.
pub fn spin(duration: Duration) {
    let start = now();
    while start.elapsed() < duration {
        core::hint::spin_loop();
    }
}

/// A timer in the queue, taken out when the future that set it is dropped.
struct Timer {
    deadline: Instant,
    id: Option<u64>,
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            with_timers(|timers| timers.cancel(self.deadline.0, id));
        }
    }
}

/// Changes the timers.
fn with_timers<R>(change: impl FnOnce(&mut TimerQueue) -> R) -> R {
    let mut timers = TIMERS.lock();
    let result = change(&mut timers);
    EARLIEST.store(timers.earliest().unwrap_or(NEVER), Ordering::Relaxed);
    result
}

/// Wakes the tasks whose timers are due.
pub(crate) fn wake_due() {
    while now().0 >= EARLIEST.load(Ordering::Relaxed) {
        // The lock is let go before the waker runs: what it does is not our business.
        let due = with_timers(|timers| timers.pop_due(now().0));
        match due {
            Some(waker) => waker.wake(),
            None => return,
        }
    }
}

/// Sets the hardware timer to the earliest deadline, unless it is: that is an access to a device. Called with interrupts
/// off, right before the processor sleeps. Returns whether it may sleep: not while a timer runs on a processor that has none.
pub(crate) fn arm() -> bool {
    let earliest = EARLIEST.load(Ordering::Relaxed);
    if SET_FOR.load(Ordering::Relaxed) != earliest {
        set_for(earliest);
    }
    earliest == NEVER || lapic::present()
}

#[cold]
fn set_for(earliest: u64) {
    SET_FOR.store(earliest, Ordering::Relaxed);
    let left = || Duration::from_nanos(earliest.saturating_sub(now().0)).min(LONGEST_SLEEP);
    set_timer((earliest != NEVER).then(left));
}

/// The hardware timer has fired, and is not set any more. Called by its interrupt.
pub(crate) fn fired() {
    SET_FOR.store(NEVER, Ordering::Relaxed);
}

/// Has an interrupt come soon, in this time at the latest: for code that does not let the executor run. The executor sets
/// the timer anew before it sleeps.
pub(crate) fn wake_within(duration: Duration) {
    set_timer(Some(duration.min(LONGEST_SLEEP)));
    // Last: should it fire in between, that it was set for something else is still known.
    SET_FOR.store(SOONER, Ordering::Relaxed);
}

fn set_timer(sleep: Option<Duration>) {
    let at_rate = |rate: &AtomicU64| {
        sleep.map_or(0, |sleep| {
            counts(sleep, rate.load(Ordering::Relaxed)).max(1)
        })
    };
    if cpu::features().tsc_deadline {
        let counts = at_rate(&TSC_HZ);
        lapic::set_deadline(if counts == 0 {
            0
        } else {
            tsc().wrapping_add(counts)
        });
    } else {
        lapic::set_countdown(u32::try_from(at_rate(&APIC_HZ)).unwrap_or(u32::MAX));
    }
}

fn counts(duration: Duration, rate: u64) -> u64 {
    (duration.as_nanos() * u128::from(rate) / NANOS_PER_SECOND) as u64
}

/// The time-stamp counter.
#[allow(unsafe_code)]
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86_64 processor has the counter, and nothing forbids the kernel to read it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
