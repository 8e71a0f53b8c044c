//! The pmem device (spec 5.19): a run of the machine's memory that outlives the machine.
//!
//! The memory itself needs no driver: [`Config`] says where it is, the platform maps it, and a
//! [`Region`](crate::region::Region) reads and writes it. What was written is persistent after the next flush, which is
//! what [`Pmem`], the non-blocking core, is for; over it are the two faces that wait,
//! [`Asynchronous`](crate::asynchronous::Asynchronous) and [`Blocking`](crate::blocking::Blocking).
//!
//! ```
//! use vringlet::blocking::Blocking;
//! use vringlet::fake::{FakeDevice, FakePmem};
//! use vringlet::pmem::{Options, Pmem};
//!
//! let device = FakeDevice::new(FakePmem::new(4096));
//! let pmem = Pmem::new(device.transport(), Options::default())?;
//! assert_eq!(pmem.config().size, 4096);
//!
//! // A store, as the mapped region would do it; then the flush, waited for as long as the caller says.
//! device.with(|model| model.memory[..5].copy_from_slice(b"hello"));
//! let mut turns = 1000;
//! Blocking::new(pmem).flush(|| {
//!     turns -= 1;
//!     turns > 0
//! })?;
//! device.with(|model| assert!(model.persistent.starts_with(b"hello")));
//! # Ok::<(), vringlet::Error>(())
//! ```
//!
//! # One flush at a time
//!
//! QEMU's device does one request for each notification, and stops working when it is notified and finds none. So at most
//! one request is ever with the device, which is notified exactly once for each. Any number of callers share it: those who
//! ask before it is kicked are served by it; those who ask while it is with the device wait for the next one, together,
//! because the device may have begun before their writes. However many callers there are, each waits for two flushes at
//! most.
//!
//! | file | what is in it |
//! |---|---|
//! | `wire.rs` | what goes over the queue |
//! | `config.rs` | where the region is |

mod asynchronous;
mod blocking;
mod config;
mod wire;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ops::Deref;
use core::task::Waker;

use crate::device::DeviceId;
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{AnyQueue, Completion, Queue, QueueOptions, Ready, Rejected, Token};
use crate::report::Report;
use crate::start::{Session, Started};
use crate::transport::Transport;

pub use self::config::Config;
pub use self::wire::{FEATURE_NAMES, Features};

/// How a pmem device is to be driven.
///
/// By default the driver takes 5 KiB of heap and 4 KiB of memory for DMA.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many callers may wait for a flush at once; more are told that the queue is full.
    pub callers: u16,
    /// Features to do without, of the ring or of the type.
    pub declined: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            callers: 64,
            declined: 0,
        }
    }
}

/// The request: everything written to the region before it is submitted shall be persistent when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush;

/// What a pmem device did since it was found.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Flushes that callers asked for.
    flushes: u64,
    /// Those of them that went with another caller's request.
    shared: u64,
    /// Those that failed.
    errors: u64,
}

/// A pmem device. Dereferences to [`Control`].
///
/// Counters: `flushes` that callers asked for, `flushes_shared` of them that went with another caller's request, `errors` for
/// callers whose flush failed.
pub struct Pmem<T: Transport> {
    device: Started<T, Active<T>>,
    callers: Callers,
    counters: Counters,
}

/// A pmem device apart from its queue. Its configuration says where the region is, which stays there for as long as there is
/// a driver, restarts included.
pub type Control<T> = crate::start::Control<T, Active<T>>;

/// A pmem device at work.
pub struct Active<T: Transport> {
    queue: Queue<T, ()>,
}

/// Who waits for what, by the numbers of their tokens.
#[derive(Debug, Default)]
struct Callers {
    /// Numbers that nobody has.
    free: Vec<u16>,
    /// Served by the request that is in the queue.
    served: Vec<u16>,
    /// The device was told of that request.
    kicked: bool,
    /// Those who came after the kick: served by the next request.
    next: Vec<u16>,
    /// Not told yet what came of it.
    done: VecDeque<(u16, Result<(), Cause>)>,
    /// What came of those who were told that it is over, until they fetch it, by number.
    results: Vec<Option<Result<(), Cause>>>,
    /// Who is to be told, by number.
    wakers: Vec<Option<Waker>>,
}

