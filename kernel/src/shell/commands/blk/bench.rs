//! The benchmark: tasks, each of which has one request of the disk in flight.
//!
//! What it takes to choose a place and to go round is counted with the driver, so it is kept short.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::fmt;
use core::num::NonZeroU64;

use vringlet::{Buffer, Error as DeviceError};

use super::super::bench::places::{Order, Places};
use super::super::bench::{self, Took};
use super::work::Work;
use crate::devices::blk::Disk;
use crate::platform::interrupts::Event;
use crate::platform::time;
use crate::runtime::task;
use crate::shell::Error;

/// What is done to the disk.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// And notes how long each takes, if that is said.
    Read { latencies: bool },
    /// With a flush after so many writes.
    Write { flush_every: Option<NonZeroU64> },
}

/// What a benchmark found.
pub(super) struct Found {
    pub(super) took: Took,
    /// How many of the requests were flushes.
    pub(super) flushes: u64,
    /// Nanoseconds that reads took, from the shortest on; none if that was not wanted.
    pub(super) latencies: Vec<u64>,
}

/// Latencies that are kept: those of the first requests.
const MAX_LATENCIES: u64 = 1 << 20;

/// Reads or writes `count` requests of the largest size that `work` allows, in places that follow each other without a gap.
pub(super) async fn run(
    work: &Work<'static>,
    access: Access,
    order: Order,
    count: u64,
) -> Result<Found, Error> {
    let disk = work.disk;
    let places = (work.sectors.end - work.sectors.start) / work.max;
    if places == 0 {
        let name = &disk.name;
        return Err(Error::failed(format_args!(
            "{name}: is smaller than one request"
        )));
    }
    let flush_every = match access {
        Access::Read { .. } => None,
        Access::Write { flush_every } => flush_every,
    };
    let kept = match access {
        Access::Read { latencies: true } => count.min(MAX_LATENCIES) as usize,
        _ => 0,
    };
    let mut latencies = Vec::new();
    let reserved = latencies.try_reserve_exact(kept);
    reserved.map_err(|_| Error::failed("not enough memory for the latencies"))?;
    let load = Rc::new(Load {
        disk,
        places: Places::new(order, places, work.max),
        left: Cell::new(count),
        flush_every,
        unflushed: Cell::new(0),
        flushes: Cell::new(0),
        latencies: RefCell::new(latencies),
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
            Access::Read { latencies: false } => task::spawn(load.read(buffer)),
            Access::Read { latencies: true } => task::spawn(load.read_and_note(buffer)),
            Access::Write { .. } => task::spawn(load.write(buffer)),
        }
    }
    let ((), took) = bench::measure(|| disk.report(), load.ended.wait()).await;
    drop(end);
    if let Some(failed) = load.failed.get() {
        return Err(Error::failed(format_args!("{}: {failed}", disk.name)));
    }
    let mut latencies = load.latencies.take();
    latencies.sort_unstable();
    Ok(Found {
        took,
        flushes: load.flushes.get(),
        latencies,
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
    /// Of reads, if they are wanted.
    latencies: RefCell<Vec<u64>>,
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

    /// The same, and it notes how long each takes. By itself, as [`Self::read`] is to do nothing but read.
    async fn read_and_note(self: Rc<Self>, mut buffer: Buffer) {
        while let Some(sector) = self.next() {
            let begun = time::now();
            buffer = match self.disk.read(sector, buffer).await {
                Ok(buffer) => buffer,
                Err(failed) => return self.fail("read", sector, failed),
            };
            let mut latencies = self.latencies.borrow_mut();
            if latencies.len() < latencies.capacity() {
                latencies.push(begun.elapsed().as_nanos() as u64);
            }
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
