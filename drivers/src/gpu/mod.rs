//! The GPU (spec 5.7) in 2D: screens, monitors, and a pointer.
//!
//! The device keeps pictures of its own ("resources"); the driver tells it which memory is behind a picture, has it copy
//! the parts that were drawn on, and says which picture a scanout shows.
//!
//! [`Gpu`] is the non-blocking core: [`Driver::submit`] a [`Request`], [`Driver::kick`], [`Driver::poll`] for those that
//! are done. Over it are two faces that wait, [`crate::asynchronous::Asynchronous`] and [`crate::blocking::Blocking`],
//! with a method per operation in `asynchronous.rs` and `blocking.rs` here. Requests are made by a [`Screen`], which is
//! drawn on and sends what was drawn, and a [`Cursor`].
//!
//! ```
//! use vringlet::blocking::Blocking;
//! use vringlet::fake::{FakeDevice, FakeGpu};
//! use vringlet::gpu::{Buffering, Gpu, Options, Rect, Screen};
//!
//! // An adapter in memory; a kernel has a `PciTransport` here.
//! let device = FakeDevice::new(FakeGpu::new());
//! let mut gpu = Blocking::new(Gpu::new(device.transport(), Options::default())?);
//!
//! // How long to wait is the caller's business.
//! let mut turns = 1000;
//! let mut wait = || {
//!     turns -= 1;
//!     turns > 0
//! };
//! gpu.refresh(&mut wait)?;
//! let head = gpu.driver().layout().expect("the device answered").primary();
//! let dma = gpu.driver().dma().clone();
//! let size = head.rect.size();
//! let mut screen = Screen::new(&dma, head.scanout, size, Buffering::Single).expect("memory");
//! screen.canvas().fill(Rect::new(10, 20, 300, 200), 0xff8000);
//! gpu.present(&mut screen, &mut wait)?;
//!
//! let (width, _, pixels) = device.with(|adapter| adapter.screen(0)).expect("a picture");
//! assert_eq!(pixels[20 * width as usize + 10], 0xff8000);
//! # Ok::<(), vringlet::Error>(())
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `wire.rs` | what goes over the queues: one struct per message |
//! | `config.rs` | features and the device configuration |
//! | `request.rs` | requests: lists of commands |
//! | `task.rs` | requests on their way: commands made into messages, responses judged |
//! | `resource.rs` | the driver's account of the device's pictures, and of the memory that is lent for them |
//! | `screen.rs` | what a scanout shows: one framebuffer, or two in turn |
//! | `framebuffer.rs`, `damage.rs` | pixels, and which of them were drawn on |
//! | `embedded_graphics.rs` | a framebuffer as `embedded_graphics_core::DrawTarget` |
//! | `cursor.rs` | the pointer |
//! | `layout.rs`, `edid.rs` | which displays there are, and what they say about themselves |

mod asynchronous;
mod blocking;
mod config;
mod cursor;
mod damage;
mod edid;
#[cfg(feature = "embedded-graphics")]
mod embedded_graphics;
mod framebuffer;
mod layout;
mod request;
mod resource;
mod screen;
mod task;
pub mod wire;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;
use core::ops::Deref;
use core::task::Waker;

use zerocopy::FromBytes;

use self::request::Command;
use self::resource::{Ending, Resources, Step, Subject};
use self::task::{Sent, Task};
use self::wire::{CommandType, CtrlHdr};
use crate::device::DeviceId;
use crate::driver::{Driver, Finished};
use crate::error::{Cause, Error, Result};
use crate::features::Negotiated;
use crate::queue::{AnyQueue, Completion, Queue, QueueOptions, Ready, Rejected, Token};
use crate::report::Report;
use crate::start::{Configured, Session, Started};
use crate::transport::{Quiesced, Transport};

