//! Graphics adapters: what the guest shows, pixel by pixel.

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::guest::End;
use vringlet_tests::qemu::{Qemu, escape, utf8};
use vringlet_tests::screen::{self, Picture, Pointer, Pointers, Window};
use vringlet_tests::vhost_user::{Daemon, no_gpu};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for (name, machine, properties, size) in [
        ("q35/gpu/1280x800", "q35", "", (1280, 800)),
        // Rows that no power of two divides, and pieces of memory that are not full.
        (
            "q35/gpu/1918x1079",
            "q35",
            "xres=1918,yres=1079",
            (1918, 1079),
        ),
        (
            "q35/gpu/intx",
            "q35",
            "vectors=0,xres=800,yres=600",
            (800, 600),
        ),
        (
            "q35/gpu/event_idx=off,indirect=off",
            "q35",
            "event_idx=off,indirect_desc=off,xres=1024,yres=768",
            (1024, 768),
        ),
        ("q35/gpu/edid=off", "q35", "edid=off", (1280, 800)),
        ("pc/gpu/1280x800", "pc", "", (1280, 800)),
        ("microvm/gpu/1280x800", "microvm", "", (1280, 800)),
    ] {
        cells.push(Spec::new(name, move |cell| {
            pixels(cell, machine, Model::Qemu, properties, size)
        }));
    }
    for (name, machine, device, properties, size) in [
        ("q35/gpu/vhost-user/1280x800", "q35", PCI, "", (1280, 800)),
        (
            "q35/gpu/vhost-user/1918x1079",
            "q35",
            PCI,
            "xres=1918,yres=1079",
            (1918, 1079),
        ),
        ("pc/gpu/vhost-user/1280x800", "pc", PCI, "", (1280, 800)),
        ("q35/gpu/vhost-user/vga", "q35", VGA, "", (1280, 800)),
    ] {
        let spec = Spec::new(name, move |cell| {
            pixels(cell, machine, Model::Daemon(device), properties, size)
        });
        cells.push(spec.unless(no_gpu));
    }
    cells.push(Spec::new("q35/gpu/vga", |cell| {
        pixels(cell, "q35", Model::Vga, "", (1280, 800))
    }));
    for (name, memory, properties, size, refused) in [
        (
            "q35/gpu/3840x2160-in-64M",
            "64M",
            "xres=3840,yres=2160",
            (1920, 1080),
            &[][..],
        ),
        (
            "q35/gpu/7680x4320-in-256M",
            "256M",
            "xres=7680,yres=4320",
            (3840, 2160),
            &[],
        ),
        (
            "q35/gpu/host-memory=4M",
            MEMORY,
            "xres=1920,yres=1080,max_hostmem=4M",
            (960, 540),
            &["virtio_gpu_resource_create_2d: resource creation failed 1 1920 1080"],
        ),
    ] {
        cells.push(Spec::new(name, move |cell| {
            too_large(cell, memory, properties, size, refused)
        }));
    }
    cells.push(Spec::new("q35/gpu/windows-resized", windows));
    cells.push(Spec::new("q35/gpu/16-heads", all_heads));
    cells.push(Spec::new("q35/gpu/bench", bench));
    cells.push(Spec::new("q35/gpu/cursor", cursor));
    cells.push(Spec::new("q35/gpu/vhost-user/cursor", cursor_of_daemon).unless(no_gpu));
    cells
}

/// QEMU's names of the daemon's device.
const PCI: &str = "vhost-user-gpu-pci";
const VGA: &str = "vhost-user-vga";

