//! The GPU driver's core and its faces, against an adapter in plain memory.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use embedded_graphics_core::Pixel;
use embedded_graphics_core::draw_target::DrawTarget;
use embedded_graphics_core::geometry::{OriginDimensions, Point, Size as EgSize};
use embedded_graphics_core::pixelcolor::Rgb888;
use embedded_graphics_core::primitives::Rectangle;
use vringlet::asynchronous::Asynchronous;
use vringlet::blocking::Blocking;
use vringlet::fake::{
    FakeDevice, FakeDma, FakeGpu, FakeRect, FakeTransport, Fault, Interrupt, Lie, Memory, Order,
    Pace, Random,
};
use vringlet::features::RingFeatures;
use vringlet::gpu::{
    Buffering, Change, Cursor, Edid, FALLBACK, Framebuffer, Gpu, Head, MAX_DIMENSION, Options,
    Rect, Request, Screen, Size,
};
use vringlet::transport::{InterruptCauses, Status};
use vringlet::{Cause, Driver, Finished};

type Adapter = Gpu<FakeTransport<FakeGpu>>;

const DISPLAY_INFO: u32 = 0x100;
const CREATE: u32 = 0x101;
const UNREF: u32 = 0x102;
const SET_SCANOUT: u32 = 0x103;
const FLUSH: u32 = 0x104;
const TRANSFER: u32 = 0x105;
const ATTACH: u32 = 0x106;
const DETACH: u32 = 0x107;
const GET_EDID: u32 = 0x10a;
const UPDATE_CURSOR: u32 = 0x300;
const MOVE_CURSOR: u32 = 0x301;

const SMALL: Size = Size::new(200, 100);

fn open_with(model: FakeGpu, options: Options) -> (FakeDevice<FakeGpu>, Blocking<Adapter>) {
    let device = FakeDevice::new(model);
    let gpu = Gpu::new(device.transport(), options).expect("an honest device");
    (device, Blocking::new(gpu))
}

fn open(model: FakeGpu) -> (FakeDevice<FakeGpu>, Blocking<Adapter>) {
    open_with(model, Options::default())
}

fn refusal(model: FakeGpu) -> Cause {
    let device = FakeDevice::new(model);
    match Adapter::new(device.transport(), Options::default()) {
        Ok(_) => panic!("the device was accepted"),
        Err(error) => error.cause,
    }
}

/// A wait that ends at once: an honest device is done by then.
fn now() -> bool {
    false
}

fn screen(buffering: Buffering) -> Screen<FakeDma> {
    Screen::new(&dma(), 0, SMALL, buffering).expect("memory")
}

/// The context of every device of this thread's memory.
fn dma() -> FakeDma {
    FakeDma::default()
}

/// How often a request waits for the device before it goes on, at most: for a new picture, and twice for each old one.
const MOST_ROUNDS: usize = 8;

/// Has a device that works when it is told to finish the one request that it has.
fn finish(device: &FakeDevice<FakeGpu>, gpu: &mut Adapter) -> Finished<Request<FakeDma>> {
    for _ in 0..MOST_ROUNDS {
        device.pump();
        if let Some(finished) = gpu.poll().expect("an honest ring") {
            return finished;
        }
    }
    panic!("the request is not finished");
}

fn take_log(device: &FakeDevice<FakeGpu>) -> Vec<u32> {
    device.with(|gpu| std::mem::take(&mut gpu.log))
}

fn counter(gpu: &mut Blocking<Adapter>, name: &str) -> u64 {
    let report = gpu.driver().report();
    let found = report.counters.iter().find(|(of, _)| *of == name);
    found.expect("a counter of that name").1
}

/// A picture that is drawn on in the same way as a screen, and what it must look like.
struct Model {
    size: Size,
    pixels: Vec<u32>,
}

impl Model {
    fn new(size: Size) -> Self {
        let pixels = vec![0; size.area() as usize];
        Self { size, pixels }
    }

    fn fill(&mut self, rect: Rect, pixel: u32) {
        for y in rect.y..rect.y + rect.height {
            for x in rect.x..rect.x + rect.width {
                self.pixels[(y * self.size.width + x) as usize] = pixel;
            }
        }
    }

    #[track_caller]
    fn assert_shown(&self, device: &FakeDevice<FakeGpu>, scanout: usize) {
        let shown = device.with(|gpu| gpu.screen(scanout));
        let (width, height, pixels) = shown.expect("a picture");
        assert_eq!((width, height), (self.size.width, self.size.height));
        let differs = pixels.iter().zip(&self.pixels).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first pixel that differs");
    }
}

fn random_rect(random: &mut Random, size: Size) -> Rect {
    let x = random.below(size.width as usize) as u32;
    let y = random.below(size.height as usize) as u32;
    let width = 1 + random.below((size.width - x) as usize) as u32;
    let height = 1 + random.below((size.height - y) as usize) as u32;
    Rect::new(x, y, width.min(60), height.min(40))
}

#[test]
fn only_edid_is_accepted_of_what_a_device_offers() {
    let memory = Memory::fresh();
    let mut model = FakeGpu::new();
    model.features = 0x3f;
    let (device, mut gpu) = open(model);
    assert_eq!(device.driver_features() & 0xff, 1 << 1);
    assert!(gpu.driver().has_edid());
    let report = gpu.driver().report();
    assert_eq!(
        report.accepted().to_string().split(' ').next(),
        Some("EDID")
    );
    assert!(report.offered().to_string().starts_with("VIRGL EDID"));
    drop(gpu);
    memory.assert_clean();
}

/// A new picture is there, then its memory, before anything is done with it; what is drawn on it later goes in one.
#[test]
fn a_picture_is_made_backed_filled_and_shown() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    let before = device.notifications(0);
    assert_eq!(gpu.present(&mut screen, now), Ok(true));
    assert_eq!(
        take_log(&device),
        [CREATE, ATTACH, TRANSFER, SET_SCANOUT, FLUSH]
    );
    assert_eq!(device.notifications(0) - before, 3);
    Model::new(SMALL).assert_shown(&device, 0);
    screen.canvas().fill(Rect::of(SMALL), 0);
    assert_eq!(gpu.present(&mut screen, now), Ok(true));
    assert_eq!(take_log(&device), [TRANSFER, FLUSH]);
    assert_eq!(device.notifications(0) - before, 4);
    // Nothing drawn, nothing sent.
    assert_eq!(gpu.present(&mut screen, now), Ok(false));
    assert_eq!(take_log(&device), []);
    gpu.close(screen, now).expect("done");
    assert_eq!(take_log(&device), [SET_SCANOUT, DETACH, UNREF]);
    assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
    assert!(device.with(|gpu| gpu.screen(0)).is_none());
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn only_damaged_bytes_are_transferred_and_flushed() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    let mut model = Model::new(SMALL);
    gpu.present(&mut screen, now).expect("done");
    let start = device.with(|gpu| {
        gpu.transferred.clear();
        gpu.flushed.clear();
        gpu.bytes_read
    });
    assert_eq!(start, SMALL.area() * 4);
    let parts = [
        Rect::new(3, 5, 10, 7),
        Rect::new(16, 5, 10, 7),
        Rect::new(150, 80, 50, 20),
    ];
    for (rect, pixel) in parts.into_iter().zip([0x0011_2233, 0x00ff_0080, 1]) {
        screen.canvas().fill(rect, pixel);
        model.fill(rect, pixel);
    }
    gpu.present(&mut screen, now).expect("done");
    model.assert_shown(&device, 0);
    let bytes = (2 * 10 * 7 + 50 * 20) * 4;
    device.with(|gpu| {
        assert_eq!(gpu.bytes_read - start, bytes);
        let rects = |list: &[(u32, FakeRect)]| list.iter().map(|(_, r)| *r).collect::<Vec<_>>();
        let sent = [(3, 5, 10, 7), (16, 5, 10, 7), (150, 80, 50, 20)];
        assert_eq!(rects(&gpu.transferred), sent);
        assert_eq!(gpu.transferred, gpu.flushed);
    });
    assert_eq!(counter(&mut gpu, "bytes_transferred"), start + bytes);
    drop((gpu, screen));
    memory.assert_clean();
}

