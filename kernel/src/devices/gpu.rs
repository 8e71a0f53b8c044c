//! Graphics adapters: each has a task that owns it, one that follows its displays, and a [`Desk`] with what they show.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use embassy_futures::yield_now;
use spin::Mutex;
use vringlet::asynchronous::Asynchronous;
use vringlet::blocking::Blocking;
use vringlet::gpu::wire::CommandType;
use vringlet::gpu::{
    Buffering, Change, Cursor, DisplaysChanged, Framebuffer, Gpu, Head, Layout, Options, PIXEL_LEN,
    Rect, Screen, Size,
};
use vringlet::{Cause, Driver, Error, Report};

use super::owner::{self, Owner, Shared};
use super::{DeviceTransport, Driven, Found};
use crate::platform::interrupts::Event;
use crate::platform::memory::dma::KernelDma;
use crate::platform::memory::{PAGE_BYTES, frames};
use crate::platform::time;
use crate::runtime::task;

/// How long the device is waited for while the kernel starts.
const PATIENCE: Duration = Duration::from_secs(1);
/// Rows of a picture that are drawn before others have their turn.
const ROWS_A_TURN: u32 = 16;
/// No display is made smaller than this for want of memory.
const MIN_SIZE: Size = Size::new(320, 200);
/// Pages of memory for devices that pictures must leave to others.
const SPARE_PAGES: usize = (2 << 20) / PAGE_BYTES;
/// How long before the desk is looked for again, when somebody else works on it.
const DESK_PAUSE: Duration = Duration::from_millis(1);

/// A graphics adapter. Dereferences to the driver's asynchronous face.
pub struct Adapter {
    /// Its name, such as `gpu0`.
    pub name: String,
    shared: Shared<Gpu<DeviceTransport>>,
    /// The arrangement of displays may have changed.
    changed: Event,
    /// The device was reset, and has no pictures any more.
    lost: AtomicBool,
    /// The displays are arranged anew, or something else is to be shown: the dashboard's business.
    pub rearranged: Event,
    /// Not there while somebody works on it.
    desk: Mutex<Option<Desk>>,
}

/// What an adapter shows.
#[derive(Default)]
pub struct Desk {
    screens: Vec<Shown>,
    cursor: Option<Cursor<KernelDma>>,
    /// What the displays show, whatever displays there are.
    pub showing: Showing,
}

/// What a display shows.
struct Shown {
    screen: Screen<KernelDma>,
    /// How large the display wants it to be.
    wanted: Size,
}

/// What is shown.
pub enum Showing {
    /// The dashboard.
    Dashboard {
        /// What it drew last is still on the screens.
        drawn: bool,
    },
    /// The test pattern.
    Test,
    /// A picture.
    Picture(Arc<dyn Picture>),
    /// What commands drew.
    Drawing,
}

impl Default for Showing {
    fn default() -> Self {
        Self::Dashboard { drawn: false }
    }
}

/// A picture that fits itself to displays.
pub trait Picture: Send + Sync {
    /// Where it goes on a display of this size.
    fn place(&self, display: Size) -> Rect;

    /// A row of it, as it is with this width and height: those of [`Self::place`].
    fn row(&self, y: u32, width: u32, height: u32) -> Vec<u32>;
}

/// The desk, in the hands of one task.
pub struct Borrowed<'a> {
    adapter: &'a Adapter,
    desk: Desk,
}

impl Deref for Adapter {
    type Target = Asynchronous<Gpu<DeviceTransport>>;

    fn deref(&self) -> &Self::Target {
        &self.shared
    }
}

impl Deref for Borrowed<'_> {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        *self.adapter.desk.lock() = Some(core::mem::take(&mut self.desk));
    }
}

static ADAPTERS: Mutex<Vec<&'static Adapter>> = Mutex::new(Vec::new());

/// All adapters, in the order they were found.
pub fn all() -> Vec<&'static Adapter> {
    ADAPTERS.lock().clone()
}