pub use self::config::{FEATURE_NAMES, Features};
pub use self::cursor::Cursor;
pub use self::damage::{Damage, Rect, Size};
pub use self::edid::Edid;
pub use self::framebuffer::{Framebuffer, MAX_DIMENSION, PIXEL_LEN};
pub use self::layout::{Change, FALLBACK, Head, Layout};
pub use self::request::{Request, ResourceId};
pub use self::screen::{Buffering, Screen};
pub use piaf::EdidError;

/// How a GPU is to be driven.
///
/// By default the driver takes 30 KiB of heap and 16 KiB of memory for DMA, and 13 and 8 KiB with queues of 4 and 2. Pictures
/// come on top: four bytes of memory for DMA for each pixel.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of the control queue, a power of two; the device's maximum if that is smaller.
    pub control_queue_size: u16,
    /// The same for the cursor queue.
    pub cursor_queue_size: u16,
    /// Features to do without, of the ring or of the type.
    pub declined: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            control_queue_size: 256,
            cursor_queue_size: 16,
            declined: 0,
        }
    }
}

const CONTROL_QUEUE: u16 = 0;
const CURSOR_QUEUE: u16 = 1;

/// Segments of the longest command: command, memory entries or a longer response, short response.
const MAX_SEGMENTS: usize = 3;

/// Requests that the driver has at the same time; more are refused as [`Cause::QueueFull`].
const MAX_REQUESTS: u16 = 64;

/// A virtio GPU in 2D mode. Dereferences to [`Control`].
///
/// Counters: `commands` sent and `errors` for those that failed; `transfers` to the device's pictures and their
/// `bytes_transferred`, `flushes`; `cursor_updates`, `cursor_moves`, `cursor_errors`; `display_changes` that were announced,
/// `impossible_modes` and `bad_edids` among the answers; `resources` that the device has now, `backed_resources` with memory
/// of ours.
pub struct Gpu<T: Transport> {
    device: Started<T, Active<T>>,
    /// Requests that were submitted and not given back, by token.
    tasks: Vec<Option<Task<T::Dma>>>,
    /// Those of them that have commands left which the device doesn't have, oldest first.
    waiting: VecDeque<usize>,
    finished: VecDeque<usize>,
    /// What went wrong while requests that were over had not been told of.
    failed: Option<Error>,
    resources: Resources<T::Dma>,
    next_fence: u64,
    layout: Option<Layout>,
    changes: Vec<Change>,
    edids: Vec<Option<Edid>>,
    counters: Counters,
}

/// A GPU apart from its queues.
pub type Control<T> = crate::start::Control<T, Active<T>>;

/// What the configuration of a GPU says.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How many scanouts the device has, 1 to 16.
    pub scanouts: u32,
}

/// A GPU at work.
pub struct Active<T: Transport> {
    scanouts: u32,
    control: Queue<T, Sent<T::Dma>>,
    cursor: Queue<T, CommandType>,
}

/// What a GPU did since it was found.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    impossible_modes: u64,
    bad_edids: u64,
    commands: u64,
    errors: u64,
    transfers: u64,
    bytes_transferred: u64,
    flushes: u64,
    cursor_updates: u64,
    cursor_moves: u64,
    cursor_errors: u64,
}

impl<T: Transport> Session<T> for Active<T> {
    type Options = Options;
    type Config = Config;
    type Change = DisplaysChanged;

    const ID: DeviceId = DeviceId::GPU;
    const UNDERSTOOD: u64 = Features::all().bits();

    fn declined(_: &mut T, options: &Options) -> u64 {
        options.declined
    }

    fn configure(transport: &mut T, _: &Options, _: Negotiated) -> Result<Config> {
        Ok(Config {
            scanouts: config::read_num_scanouts(transport)?,
        })
    }