/// Random drawing, with everything that may differ: pieces of memory, buffering, ring features, order and pace.
fn draw_at_random(seed: u64, size: Size, buffering: Buffering, declined: RingFeatures) {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    if declined.contains(RingFeatures::INDIRECT_DESC) {
        // Few commands fit at a time, so requests must be sent in parts.
        fake.queue_sizes.0 = 8;
    }
    let options = Options {
        declined: declined.bits(),
        ..Options::default()
    };
    let (device, mut gpu) = open_with(fake, options);
    device.set_order(Order::Shuffled(seed));
    let mut random = Random::new(seed);
    let mut screen = Screen::new(&dma(), 0, size, buffering).expect("memory");
    let mut model = Model::new(size);
    for _ in 0..20 {
        for _ in 0..random.below(12) {
            let rect = random_rect(&mut random, size);
            let pixel = random.next() as u32;
            screen.canvas().fill(rect, pixel);
            model.fill(rect, pixel);
        }
        gpu.present(&mut screen, now).expect("done");
        model.assert_shown(&device, 0);
    }
    gpu.close(screen, now).expect("done");
    assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn whatever_is_drawn_is_what_is_shown() {
    let none = RingFeatures::empty();
    let plain = RingFeatures::INDIRECT_DESC | RingFeatures::EVENT_IDX;
    for (seed, buffering) in [(1, Buffering::Single), (2, Buffering::Double)] {
        draw_at_random(seed, Size::new(333, 77), buffering, none);
        draw_at_random(seed, Size::new(640, 480), buffering, plain);
        // More rows than one piece of memory has, and a last piece that is not full.
        draw_at_random(seed, Size::new(1001, 301), buffering, none);
    }
}

#[test]
fn double_buffering_shows_whole_pictures_and_sends_each_change_to_both() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Double);
    let mut model = Model::new(SMALL);
    gpu.present(&mut screen, now).expect("done");
    assert_eq!(gpu.present(&mut screen, now), Ok(false), "idle screen");
    let first = Rect::new(0, 0, 20, 10);
    screen.canvas().fill(first, 1);
    model.fill(first, 1);
    // The other picture is new, so all of it is sent once.
    gpu.present(&mut screen, now).expect("done");
    model.assert_shown(&device, 0);
    assert_eq!(gpu.present(&mut screen, now), Ok(false), "idle screen");
    take_log(&device);
    let second = Rect::new(100, 50, 20, 10);
    screen.canvas().fill(second, 2);
    model.fill(second, 2);
    let before = device.with(|gpu| gpu.bytes_read);
    gpu.present(&mut screen, now).expect("done");
    model.assert_shown(&device, 0);
    // The first change was never sent to this picture.
    assert_eq!(device.with(|gpu| gpu.bytes_read) - before, 2 * 200 * 4);
    let log = take_log(&device);
    assert_eq!(
        log,
        [TRANSFER, TRANSFER, SET_SCANOUT, FLUSH, FLUSH],
        "a flip"
    );
    drop((gpu, screen));
    memory.assert_clean();
}

#[test]
fn what_is_drawn_while_the_device_reads_is_shown_next() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let mut gpu = gpu.into_inner();
    device.set_pace(Pace::Manual);
    let mut screen = screen(Buffering::Double);
    let request = screen.present().expect("ready").expect("something");
    gpu.submit(request).expect("room");
    gpu.kick();
    // The device has not begun. The second picture is free to be drawn on, but not to be sent.
    screen.canvas().fill(Rect::of(SMALL), 7);
    assert!(!screen.is_ready());
    assert_eq!(screen.present().err(), Some(Cause::Busy));
    finish(&device, &mut gpu).into_result().expect("done");
    Model::new(SMALL).assert_shown(&device, 0);
    let request = screen.present().expect("ready").expect("something");
    gpu.submit(request).expect("room");
    gpu.kick();
    finish(&device, &mut gpu).into_result().expect("done");
    let mut model = Model::new(SMALL);
    model.fill(Rect::of(SMALL), 7);
    model.assert_shown(&device, 0);
    drop((gpu, screen));
    memory.assert_clean();
}

#[test]
fn drawing_by_embedded_graphics_is_clipped_and_noted() {
    let memory = Memory::fresh();
    let mut frame = Framebuffer::new(&dma(), SMALL).expect("memory");
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    gpu.present(&mut screen, now).expect("done");
    let canvas = screen.canvas();
    let pixels = [
        (-1, 5),
        (5, -1),
        (2, 3),
        (4, 9),
        (200, 0),
        (0, 100),
        (i32::MAX, i32::MIN),
    ];
    let pixels = pixels.map(|(x, y)| Pixel(Point::new(x, y), Rgb888::new(1, 2, 3)));
    canvas.draw_iter(pixels).expect("infallible");
    assert_eq!(canvas.damage().rects(), [Rect::new(2, 3, 3, 7)]);
    assert_eq!(canvas.pixel(2, 3), Some(0x0001_0203));
    assert_eq!(canvas.pixel(200, 3), None);
    assert_eq!(OriginDimensions::size(canvas), EgSize::new(200, 100));
    // What is set is noted, and what lies beside the picture is neither.
    let noted = canvas.damage().rects().to_vec();
    canvas.set(200, 8, 1);
    canvas.set(7, 100, 1);
    assert_eq!(canvas.damage().rects(), noted);
    let one = Rect::new(150, 90, 1, 1);
    canvas.set(150, 90, 0x0012_3456);
    assert_eq!(canvas.pixel(150, 90), Some(0x0012_3456));
    let rects = canvas.damage().rects();
    assert!(rects.iter().any(|rect| rect.union(one) == *rect));
    let around = Rectangle::new(Point::new(-10, -20), EgSize::new(30, 25));
    frame
        .fill_solid(&around, Rgb888::new(0xff, 0, 0))
        .expect("infallible");
    assert_eq!(frame.pixel(19, 4), Some(0x00ff_0000));
    assert_eq!(frame.pixel(20, 4), Some(0));
    assert_eq!(frame.pixel(19, 5), Some(0));
    let far = Rectangle::new(
        Point::new(i32::MIN, i32::MAX),
        EgSize::new(u32::MAX, u32::MAX),
    );
    frame
        .fill_solid(&far, Rgb888::new(9, 9, 9))
        .expect("infallible");
    frame.draw(Rect::new(198, 98, 4, 4), &[5; 10]);
    assert_eq!(frame.pixel(199, 99), Some(5));
    frame.draw(Rect::new(0, 50, 4, 4), &[6; 5]);
    assert_eq!((frame.pixel(3, 50), frame.pixel(0, 51)), (Some(6), Some(6)));
    assert_eq!((frame.pixel(1, 51), frame.pixel(0, 52)), (Some(0), Some(0)));
    drop((frame, gpu, screen));
    drop(device);
    memory.assert_clean();
}

