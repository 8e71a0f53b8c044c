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
//! use vringlet::fake::{FakeBlk, FakeDevice};
//!
//! // A RAM disk; a kernel has a `PciTransport` here.
//! let device = FakeDevice::new(FakeBlk::new(64));
//! let mut disk = Blocking::new(Blk::new(device.transport(), Options::default())?);
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
use core::ops::Deref;
use core::task::Waker;

use crate::device::DeviceId;
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{AnyQueue, Done, Queue, QueueOptions, Ready, Rejected, Token};
use crate::report::Report;
use crate::start::{Configured, Session, Started};
use crate::transport::Transport;

use self::request::Limits;

pub use self::asynchronous::Transfer;
pub use self::config::{CacheMode, Config, DiscardLimits, Geometry, Topology, WriteZeroesLimits};
pub use self::request::{Data, Request};
pub use self::wire::{FEATURE_NAMES, Features, ID_LEN, Operation, SECTOR_LEN};

/// How a disk is to be driven.
///
/// By default the driver takes 52 KiB of heap and 32 KiB of memory for DMA when it is made, and 2 and 4 KiB with the
/// shortest queue that does (4), through which one request goes at a time. A request in flight also has a list of its
/// segments if they are more than one of data and, with more than two, a table for the device. Buffers are the caller's.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the queue, a power of two; the device's maximum if that is smaller.
    pub queue_size: u16,
    /// Features to do without, of the ring or of the type.
    pub declined: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_size: 256,
            declined: 0,
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
}

/// A block device with one request queue. Dereferences to [`Control`].
///
/// Counters: `bytes_read`, `bytes_written` by requests that were done, `errors` for requests that failed.
pub struct Blk<T: Transport> {
    device: Started<T, Active<T>>,
    counters: Counters,
}

/// A block device apart from its queue, and its [`Config`].
pub type Control<T> = crate::start::Control<T, Active<T>>;

/// A block device at work.
pub struct Active<T: Transport> {
    config: Config,
    queue: Queue<T, Request>,
    limits: Limits,
}

/// The first request queue, and without VIRTIO_BLK_F_MQ the only one.
const REQUEST_QUEUE: u16 = 0;
const QUEUE_NAME: &str = "requestq1";

impl<T: Transport> Session<T> for Active<T> {
    type Options = Options;
    type Config = Config;
    type Change = ConfigChange;

    const ID: DeviceId = DeviceId::BLK;
    const UNDERSTOOD: u64 = Features::all().bits();

    fn declined(_: &mut T, options: &Options) -> u64 {
        options.declined
    }

    fn configure(transport: &mut T, _: &Options, negotiated: Negotiated) -> Result<Config> {
        Config::read(transport, features(negotiated))
    }

    fn make(
        transport: &mut T,
        options: &Options,
        config: &Config,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let options = QueueOptions {
            size: options.queue_size,
            header_len: wire::HEADER_LEN,
            footer_len: wire::STATUS_LEN,
        };
        let queue = Queue::allocate(transport, REQUEST_QUEUE, options, negotiated)?;
        let limits = Limits::new(config, queue.max_segments());
        if limits.segments_max == 0 {
            let size = queue.size().into();
            return Err(queue.error(Cause::QueueSize { size, max: size }));
        }
        Ok(Self {
            config: *config,
            queue,
            limits,
        })
    }

    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>)) {
        visit(&mut self.queue);
    }

    fn reconfigure(device: &mut Configured<T, Config>) -> Result<Option<ConfigChange>> {
        let new = Config::read(&device.transport, features(device.negotiated))?;
        let old = core::mem::replace(&mut device.config, new);
        if old == new {
            return Ok(None);
        }
        Ok(Some(ConfigChange { old, new }))
    }

    /// Requests are checked against the new configuration from now on; those in flight are not touched.
    fn follow(&mut self, config: &Config) {
        self.config = *config;
        self.limits = Limits::new(config, self.queue.max_segments());
    }
}

fn features(negotiated: Negotiated) -> Features {
    Features::from_bits_truncate(negotiated.accepted)
}

impl<T: Transport> Active<T> {
    /// Checks a request, and makes its header.
    #[inline(always)]
    fn admit(&self, request: &mut Request) -> Result<[u8; wire::HEADER_LEN], Cause> {
        request.check(&self.config, self.limits)?;
        Ok(wire::header(request.operation(), request.sector()))
    }
}

impl<T: Transport> Blk<T> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// As for [`Started::new`], and a configuration that is impossible, or a queue too small for any data.
    pub fn new(transport: T, options: Options) -> Result<Self> {
        Ok(Self {
            device: Started::new(transport, options)?,
            counters: Counters::default(),
        })
    }

    /// The most segments of data that a request may have: what the device allows and the queue can take. A buffer is one,
    /// or one for each [`Config::size_max`] bytes of it, rounded down to whole blocks if that leaves any.
    pub fn segments_max(&self) -> usize {
        Limits::new(&self.config(), self.device.queue.max_segments()).segments_max
    }

    /// Requests that are with the device.
    pub fn in_flight(&self) -> u16 {
        self.device.queue.in_flight()
    }
}

