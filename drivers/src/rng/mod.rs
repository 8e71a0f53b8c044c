//! The entropy device (spec 5.4): it fills buffers with random bytes.
//!
//! [`Rng`] is the non-blocking core; over it are the two faces that wait,
//! [`Asynchronous`](crate::asynchronous::Asynchronous) and [`Blocking`](crate::blocking::Blocking), and over the latter
//! the traits of the crate `rand_core` (feature `rand_core`).
//!
//! ```
//! use vringlet::blocking::Blocking;
//! use vringlet::fake::{FakeDevice, FakeRng};
//! use vringlet::rng::{Options, Rng};
//!
//! let device = FakeDevice::new(FakeRng::new());
//! let rng = Rng::new(device.transport(), Options::default())?;
//!
//! let mut key = [0; 32];
//! let mut turns = 1000;
//! Blocking::new(rng).fill(&mut key, || {
//!     turns -= 1;
//!     turns > 0
//! })?;
//! assert_ne!(key, [0; 32]);
//! # Ok::<(), vringlet::Error>(())
//! ```
//!
//! # How many bytes
//!
//! The device fills as much of a buffer as it likes, but at least one byte (spec 5.4.6.2). Only the bytes that it says it
//! wrote are handed on; the rest of the buffer is cut off. An answer without a byte is an error, so asking again for what is
//! missing ends after at most as many answers as there are bytes. The driver can't tell how random they are.
//!
//! | file | what is in it |
//! |---|---|
//! | `request.rs` | a buffer to be filled |
//! | `rand_core.rs` | the traits of the crate `rand_core` |

mod asynchronous;
mod blocking;
#[cfg(feature = "rand_core")]
mod rand_core;
mod request;

use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ops::Deref;
use core::task::Waker;

use crate::device::DeviceId;
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{AnyQueue, Queue, QueueOptions, Ready, Rejected, Token};
use crate::report::Report;
use crate::start::{Session, Started};
use crate::transport::Transport;

#[cfg(feature = "rand_core")]
pub use self::rand_core::RandomSource;
pub use self::request::Request;

/// How an entropy device is to be driven.
///
/// By default the driver takes 3 KiB of heap and 4 KiB of memory for DMA. Buffers are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the queue, a power of two; the device's maximum if that is smaller. One is enough.
    pub queue_size: u16,
    /// Features to do without, of the ring or of the type.
    pub declined: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_size: 8,
            declined: 0,
        }
    }
}

/// What an entropy device did since it was found.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Random bytes that it gave.
    bytes: u64,
    /// Answers that left part of the buffer.
    partial: u64,
    /// Answers that were none.
    errors: u64,
}

/// An entropy device. Dereferences to [`Control`].
///
/// Counters: `bytes` that it gave, `partial_answers` that left part of the buffer, `errors` for answers that were none.
pub struct Rng<T: Transport> {
    device: Started<T, Active<T>>,
    counters: Counters,
}

/// An entropy device apart from its queue.
pub type Control<T> = crate::start::Control<T, Active<T>>;

/// An entropy device at work.
pub struct Active<T: Transport> {
    queue: Queue<T, Request>,
}

/// The only queue.
const REQUEST_QUEUE: u16 = 0;
const QUEUE_NAME: &str = "requestq";

impl<T: Transport> Session<T> for Active<T> {
    type Options = Options;
    /// There is none.
    type Config = ();
    type Change = Infallible;

    const ID: DeviceId = DeviceId::RNG;
    /// The device type has no features of its own (spec 5.4.3).
    const UNDERSTOOD: u64 = 0;

    fn declined(_: &mut T, options: &Options) -> u64 {
        options.declined
    }

    fn configure(_: &mut T, _: &Options, _: Negotiated) -> Result<()> {
        Ok(())
    }

    fn make(transport: &mut T, options: &Options, (): &(), negotiated: Negotiated) -> Result<Self> {
        let options = QueueOptions {
            size: options.queue_size,
            header_len: 0,
            footer_len: 0,
        };
        let queue = Queue::allocate(transport, REQUEST_QUEUE, options, negotiated)?;
        Ok(Self { queue })
    }

    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>)) {
        visit(&mut self.queue);
    }
}

impl<T: Transport> Rng<T> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// As for [`Started::new`].
    pub fn new(transport: T, options: Options) -> Result<Self> {
        Ok(Self {
            device: Started::new(transport, options)?,
            counters: Counters::default(),
        })
    }

    /// Requests that are with the device.
    pub fn in_flight(&self) -> u16 {
        self.device.queue.in_flight()
    }
}

impl<T: Transport> Deref for Rng<T> {
    type Target = Control<T>;

    fn deref(&self) -> &Control<T> {
        self.device.control()
    }
}

impl<T: Transport> Driver for Rng<T> {
    type Request = Request;
    type Control = Control<T>;

    fn control(&self) -> &Control<T> {
        self.device.control()
    }

    fn report(&self) -> Report {
        let Counters {
            bytes,
            partial,
            errors,
        } = self.counters;
        Report {
            device: self.name(),
            negotiated: self.device.negotiated(),
            feature_names: &[],
            queues: vec![self.device.queue.report(QUEUE_NAME)],
            config_changes: 0,
            counters: vec![
                ("bytes", bytes),
                ("partial_answers", partial),
                ("errors", errors),
            ],
        }
    }

    fn submit(&mut self, request: Request) -> Result<Token, Rejected<Request>> {
        self.device.queue.submit(&[], request)
    }

    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        self.device.queue.waker(token)
    }

    fn kick(&mut self) {
        self.device.queue.kick();
    }

    fn complete(&mut self) -> Result<Option<Ready>> {
        self.device.queue.complete()
    }

    fn take(&mut self, token: Token) -> Option<Finished<Request>> {
        let completion = self.device.queue.take(token)?;
        let mut request = completion.payload;
        let result = request.filled(completion.written);
        match result {
            Ok(()) => self.counters.bytes += request.bytes().len() as u64,
            Err(_) => self.counters.errors += 1,
        }
        if result.is_ok() && !request.is_full() {
            self.counters.partial += 1;
        }
        Some(Finished {
            token,
            request,
            result: result.map_err(|cause| self.error(cause)),
        })
    }

    fn enable_interrupts(&mut self) -> bool {
        self.device.queue.enable_interrupts()
    }

    fn disable_interrupts(&mut self) {
        self.device.queue.disable_interrupts();
    }

    fn queue_size(&self) -> u16 {
        self.device.queue.size()
    }

    fn error(&self, cause: Cause) -> Error {
        self.device.queue.error(cause)
    }

    fn reset(&mut self) -> Result<Vec<(Token, Request)>> {
        let proof = self.device.reset()?;
        Ok(self.device.queue.release(&proof))
    }

    fn restart(&mut self) -> Result<()> {
        drop(self.reset()?);
        self.device.restart()?;
        Ok(())
    }
}