#[test]
fn sizes_that_no_picture_has_are_refused() {
    let memory = Memory::fresh();
    let over = MAX_DIMENSION + 1;
    for (width, height) in [(0, 1), (1, 0), (over, 1), (1, over), (u32::MAX, u32::MAX)] {
        let screen = Screen::new(&dma(), 0, Size::new(width, height), Buffering::Single);
        let cause = Some(Cause::InvalidParameter("width or height of a picture"));
        assert_eq!(screen.err(), cause);
    }
    memory.fail_allocations_after(1);
    let large = Screen::new(&dma(), 0, Size::new(2000, 1000), Buffering::Double);
    assert_eq!(large.err(), Some(Cause::NoDmaMemory));
    memory.assert_clean();
}

#[test]
fn displays_come_and_go_and_change_their_size() {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    fake.scanouts = 4;
    let (device, mut gpu) = open(fake);
    assert_eq!(gpu.driver().scanouts(), 4);
    let head = |scanout, x, y, width, height| Head {
        scanout,
        rect: Rect::new(x, y, width, height),
    };
    assert_eq!(gpu.driver().layout(), None);
    let first = head(0, 0, 0, 1280, 800);
    assert_eq!(gpu.refresh(now), Ok(vec![Change::Connected(first)]));
    assert_eq!(gpu.refresh(now), Ok(vec![]));
    assert_eq!(gpu.driver().config_changed(), Ok(None));

    device.change_config(|gpu| gpu.set_mode(2, true, (1280, 0, 640, 480)));
    assert_eq!(
        gpu.driver().config_changed(),
        Ok(Some(vringlet::gpu::DisplaysChanged))
    );
    // The event is cleared in the device.
    assert_eq!(gpu.driver().config_changed(), Ok(None));
    let second = head(2, 1280, 0, 640, 480);
    assert_eq!(gpu.refresh(now), Ok(vec![Change::Connected(second)]));

    device.change_config(|gpu| {
        gpu.set_mode(0, true, (0, 0, 800, 600));
        gpu.set_mode(2, true, (800, 0, 640, 480));
    });
    let resized = Change::Resized {
        head: head(0, 0, 0, 800, 600),
        from: Size::new(1280, 800),
    };
    let moved = Change::Moved(head(2, 800, 0, 640, 480));
    assert_eq!(gpu.refresh(now), Ok(vec![resized, moved]));

    device.change_config(|gpu| {
        gpu.set_mode(0, false, (0, 0, 0, 0));
        gpu.set_mode(2, false, (0, 0, 0, 0));
    });
    let gone = [head(0, 0, 0, 800, 600), head(2, 800, 0, 640, 480)];
    let gone = gone.map(Change::Disconnected);
    assert_eq!(gpu.refresh(now), Ok(gone.to_vec()));
    let layout = gpu.driver().layout().expect("an answer").clone();
    assert_eq!((layout.heads(), layout.primary()), (&[][..], FALLBACK));
    assert_eq!(counter(&mut gpu, "display_changes"), 1);
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn two_screens_are_independent_and_a_size_changes_under_way() {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    fake.scanouts = 2;
    let (device, mut gpu) = open(fake);
    for buffering in [Buffering::Single, Buffering::Double] {
        let mut left = Screen::new(&dma(), 0, SMALL, buffering).expect("memory");
        let mut right = Screen::new(&dma(), 1, Size::new(64, 48), buffering).expect("memory");
        left.canvas().fill(Rect::of(SMALL), 1);
        right.canvas().fill(Rect::new(0, 0, 64, 48), 2);
        gpu.present(&mut left, now).expect("done");
        gpu.present(&mut right, now).expect("done");
        left.canvas().fill(Rect::of(SMALL), 1);
        gpu.present(&mut left, now).expect("done");

        let size = Size::new(320, 33);
        left.resize(size).expect("memory");
        let mut model = Model::new(SMALL);
        model.fill(Rect::of(SMALL), 1);
        model.assert_shown(&device, 0);
        take_log(&device);
        left.canvas().fill(Rect::new(1, 1, 5, 5), 3);
        gpu.present(&mut left, now).expect("done");
        let log = take_log(&device);
        let shown = log.iter().position(|kind| *kind == SET_SCANOUT);
        let ended = log.iter().position(|kind| *kind == DETACH);
        assert!(shown < ended && ended.is_some(), "{log:x?}");
        let mut model = Model::new(size);
        model.fill(Rect::new(1, 1, 5, 5), 3);
        model.assert_shown(&device, 0);
        let mut model = Model::new(Size::new(64, 48));
        model.fill(Rect::new(0, 0, 64, 48), 2);
        model.assert_shown(&device, 1);
        gpu.close(left, now).expect("done");
        gpu.close(right, now).expect("done");
        assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
    }
    drop(gpu);
    memory.assert_clean();
}

fn arrow() -> Vec<u32> {
    (0..32 * 20).map(|index| 0xff00_0000 | index).collect()
}

#[test]
fn the_pointer_has_a_picture_moves_and_goes() {
    for answers_cursor in [false, true] {
        let memory = Memory::fresh();
        let mut fake = FakeGpu::new();
        fake.answers_cursor = answers_cursor;
        let (device, mut gpu) = open(fake);
        let pixels = arrow();
        let cursor = Cursor::new(&dma(), Size::new(32, 20), &pixels, (3, 4)).expect("memory");
        let early = gpu.driver().set_cursor(0, &cursor, 1, 1);
        assert!(early.is_err(), "the device has no such picture");
        gpu.load(&cursor, now).expect("done");
        assert_eq!(take_log(&device), [CREATE, ATTACH, TRANSFER]);
        gpu.driver().move_cursor(0, 9, 9).expect("nothing to move");
        gpu.driver().set_cursor(0, &cursor, 100, 50).expect("room");
        let shown = device.with(|gpu| gpu.cursor(0)).expect("a cursor");
        assert_eq!((shown.at, shown.hot), ((100, 50), (3, 4)));
        for y in 0..64 {
            for x in 0..64 {
                let inside = x < 32 && y < 20;
                let pixel = if inside { pixels[y * 32 + x] } else { 0 };
                assert_eq!(shown.pixels[y * 64 + x], pixel);
            }
        }
        for step in 0..100 {
            gpu.driver().move_cursor(0, step, 2 * step).expect("room");
        }
        let at = device.with(|gpu| gpu.cursor(0)).expect("a cursor").at;
        assert_eq!(at, (99, 198));
        assert_eq!(
            gpu.driver()
                .set_cursor(1, &cursor, 0, 0)
                .map_err(|e| e.cause),
            Err(Cause::InvalidParameter("no such scanout"))
        );
        gpu.driver().hide_cursor(0).expect("room");
        assert_eq!(device.with(|gpu| gpu.cursor(0)), None);
        gpu.perform(cursor.unload(), now).expect("done");
        assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
        let log = take_log(&device);
        assert_eq!(log.iter().filter(|kind| **kind == MOVE_CURSOR).count(), 100);
        assert_eq!(log.iter().filter(|kind| **kind == UPDATE_CURSOR).count(), 2);
        assert_eq!(counter(&mut gpu, "cursor_errors"), 0);
        drop(gpu);
        memory.assert_clean();
    }
}

#[test]
fn a_pointer_is_not_shown_before_its_picture_is_there() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let mut gpu = gpu.into_inner();
    device.set_pace(Pace::Manual);
    let cursor = Cursor::new(&dma(), Size::new(1, 1), &[u32::MAX], (0, 0)).expect("memory");
    gpu.submit(cursor.load().expect("memory")).expect("room");
    gpu.kick();
    let busy = gpu
        .set_cursor(0, &cursor, 0, 0)
        .map_err(|error| error.cause);
    assert_eq!(busy, Err(Cause::Busy));
    finish(&device, &mut gpu).into_result().expect("done");
    gpu.set_cursor(0, &cursor, 0, 0).expect("room");
    device.pump();
    assert_eq!(device.interrupts(1), 0, "nobody waits for the pointer");
    drop((gpu, cursor));
    memory.assert_clean();
}

