//! Graphics adapters: what the guest shows, pixel by pixel.

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Cell, MEMORY};
use vringlet_tests::qemu::{escape, utf8};
use vringlet_tests::screen::{Picture, Window};

use crate::Spec;

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for (name, machine, kind, properties, size) in [
        ("q35/gpu/1280x800", "q35", "gpu", "", (1280, 800)),
        // Rows that no power of two divides, and pieces of memory that are not full.
        (
            "q35/gpu/1918x1079",
            "q35",
            "gpu",
            "xres=1918,yres=1079",
            (1918, 1079),
        ),
        (
            "q35/gpu/intx",
            "q35",
            "gpu",
            "vectors=0,xres=800,yres=600",
            (800, 600),
        ),
        (
            "q35/gpu/event_idx=off,indirect=off",
            "q35",
            "gpu",
            "event_idx=off,indirect_desc=off,xres=1024,yres=768",
            (1024, 768),
        ),
        ("q35/gpu/edid=off", "q35", "gpu", "edid=off", (1280, 800)),
        ("pc/gpu/1280x800", "pc", "gpu", "", (1280, 800)),
        ("microvm/gpu/1280x800", "microvm", "gpu", "", (1280, 800)),
    ] {
        cells.push(Spec::new(name, move |cell| {
            pixels(cell, machine, kind, properties, size)
        }));
    }
    cells.push(Spec::new("q35/gpu/windows-resized", windows));
    cells
}

/// The test pattern, then a rectangle over it: the picture is right, and only the rectangle's bytes were transferred.
fn pixels(
    cell: &Cell,
    machine: &str,
    kind: &str,
    properties: &str,
    (width, height): (usize, usize),
) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.virtio(kind, "g", properties);
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
    guest.power_off()
}

/// Two windows: one is resized, one appears, both are resized again and again, and the guest follows.
fn windows(cell: &Cell) -> Result<()> {
    let sockets = tempfile::tempdir().context("a directory for sockets")?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "max_outputs=2");
    let paths = ["0", "1"].map(|head| sockets.path().join(head));
    for (head, path) in paths.iter().enumerate() {
        let socket = escape(utf8(path)?);
        qemu.arg("-vnc", &format!("unix:{socket},display=g,head={head}"));
    }
    qemu.script("strict; screen test");
    let mut guest = cell.boot(qemu)?;
    guest.expect("transferred=")?;
    let [first, second] = &paths;
    let (mut first, mut second) = (Window::open(first)?, Window::open(second)?);
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