    fn make(
        transport: &mut T,
        options: &Options,
        config: &Config,
        negotiated: Negotiated,
    ) -> Result<Self> {
        let with_size = |size| QueueOptions {
            size,
            header_len: wire::MAX_COMMAND_LEN,
            footer_len: size_of::<CtrlHdr>(),
        };
        let size = with_size(options.control_queue_size);
        let control = Queue::allocate(transport, CONTROL_QUEUE, size, negotiated)?;
        let size = with_size(options.cursor_queue_size);
        let mut cursor = Queue::allocate(transport, CURSOR_QUEUE, size, negotiated)?;
        // Nobody waits for these: what is done is taken back with the next.
        cursor.disable_interrupts();
        if control.max_segments() < MAX_SEGMENTS {
            let size = control.size().into();
            return Err(control.error(Cause::QueueSize { size, max: size }));
        }
        Ok(Self {
            scanouts: config.scanouts,
            control,
            cursor,
        })
    }

    fn each_queue(&mut self, visit: &mut dyn FnMut(&mut dyn AnyQueue<T>)) {
        visit(&mut self.control);
        visit(&mut self.cursor);
    }

    fn reconfigure(device: &mut Configured<T, Config>) -> Result<Option<DisplaysChanged>> {
        let displays = config::take_display_event(&mut device.transport)?;
        Ok(displays.then_some(DisplaysChanged))
    }
}

