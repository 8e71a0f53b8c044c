//! The block device (spec 5.2): a disk.
//!
//! [`Blk`] is the non-blocking core: [`Driver::submit`] any number of [`Request`]s, [`Driver::kick`] once,
//! [`Driver::poll`] for those that are done, in the device's order. Over it are two faces that wait: [`crate::asynchronous::Asynchronous`] and
//! [`crate::blocking::Blocking`], with a method per operation in `asynchronous.rs` and `blocking.rs` here.
//!
//! ```
//! use vringlet::Buffer;
//! use vringlet::blk::{Blk, Options};
//! use vringlet::blocking::Blocking;
//! use vringlet::fake::{FakeBlk, FakeDevice, FakeHal};
//!
//! // A RAM disk; a kernel has a `PciTransport` here, and its own `Hal`.
//! let device = FakeDevice::new(FakeBlk::new(64));
//! let mut disk = Blocking::new(Blk::<FakeHal, _>::new(device.transport(), Options::default())?);
//!
//! // How long to wait is the caller's business.
//! let mut turns = 1000;
//! let mut wait = || {
//!     turns -= 1;
//!     turns > 0
//! };
//! let buffer = Buffer::from(b"hello".iter().copied().chain([0; 507]).collect::<Vec<u8>>());
//! let mut buffer = disk.write(3, buffer, &mut wait)?;
//! buffer.fill(0xff);
//! let buffer = disk.read(3, buffer, &mut wait)?;
//! assert!(buffer.starts_with(b"hello\0"));
//! # Ok::<(), vringlet::Error>(())
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `wire.rs` | what goes over the queue: features, operations, headers, statuses |
//! | `config.rs` | the device configuration, checked |
//! | `request.rs` | requests with their buffers, checked against the configuration before they are sent |

mod asynchronous;
mod blocking;
mod config;
mod request;
mod wire;

use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::Hal;

use crate::device::{DeviceId, DeviceName};
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::{Negotiated, RingFeatures};
use crate::init;
use crate::queue::{Completion, Queue, QueueOptions, Rejected, Token};
use crate::report::Report;
use crate::transport::{InterruptCauses, Status, Transport};

pub use self::asynchronous::Transfer;
pub use self::config::{CacheMode, Config, DiscardLimits, Geometry, Topology, WriteZeroesLimits};
pub use self::request::{Data, Request};
pub use self::wire::{FEATURE_NAMES, Features, ID_LEN, Operation, SECTOR_LEN};

/// How a disk is to be driven.
///
/// By default the driver takes 41 KiB of heap and 32 KiB of memory for DMA when it is made, and 2 and 12 KiB with the
/// shortest queue that does (4), through which one request goes at a time. A request in flight has a list of its segments
/// besides, and a table of its own for the device if they are more than two of data. Buffers are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the queue, a power of two; the device's maximum if that is smaller.
    pub queue_size: u16,
    /// Ring features to do without.
    pub declined: RingFeatures,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_size: 256,
            declined: RingFeatures::empty(),
        }
    }
}

/// What a configuration change was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// The configuration until now.
    pub old: Config,
    /// From now on.
    pub new: Config,
}

/// What a disk did since it was found.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    bytes_read: u64,
    bytes_written: u64,
    errors: u64,
    config_changes: u64,
}

/// A block device with one request queue.
pub struct Blk<H: Hal, T: Transport> {
    transport: T,
    options: Options,
    active: Active<H, T>,
    counters: Counters,
}

/// What initialisation makes; made anew by a restart.
struct Active<H: Hal, T: Transport> {
    negotiated: Negotiated,
    config: Config,
    queue: Queue<H, T::Notifier, Request>,
    /// The most segments of data in a request.
    segments_max: usize,
}

/// The first request queue, and without VIRTIO_BLK_F_MQ the only one.
const REQUEST_QUEUE: u16 = 0;
const QUEUE_NAME: &str = "requestq1";

impl<H: Hal, T: Transport> Active<H, T> {
    fn new(transport: &mut T, options: Options) -> Result<Self> {
        let understood = Features::all().bits();
        let declined = options.declined.bits();
        let negotiated = init::negotiate(transport, understood, 0, declined)?;
        let made = Self::with_features(transport, options, negotiated);
        made.inspect_err(|_| init::give_up(transport))
    }

