//! [`Request`]: what a driver's user asks of the device, as a list of commands.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::damage::{Rect, Size};
use super::framebuffer::Framebuffer;
use super::wire::{Format, MemEntry};
use crate::buffer::Buffer;
use crate::dma::{DmaContext, Lease};
use crate::error::Cause;

/// Names a picture that the device holds. Each is used once only, so that the name of one that is gone never becomes
/// another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(u32);

impl ResourceId {
    /// One that was never given before.
    pub(super) fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        loop {
            // The device knows 0 as "none". (After 2^32 pictures a name may be in use still: the driver refuses it.)
            match NEXT.fetch_add(1, Ordering::Relaxed) {
                0 => {}
                number => return Self(number),
            }
        }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "resource {}", self.0)
    }
}

/// A framebuffer's memory as the device is told of it.
#[derive(Debug)]
pub(super) struct Backing<D: DmaContext> {
    pub(super) lease: Lease<D>,
    /// One [`MemEntry`] for each piece.
    pub(super) entries: Buffer,
    pub(super) count: u32,
    pub(super) size: Size,
}

impl<D: DmaContext> Backing<D> {
    pub(super) fn of(frame: &Framebuffer<D>) -> Result<Self, Cause> {
        let count = frame.pieces().count();
        let mut entries = Vec::new();
        entries
            .try_reserve_exact(count * size_of::<MemEntry>())
            .map_err(|_| Cause::NoMemory)?;
        for (address, len) in frame.pieces() {
            let entry = MemEntry {
                addr: U64::new(address),
                length: U32::new(u32::try_from(len).map_err(|_| Cause::RequestTooLong)?),
                padding: U32::ZERO,
            };
            entries.extend_from_slice(entry.as_bytes());
        }
        Ok(Self {
            lease: frame.lease(),
            entries: entries.into(),
            count: u32::try_from(count).map_err(|_| Cause::RequestTooLong)?,
            size: frame.size(),
        })
    }
}

/// One thing for the device to do.
#[derive(Debug)]
pub(super) enum Command<D: DmaContext> {
    DisplayInfo,
    Edid {
        scanout: u32,
    },
    Create {
        resource: ResourceId,
        size: Size,
        format: Format,
    },
    /// `None` once it was sent: the driver has it then.
    Attach {
        resource: ResourceId,
        backing: Option<Backing<D>>,
    },
    SetScanout {
        scanout: u32,
        /// What to show, all of it; `None` turns the scanout off.
        resource: Option<ResourceId>,
    },
    Transfer {
        resource: ResourceId,
        rect: Rect,
    },
    Flush {
        resource: ResourceId,
        rect: Rect,
    },
    /// Takes the backing memory back and ends the resource. Done if there is no such resource.
    Retire {
        resource: ResourceId,
        /// Also done, and nothing happens, if a scanout has it.
        if_unused: bool,
    },
}

/// Commands for the device to do, in this order; the request is done when all are. The first that fails ends it: those
/// that the device does not have by then are left out.
///
/// [`super::Screen`] and [`super::Cursor`] make them, and [`Self::display_info`] and [`Self::edid`].
#[derive(Debug)]
pub struct Request<D: DmaContext> {
    pub(super) commands: Vec<Command<D>>,
    /// Told of the outcome.
    pub(super) promise: Promise,
}

impl<D: DmaContext> Request<D> {
    pub(super) fn new(commands: Vec<Command<D>>) -> Self {
        Self {
            commands,
            promise: Promise::default(),
        }
    }

    /// Asks how the displays are arranged: [`super::Gpu::layout`] when done.
    pub fn display_info() -> Self {
        Self::new(alloc::vec![Command::DisplayInfo])
    }

    /// Asks what the monitor at a scanout says about itself: [`super::Gpu::edid`] when done.
    pub fn edid(scanout: u32) -> Self {
        Self::new(alloc::vec![Command::Edid { scanout }])
    }

    /// Lets the maker of the request know how it ends. The request that `outcome` was given to before must be over.
    pub(super) fn promise(&mut self, outcome: &Outcome) {
        outcome.0.store(PENDING, Ordering::Relaxed);
        self.promise = Promise(Some(outcome.0.clone()));
    }
}

const PENDING: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// With the request: keeps its maker informed, if that was promised. Dropped, it says that the request failed.
#[derive(Debug, Default)]
pub(super) struct Promise(Option<Arc<AtomicU8>>);

impl Promise {
    /// The request was done.
    pub(super) fn keep(&mut self) {
        self.end(DONE);
    }

    /// Says it once: from then on the maker may give its outcome to the next request.
    fn end(&mut self, state: u8) {
        if let Some(outcome) = self.0.take() {
            outcome.store(state, Ordering::Release);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.end(FAILED);
    }
}

/// With the maker of requests: what became of the last one.
#[derive(Debug)]
pub(super) struct Outcome(Arc<AtomicU8>);

impl Outcome {
    /// There was no request yet, so there is none to wait for.
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(DONE)))
    }

    /// Whether the request was done, if it is over.
    pub(super) fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            PENDING => None,
            state => Some(state == DONE),
        }
    }
}