/// What is behind the adapter.
#[derive(Clone, Copy, Debug)]
enum Model {
    /// QEMU itself.
    Qemu,
    /// The same, and beside it what a PC shows before its system has a driver.
    Vga,
    /// The daemon vhost-user-gpu, with QEMU's device of this name.
    Daemon(&'static str),
}

impl Model {
    /// Adds the adapter, with the id `g`.
    fn attach(self, cell: &Cell, qemu: &mut Qemu, properties: &str) -> Result<Option<Daemon>> {
        match self {
            Model::Qemu => {
                qemu.virtio("gpu", "g", properties);
                Ok(None)
            }
            Model::Vga => {
                qemu.arg("-device", "virtio-vga,id=g");
                Ok(None)
            }
            Model::Daemon(device) => {
                qemu.share_memory(MEMORY);
                let daemon = Daemon::gpu(cell.directory())?;
                daemon.attach(qemu, device, "g", properties)?;
                Ok(Some(daemon))
            }
        }
    }
}

/// The test pattern, then a rectangle over it: the picture is right, and only the rectangle's bytes were transferred.
fn pixels(
    cell: &Cell,
    machine: &str,
    model: Model,
    properties: &str,
    (width, height): (usize, usize),
) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    let daemon = model.attach(cell, &mut qemu, properties)?;
    qemu.script("strict; screen info; screen test");
    let mut guest = cell.boot(qemu)?;
    guest.expect("gpu0: virtio-gpu at ")?;
    guest.expect(&format!("display=0 size={width}x{height}"))?;
    guest.expect(&format!("transferred={}", 4 * width * height))?;
    let file = cell.file("screen.ppm");
    let mut picture = Picture::test_pattern(width, height, 0);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;

    guest.command("screen fill 101 57 33 15 0xff8001", "transferred=1980")?;
    picture.fill(101, 57, 33, 15, [0xff, 0x80, 1]);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    // The part that is on the screen.
    let right = width - 10;
    let command = format!("screen fill {right} 0 100 1 0x123456");
    guest.command(&command, "transferred=40")?;
    picture.fill(right, 0, 10, 1, [0x12, 0x34, 0x56]);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;

    guest.command("virtio gpu0", "errors=0")?;
    let info = guest.console().output_of("screen info")?.concat();
    let monitor = info.contains("monitor=\"QEMU Monitor\"");
    ensure!(monitor != properties.contains("edid=off"), "{info}");
    guest.power_off()?;
    daemon.map_or(Ok(()), |daemon| daemon.complains_only_of(&[]))
}

/// The benchmark sends what it draws, as often as it says, and nothing else.
fn bench(cell: &Cell) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "xres=640,yres=480");
    qemu.script("strict; screen test");
    let mut guest = cell.boot(qemu)?;
    guest.expect("display=0 size=640x480")?;
    let file = cell.file("screen.ppm");
    let mut picture = Picture::test_pattern(640, 480, 0);
    guest.command(
        "bench gpu area=16x9 count=7",
        "area=16x9 frames=7 transferred=4032 ",
    )?;
    picture.fill(0, 0, 16, 9, [0, 0, 7]);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    guest.command(
        "screen bench count=3",
        "area=640x480 frames=3 transferred=3686400 ",
    )?;
    picture.fill(0, 0, 640, 480, [0, 0, 3]);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    for refused in ["area=641x480", "area=0x9", "area=9", "display=1"] {
        guest.command(&format!("screen bench {refused}"), "error: ")?;
    }
    guest.power_off()
}

/// A display for which the guest or the host has not enough memory shows a smaller picture. What the host refused, QEMU logs as
/// `refused`, and nothing that follows from it.
fn too_large(
    cell: &Cell,
    memory: &str,
    properties: &str,
    (width, height): (usize, usize),
    refused: &[&str],
) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, memory)?;
    qemu.virtio("gpu", "g", properties);
    qemu.script("strict; screen test");
    let mut guest = cell.boot(qemu)?;
    guest.expect(&format!("display=0 size={width}x{height}"))?;
    let file = cell.file("screen.ppm");
    let mut picture = Picture::test_pattern(width, height, 0);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    guest.command("screen fill 3 4 50 6 0xff8001", "transferred=1200")?;
    picture.fill(3, 4, 50, 6, [0xff, 0x80, 1]);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    guest.command("virtio gpu0", " resources=1 backed_resources=1")?;
    guest.command("screen dashboard", "screen dashboard")?;
    guest.type_line("poweroff")?;
    guest.ends_with_complaints(&End::PowerOff, refused)
}

