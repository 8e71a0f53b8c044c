//! The entropy device (spec 5.4): it fills buffers with random bytes.
//!
//! [`Rng`] is the non-blocking core; over it are the two faces that wait,
//! [`Asynchronous`](crate::asynchronous::Asynchronous) and [`Blocking`](crate::blocking::Blocking), and over the latter
//! the traits of the crate `rand_core` (feature `rand_core`).
//!
//! ```
//! use vringlet::blocking::Blocking;
//! use vringlet::fake::{FakeDevice, FakeHal, FakeRng};
//! use vringlet::rng::{Options, Rng};
//!
//! let device = FakeDevice::new(FakeRng::new());
//! let rng = Rng::<FakeHal, _>::new(device.transport(), Options::default())?;
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
//! wrote are handed on; the rest of the buffer is cut off. An answer without a byte is an error, so whoever asks again and
//! again for what is missing is done after as many answers as there are bytes. How random they are the driver can't
//! tell.
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

use virtio_drivers::Hal;

use crate::device::{DeviceId, DeviceName};
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::{Negotiated, RingFeatures};
use crate::init;
use crate::queue::{Queue, QueueOptions, Rejected, Token};
use crate::report::Report;
use crate::transport::{InterruptCauses, Status, Transport};

#[cfg(feature = "rand_core")]
pub use self::rand_core::RandomSource;
pub use self::request::Request;

/// How an entropy device is to be driven.
///
/// By default the driver takes 3 KiB of heap and 8 KiB of memory for DMA. Buffers are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the queue, a power of two; the device's maximum if that is smaller. One is enough.
    pub queue_size: u16,
    /// Ring features to do without.
    pub declined: RingFeatures,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_size: 8,
            declined: RingFeatures::empty(),
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

/// An entropy device.
pub struct Rng<H: Hal, T: Transport> {
    transport: T,
    options: Options,
    active: Active<H, T>,
    counters: Counters,
}

/// What initialisation makes; made anew by a restart.
struct Active<H: Hal, T: Transport> {
    negotiated: Negotiated,
    queue: Queue<H, T::Notifier, Request>,
}

/// The only queue.
const REQUEST_QUEUE: u16 = 0;
const QUEUE_NAME: &str = "requestq";

impl<H: Hal, T: Transport> Active<H, T> {
    fn new(transport: &mut T, options: Options) -> Result<Self> {
        // The device type has no features of its own (spec 5.4.3).
        let negotiated = init::negotiate(transport, 0, 0, options.declined.bits())?;
        let made = Self::with_features(transport, options, negotiated);
        made.inspect_err(|_| init::give_up(transport))
    }

    fn with_features(transport: &mut T, options: Options, negotiated: Negotiated) -> Result<Self> {
        let options = QueueOptions {
            size: options.queue_size,
            header_len: 0,
            footer_len: 0,
        };
        let mut queue = Queue::new(transport, REQUEST_QUEUE, options, negotiated)?;
        if let Err(error) = init::driver_ok(transport) {
            // So that the queue's memory can be freed.
            queue.release(&transport.reset()?);
            return Err(error);
        }
        Ok(Self { negotiated, queue })
    }
}

impl<H: Hal, T: Transport> Rng<H, T> {
    /// Initialises the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// The device is no entropy device, or breaks the rules of initialisation; or memory is short. It is left with FAILED
    /// set, or reset.
    pub fn new(mut transport: T, options: Options) -> Result<Self> {
        let name = transport.name();
        if name.id != DeviceId::RNG {
            let expected = DeviceId::RNG.0;
            return Err(Error::new(name, Cause::WrongDeviceType { expected }));
        }
        let active = Active::new(&mut transport, options)?;
        Ok(Self {
            transport,
            options,
            active,
            counters: Counters::default(),
        })
    }

    /// Which device.
    pub fn name(&self) -> DeviceName {
        self.transport.name()
    }

    /// The features offered and accepted.
    pub fn negotiated(&self) -> Negotiated {
        self.active.negotiated
    }

    /// Requests that are with the device.
    pub fn in_flight(&self) -> u16 {
        self.active.queue.in_flight()
    }

    /// Counts an interrupt of the queue.
    pub fn count_interrupt(&mut self) {
        self.active.queue.count_interrupt();
    }

    /// Reads and clears why the device interrupted: with INTx, and when polling. See
    /// [`Transport::take_interrupt_causes`].
    pub fn take_interrupt_causes(&mut self) -> InterruptCauses {
        self.transport.take_interrupt_causes()
    }

    /// After the device announced a change of its configuration, which it has none of: whether it gave up.
    ///
    /// # Errors
    ///
    /// [`Cause::NeedsReset`] if so.
    pub fn check_status(&self) -> Result<()> {
        match self.transport.status().contains(Status::DEVICE_NEEDS_RESET) {
            true => Err(Error::new(self.name(), Cause::NeedsReset)),
            false => Ok(()),
        }
    }

    /// The driver's account of the device.
    pub fn report(&self) -> Report {
        let Counters {
            bytes,
            partial,
            errors,
        } = self.counters;
        Report {
            device: self.name(),
            negotiated: self.active.negotiated,
            feature_names: &[],
            queues: vec![self.active.queue.report(QUEUE_NAME)],
            config_changes: 0,
            counters: vec![
                ("bytes", bytes),
                ("partial_answers", partial),
                ("errors", errors),
            ],
        }
    }
}

impl<H: Hal, T: Transport> Driver for Rng<H, T> {
    type Request = Request;

    fn submit(&mut self, request: Request) -> Result<Token, Rejected<Request>> {
        self.active.queue.submit(&[], request)
    }

    fn kick(&mut self) {
        self.active.queue.kick();
    }

    fn complete(&mut self) -> Result<Option<Token>> {
        self.active.queue.complete()
    }

    fn take(&mut self, token: Token) -> Option<Finished<Request>> {
        let completion = self.active.queue.take(token)?;
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
        self.active.queue.enable_interrupts()
    }

    fn disable_interrupts(&mut self) {
        self.active.queue.disable_interrupts();
    }

    fn queue_size(&self) -> u16 {
        self.active.queue.size()
    }

    fn error(&self, cause: Cause) -> Error {
        self.active.queue.error(cause)
    }

    fn reset(&mut self) -> Result<Vec<(Token, Request)>> {
        let proof = self.transport.reset()?;
        Ok(self.active.queue.release(&proof))
    }

    fn restart(&mut self) -> Result<()> {
        drop(self.reset()?);
        self.active = Active::new(&mut self.transport, self.options)?;
        Ok(())
    }
}

impl<H: Hal, T: Transport> Drop for Rng<H, T> {
    fn drop(&mut self) {
        // Else the queue's memory, which the device may still write to, would be leaked. That is what happens if the
        // device does not come back from the reset.
        if let Err(error) = self.reset() {
            log::error!("{error}");
        }
    }
}