/// Brings an adapter up.
pub(super) fn start(found: Found) -> Result<Box<dyn Driven>, Error> {
    let mut gpu = Blocking::new(Gpu::new(found.transport, Options::default())?);
    let start = time::now();
    gpu.refresh(|| start.elapsed() < PATIENCE)?;
    let adapter: &'static Adapter = Box::leak(Box::new(Adapter {
        name: found.name,
        shared: Shared::new(gpu.into_inner(), found.interrupts, 1),
        changed: Event::new(),
        lost: AtomicBool::new(false),
        rearranged: Event::new(),
        desk: Mutex::new(Some(Desk::default())),
    }));
    ADAPTERS.lock().push(adapter);
    adapter.shared.serve();
    task::spawn(adapter.own());
    task::spawn(adapter.follow());
    Ok(Box::new(adapter))
}

impl Adapter {
    /// The owner's task.
    async fn own(&self) {
        let mut owner = Owner::new(&self.name, &self.shared, owner::timeout());
        // What comes back on the cursor's queue is not taken before the next command for it.
        let queues = || {
            let mut queues = self.with(|gpu| gpu.report()).queues;
            queues.truncate(1);
            queues
        };
        let watch = || {
            self.shared
                .watch_config(|DisplaysChanged| self.changed.raise())
        };
        while owner.serve(watch(), queues).await {
            // Started again, it has no pictures any more.
            self.lost.store(true, Ordering::Relaxed);
            self.changed.raise();
        }
    }

    /// The task that follows the displays as they come, go and change their size.
    async fn follow(&self) {
        loop {
            self.changed.wait().await;
            let changes = match self.refresh().await {
                Ok(changes) => changes,
                Err(error) => {
                    log::warn!("{}: {error}", self.name);
                    continue;
                }
            };
            for change in &changes {
                log::info!("{}: {}", self.name, Told(change));
            }
            let mut desk = self.desk().await;
            if self.lost.swap(false, Ordering::Relaxed) {
                desk.cursor = None;
                for shown in &mut desk.screens {
                    if let Err(cause) = shown.screen.restore() {
                        log::warn!("{}: {cause}", self.name);
                    }
                }
            }
            if let Err(error) = desk.rearrange().await {
                log::warn!("{}: {error}", self.name);
            }
            drop(desk);
            self.rearranged.raise();
        }
    }

    /// The desk, when nobody else works on it.
    pub async fn desk(&self) -> Borrowed<'_> {
        loop {
            let desk = self.desk.lock().take();
            if let Some(desk) = desk {
                let adapter = self;
                return Borrowed { adapter, desk };
            }
            time::after(DESK_PAUSE).await;
        }
    }

    /// The displays there are; where there is none, one that the device may have all the same.
    pub fn heads(&self) -> Vec<Head> {
        let layout = self.with(|gpu| gpu.layout().cloned()).unwrap_or_default();
        match layout.heads() {
            [] => alloc::vec![layout.primary()],
            heads => heads.to_vec(),
        }
    }
}