/// As many displays as the device can have, each with a picture of its own.
fn all_heads(cell: &Cell) -> Result<()> {
    const HEADS: usize = 16;
    let sockets = tempfile::tempdir().context("a directory for sockets")?;
    let mut qemu = cell.qemu(&"q35".parse()?, "256M")?;
    qemu.virtio("gpu", "g", "max_outputs=16");
    let sockets = screen::windows::<HEADS>(&mut qemu, "g", sockets.path())?;
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let mut windows = Vec::new();
    for (head, socket) in sockets.iter().enumerate() {
        let mut window = Window::open(socket, Pointers::None)?;
        window.resize(400 + 8 * head as u16, 300 + 3 * head as u16)?;
        windows.push(window);
    }
    guest.eventually("display 15 is there: 520x345")?;
    guest.command("screen test", "transferred=")?;
    let file = cell.file("screen.ppm");
    for head in 0..HEADS {
        let picture = Picture::test_pattern(400 + 8 * head, 300 + 3 * head, head);
        let seen = picture.expect(&mut guest.process().qmp, "g", head, &file);
        seen.with_context(|| format!("head {head}"))?;
    }
    guest.command("virtio gpu0", " resources=16 backed_resources=16")?;
    guest.command("virtio gpu0", " errors=0")?;
    guest.power_off()
}

/// Two windows: one is resized, one appears, both are resized again and again, and the guest follows.
fn windows(cell: &Cell) -> Result<()> {
    let sockets = tempfile::tempdir().context("a directory for sockets")?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "max_outputs=2");
    let [first, second] = screen::windows(&mut qemu, "g", sockets.path())?;
    qemu.script("strict; screen test");
    let mut guest = cell.boot(qemu)?;
    guest.expect("transferred=")?;
    let mut first = Window::open(&first, Pointers::None)?;
    let mut second = Window::open(&second, Pointers::None)?;
    let file = cell.file("screen.ppm");

    first.resize(1000, 700)?;
    guest.expect("display 0 went from 1280x800 to 1000x700")?;
    let picture = Picture::test_pattern(1000, 700, 0);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;

    second.resize(641, 479)?;
    guest.expect("display 1 is there: 641x479")?;
    let picture = Picture::test_pattern(641, 479, 1);
    picture.expect(&mut guest.process().qmp, "g", 1, &file)?;

    for step in 0..20 {
        first.resize(500 + 10 * step, 400 + 5 * step)?;
        second.resize(900 - 10 * step, 300 + 5 * step)?;
    }
    let picture = Picture::test_pattern(690, 495, 0);
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    let picture = Picture::test_pattern(710, 395, 1);
    picture.expect(&mut guest.process().qmp, "g", 1, &file)?;
    // What was shown before is given back.
    guest.command("virtio gpu0", " resources=2 backed_resources=2")?;
    guest.command("virtio gpu0", "errors=0")?;
    guest.power_off()
}