impl<T: Transport> Deref for Blk<T> {
    type Target = Control<T>;

    fn deref(&self) -> &Control<T> {
        self.device.control()
    }
}

impl<T: Transport> Control<T> {
    /// Switches between write-back and write-through, and says which mode the device is in then. Writes in flight may be
    /// treated either way; after a switch to write-through, completed ones still need a flush.
    ///
    /// # Errors
    ///
    /// [`Cause::Unsupported`] without CONFIG_WCE.
    pub fn set_cache_mode(&self, mode: CacheMode) -> Result<CacheMode> {
        self.change(|device| {
            let features = features(device.negotiated);
            if !features.contains(Features::CONFIG_WCE) {
                return Err(Error::new(self.name(), Cause::Unsupported));
            }
            Config::write_cache_mode(&mut device.transport, mode)?;
            let mode = Config::read_cache_mode(&device.transport, features)?;
            device.config.cache_mode = mode;
            Ok(mode)
        })
    }
}

/// Whether a request that came back was done.
///
/// The status counts where it stands: before, there was none. What a read brought, or the device's name, can't be told from
/// what was in the memory before, so the device must say that it wrote all of it. Of all else that a device says of how much
/// it wrote, nothing is made: many err there (docs/decisions/used-lengths.md).
#[inline(always)]
fn judge(done: &Done<'_, Request>) -> Result<(), Cause> {
    let status = done.footer as u8;
    match done.written {
        // All that there was room for, as the specification has it.
        Ok(written) if written == done.room && status == wire::STATUS_OK => Ok(()),
        written => {
            let need = match done.payload.operation() {
                Operation::Read | Operation::GetId => done.room - wire::STATUS_LEN as u32,
                _ => 0,
            };
            judge_again(written, status, need)
        }
    }
}

#[cold]
fn judge_again(written: Result<u32, Cause>, status: u8, need: u32) -> Result<(), Cause> {
    if let Some(cause) = wire::failure(status) {
        return Err(cause);
    }
    match written {
        Ok(len) if len < need => Err(Cause::ShortResponse { len, need }),
        Err(cause) if need > 0 => Err(cause),
        _ => Ok(()),
    }
}

impl<T: Transport> Driver for Blk<T> {
    type Request = Request;
    type Control = Control<T>;

    fn control(&self) -> &Control<T> {
        self.device.control()
    }

    fn report(&self) -> Report {
        let Counters {
            bytes_read,
            bytes_written,
            errors,
        } = self.counters;
        Report {
            device: self.name(),
            negotiated: self.device.negotiated(),
            feature_names: FEATURE_NAMES,
            queues: vec![self.device.queue.report(QUEUE_NAME)],
            config_changes: self.changes(),
            counters: vec![
                ("bytes_read", bytes_read),
                ("bytes_written", bytes_written),
                ("errors", errors),
            ],
        }
    }

    fn submit(&mut self, mut request: Request) -> Result<Token, Rejected<Request>> {
        self.device.refresh();
        let active = &mut *self.device;
        match active.admit(&mut request) {
            Ok(header) => active.queue.submit(&header, request),
            Err(cause) => Err(Rejected {
                error: active.queue.error(cause),
                payload: request,
            }),
        }
    }

    #[inline(always)]
    fn accept(&mut self, request: &mut Option<Request>, waker: &Waker) -> Result<Token> {
        self.device.refresh();
        let active = &mut *self.device;
        let admitted = match request {
            Some(request) => active.admit(request),
            None => Err(Cause::EmptyRequest),
        };
        match admitted {
            Ok(header) => active.queue.accept(&header, request, waker),
            Err(cause) => Err(active.queue.error(cause)),
        }
    }

    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        self.device.queue.waker(token)
    }

    #[inline]
    fn kick(&mut self) {
        self.device.queue.kick();
    }

    #[inline(always)]
    fn complete(&mut self) -> Result<Option<Ready>> {
        self.device.queue.complete()
    }

    #[inline(always)]
    fn take(&mut self, token: Token) -> Option<Finished<Request>> {
        let counters = &mut self.counters;
        let (request, result) = self.device.queue.take_with(token, |done| {
            let result = judge(&done);
            match (&result, done.payload.operation()) {
                (Err(_), _) => counters.errors += 1,
                (Ok(()), Operation::Read) => {
                    counters.bytes_read += u64::from(done.room) - wire::STATUS_LEN as u64;
                }
                (Ok(()), Operation::Write) => counters.bytes_written += done.payload.bytes(),
                (Ok(()), _) => {}
            }
            result
        })?;
        Some(Finished {
            token,
            request,
            result: result.map_err(|cause| self.error(cause)),
        })
    }

    #[inline]
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