impl<T: Transport> Gpu<T> {
    /// Starts the device that `transport` leads to.
    ///
    /// # Errors
    ///
    /// As for [`Started::new`], and a configuration that is impossible, or too small a queue.
    pub fn new(transport: T, options: Options) -> Result<Self> {
        let device: Started<T, Active<T>> = Started::new(transport, options)?;
        let mut tasks = Vec::new();
        tasks.resize_with(MAX_REQUESTS.into(), || None);
        Ok(Self {
            resources: Resources::new(device.control().name(), device.scanouts),
            edids: vec![None; device.scanouts as usize],
            device,
            tasks,
            waiting: VecDeque::new(),
            failed: None,
            finished: VecDeque::new(),
            next_fence: 1,
            layout: None,
            changes: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// How the device reaches memory: what its pictures are made with.
    pub fn dma(&self) -> T::Dma {
        self.with(|device| device.transport.dma().clone())
    }

    /// How many scanouts the device has, 1 to 16.
    pub fn scanouts(&self) -> u32 {
        self.device.scanouts
    }

    /// Whether [`Request::edid`] is possible.
    pub fn has_edid(&self) -> bool {
        self.device.negotiated().has(Features::EDID.bits())
    }

    /// How the displays are arranged, as far as the device was asked.
    pub fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// What became of the arrangement since the last call: what to do with the screens. In the beginning there is no
    /// display.
    pub fn take_changes(&mut self) -> Vec<Change> {
        mem::take(&mut self.changes)
    }

    /// What the monitor at a scanout said about itself, as far as the device was asked.
    pub fn edid(&self, scanout: u32) -> Option<&Edid> {
        self.edids.get(scanout as usize)?.as_ref()
    }

    /// The scanouts of which something can be learned by [`Request::edid`].
    fn heads_with_edid(&self) -> Vec<u32> {
        let layout = self.layout.as_ref().filter(|_| self.has_edid());
        let heads = layout.map_or(&[][..], Layout::heads);
        heads.iter().map(|head| head.scanout).collect()
    }

    /// Commands that are with the device, on the queue that interrupts.
    pub fn in_flight(&self) -> u16 {
        self.device.control.in_flight()
    }
}

/// Sending the commands of requests, as there is room, and taking the answers.
impl<T: Transport> Gpu<T> {
    /// Sends what can be sent of all requests that wait, oldest first. Says whether there was anything.
    fn feed_all(&mut self) -> bool {
        let mut any = false;
        for younger in (0..self.waiting.len()).rev() {
            if let Some(index) = self.waiting.pop_front() {
                any |= self.feed(index, younger);
            }
        }
        any
    }

    /// Sends the commands of one request until it must wait, failed, or has no more. The first `younger` of those that wait
    /// came after it, the others before. Says whether there was anything.
    fn feed(&mut self, index: usize, younger: usize) -> bool {
        // While one waits for the device, another that doesn't goes on. But what a scanout shows in the end is what was
        // submitted last.
        let older = self.waiting.iter().skip(younger);
        let older = older.filter_map(|index| self.tasks.get(*index)?.as_ref());
        let unset: Vec<u32> = older.flat_map(Task::scanouts).collect();
        let Some(Some(task)) = self.tasks.get_mut(index) else {
            return false;
        };
        let control = &mut self.device.control;
        let mut any = false;
        while task.result.is_ok()
            && control.has_room(MAX_SEGMENTS)
            && let Some(command) = task.request.commands.get_mut(task.next)
        {
            if matches!(command, Command::SetScanout { scanout, .. } if unset.contains(scanout)) {
                break;
            }
            let kind = match self.resources.step(command, task.in_flight) {
                Ok(Step::Send(kind)) => kind,
                Ok(Step::Wait) => break,
                Ok(Step::Skip) => {
                    task.next += 1;
                    continue;
                }
                Err(cause) => {
                    task.fail(control.error(cause));
                    break;
                }
            };
            let made = Sent::new(index, command, kind, self.next_fence, &mut self.resources);
            let (sent, message) = match made {
                Ok(made) => made,
                Err(cause) => {
                    task.fail(control.error(cause));
                    break;
                }
            };
            self.next_fence += 1;
            if let Err(rejected) = control.submit(message.as_bytes(), sent) {
                // The device never saw it.
                self.resources
                    .end(rejected.payload.subject, Ending::Refused);
                task.fail(rejected.error);
                break;
            }
            any = true;
            self.counters.commands += 1;
            task.in_flight += 1;
            if kind != CommandType::ResourceDetachBacking {
                task.next += 1;
            }
        }
        task.waiting = task.has_more();
        if task.waiting {
            self.waiting.push_back(index);
        } else if task.in_flight == 0 {
            self.finished.push_back(index);
        }
        any
    }

    /// Takes what the device is done with, and gives it what follows.
    fn advance(&mut self) -> Result<()> {
        self.poll_cursor()?;
        // Whatever comes back now is looked at before the device is told of what follows it: of all requests at once.
        let mut fed = false;
        // It ends whatever the device does: each command is sent once, and there are no more of them than the requests that
        // were submitted have.
        loop {
            let usable = self.resources.check_kept();
            usable.map_err(|cause| self.error(cause))?;
            let mut header = [0; size_of::<CtrlHdr>()];
            if let Some(completion) = self.device.control.poll(&mut header)? {
                self.settle(completion, &header);
                fed |= self.feed_all();
                continue;
            }
            if !core::mem::take(&mut fed) {
                return Ok(());
            }
            self.device.control.kick();
        }
    }

    /// Takes down how a command ended.
    fn settle(&mut self, completion: Completion<Sent<T::Dma>>, header: &[u8]) {
        let sent = completion.payload;
        let Subject {
            command, scanout, ..
        } = sent.subject;
        let mut result = sent.judge(completion.written, header);
        self.resources.end(sent.subject, task::ending(&result));
        if result.is_ok() {
            match command {
                CommandType::GetDisplayInfo => self.take_display_info(sent.response.as_deref()),
                CommandType::GetEdid => result = self.take_edid(scanout, sent.response.as_deref()),
                CommandType::TransferToHost2d => {
                    self.counters.transfers += 1;
                    self.counters.bytes_transferred += sent.pixels * PIXEL_LEN as u64;
                }
                CommandType::ResourceFlush => self.counters.flushes += 1,
                _ => {}
            }
        }
        let Some(Some(task)) = self.tasks.get_mut(sent.task) else {
            return;
        };
        task.in_flight = task.in_flight.saturating_sub(1);
        if let Err(cause) = result {
            self.counters.errors += 1;
            // That the backing can't be detached is no failure: what comes next ends the resource with it.
            let detached = command == CommandType::ResourceDetachBacking;
            if !(detached && task::ending(&Err(cause)) == Ending::Refused) {
                task.fail(self.device.control.error(cause));
            }
        }
        if task.in_flight == 0 && !task.waiting {
            self.finished.push_back(sent.task);
        }
    }

    fn take_display_info(&mut self, response: Option<&[u8]>) {
        // The response has the length that it needs, or it would not be one.
        let Some(Ok((info, _))) = response.map(wire::RespDisplayInfo::ref_from_prefix) else {
            return;
        };
        let (layout, impossible) = Layout::from_device(info, self.device.scanouts);
        if impossible > 0 {
            self.counters.impossible_modes += u64::from(impossible);
            log::warn!(
                "{}: {impossible} displays of an impossible size",
                self.name()
            );
        }
        let old = self.layout.take().unwrap_or_default();
        self.changes.extend(layout.changes_since(&old));
        for (scanout, edid) in (0..).zip(&mut self.edids) {
            if layout.head(scanout).is_none() {
                *edid = None;
            }
        }
        self.layout = Some(layout);
    }

    fn take_edid(&mut self, scanout: Option<u32>, response: Option<&[u8]>) -> Result<(), Cause> {
        let Some(place) = scanout.and_then(|scanout| self.edids.get_mut(scanout as usize)) else {
            return Ok(());
        };
        *place = None;
        let Some(Ok((response, _))) = response.map(wire::RespEdid::ref_from_prefix) else {
            return Ok(());
        };
        let bytes = response.edid.get(..response.size.get() as usize);
        match bytes.map(Edid::parse) {
            Some(Ok(edid)) => *place = Some(edid),
            Some(Err(_)) | None => {
                self.counters.bad_edids += 1;
                return Err(Cause::BadResponse {
                    command: CommandType::GetEdid.name(),
                    what: "no EDID",
                });
            }
        }
        Ok(())
    }

    /// A request is over, and who waits for it is to be told.
    fn tell(&mut self, index: usize) -> Option<Ready> {
        let task = self.tasks.get_mut(index)?.as_mut()?;
        task.told = true;
        Some(Ready {
            token: Token::new(index as u16),
            waker: task.waker.take(),
        })
    }

    /// Hands a request back that is over.
    fn give_back(&mut self, index: usize) -> Option<Finished<Request<T::Dma>>> {
        let mut task = self.tasks.get_mut(index)?.take_if(|task| task.is_over())?;
        if task.result.is_ok() {
            task.request.promise.keep();
        }
        Some(Finished {
            token: Token::new(index as u16),
            request: task.request,
            result: task.result,
        })
    }
}

/// The displays changed: ask for them ([`Request::display_info`], or a face's `refresh`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisplaysChanged;

impl<T: Transport> Deref for Gpu<T> {
    type Target = Control<T>;

    fn deref(&self) -> &Control<T> {
        self.device.control()
    }
}

impl<T: Transport> Driver for Gpu<T> {
    type Request = Request<T::Dma>;
    type Control = Control<T>;

    fn control(&self) -> &Control<T> {
        self.device.control()
    }

    fn report(&self) -> Report {
        let Active {
            control, cursor, ..
        } = &*self.device;
        let counters = &self.counters;
        Report {
            device: self.name(),
            negotiated: self.device.negotiated(),
            feature_names: FEATURE_NAMES,
            queues: vec![control.report("controlq"), cursor.report("cursorq")],
            config_changes: self.changes_announced(),
            counters: vec![
                ("commands", counters.commands),
                ("errors", counters.errors),
                ("transfers", counters.transfers),
                ("bytes_transferred", counters.bytes_transferred),
                ("flushes", counters.flushes),
                ("cursor_updates", counters.cursor_updates),
                ("cursor_moves", counters.cursor_moves),
                ("cursor_errors", counters.cursor_errors),
                ("display_changes", self.changes()),
                ("impossible_modes", counters.impossible_modes),
                ("bad_edids", counters.bad_edids),
                ("resources", self.resources.count() as u64),
                ("backed_resources", self.resources.count_backed() as u64),
            ],
        }
    }

    fn submit(&mut self, request: Request<T::Dma>) -> Result<Token, Rejected<Request<T::Dma>>> {
        let reject = |error, payload| Err(Rejected { error, payload });
        let asks_edid = |command: &Command<T::Dma>| matches!(command, Command::Edid { .. });
        if !self.has_edid() && request.commands.iter().any(asks_edid) {
            return reject(self.error(Cause::Unsupported), request);
        }
        let Some(index) = self.tasks.iter().position(Option::is_none) else {
            return reject(self.error(Cause::QueueFull), request);
        };
        let Some(place) = self.tasks.get_mut(index) else {
            return reject(self.error(Cause::QueueFull), request);
        };
        *place = Some(Task::new(request));
        let sent = self.feed(index, 0);
        // Over before the device had anything to do with it: nothing will come back, so it goes back at once.
        if !sent
            && self.finished.back() == Some(&index)
            && let Some(finished) = self.give_back(index)
        {
            self.finished.pop_back();
            let nothing = Cause::InvalidParameter("the device has nothing of that");
            let error = finished.result.err().unwrap_or(self.error(nothing));
            return reject(error, finished.request);
        }
        Ok(Token::new(index as u16))
    }

    fn kick(&mut self) {
        self.device.control.kick();
    }

    fn waker(&mut self, token: Token) -> Option<&mut Option<Waker>> {
        let task = self.tasks.get_mut(token.index())?.as_mut()?;
        (!task.told).then_some(&mut task.waker)
    }

    fn complete(&mut self) -> Result<Option<Ready>> {
        let advanced = match self.failed {
            Some(error) => Err(error),
            None => self.advance(),
        };
        // Whatever went wrong, it is none of what was over before.
        match self.finished.pop_front() {
            Some(index) => {
                self.failed = advanced.err();
                Ok(self.tell(index))
            }
            None => advanced.map(|()| None),
        }
    }

    fn take(&mut self, token: Token) -> Option<Finished<Request<T::Dma>>> {
        let task = self.tasks.get(token.index())?.as_ref()?;
        match task.told {
            true => self.give_back(token.index()),
            false => None,
        }
    }

    fn enable_interrupts(&mut self) -> bool {
        self.device.control.enable_interrupts() || !self.finished.is_empty()
    }

    fn disable_interrupts(&mut self) {
        self.device.control.disable_interrupts();
    }

    fn queue_size(&self) -> u16 {
        MAX_REQUESTS
    }

    fn error(&self, cause: Cause) -> Error {
        self.device.control.error(cause)
    }

    fn reset(&mut self) -> Result<Vec<(Token, Request<T::Dma>)>> {
        let proof = self.device.reset()?;
        Ok(self.release(&proof))
    }

    fn restart(&mut self) -> Result<()> {
        drop(self.reset()?);
        self.device.restart()?;
        self.resources.clear(self.device.scanouts as usize);
        self.edids.clear();
        self.edids.resize(self.device.scanouts as usize, None);
        Ok(())
    }
}

impl<T: Transport> Gpu<T> {
    /// After a reset: ends all loans and gives back the requests.
    fn release(&mut self, proof: &Quiesced) -> Vec<(Token, Request<T::Dma>)> {
        drop(self.device.control.release(proof));
        drop(self.device.cursor.release(proof));
        self.resources.clear(self.device.scanouts as usize);
        self.waiting.clear();
        self.finished.clear();
        self.failed = None;
        self.layout = None;
        self.changes.clear();
        self.edids.fill(None);
        let tasks = (0..).zip(&mut self.tasks);
        let requests = tasks.filter_map(|(index, task)| {
            let request = task.take()?.request;
            Some((Token::new(index), request))
        });
        requests.collect()
    }
}

impl<T: Transport> Drop for Gpu<T> {
    fn drop(&mut self) {
        // Else the memory of the device's pictures, which it may still read, would be leaked. That is what happens if it
        // does not come back from the reset.
        match self.device.end() {
            Ok(proof) => drop(self.release(&proof)),
            Err(error) => log::error!("{error}"),
        }
    }
}