/// Two frames in a row on a screen, which thus has both of its pictures on the device.
fn draw_both(gpu: &mut Adapter, device: &FakeDevice<FakeGpu>, screen: &mut Screen<FakeDma>) {
    for pixel in [1, 2] {
        screen.canvas().fill(Rect::of(SMALL), pixel);
        submit_picture(gpu, screen);
        finish(device, gpu).into_result().expect("done");
    }
}

fn submit_picture(gpu: &mut Adapter, screen: &mut Screen<FakeDma>) {
    let request = screen.present().expect("ready").expect("a change");
    gpu.submit(request).expect("room");
    gpu.kick();
}

/// The device has not said yet that it made the picture, so the scanout was not set to it when it is turned off.
#[test]
fn a_screen_closed_while_its_first_picture_is_under_way_is_off_and_gone() {
    for buffering in [Buffering::Single, Buffering::Double] {
        for resized in [false, true] {
            for seed in 0..20 {
                let memory = Memory::fresh();
                let (device, gpu) = open(FakeGpu::new());
                let mut gpu = gpu.into_inner();
                device.set_pace(Pace::Manual);
                device.set_order(Order::Shuffled(seed));
                let mut screen = screen(buffering);
                if resized {
                    draw_both(&mut gpu, &device, &mut screen);
                    screen.resize(Size::new(64, 48)).expect("memory");
                }
                submit_picture(&mut gpu, &mut screen);
                gpu.submit(screen.close()).expect("room");
                gpu.kick();
                for _ in 0..2 {
                    finish(&device, &mut gpu).into_result().expect("done");
                }
                assert!(device.with(|gpu| gpu.screen(0)).is_none());
                assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
                drop(gpu);
                memory.assert_clean();
            }
        }
    }
}

/// One screen's picture must be made yet, those of the other are there: the one that was submitted last is shown.
#[test]
fn of_two_screens_on_a_scanout_the_last_that_was_sent_is_shown() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let mut gpu = gpu.into_inner();
    device.set_pace(Pace::Manual);
    let mut there = screen(Buffering::Double);
    draw_both(&mut gpu, &device, &mut there);
    let mut new = screen(Buffering::Single);
    new.canvas().fill(Rect::of(SMALL), 3);
    submit_picture(&mut gpu, &mut new);
    there.canvas().fill(Rect::of(SMALL), 4);
    submit_picture(&mut gpu, &mut there);
    for _ in 0..2 {
        finish(&device, &mut gpu).into_result().expect("done");
    }
    let mut model = Model::new(SMALL);
    model.fill(Rect::of(SMALL), 4);
    model.assert_shown(&device, 0);
    drop((gpu, there, new));
    memory.assert_clean();
}

#[test]
fn what_is_shown_where_can_be_asked() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    assert_eq!((screen.scanout(), screen.size()), (0, SMALL));
    assert!(!gpu.driver().has_cursor(0));
    assert!(!gpu.driver().has_cursor(99), "there is no such display");
    let cursor = Cursor::new(&dma(), Size::new(2, 2), &[0; 4], (1, 1)).expect("memory");
    gpu.load(&cursor, now).expect("done");
    gpu.driver().set_cursor(0, &cursor, 0, 0).expect("room");
    assert!(gpu.driver().has_cursor(0));
    // The context is that of the transport.
    assert_eq!(gpu.driver().dma().access_platform(), Some(false));
    device.set_pace(Pace::Manual);
    gpu.present(&mut screen, now).expect_err("no answer so far");
    assert!(gpu.driver().in_flight() > 0);
    device.pump();
    device.set_pace(Pace::OnNotify);
    while gpu.driver().poll().expect("honest").is_some() {}
    assert_eq!(gpu.driver().in_flight(), 0);
    device.change_config(|_| ());
    let causes = gpu.driver().take_interrupt_causes();
    assert!(causes.contains(InterruptCauses::CONFIG));
    assert!(gpu.driver().take_interrupt_causes().is_empty());
    drop((gpu, screen, cursor));
    drop(device);
    memory.assert_clean();
}

#[test]
fn rectangles_are_said_as_people_write_them() {
    let rect = Rect::new(3, 4, 640, 480);
    assert_eq!(rect.to_string(), "640x480+3+4");
    assert_eq!(rect.union(Rect::new(9, 9, 0, 5)), rect, "nothing was added");
    assert_eq!(Rect::new(9, 9, 0, 5).union(rect), rect);
}

#[test]
fn impossible_pointers_are_refused() {
    let memory = Memory::fresh();
    for (size, count, hot) in [
        (Size::new(65, 1), 65, (0, 0)),
        (Size::new(0, 1), 0, (0, 0)),
        (Size::new(2, 2), 3, (0, 0)),
        (Size::new(2, 2), 4, (2, 0)),
        (Size::new(2, 2), 4, (0, 2)),
    ] {
        assert!(Cursor::new(&dma(), size, &vec![0; count], hot).is_err());
    }
    memory.assert_clean();
}

/// QEMU logs each command about a picture that it has not as a mistake of the guest's.
#[test]
fn what_was_refused_is_not_spoken_of_again() {
    let memory = Memory::fresh();
    for (refused, seen) in [(CREATE, &[CREATE][..]), (ATTACH, &[CREATE, ATTACH])] {
        let (device, mut gpu) = open(FakeGpu::new());
        let mut screen = screen(Buffering::Single);
        device.with(|gpu| gpu.lies = vec![(refused, Lie::Error(0x1201))]);
        gpu.present(&mut screen, now).expect_err("refused");
        assert_eq!(take_log(&device), seen);
        // One that the device has room for takes its place, and ends what there was of it.
        let smaller = Size::new(SMALL.width / 2, SMALL.height / 2);
        screen.resize(smaller).expect("memory");
        assert_eq!(gpu.present(&mut screen, now), Ok(true));
        Model::new(smaller).assert_shown(&device, 0);
        assert_eq!(device.with(|gpu| gpu.resources()), (1, 1));
        gpu.close(screen, now).expect("done");
        drop(gpu);
        memory.assert_clean();
    }
}