/// The pointer as VNC clients get it, pixel for pixel; and where it is, and whether, as QEMU's adapter was told.
///
/// A VNC server says nothing about where the guest's pointer is. When it is hidden, QEMU has the picture sent once more, and
/// clients go on showing it; the trace of the adapter alone tells of it.
fn cursor(cell: &Cell) -> Result<()> {
    let sockets = tempfile::tempdir().context("a directory for sockets")?;
    let socket = sockets.path().join("vnc");
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "");
    ensure!(qemu.vnc(&socket)?, "{} is too long", socket.display());
    let trace = cell.file("trace.log");
    let file = escape(utf8(&trace)?);
    let events = format!("enable=virtio_gpu_update_cursor,file={file}");
    qemu.arg("-trace", &events);
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let mut rich = Window::open(&socket, Pointers::Rich)?;
    let mut alpha = Window::open(&socket, Pointers::Alpha)?;
    let arrow = Pointer::arrow();
    let mut expect_arrow = || -> Result<()> {
        rich.pointer()?.expect(&arrow).context("rich cursor")?;
        alpha.pointer()?.expect(&arrow).context("alpha cursor")
    };

    point(&mut guest, "screen cursor 100 200")?;
    expect_arrow()?;
    point(&mut guest, "screen cursor 1279 799")?;
    point(&mut guest, "screen cursor off")?;
    expect_arrow()?;
    point(&mut guest, "screen cursor 7 8")?;
    expect_arrow()?;
    guest.command("virtio gpu0", CURSOR_COUNTS)?;
    guest.power_off()?;
    // Moving it is no reason to send it again.
    ensure!(rich.pointers_left()? == 0, "more rich cursors");
    ensure!(alpha.pointers_left()? == 0, "more alpha cursors");

    // With a file for the trace, QEMU's log of guest errors goes there too: this must be all that there is.
    let trace = std::fs::read_to_string(&trace).context("reading the trace")?;
    let hidden = |line: &str| line.ends_with("res 0x0");
    let is: Vec<_> = trace
        .lines()
        .map(|line| (line.split(", res ").next().unwrap_or(line), hidden(line)))
        .collect();
    let should = [
        (
            "virtio_gpu_update_cursor scanout 0, x 100, y 200, update",
            false,
        ),
        (
            "virtio_gpu_update_cursor scanout 0, x 1279, y 799, move",
            false,
        ),
        ("virtio_gpu_update_cursor scanout 0, x 0, y 0, update", true),
        (
            "virtio_gpu_update_cursor scanout 0, x 7, y 8, update",
            false,
        ),
    ];
    ensure!(is == should, "the trace has {is:?} and not {should:?}");
    Ok(())
}

/// Types a command that prints nothing, and waits until the guest has it: what is typed while it is at work is lost.
fn point(guest: &mut Booted, command: &str) -> Result<()> {
    guest.command(command, command).map(drop)
}

const CURSOR_COUNTS: &str = "cursor_updates=3 cursor_moves=1 cursor_errors=0";

/// The daemon takes what the guest says of its pointer. Nobody can look at it: QEMU lets no VNC server show an adapter whose
/// daemon might use DMABUF. But the picture behind must stay as it is; and what the daemon (of QEMU 10.0) complains of,
/// though it is how the pointer is hidden, is a sign that it was told.
fn cursor_of_daemon(cell: &Cell) -> Result<()> {
    const NO_PICTURE: &str = "update_cursor_data_simple: assertion 'res != NULL' failed";
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.share_memory(MEMORY);
    let daemon = Daemon::gpu(cell.directory())?;
    daemon.attach(&mut qemu, PCI, "g", "")?;
    qemu.script("strict; screen test; screen cursor 100 200; screen cursor 1279 799");
    let mut guest = cell.boot(qemu)?;
    guest.expect("transferred=")?;
    guest.expect_prompt()?;
    let (file, picture) = (cell.file("screen.ppm"), Picture::test_pattern(1280, 800, 0));
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    daemon.complains_only_of(&[])?;
    point(&mut guest, "screen cursor off")?;
    point(&mut guest, "screen cursor 7 8")?;
    guest.command("virtio gpu0", CURSOR_COUNTS)?;
    daemon.eventually_says(NO_PICTURE)?;
    picture.expect(&mut guest.process().qmp, "g", 0, &file)?;
    guest.power_off()?;
    daemon.complains_only_of(&[NO_PICTURE])?;
    let complaints = daemon.output()?.matches(NO_PICTURE).count();
    ensure!(complaints == 1, "hidden {complaints} times");
    Ok(())
}
