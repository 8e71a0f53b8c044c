//! The clock that the services time out by: the kernel's, or a test's.

use core::time::Duration;

use chrono::{DateTime, Utc};

/// A clock that tasks can wait for.
pub trait Clock: Copy + 'static {
    /// Time since some moment in the past; it never goes back.
    fn now(self) -> Duration;

    /// The date and the time of day, if they are known.
    fn date(self) -> Option<DateTime<Utc>>;

    /// For how much of that time the processor had nothing to do.
    fn idle(self) -> Duration;

    /// Done when the duration has passed.
    fn after(self, duration: Duration) -> impl Future<Output = ()>;
}

/// The future's output, or `None` if it takes longer than that; the future is dropped then.
pub async fn within<F: Future>(
    clock: impl Clock,
    duration: Duration,
    future: F,
) -> Option<F::Output> {
    use embassy_futures::select::{Either, select};
    match select(future, clock.after(duration)).await {
        Either::First(output) => Some(output),
        Either::Second(()) => None,
    }
}