/// A device that does not say whether it made a picture is not asked to do anything with it, nor waited for.
#[test]
fn a_picture_that_may_not_be_there_is_not_used() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    device.with(|gpu| gpu.lies = vec![(CREATE, Lie::Type(0))]);
    gpu.present(&mut screen, now).expect_err("no answer");
    assert_eq!(take_log(&device), [CREATE]);
    assert_eq!(gpu.present(&mut screen, now), Ok(true));
    Model::new(SMALL).assert_shown(&device, 0);
    gpu.close(screen, now).expect("done");
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn every_error_of_the_device_is_named_with_its_command() {
    let memory = Memory::fresh();
    let codes = [
        (0x1200, "ERR_UNSPEC"),
        (0x1201, "ERR_OUT_OF_MEMORY"),
        (0x1202, "ERR_INVALID_SCANOUT_ID"),
        (0x1203, "ERR_INVALID_RESOURCE_ID"),
        (0x1204, "ERR_INVALID_CONTEXT_ID"),
        (0x1205, "ERR_INVALID_PARAMETER"),
        (0x12aa, "an error unknown to the specification"),
    ];
    let commands = [
        (CREATE, "RESOURCE_CREATE_2D"),
        (ATTACH, "RESOURCE_ATTACH_BACKING"),
        (TRANSFER, "TRANSFER_TO_HOST_2D"),
        (SET_SCANOUT, "SET_SCANOUT"),
        (FLUSH, "RESOURCE_FLUSH"),
    ];
    for (kind, command) in commands {
        for (code, name) in codes {
            let (device, mut gpu) = open(FakeGpu::new());
            let mut screen = screen(Buffering::Double);
            screen.canvas().fill(Rect::of(SMALL), 5);
            device.with(|gpu| gpu.lies = vec![(kind, Lie::Error(code))]);
            let error = gpu.present(&mut screen, now).expect_err("refused");
            let cause = Cause::Refused {
                command,
                code,
                name,
            };
            assert_eq!((error.cause, error.queue), (cause, Some(0)));
            assert!(error.to_string().contains(command));
            // The next one makes up for it.
            assert_eq!(gpu.present(&mut screen, now), Ok(true));
            let mut model = Model::new(SMALL);
            model.fill(Rect::of(SMALL), 5);
            model.assert_shown(&device, 0);
            gpu.close(screen, now).expect("done");
            assert_eq!(
                device.with(|gpu| gpu.resources()),
                (0, 0),
                "{command} {name}"
            );
            assert_eq!(counter(&mut gpu, "backed_resources"), 0);
            drop(gpu);
            memory.assert_clean();
        }
    }
}

#[test]
fn an_answer_that_is_none_is_an_error_and_frees_nothing() {
    let memory = Memory::fresh();
    let lies = [
        Lie::Type(0x1101),
        Lie::Type(0),
        Lie::Type(0x1300),
        Lie::Length(0),
        Lie::Length(23),
        Lie::Length(u32::MAX),
        Lie::NoFence,
        Lie::OtherFence,
    ];
    for lie in lies {
        for kind in [CREATE, ATTACH, TRANSFER, SET_SCANOUT, FLUSH, DETACH, UNREF] {
            let (device, mut gpu) = open(FakeGpu::new());
            let fenced = matches!(kind, TRANSFER | DETACH | UNREF);
            if !fenced && matches!(lie, Lie::NoFence | Lie::OtherFence) {
                continue;
            }
            device.with(|gpu| gpu.lies = vec![(kind, lie)]);
            let mut screen = screen(Buffering::Single);
            let shown = gpu.present(&mut screen, now);
            let closing = matches!(kind, DETACH | UNREF);
            assert_eq!(shown.is_ok(), closing, "{lie:?} {kind:#x}");
            if !closing {
                // What is drawn is not lost.
                assert_eq!(gpu.present(&mut screen, now), Ok(true), "{lie:?} {kind:#x}");
                Model::new(SMALL).assert_shown(&device, 0);
            }
            let closed = gpu.close(screen, now);
            assert_eq!(closed.is_err(), closing, "{lie:?} {kind:#x}");
            // The device did what it was told, but the driver can't know: it keeps the memory until the reset. After the
            // end of the backing alone there is none to keep.
            let kept = counter(&mut gpu, "backed_resources");
            assert_eq!(kept, u64::from(kind == DETACH), "{lie:?} {kind:#x}");
            let error = counter(&mut gpu, "errors");
            assert!(error >= 1);
            drop(gpu);
            memory.assert_clean();
        }
    }
}

#[test]
fn a_scanout_that_would_not_change_keeps_its_picture_and_the_memory() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    gpu.present(&mut screen, now).expect("done");
    screen.resize(Size::new(64, 64)).expect("memory");
    device.with(|gpu| gpu.lies = vec![(SET_SCANOUT, Lie::Error(0x1202))]);
    assert!(gpu.present(&mut screen, now).is_err());
    // The old picture is still there, with what is behind it.
    Model::new(SMALL).assert_shown(&device, 0);
    assert_eq!(device.with(|gpu| gpu.resources()), (2, 2));
    memory.assert_no_violations();
    // Dropping the screen frees nothing that the device may read.
    let live = memory.live();
    drop(screen);
    assert_eq!(memory.live(), live);
    assert_eq!(counter(&mut gpu, "backed_resources"), 2);
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn a_screen_too_small_for_the_device_is_an_error_and_can_be_closed() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = Screen::new(&dma(), 0, Size::new(15, 16), Buffering::Single).expect("memory");
    let error = gpu.present(&mut screen, now).expect_err("refused");
    assert!(matches!(error.cause, Cause::Refused { code: 0x1205, .. }));
    gpu.close(screen, now).expect("done");
    assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn a_backing_that_is_not_detached_ends_with_its_resource() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    gpu.present(&mut screen, now).expect("done");
    device.with(|gpu| gpu.lies = vec![(DETACH, Lie::Error(0x1200))]);
    gpu.close(screen, now).expect("done");
    assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
    assert_eq!(counter(&mut gpu, "backed_resources"), 0);
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn a_device_that_does_not_come_back_keeps_the_memory() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    gpu.present(&mut screen, now).expect("done");
    let held = memory.live();
    device.inject(Fault::ResetNeverEnds);
    drop((gpu, screen));
    assert_eq!(memory.live(), held, "leaked on purpose");
    memory.assert_no_violations();
}

#[test]
fn a_silent_device_is_waited_for_no_longer_than_the_caller_wants() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    device.inject(Fault::Silent);
    let mut screen = screen(Buffering::Single);
    let mut turns = 10;
    let error = gpu.present(&mut screen, || {
        turns -= 1;
        turns > 0
    });
    assert_eq!(error.map_err(|error| error.cause), Err(Cause::Timeout));
    assert_eq!(turns, 0);
    assert_eq!(screen.present().err(), Some(Cause::Busy));
    device.heal();
    // Another life: nothing of before is left.
    gpu.driver().restart().expect("an honest device");
    screen.restore().expect("over");
    assert_eq!(gpu.present(&mut screen, now), Ok(true));
    Model::new(SMALL).assert_shown(&device, 0);
    drop((gpu, screen));
    memory.assert_clean();
}

#[test]
fn lies_about_the_ring_are_found_and_nothing_is_lost() {
    let faults = [
        Fault::UsedId(77),
        Fault::UsedId(u32::MAX),
        Fault::UsedIdNotInFlight,
        Fault::UsedTwice,
        Fault::UsedLength(u32::MAX),
        Fault::UsedLength(457),
        Fault::UsedIndexAhead(9),
        Fault::UsedIndexBack(3),
    ];
    for fault in faults {
        let memory = Memory::fresh();
        let (device, mut gpu) = open(FakeGpu::new());
        device.inject(fault);
        let mut screen = screen(Buffering::Single);
        screen.canvas().fill(Rect::of(SMALL), 8);
        let first = gpu.present(&mut screen, now);
        if first.is_ok() {
            assert_eq!(fault, Fault::UsedTwice, "not found");
        }
        gpu.driver().restart().expect("an honest device");
        screen.restore().expect("over");
        gpu.present(&mut screen, now).expect("done");
        let mut model = Model::new(SMALL);
        model.fill(Rect::of(SMALL), 8);
        model.assert_shown(&device, 0);
        drop((gpu, screen));
        memory.assert_clean();
    }
}