impl Callers {
    fn new(count: u16) -> Self {
        Self {
            free: (0..count).rev().collect(),
            results: vec![None; count.into()],
            wakers: vec![None; count.into()],
            ..Self::default()
        }
    }

    /// The request that served them is over, or can't be made.
    fn finish(&mut self, result: Result<(), Cause>) {
        self.kicked = false;
        self.done
            .extend(self.served.drain(..).map(|number| (number, result)));
    }
}

/// The only queue.
const REQUEST_QUEUE: u16 = 0;
const QUEUE_NAME: &str = "req_vq";
/// A request and its response: there is never more in the queue.
const QUEUE_SIZE: u16 = 2;

impl<T: Transport> Session<T> for Active<T> {
    type Options = Options;
    type Config = Config;
    /// Nothing in the configuration can.
    type Change = Infallible;

    const ID: DeviceId = DeviceId::PMEM;
    const UNDERSTOOD: u64 = Features::all().bits();

    fn declined(transport: &mut T, options: &Options) -> u64 {
        // Without the feature the device must say in its configuration where the region is.
        match transport.shared_memory(config::SHARED_MEMORY_ID) {
            None => options.declined | Features::SHMEM_REGION.bits(),
            Some(_) => options.declined,
        }
    }

    fn configure(transport: &mut T, _: &Options, negotiated: Negotiated) -> Result<Config> {
        let features = Features::from_bits_truncate(negotiated.accepted);
        Config::read(transport, features)
    }

    fn make(transport: &mut T, _: &Options, _: &Config, negotiated: Negotiated) -> Result<Self> {
        let options = QueueOptions {
            size: QUEUE_SIZE,
            header_len: wire::REQUEST_LEN,
            footer_len: wire::RESPONSE_LEN,
        };
        let queue = Queue::allocate(transport, REQUEST_QUEUE, options, negotiated)?;
        match queue.size() {
            QUEUE_SIZE => Ok(Self { queue }),
            size => Err(queue.error(Cause::QueueSize {
                size: QUEUE_SIZE.into(),
                max: size.into(),
            })),
        }
    }

    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>)) {
        visit(&mut self.queue);
    }
}

impl<T: Transport> Pmem<T> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// As for [`Started::new`], and a device that says that its region is nowhere.
    pub fn new(transport: T, options: Options) -> Result<Self> {
        if options.callers == 0 {
            let cause = Cause::InvalidParameter("no callers");
            return Err(Error::new(transport.name(), cause));
        }
        Ok(Self {
            device: Started::new(transport, options)?,
            callers: Callers::new(options.callers),
            counters: Counters::default(),
        })
    }

    /// Requests that are with the device: none or one, whatever the number of callers.
    pub fn in_flight(&self) -> u16 {
        self.device.queue.in_flight()
    }

    /// Puts a request into the queue, of which the device is not told.
    fn enqueue(&mut self) -> Result<()> {
        let queued = self.device.queue.submit(&wire::FLUSH, ());
        queued.map(drop).map_err(|rejected| rejected.error)
    }

    /// Takes the completion of the request that is with the device, and sends the next one for those who wait for it.
    fn advance(&mut self) -> Result<()> {
        let mut ret = [0; wire::RESPONSE_LEN];
        let Some(completion) = self.device.queue.poll(&mut ret)? else {
            return Ok(());
        };
        let Completion { written, .. } = completion;
        let result = written.and_then(|written| wire::check(written, ret));
        self.callers.finish(result);
        if self.callers.next.is_empty() {
            return Ok(());
        }
        core::mem::swap(&mut self.callers.served, &mut self.callers.next);
        match self.enqueue() {
            Ok(()) => self.kick(),
            Err(error) => self.callers.finish(Err(error.cause)),
        }
        Ok(())
    }
}

impl<T: Transport> Deref for Pmem<T> {
    type Target = Control<T>;