    /// Checks a request, and makes its header.
    #[inline(always)]
    fn admit(&self, request: &mut Request) -> Result<[u8; wire::HEADER_LEN], Cause> {
        request.check(&self.config, self.segments_max)?;
        Ok(wire::header(request.operation(), request.sector()))
    }

    fn with_features(transport: &mut T, options: Options, negotiated: Negotiated) -> Result<Self> {
        let config = Config::read(transport, Features::from_bits_truncate(negotiated.accepted))?;
        let options = QueueOptions {
            size: options.queue_size,
            header_len: wire::HEADER_LEN,
            footer_len: wire::STATUS_LEN,
        };
        let mut queue = Queue::new(transport, REQUEST_QUEUE, options, negotiated)?;
        let segments_max = segments_max(&config, queue.max_segments());
        let started = match segments_max {
            0 => Err(queue.error(Cause::QueueSize {
                size: queue.size().into(),
                max: queue.size().into(),
            })),
            _ => init::driver_ok(transport),
        };
        if let Err(error) = started {
            // So that the queue's memory can be freed.
            queue.release(&transport.reset()?);
            return Err(error);
        }
        Ok(Self {
            negotiated,
            config,
            queue,
            segments_max,
        })
    }
}

/// The most segments of data in a request, of the `room` that the queue has for it with its header and status.
fn segments_max(config: &Config, room: usize) -> usize {
    let room = room.saturating_sub(2);
    config.seg_max.map_or(room, |max| room.min(max as usize))
}