#[test]
fn what_was_over_before_the_device_lied_is_told_as_it_was() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let mut gpu = gpu.into_inner();
    let first = gpu.submit(Request::display_info()).expect("room");
    gpu.kick();
    device.inject(Fault::UsedId(77));
    gpu.submit(Request::display_info()).expect("room");
    gpu.kick();
    let told = gpu.poll().expect("the first is done");
    let told = told.expect("the first is done");
    assert_eq!(told.token, first);
    assert!(told.result.is_ok());
    let error = gpu.poll().err().map(|error| error.cause);
    assert_eq!(error, Some(Cause::BadUsedId { id: 77 }));
    assert_eq!(gpu.reset().expect("an honest device").len(), 1);
    gpu.restart().expect("an honest device");
    assert!(gpu.poll().expect("another life").is_none());
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn noise_in_the_rings_harms_nobody() {
    for seed in 0..200 {
        let memory = Memory::fresh();
        let (device, mut gpu) = open(FakeGpu::new());
        let mut screen = screen(Buffering::Double);
        let cursor = Cursor::new(&dma(), Size::new(1, 1), &[1], (0, 0)).expect("memory");
        gpu.present(&mut screen, now).expect("done");
        gpu.load(&cursor, now).expect("done");
        device.inject(Fault::Noise(seed));
        for step in 0..10 {
            screen.canvas().fill(Rect::new(0, 0, 3, 3), step);
            let _ = gpu.present(&mut screen, now);
            let _ = gpu.refresh(now);
            let _ = gpu.driver().set_cursor(0, &cursor, 1, 1);
            let _ = gpu.driver().move_cursor(0, 1, 1);
        }
        drop((gpu, screen, cursor));
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_wants_a_reset_gets_one() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    gpu.present(&mut screen, now).expect("done");
    device.inject(Fault::NeedsReset);
    let error = gpu.driver().config_changed().map_err(|error| error.cause);
    assert_eq!(error, Err(Cause::NeedsReset));
    device.heal();
    gpu.driver().restart().expect("an honest device");
    assert!(device.status().contains(Status::DRIVER_OK));
    screen.restore().expect("over");
    assert_eq!(gpu.present(&mut screen, now), Ok(true));
    Model::new(SMALL).assert_shown(&device, 0);
    drop((gpu, screen));
    memory.assert_clean();
}

#[test]
fn impossible_configurations_are_refused_and_leave_nothing_behind() {
    let memory = Memory::fresh();
    for scanouts in [0, 17, u32::MAX] {
        let mut fake = FakeGpu::new();
        fake.scanouts = scanouts;
        let cause = Cause::BadConfig {
            field: "num_scanouts",
            value: scanouts.into(),
        };
        assert_eq!(refusal(fake), cause);
        memory.assert_clean();
    }
    let mut fake = FakeGpu::new();
    fake.queue_sizes = (2, 16);
    assert_eq!(refusal(fake), Cause::QueueSize { size: 2, max: 2 });
    let mut fake = FakeGpu::new();
    fake.queue_sizes = (64, 0);
    assert_eq!(refusal(fake), Cause::NoSuchQueue);
    memory.assert_clean();
    // Its two queues.
    for allocations in 0..2 {
        memory.fail_allocations_after(allocations);
        assert_eq!(refusal(FakeGpu::new()), Cause::NoDmaMemory);
        memory.fail_allocations_after(None);
        memory.assert_clean();
    }
}

#[test]
fn impossible_displays_are_left_out() {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    fake.scanouts = 5;
    let max = u32::MAX;
    for (scanout, rect) in [
        (0, (0, 0, 0, 600)),
        (1, (0, 0, max, max)),
        (2, (max, 0, 640, 480)),
        (3, (7, 7, 640, 480)),
        // There is no such scanout.
        (5, (0, 0, 800, 600)),
    ] {
        fake.set_mode(scanout, true, rect);
    }
    let (device, mut gpu) = open(fake);
    let head = Head {
        scanout: 3,
        rect: Rect::new(7, 7, 640, 480),
    };
    assert_eq!(gpu.refresh(now), Ok(vec![Change::Connected(head)]));
    assert_eq!(counter(&mut gpu, "impossible_modes"), 3);
    for lie in [
        Lie::Length(24),
        Lie::Length(407),
        Lie::Length(433),
        Lie::Type(0x1100),
        Lie::Error(0x1200),
    ] {
        device.with(|gpu| gpu.lies = vec![(DISPLAY_INFO, lie)]);
        assert!(gpu.refresh(now).is_err(), "{lie:?}");
        assert_eq!(gpu.driver().layout().expect("as before").heads(), [head]);
    }
    drop(gpu);
    memory.assert_clean();
}

/// The EDID that QEMU 10.0.2 gives for its display of 1280 by 800.
const QEMU_EDID: &[u8] = include_bytes!("data/qemu-1280x800.edid");

#[test]
fn a_monitor_tells_its_name_and_size() {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    fake.edid = QEMU_EDID.to_vec();
    let (device, mut gpu) = open(fake);
    assert_eq!(gpu.driver().edid(0), None);
    gpu.refresh(now).expect("done");
    assert_eq!(take_log(&device), [DISPLAY_INFO, GET_EDID]);
    let edid = gpu.driver().edid(0).expect("an EDID").clone();
    assert_eq!(edid.manufacturer.as_deref(), Some("RHT"));
    assert_eq!(edid.name.as_deref(), Some("QEMU Monitor"));
    assert_eq!(edid.preferred, Some(Size::new(1280, 800)));
    assert_eq!(*edid.bytes, *QEMU_EDID);
    // It goes with the display.
    device.change_config(|gpu| gpu.set_mode(0, false, (0, 0, 0, 0)));
    gpu.refresh(now).expect("done");
    assert_eq!(gpu.driver().edid(0), None);
    drop(gpu);
    memory.assert_clean();
}

#[test]
fn an_invalid_edid_is_ignored() {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    fake.edid = QEMU_EDID.to_vec();
    let (device, mut gpu) = open(fake);
    gpu.refresh(now).expect("done");
    assert!(gpu.driver().edid(0).is_some());
    for size in [0, 1, 127, 129, 1025, u32::MAX] {
        device.with(|gpu| gpu.lies = vec![(GET_EDID, Lie::EdidSize(size))]);
        let asked = gpu.perform(Request::edid(0), now);
        let cause = asked.map(drop).map_err(|failed| failed.error.cause);
        let what = "no EDID";
        let command = "GET_EDID";
        assert_eq!(cause, Err(Cause::BadResponse { command, what }), "{size}");
        assert_eq!(gpu.driver().edid(0), None);
    }
    for lie in [Lie::Length(32), Lie::Length(1055), Lie::Type(0x1100)] {
        device.with(|gpu| gpu.lies = vec![(GET_EDID, lie)]);
        assert!(gpu.perform(Request::edid(0), now).is_err(), "{lie:?}");
    }
    assert!(
        gpu.perform(Request::edid(1), now).is_err(),
        "no such scanout"
    );
    device.with(|gpu| gpu.edid.clear());
    // A display is one, whatever it says.
    gpu.refresh(now).expect("done");
    drop(gpu);

    let mut fake = FakeGpu::new();
    fake.features = 0;
    let (device, mut gpu) = open(fake);
    gpu.refresh(now).expect("done");
    let failed = gpu.perform(Request::edid(0), now).err();
    let cause = failed.map(|failed| failed.error.cause);
    assert_eq!(cause, Some(Cause::Unsupported));
    assert_eq!(take_log(&device), [DISPLAY_INFO]);
    drop(gpu);
    memory.assert_clean();
}

/// Makes the sums of all blocks right, so that the parser looks at what is in them.
fn seal(edid: &mut [u8]) {
    for block in edid.chunks_exact_mut(128) {
        let sum = block[..127]
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        block[127] = sum.wrapping_neg();
    }
}

#[test]
fn no_edid_whatsoever_can_do_harm() {
    let mut random = Random::new(1);
    let mut parsed = 0;
    for round in 0..60_000 {
        let blocks = 1 + random.below(8);
        let mut edid = QEMU_EDID.to_vec();
        edid.resize(blocks * 128, 0);
        if round % 3 == 0 {
            random.fill(&mut edid[8..]);
            // Extensions of the kinds that are looked into.
            for block in edid.chunks_exact_mut(128).skip(1) {
                block[0] = [0x02, 0x70, 0x10, 0x40][random.below(4)];
            }
        } else {
            for _ in 0..1 + random.below(30) {
                let at = 8 + random.below(edid.len() - 8);
                edid[at] = random.next() as u8;
            }
        }
        edid[18] = 1;
        edid[126] = (blocks - 1) as u8;
        seal(&mut edid);
        if random.below(20) == 0 {
            edid.truncate(random.below(edid.len()));
        }
        if let Ok(edid) = Edid::parse(&edid) {
            parsed += 1;
            let _ = format!("{edid:?}");
        }
    }
    assert!(parsed > 30_000, "only {parsed} were looked into");
}

#[test]
fn requests_wait_their_turn_when_there_are_many() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let mut gpu = gpu.into_inner();
    device.set_pace(Pace::Manual);
    let mut accepted = 0;
    let refused = loop {
        match gpu.submit(Request::display_info()) {
            Ok(_) => accepted += 1,
            Err(rejected) => break rejected.error.cause,
        }
    };
    assert_eq!((refused, accepted), (Cause::QueueFull, gpu.queue_size()));
    gpu.kick();
    let mut finished = 0;
    for _ in 0..100 {
        device.pump();
        while let Some(done) = gpu.poll().expect("an honest ring") {
            done.into_result().expect("done");
            finished += 1;
        }
    }
    assert_eq!(finished, accepted);
    // A request that fails before the device sees it comes back at once.
    let wrong = gpu.submit(Request::edid(3)).expect_err("no such scanout");
    assert_eq!(
        wrong.error.cause,
        Cause::InvalidParameter("no such scanout")
    );
    drop(gpu);
    memory.assert_clean();
}