impl Borrowed<'_> {
    /// Shows the test pattern on all displays, and goes on doing so when they change.
    pub async fn show_test(&mut self) -> Result<(), Error> {
        self.showing = Showing::Test;
        self.redraw().await
    }

    /// Shows a picture on all displays, and goes on doing so when they change.
    pub async fn show_picture(&mut self, picture: impl Picture + 'static) -> Result<(), Error> {
        self.showing = Showing::Picture(Arc::new(picture));
        self.redraw().await
    }

    /// Shows on all displays what is the same whatever happens.
    async fn redraw(&mut self) -> Result<(), Error> {
        for head in self.adapter.heads() {
            loop {
                let picture = match &self.showing {
                    Showing::Test => None,
                    Showing::Picture(picture) => Some(picture.clone()),
                    Showing::Dashboard { .. } | Showing::Drawing => return Ok(()),
                };
                let size = self.fit(head)?;
                let canvas = self.canvas(head.scanout)?;
                match picture {
                    None => draw_test(canvas, head.scanout, size),
                    Some(picture) => draw_picture(canvas, &*picture, size).await,
                }
                if self.present(head.scanout).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Fills a rectangle of a display.
    pub async fn fill(&mut self, head: Head, rect: Rect, color: u32) -> Result<(), Error> {
        if let Showing::Dashboard { .. } = self.showing {
            self.showing = Showing::Drawing;
        }
        loop {
            self.fit(head)?;
            self.canvas(head.scanout)?.fill(rect, color);
            if self.present(head.scanout).await? {
                return Ok(());
            }
        }
    }

    /// Has the dashboard shown, from the beginning.
    pub fn show_dashboard(&mut self) {
        self.showing = Showing::default();
        self.adapter.rearranged.raise();
    }

    /// What is drawn on to be seen on a display after [`Self::present`]. There is one after [`Self::fit`].
    pub fn canvas(&mut self, scanout: u32) -> Result<&mut Framebuffer<KernelDma>, Error> {
        let adapter = self.adapter;
        let shown = self.shown(scanout);
        let shown = shown.ok_or_else(|| adapter.with(|gpu| gpu.error(Cause::Busy)))?;
        Ok(shown.screen.canvas())
    }

    fn shown(&mut self, scanout: u32) -> Option<&mut Shown> {
        let mut screens = self.desk.screens.iter_mut();
        screens.find(|shown| shown.screen.scanout() == scanout)
    }

    /// Gives a display a pointer at a place, or moves the one it has.
    pub async fn point(&mut self, head: Head, x: u32, y: u32) -> Result<(), Error> {
        let adapter = self.adapter;
        if self.cursor.is_none() {
            let (size, pixels) = arrow();
            let cursor = Cursor::new(&KernelDma, size, &pixels, (0, 0));
            let cursor = cursor.map_err(|cause| adapter.with(|gpu| gpu.error(cause)))?;
            adapter.load(&cursor).await?;
            self.cursor = Some(cursor);
        }
        match &self.cursor {
            Some(cursor) => adapter.with(|gpu| match gpu.has_cursor(head.scanout) {
                true => gpu.move_cursor(head.scanout, x, y),
                false => gpu.set_cursor(head.scanout, cursor, x, y),
            }),
            None => Ok(()),
        }
    }

    /// Makes what is shown fit the displays that there are.
    async fn rearrange(&mut self) -> Result<(), Error> {
        let heads = self.adapter.heads();
        let gone = |shown: &Shown| {
            let scanout = shown.screen.scanout();
            heads.iter().all(|head| head.scanout != scanout)
        };
        while let Some(index) = self.screens.iter().position(gone) {
            let shown = self.screens.swap_remove(index);
            self.adapter.close(shown.screen).await?;
        }
        self.redraw().await
    }

    /// Sees to it that a display has a screen, of the size that the display wants or, where memory is short, of half of that,
    /// or of half of that again. Gives the size.
    pub fn fit(&mut self, head: Head) -> Result<Size, Error> {
        let wanted = head.rect.size();
        match self.shown(head.scanout) {
            Some(shown) if shown.wanted == wanted => Ok(shown.screen.size()),
            _ => self.make(head.scanout, wanted, wanted),
        }
    }

    /// Makes a screen for a display that wants it to be of size `wanted`, of at most size `most`.
    fn make(&mut self, scanout: u32, wanted: Size, most: Size) -> Result<Size, Error> {
        let adapter = self.adapter;
        let mut size = most;
        loop {
            let cause = match self.try_make(scanout, wanted, size) {
                Ok(()) => break,
                Err(cause) => cause,
            };
            size = half(size)
                .filter(|_| cause == Cause::NoDmaMemory)
                .ok_or_else(|| adapter.with(|gpu| gpu.error(cause)))?;
        }
        if size != wanted {
            log::warn!(
                "{}: display {scanout} shows {size}, as there is not enough memory for {wanted}",
                adapter.name
            );
        }
        Ok(size)
    }

    fn try_make(&mut self, scanout: u32, wanted: Size, size: Size) -> Result<(), Cause> {
        let bytes = usize::try_from(size.area() * PIXEL_LEN as u64);
        let pages = bytes.map_err(|_| Cause::NoDmaMemory)?.div_ceil(PAGE_BYTES);
        let (free, _) = frames::usage();
        if free < pages.saturating_add(SPARE_PAGES) {
            return Err(Cause::NoDmaMemory);
        }
        match self.shown(scanout) {
            Some(shown) => {
                shown.screen.resize(size)?;
                shown.wanted = wanted;
            }
            None => {
                let screen = Screen::new(&KernelDma, scanout, size, Buffering::Single)?;
                self.screens.push(Shown { screen, wanted });
            }
        }
        Ok(())
    }

    /// Sends what was drawn on a display's screen. Says whether it is shown: if not, the device has no room for a picture of
    /// that size, and there is a smaller one now, to be drawn on anew.
    pub async fn present(&mut self, scanout: u32) -> Result<bool, Error> {
        let adapter = self.adapter;
        let Some(shown) = self.shown(scanout) else {
            return Ok(true);
        };
        let (wanted, size) = (shown.wanted, shown.screen.size());
        let Err(error) = adapter.present(&mut shown.screen).await else {
            return Ok(true);
        };
        let refused = matches!(error.cause, Cause::Refused { command, .. } if command == CREATE);
        let smaller = half(size).filter(|_| refused).ok_or(error)?;
        self.make(scanout, wanted, smaller)?;
        Ok(false)
    }
}

/// What a device refuses that has no room for a picture.
const CREATE: &str = CommandType::ResourceCreate2d.name();

/// Half the width and half the height, unless that is too small to show anything.
fn half(size: Size) -> Option<Size> {
    let half = Size::new(size.width / 2, size.height / 2);
    (half.width >= MIN_SIZE.width && half.height >= MIN_SIZE.height).then_some(half)
}

/// The test pattern: red grows to the right, green downwards, and blue tells every pixel and scanout apart from its
/// neighbours.
fn draw_test(canvas: &mut Framebuffer<KernelDma>, scanout: u32, size: Size) {
    let mut row = Vec::new();
    for y in 0..size.height {
        row.clear();
        row.extend((0..size.width).map(|x| {
            let red = x * 256 / size.width;
            let green = y * 256 / size.height;
            let blue = (x ^ y ^ (scanout * 0x55)) & 0xff;
            red << 16 | green << 8 | blue
        }));
        canvas.draw(Rect::new(0, y, size.width, 1), &row);
    }
}

/// A picture on black. Others have their turn between its rows.
async fn draw_picture(canvas: &mut Framebuffer<KernelDma>, picture: &dyn Picture, size: Size) {
    let place = picture.place(size);
    canvas.fill(Rect::new(0, 0, size.width, size.height), 0);
    for y in 0..place.height {
        let row = picture.row(y, place.width, place.height);
        canvas.draw(Rect::new(place.x, place.y + y, place.width, 1), &row);
        if y % ROWS_A_TURN == 0 {
            yield_now().await;
        }
    }
}

/// A pointer: a white triangle with a black edge.
fn arrow() -> (Size, Vec<u32>) {
    const SIZE: Size = Size::new(12, 18);
    let pixel = |x: u32, y: u32| match (x * 3 / 2).cmp(&y) {
        core::cmp::Ordering::Greater => 0,
        _ if x == 0 || y == SIZE.height - 1 || (x + 1) * 3 / 2 > y => 0xff00_0000,
        _ => 0xffff_ffff,
    };
    let pixels = (0..SIZE.height).flat_map(|y| (0..SIZE.width).map(move |x| pixel(x, y)));
    (SIZE, pixels.collect())
}

/// A change, as the log tells of it.
struct Told<'a>(&'a Change);

impl core::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Change::Connected(head) => {
                write!(f, "display {} is there: {}", head.scanout, head.rect.size())
            }
            Change::Disconnected(head) => write!(f, "display {} is gone", head.scanout),
            Change::Resized { head, from } => {
                let size = head.rect.size();
                write!(f, "display {} went from {from} to {size}", head.scanout)
            }
            Change::Moved(head) => write!(f, "display {} is at {}", head.scanout, head.rect),
        }
    }
}

impl Driven for &'static Adapter {
    fn report(&self) -> Report {
        self.shared.report()
    }

    fn summary(&self) -> String {
        let (scanouts, layout) = self.with(|gpu| (gpu.scanouts(), gpu.layout().cloned()));
        let plural = if scanouts == 1 { "" } else { "s" };
        let layout = layout.unwrap_or_default();
        format!("{scanouts} scanout{plural}, {}", sizes(&layout))
    }
}

/// The sizes of all displays.
fn sizes(layout: &Layout) -> String {
    let sizes: Vec<String> = layout
        .heads()
        .iter()
        .map(|head| head.rect.size().to_string())
        .collect();
    match sizes.as_slice() {
        [] => "no display".to_string(),
        sizes => sizes.join(" "),
    }
}