impl<H: Hal, T: Transport> Blk<H, T> {
    /// Initialises the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// The device is no block device, breaks the rules of initialisation, has an impossible configuration or a queue too
    /// small for any data; or memory is short. It is left with FAILED set, or reset.
    pub fn new(mut transport: T, options: Options) -> Result<Self> {
        let name = transport.name();
        if name.id != DeviceId::BLK {
            let expected = DeviceId::BLK.0;
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

    /// The configuration as last read: at first, and by [`Self::take_config_change`].
    pub fn config(&self) -> &Config {
        &self.active.config
    }

    /// The features offered and accepted.
    pub fn negotiated(&self) -> Negotiated {
        self.active.negotiated
    }

    /// The most segments of data that a request may have: what the device allows and the queue can take. A buffer is one,
    /// or one for each [`Config::size_max`] bytes of it.
    pub fn segments_max(&self) -> usize {
        self.active.segments_max
    }

    /// Requests that are with the device.
    pub fn in_flight(&self) -> u16 {
        self.active.queue.in_flight()
    }

    /// Counts an interrupt of the request queue.
    pub fn count_interrupt(&mut self) {
        self.active.queue.count_interrupt();
    }

    /// Reads and clears why the device interrupted: with INTx, and when polling. See
    /// [`Transport::take_interrupt_causes`].
    pub fn take_interrupt_causes(&mut self) -> InterruptCauses {
        self.transport.take_interrupt_causes()
    }

    /// Reads the configuration anew, after the device announced a change. If there is one, requests are checked against the
    /// new configuration from now on; those in flight are not touched.
    ///
    /// # Errors
    ///
    /// The device wants to be reset ([`Cause::NeedsReset`]), or the new configuration is impossible, in which case the old
    /// one stays in use.
    pub fn take_config_change(&mut self) -> Result<Option<ConfigChange>> {
        if self.transport.status().contains(Status::DEVICE_NEEDS_RESET) {
            return Err(Error::new(self.name(), Cause::NeedsReset));
        }
        let new = Config::read(&self.transport, self.features())?;
        let old = core::mem::replace(&mut self.active.config, new);
        // A device with one interrupt for everything announces with each.
        if old == new {
            return Ok(None);
        }
        self.counters.config_changes += 1;
        self.active.segments_max = segments_max(&new, self.active.queue.max_segments());
        Ok(Some(ConfigChange { old, new }))
    }

    /// Switches between write-back and write-through, and says which mode the device is in then. Writes in flight may be
    /// treated either way; after a switch to write-through, completed ones still need a flush.
    ///
    /// # Errors
    ///
    /// [`Cause::Unsupported`] without CONFIG_WCE.
    pub fn set_cache_mode(&mut self, mode: CacheMode) -> Result<CacheMode> {
        if !self.features().contains(Features::CONFIG_WCE) {
            return Err(Error::new(self.name(), Cause::Unsupported));
        }
        Config::write_cache_mode(&mut self.transport, mode)?;
        let mode = Config::read_cache_mode(&self.transport, self.features())?;
        self.active.config.cache_mode = mode;
        Ok(mode)
    }

    /// The driver's account of the device.
    pub fn report(&self) -> Report {
        let Counters {
            bytes_read,
            bytes_written,
            errors,
            config_changes,
        } = self.counters;
        Report {
            device: self.name(),
            negotiated: self.active.negotiated,
            feature_names: FEATURE_NAMES,
            queues: vec![self.active.queue.report(QUEUE_NAME)],
            config_changes,
            counters: vec![
                ("bytes_read", bytes_read),
                ("bytes_written", bytes_written),
                ("errors", errors),
            ],
        }
    }

    fn features(&self) -> Features {
        Features::from_bits_truncate(self.active.negotiated.accepted)
    }
}

/// Whether a request that came back was done: the device's status, and its word that it wrote that and all data before it.
/// Bytes beyond those that it says it wrote mean nothing (spec 2.7.8.2), an "OK" among them neither; any other status is a
/// failure with or without them.
#[inline(always)]
fn judge(completion: &Completion<Request>, bytes: u64) -> Result<(), Cause> {
    let written = completion.written?;
    wire::check_status(completion.footer as u8)?;
    let data = match completion.payload.operation().writes_memory() {
        // It fits: the queue takes no request of 4 GiB.
        true => bytes as u32,
        false => 0,
    };
    let need = data + wire::STATUS_LEN as u32;
    if written < need {
        return Err(Cause::ShortResponse { len: written, need });
    }
    Ok(())
}

impl<H: Hal, T: Transport> Driver for Blk<H, T> {
    type Request = Request;

    fn submit(&mut self, mut request: Request) -> Result<Token, Rejected<Request>> {
        let active = &mut self.active;
        match active.admit(&mut request) {
            Ok(header) => active.queue.submit(&header, request),
            Err(cause) => Err(Rejected {
                error: active.queue.error(cause),
                payload: request,
            }),
        }
    }

    #[inline(always)]
    fn accept(&mut self, request: &mut Option<Request>) -> Result<Token> {
        let active = &mut self.active;
        let admitted = match request {
            Some(request) => active.admit(request),
            None => Err(Cause::EmptyRequest),
        };
        match admitted {
            Ok(header) => active.queue.accept(&header, request),
            Err(cause) => Err(active.queue.error(cause)),
        }
    }

    #[inline]
    fn kick(&mut self) {
        self.active.queue.kick();
    }

    #[inline(always)]
    fn complete(&mut self) -> Result<Option<Token>> {
        self.active.queue.complete()
    }

    #[inline(always)]
    fn take(&mut self, token: Token) -> Option<Finished<Request>> {
        let completion = self.active.queue.take(token)?;
        let bytes = completion.payload.bytes();
        let result = judge(&completion, bytes);
        let request = completion.payload;
        match (&result, request.operation()) {
            (Err(_), _) => self.counters.errors += 1,
            (Ok(()), Operation::Read) => self.counters.bytes_read += bytes,
            (Ok(()), Operation::Write) => self.counters.bytes_written += bytes,
            (Ok(()), _) => {}
        }
        Some(Finished {
            token,
            request,
            result: result.map_err(|cause| self.error(cause)),
        })
    }

    #[inline]
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

impl<H: Hal, T: Transport> Drop for Blk<H, T> {
    fn drop(&mut self) {
        // Else the queue's memory, which the device may still write to, would be leaked. That is what happens if the
        // device does not come back from the reset.
        if let Err(error) = self.reset() {
            log::error!("{error}");
        }
    }
}
