//! The benchmark: tasks, each of which has one request of the disk in flight.
//!
//! What it takes to choose a place and to go round is counted with the driver, so it is kept short.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell};
use core::fmt;
use core::num::NonZeroU64;
use core::time::Duration;

use vringlet::{Buffer, Error as DeviceError, QueueStats, Report};

use super::work::Work;
use crate::devices::blk::Disk;
use crate::platform::arch::marker;
use crate::platform::interrupts::Event;
use crate::platform::time;
use crate::runtime::task;
use crate::shell::Error;

/// What is done to the disk.
#[derive(Clone, Copy)]
pub(super) enum Access {
    Read,
    /// With a flush after so many writes.
    Write {
        flush_every: Option<NonZeroU64>,
    },
}

/// In which order its places come.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// From the first to the last and again.
    Sequential,
    /// Any of them, the same ones in each run.
    Random,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequential => "sequential",
            Self::Random => "random",
        })
    }
}

/// What a benchmark took.
pub(super) struct Measured {
    /// Requests done, flushes among them.
    pub(super) requests: u64,
    pub(super) flushes: u64,
    pub(super) time: Duration,
    /// How much of it the processor slept.
    pub(super) slept: Duration,
    pub(super) kicks: u64,
    pub(super) interrupts: u64,
}

/// Reads or writes `count` requests of the largest size that `work` allows, in places that follow each other without a gap.
pub(super) async fn run(
    work: &Work<'static>,
    access: Access,
    order: Order,
    count: u64,
) -> Result<Measured, Error> {
    let disk = work.disk;
    let places = (work.sectors.end - work.sectors.start) / work.max;
    if places == 0 {
        let name = &disk.name;
        return Err(Error::failed(format_args!(
            "{name}: is smaller than one request"
        )));
    }
    let flush_every = match access {
        Access::Read => None,
        Access::Write { flush_every } => flush_every,
    };
    let load = Rc::new(Load {
        disk,
        places: Places {
            order,
            count: places,
            sectors: work.max,
            state: Cell::new(0),
        },
        left: Cell::new(count),
        flush_every,
        unflushed: Cell::new(0),
        flushes: Cell::new(0),
        running: Cell::new(work.depth),
        failed: OnceCell::new(),
        ended: Event::new(),
    });
    let buffers = (0..work.depth).map(|_| work.buffer(&(0..work.max)));
    let buffers: Vec<Buffer> = buffers.collect::<Result<_, _>>()?;
    let end = EndWithMe(&load);
    for buffer in buffers {
        let load = load.clone();
        match access {
            Access::Read => task::spawn(load.read(buffer)),
            Access::Write { .. } => task::spawn(load.write(buffer)),
        }
    }
    let before = disk.report();
    let (slept_before, _) = task::idle();
    let start = time::now();
    marker::start();
    load.ended.wait().await;
    marker::end();
    let time = start.elapsed();
    let (slept, _) = task::idle();
    let after = disk.report();
    drop(end);
    if let Some(failed) = load.failed.get() {
        return Err(Error::failed(format_args!("{}: {failed}", disk.name)));
    }
    let sum = |report: &Report, of: fn(&QueueStats) -> u64| -> u64 {
        report.queues.iter().map(|queue| of(&queue.stats)).sum()
    };
    let difference = |of| sum(&after, of) - sum(&before, of);
    Ok(Measured {
        requests: difference(|stats| stats.completed),
        flushes: load.flushes.get(),
        time,
        slept: slept.saturating_sub(slept_before),
        kicks: difference(|stats| stats.kicks),
        interrupts: difference(|stats| stats.interrupts),
    })
}

/// What the tasks of a benchmark share.
struct Load {
    disk: &'static Disk,
    places: Places,
    /// Requests that no task has begun yet.
    left: Cell<u64>,
    flush_every: Option<NonZeroU64>,
    /// Writes done since the last flush was begun.
    unflushed: Cell<u64>,
    flushes: Cell<u64>,
    /// How many tasks there are still.
    running: Cell<usize>,
    /// What ended the benchmark before its time.
    failed: OnceCell<Failed>,
    /// The last task has come to its end.
    ended: Event,
}

struct Failed {
    what: &'static str,
    sector: u64,
    error: DeviceError,
}