/// Runs a future, with the device's owner beside it, until it is done.
fn block_on<T>(face: &Asynchronous<Adapter>, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10 {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        face.kick();
        face.process().expect("an honest device");
    }
    panic!("not done");
}

#[test]
fn tasks_share_the_device() {
    let memory = Memory::fresh();
    let mut fake = FakeGpu::new();
    fake.scanouts = 2;
    fake.edid = QEMU_EDID.to_vec();
    let (device, gpu) = open(fake);
    let face = Asynchronous::new(gpu.into_inner());
    let changes = block_on(&face, face.refresh()).expect("done");
    assert_eq!(changes.len(), 1);
    assert!(face.with(|gpu| gpu.edid(0).is_some()));

    let mut screens = [0, 1]
        .map(|scanout| Screen::new(&dma(), scanout, SMALL, Buffering::Double).expect("memory"));
    let [left, right] = &mut screens;
    left.canvas().fill(Rect::of(SMALL), 1);
    right.canvas().fill(Rect::of(SMALL), 2);
    let before = device.notifications(0);
    let both = async {
        let (mut a, mut b) = (pin!(face.present(left)), pin!(face.present(right)));
        let mut done = (None, None);
        std::future::poll_fn(|context| {
            for (future, done) in [(a.as_mut(), &mut done.0), (b.as_mut(), &mut done.1)] {
                if done.is_none()
                    && let Poll::Ready(result) = future.poll(context)
                {
                    *done = Some(result);
                }
            }
            match done {
                (Some(a), Some(b)) => Poll::Ready((a, b)),
                _ => Poll::Pending,
            }
        })
        .await
    };
    assert_eq!(block_on(&face, both), (Ok(true), Ok(true)));
    assert_eq!(device.notifications(0) - before, 3, "kicks for both");
    for (scanout, pixel) in [(0, 1), (1, 2)] {
        let mut model = Model::new(SMALL);
        model.fill(Rect::of(SMALL), pixel);
        model.assert_shown(&device, scanout);
    }
    let cursor = Cursor::new(&dma(), Size::new(1, 1), &[7], (0, 0)).expect("memory");
    block_on(&face, face.load(&cursor)).expect("done");
    face.with(|gpu| gpu.set_cursor(1, &cursor, 4, 5))
        .expect("room");
    assert_eq!(device.with(|gpu| gpu.cursor(1)).map(|c| c.at), Some((4, 5)));
    for screen in screens {
        block_on(&face, face.close(screen)).expect("done");
    }
    drop((face, cursor));
    memory.assert_clean();
}

#[test]
fn a_present_that_nobody_waits_for_loses_nothing() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let face = Asynchronous::new(gpu.into_inner());
    device.set_pace(Pace::Manual);
    let mut context = Context::from_waker(Waker::noop());
    for kicked in [false, true] {
        let mut screen = screen(Buffering::Single);
        screen.canvas().fill(Rect::of(SMALL), 3);
        {
            let mut present = pin!(face.present(&mut screen));
            assert!(present.as_mut().poll(&mut context).is_pending());
            if kicked {
                face.kick();
                device.pump();
            }
        }
        assert!(!screen.is_ready(), "the driver has the request still");
        screen.canvas().fill(Rect::new(5, 5, 5, 5), 4);
        for _ in 0..MOST_ROUNDS {
            face.kick();
            device.pump();
            face.process().expect("an honest device");
        }
        assert!(screen.is_ready());
        device.set_pace(Pace::OnNotify);
        assert_eq!(block_on(&face, face.present(&mut screen)), Ok(true));
        let mut model = Model::new(SMALL);
        model.fill(Rect::of(SMALL), 3);
        model.fill(Rect::new(5, 5, 5, 5), 4);
        model.assert_shown(&device, 0);
        block_on(&face, face.close(screen)).expect("done");
        device.set_pace(Pace::Manual);
    }
    drop(face);
    memory.assert_clean();
}

#[test]
fn a_change_of_displays_interrupts() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let (send, receive) = std::sync::mpsc::channel();
    device.on_interrupt(move |interrupt| send.send(interrupt).expect("a receiver"));
    device.change_config(|gpu| gpu.set_mode(0, true, (0, 0, 640, 480)));
    assert_eq!(receive.try_recv(), Ok(Interrupt::Config));
    let mut gpu = gpu.into_inner();
    assert!(!gpu.enable_interrupts());
    gpu.submit(Request::display_info()).expect("room");
    gpu.kick();
    assert_eq!(receive.try_recv(), Ok(Interrupt::Queue(0)));
    drop(gpu);
    memory.assert_clean();
}