    fn deref(&self) -> &Control<T> {
        self.device.control()
    }
}

impl<T: Transport> Driver for Pmem<T> {
    type Request = Flush;
    type Control = Control<T>;

    fn control(&self) -> &Control<T> {
        self.device.control()
    }

    fn report(&self) -> Report {
        let Counters {
            flushes,
            shared,
            errors,
        } = self.counters;
        Report {
            device: self.name(),
            negotiated: self.device.negotiated(),
            feature_names: FEATURE_NAMES,
            queues: vec![self.device.queue.report(QUEUE_NAME)],
            config_changes: 0,
            counters: vec![
                ("flushes", flushes),
                ("flushes_shared", shared),
                ("errors", errors),
            ],
        }
    }

    fn submit(&mut self, request: Flush) -> Result<Token, Rejected<Flush>> {
        let rejected = |error| Rejected {
            error,
            payload: request,
        };
        let Some(number) = self.callers.free.pop() else {
            return Err(rejected(self.error(Cause::QueueFull)));
        };
        if self.callers.served.is_empty()
            && let Err(error) = self.enqueue()
        {
            self.callers.free.push(number);
            return Err(rejected(error));
        }
        let callers = &mut self.callers;
        let group = match callers.kicked {
            // The device may have looked at the region before the caller wrote to it.
            true => &mut callers.next,
            false => &mut callers.served,
        };
        self.counters.flushes += 1;
        if !group.is_empty() {
            self.counters.shared += 1;
        }
        group.push(number);
        Ok(Token::new(number))
    }

    fn kick(&mut self) {
        if !self.callers.served.is_empty() && !self.callers.kicked {
            // The caller's stores to the region come before it for the device, too: the queue publishes the request
            // behind a full barrier.
            self.device.queue.kick();
            self.callers.kicked = true;
        }
    }

    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        self.callers.wakers.get_mut(token.index())
    }

    fn complete(&mut self) -> Result<Option<Ready>> {
        if self.callers.done.is_empty() {
            self.advance()?;
        }
        let callers = &mut self.callers;
        let Some((number, result)) = callers.done.pop_front() else {
            return Ok(None);
        };
        if let Some(place) = callers.results.get_mut(usize::from(number)) {
            *place = Some(result);
        }
        let token = Token::new(number);
        let waker = self.waker(token).and_then(Option::take);
        Ok(Some(Ready { token, waker }))
    }

    fn take(&mut self, token: Token) -> Option<Finished<Flush>> {
        let result = self.callers.results.get_mut(token.index())?.take()?;
        self.callers.free.push(token.index() as u16);
        if result.is_err() {
            self.counters.errors += 1;
        }
        Some(Finished {
            token,
            request: Flush,
            result: result.map_err(|cause| self.error(cause)),
        })
    }

    fn enable_interrupts(&mut self) -> bool {
        let more = self.device.queue.enable_interrupts();
        more || !self.callers.done.is_empty()
    }

    fn disable_interrupts(&mut self) {
        self.device.queue.disable_interrupts();
    }

    fn queue_size(&self) -> u16 {
        self.device.options().callers
    }

    fn error(&self, cause: Cause) -> Error {
        self.device.queue.error(cause)
    }

    fn reset(&mut self) -> Result<Vec<(Token, Flush)>> {
        let proof = self.device.reset()?;
        self.device.queue.release(&proof);
        let callers = core::mem::replace(
            &mut self.callers,
            Callers::new(self.device.options().callers),
        );
        let done = callers.done.into_iter().map(|(number, _)| number);
        let all = callers.served.into_iter().chain(callers.next).chain(done);
        Ok(all.map(|number| (Token::new(number), Flush)).collect())
    }

    fn restart(&mut self) -> Result<()> {
        drop(self.reset()?);
        let old = self.config();
        self.device.restart()?;
        let new = self.config();
        // Whoever mapped the region would read and write where it was.
        if new != old {
            drop(self.reset()?);
            self.change(|device| device.config = old);
            return Err(self.error(Cause::BadConfig {
                field: "start",
                value: new.start,
            }));
        }
        Ok(())
    }
}