impl Load {
    /// Where the next request goes; `None` if there have been enough.
    #[inline]
    fn next(&self) -> Option<u64> {
        let left = self.left.get().checked_sub(1)?;
        self.left.set(left);
        Some(self.places.next())
    }

    async fn read(self: Rc<Self>, mut buffer: Buffer) {
        while let Some(sector) = self.next() {
            buffer = match self.disk.read(sector, buffer).await {
                Ok(buffer) => buffer,
                Err(failed) => return self.fail("read", sector, failed),
            };
        }
        self.end();
    }

    async fn write(self: Rc<Self>, mut buffer: Buffer) {
        while let Some(sector) = self.next() {
            buffer = match self.disk.write(sector, buffer).await {
                Ok(buffer) => buffer,
                Err(failed) => return self.fail("write", sector, failed),
            };
            if self.wants_flush()
                && let Err(error) = self.disk.flush().await
            {
                return self.fail("flush", sector, error);
            }
        }
        self.end();
    }

    /// Whether a flush is due with the write that was just done.
    #[inline]
    fn wants_flush(&self) -> bool {
        let Some(every) = self.flush_every else {
            return false;
        };
        let unflushed = self.unflushed.get() + 1;
        let due = unflushed == every.get();
        self.unflushed.set(if due { 0 } else { unflushed });
        self.flushes.set(self.flushes.get() + u64::from(due));
        due
    }

    /// A task ends, and has all others end with it.
    #[cold]
    fn fail(&self, what: &'static str, sector: u64, error: impl Into<DeviceError>) {
        let error = error.into();
        self.left.set(0);
        // Of several, the first is told.
        let _ = self.failed.set(Failed {
            what,
            sector,
            error,
        });
        self.end();
    }

    /// A task ends.
    fn end(&self) {
        self.running.set(self.running.get() - 1);
        if self.running.get() == 0 {
            self.ended.raise();
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            sector,
            error,
        } = self;
        write!(f, "{what} at {sector}: {error}")
    }
}

/// The tasks begin nothing more when the command is broken off.
struct EndWithMe<'a>(&'a Load);

impl Drop for EndWithMe<'_> {
    fn drop(&mut self) {
        self.0.left.set(0);
    }
}

/// The places of requests: pieces of a disk of the same length, from its first sector on.
struct Places {
    order: Order,
    count: u64,
    /// Sectors of each.
    sectors: u64,
    /// The number of the next place, or what the random ones are made of.
    state: Cell<u64>,
}

impl Places {
    /// The first sector of the next place.
    #[inline]
    fn next(&self) -> u64 {
        let state = self.state.get();
        let (number, next) = match self.order {
            Order::Sequential => (
                state,
                if state + 1 == self.count {
                    0
                } else {
                    state + 1
                },
            ),
            Order::Random => {
                // Knuth's linear congruential generator for 64 bits. Its high bits are the good ones, and those choose.
                let next = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let number = (u128::from(next) * u128::from(self.count)) >> 64;
                (number as u64, next)
            }
        };
        self.state.set(next);
        number * self.sectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(order: Order, count: u64) -> Places {
        Places {
            order,
            count,
            sectors: 8,
            state: Cell::new(0),
        }
    }

    #[test]
    fn sequential_places_follow_each_other_and_begin_again() {
        let places = places(Order::Sequential, 3);
        let sectors = [0; 7].map(|_| places.next());
        assert_eq!(sectors, [0, 8, 16, 0, 8, 16, 0]);
    }

    #[test]
    fn random_places_are_everywhere_and_equally_often() {
        const COUNT: usize = 1000;
        const EACH: usize = 100;
        let places = places(Order::Random, COUNT as u64);
        let mut times = [0; COUNT];
        for _ in 0..EACH * COUNT {
            let sector = places.next();
            assert_eq!(sector % 8, 0);
            times[sector as usize / 8] += 1;
        }
        // Six standard deviations.
        assert!(times.iter().all(|times| (40..=160).contains(times)));
    }

    #[test]
    fn there_is_only_one_place_on_a_disk_of_one_request() {
        let places = places(Order::Random, 1);
        assert_eq!([0; 5].map(|_| places.next()), [0; 5]);
    }
}