/// Has the device refuse every command of these types from now on; as good as.
fn refuse(device: &FakeDevice<FakeGpu>, kinds: &[u32]) {
    device.with(|gpu| {
        gpu.lies.clear();
        for kind in kinds {
            let refusals = std::iter::repeat_n((*kind, Lie::Error(0x1200)), 200);
            gpu.lies.extend(refusals);
        }
    });
}

#[test]
fn a_device_that_gives_no_memory_back_must_be_reset_and_frees_it_then() {
    for (kinds, lie) in [
        (&[DETACH, UNREF][..], None),
        (&[DETACH][..], Some(Lie::NoFence)),
        (&[UNREF][..], Some(Lie::Length(0))),
    ] {
        let memory = Memory::fresh();
        let (device, mut gpu) = open(FakeGpu::new());
        let mut screen = screen(Buffering::Single);
        gpu.present(&mut screen, now).expect("done");
        let mut kept = 0;
        let cause = loop {
            match lie {
                None => refuse(&device, kinds),
                Some(lie) => device.with(|gpu| gpu.lies = vec![(kinds[0], lie)]),
            }
            screen.resize(Size::new(64 + kept, 48)).expect("memory");
            // That an old picture is not given back fails the request that asked for it, once for each, and what comes after
            // the fifth of them.
            let error = gpu.present(&mut screen, now).expect_err("kept");
            kept += 1;
            if kept > 5 {
                break error.cause;
            }
            assert!(!matches!(error.cause, Cause::MemoryKept { .. }), "{error}");
        };
        assert_eq!(cause, Cause::MemoryKept { resources: 5 });
        // The face reset the device, so the memory is free: that of the screen remains.
        assert_eq!(counter(&mut gpu, "resources"), 0);
        assert!(gpu.present(&mut screen, now).is_err(), "not started again");
        device.with(|gpu| gpu.lies.clear());
        gpu.driver().restart().expect("an honest device");
        screen.restore().expect("over");
        assert_eq!(gpu.present(&mut screen, now), Ok(true));
        assert_eq!(device.with(|gpu| gpu.resources()), (1, 1));
        drop((gpu, screen));
        memory.assert_clean();
    }
}

#[test]
fn a_device_that_keeps_one_picture_is_used_all_the_same() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    let mut screen = screen(Buffering::Single);
    gpu.present(&mut screen, now).expect("done");
    device.with(|gpu| gpu.lies = vec![(UNREF, Lie::Error(0x1200))]);
    screen.resize(Size::new(64, 48)).expect("memory");
    gpu.present(&mut screen, now)
        .expect_err("the old one is kept");
    for round in 0..20 {
        screen.resize(Size::new(65 + round, 48)).expect("memory");
        assert_eq!(gpu.present(&mut screen, now), Ok(true));
        let mut model = Model::new(Size::new(65 + round, 48));
        model.fill(Rect::default(), 0);
        model.assert_shown(&device, 0);
        assert_eq!(counter(&mut gpu, "resources"), 2);
    }
    drop((gpu, screen));
    memory.assert_clean();
}

#[test]
fn pictures_that_never_get_on_a_scanout_do_not_pile_up() {
    for kinds in [&[SET_SCANOUT], &[TRANSFER], &[ATTACH], &[FLUSH]] {
        for buffering in [Buffering::Single, Buffering::Double] {
            let memory = Memory::fresh();
            let (device, mut gpu) = open(FakeGpu::new());
            let mut screen = screen(buffering);
            gpu.present(&mut screen, now).expect("done");
            for round in 0..40 {
                refuse(&device, kinds);
                screen.resize(Size::new(64 + round, 48)).expect("memory");
                gpu.present(&mut screen, now).expect_err("refused");
                let lent = counter(&mut gpu, "backed_resources");
                assert!(lent <= 8, "{lent} after {round} changes of size");
            }
            assert!(memory.live().0 < 200, "{:?}", memory.live());
            device.with(|gpu| gpu.lies.clear());
            assert_eq!(gpu.present(&mut screen, now), Ok(true));
            Model::new(Size::new(103, 48)).assert_shown(&device, 0);
            gpu.close(screen, now).expect("done");
            assert_eq!(device.with(|gpu| gpu.resources()), (0, 0));
            drop(gpu);
            memory.assert_clean();
        }
    }
}

#[test]
fn interrupts_come_after_a_restart_as_before() {
    for ring in [
        RingFeatures::VERSION_1,
        RingFeatures::VERSION_1 | RingFeatures::EVENT_IDX,
    ] {
        let memory = Memory::fresh();
        let device = FakeDevice::new(FakeGpu::new());
        device.offer(ring);
        let gpu = Adapter::new(device.transport(), Options::default()).expect("an honest device");
        let face = Asynchronous::new(gpu);
        for _ in 0..3 {
            for _ in 0..3 {
                let before = device.interrupts(0);
                block_on(&face, face.refresh()).expect("done");
                assert!(device.interrupts(0) > before);
            }
            // Those of the pointer interest nobody.
            let cursor = Cursor::new(&dma(), Size::new(32, 20), &arrow(), (0, 0)).expect("memory");
            block_on(&face, face.load(&cursor)).expect("done");
            for at in 0..40 {
                face.with(|gpu| gpu.set_cursor(0, &cursor, at, 0))
                    .expect("room");
            }
            assert_eq!(device.interrupts(1), 0);
            face.stop(face.with(|gpu| gpu.error(Cause::NeedsReset)));
            face.restart().expect("an honest device");
        }
        drop(face);
        memory.assert_clean();
    }
}

#[test]
fn a_restart_counts_the_scanouts_anew() {
    let memory = Memory::fresh();
    let (device, mut gpu) = open(FakeGpu::new());
    assert_eq!(gpu.driver().scanouts(), 1);
    device.with(|gpu| {
        gpu.scanouts = 3;
        gpu.edid = QEMU_EDID.to_vec();
    });
    gpu.driver().restart().expect("an honest device");
    assert_eq!(gpu.driver().scanouts(), 3);
    gpu.perform(Request::edid(2), now).expect("a monitor");
    assert!(gpu.driver().edid(2).is_some());
    device.with(|gpu| gpu.scanouts = 1);
    gpu.driver().restart().expect("an honest device");
    assert!(gpu.perform(Request::edid(2), now).is_err());
    assert!(gpu.driver().edid(2).is_none());
    let mut screen = Screen::new(&dma(), 2, SMALL, Buffering::Single).expect("memory");
    assert!(gpu.present(&mut screen, now).is_err());
    drop((gpu, screen));
    memory.assert_clean();
}

#[test]
fn a_device_that_did_not_come_back_is_not_notified() {
    let memory = Memory::fresh();
    let (device, gpu) = open(FakeGpu::new());
    let mut gpu = gpu.into_inner();
    gpu.submit(Request::display_info()).expect("room");
    device.inject(Fault::FeaturesRefused);
    gpu.restart().expect_err("it refuses");
    gpu.kick();
    assert!(gpu.submit(Request::display_info()).is_err());
    gpu.kick();
    assert!(gpu.poll().is_err());
    assert!(gpu.move_cursor(0, 1, 1).is_err());
    memory.assert_no_violations();
    device.heal();
    gpu.restart().expect("an honest device again");
    drop(gpu);
    memory.assert_clean();
}
