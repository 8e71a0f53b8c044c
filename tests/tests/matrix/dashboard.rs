//! The dashboard: what a display shows when nobody asked for anything else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vringlet_tests::cell::{Booted, Cell, MEMORY};
use vringlet_tests::screen::{Picture, Pointers, Window, windows};

use crate::Spec;

/// The page's background.
const NIGHT: [u8; 3] = [0x0e, 0x12, 0x18];
/// A panel's background.
const SURFACE: [u8; 3] = [0x17, 0x1d, 0x26];
/// The color of the address.
const TEAL: [u8; 3] = [0x4e, 0xc9, 0xb0];

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for machine in ["q35", "microvm"] {
        cells.push(Spec::new(
            format!("{machine}/dashboard/appears"),
            move |cell| appears(cell, machine),
        ));
    }
    cells.push(Spec::new("q35/dashboard/idle-sends-nothing", idle));
    cells.push(Spec::new("q35/dashboard/two-heads-resized", heads));
    cells
}

/// The page is shown, the address is on it once there is one, and it makes way for others and comes back.
fn appears(cell: &Cell, machine: &str) -> Result<()> {
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "xres=1024,yres=768");
    qemu.user_net("n", &[]);
    qemu.virtio("net", "nic", "netdev=n");
    let mut guest = cell.boot(qemu)?;
    guest.expect("net0: address 10.0.2.15/24")?;
    guest.expect_prompt()?;
    let file = cell.file("screen.ppm");
    // Right of the middle of the header: nothing else is of this color there.
    let address = |picture: &Picture| picture.count(512, 0, 512, 40, TEAL);
    let page = |picture: &Picture| is_page(picture) && address(picture) > 20;
    Picture::wait(&mut guest.process().qmp, "g", 0, &file, page)?;

    guest.command("screen test", "transferred=3145728")?;
    let pattern = Picture::test_pattern(1024, 768, 0);
    pattern.expect(&mut guest.process().qmp, "g", 0, &file)?;
    // Longer than the dashboard would take to draw something.
    std::thread::sleep(Duration::from_secs(2));
    pattern.expect(&mut guest.process().qmp, "g", 0, &file)?;
    guest.type_line("screen dashboard")?;
    Picture::wait(&mut guest.process().qmp, "g", 0, &file, page)?;

    guest.command("virtio gpu0", " errors=0")?;
    guest.power_off()
}

/// While nothing happens, nothing is sent; when something happens, less than the picture is.
fn idle(cell: &Cell) -> Result<()> {
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "");
    let zeros = "if=none,id=d,driver=null-co,size=16M,read-zeroes=on";
    qemu.arg("-drive", zeros);
    qemu.virtio("blk", "b", "drive=d");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let file = cell.file("screen.ppm");
    Picture::wait(&mut guest.process().qmp, "g", 0, &file, is_page)?;
    // The clock and the uptime go on once a minute each, so that two of three such times may not be idle.
    let mut sent = Vec::new();
    for _ in 0..3 {
        let before = settled(&mut guest)?;
        std::thread::sleep(Duration::from_secs(5));
        sent.push(transferred(&mut guest)? - before);
    }
    ensure!(sent.contains(&0), "{sent:?} bytes were sent in 5 s each");
    ensure!(
        sent.iter().all(|sent| *sent < 1280 * 800),
        "{sent:?} bytes for a minute more"
    );

    // A disk that is read is seen, and costs a small part of the picture.
    let before = transferred(&mut guest)?;
    let teal = |picture: &Picture| picture.count(0, 0, 1280, 800, TEAL);
    let qmp = &mut guest.process().qmp;
    let quiet = teal(&Picture::take(qmp, "g", 0, &file)?);
    guest.command("blk hash blk0", "sha256=")?;
    let qmp = &mut guest.process().qmp;
    Picture::wait(qmp, "g", 0, &file, |picture| teal(picture) > quiet + 100)?;
    let sent = transferred(&mut guest)? - before;
    ensure!(
        0 < sent && sent < 1280 * 800 * 2,
        "{sent} bytes for a disk that is read"
    );
    guest.power_off()
}

/// Two windows, of which one comes later and both change their size: each shows a page of its size.
fn heads(cell: &Cell) -> Result<()> {
    let sockets = tempfile::tempdir().context("a directory for sockets")?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "max_outputs=2");
    let [first, second] = windows(&mut qemu, "g", sockets.path())?;
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let mut first = Window::open(&first, Pointers::None)?;
    let mut second = Window::open(&second, Pointers::None)?;
    let file = cell.file("screen.ppm");
    let page = |size| move |picture: &Picture| picture.size() == size && is_page(picture);
    first.resize(800, 600)?;
    second.resize(1920, 1080)?;
    let qmp = &mut guest.process().qmp;
    Picture::wait(qmp, "g", 0, &file, page((800, 600)))?;
    Picture::wait(qmp, "g", 1, &file, page((1920, 1080)))?;
    for step in 0..10 {
        first.resize(700 + 10 * step, 500 + 10 * step)?;
        second.resize(900 - 10 * step, 600 + 5 * step)?;
    }
    Picture::wait(qmp, "g", 0, &file, page((790, 590)))?;
    Picture::wait(qmp, "g", 1, &file, page((810, 645)))?;
    guest.command("virtio gpu0", " resources=2 backed_resources=2")?;
    guest.command("virtio gpu0", " errors=0")?;
    guest.power_off()
}

/// Whether this is the dashboard from edge to edge: its background along all edges, much of it in panels, and text.
fn is_page(picture: &Picture) -> bool {
    let (width, height) = picture.size();
    let edges = [
        (0, 0, width, 4),
        (0, height - 4, width, 4),
        (0, 0, 4, height),
        (width - 4, 0, 4, height),
    ];
    let framed = edges
        .into_iter()
        .all(|(x, y, width, height)| picture.count(x, y, width, height, NIGHT) == width * height);
    let panels = picture.count(0, 0, width, height, SURFACE);
    let night = picture.count(0, 0, width, height, NIGHT);
    let rest = width * height - panels - night;
    framed && panels > width * height / 2 && rest > width * height / 200
}

/// What the adapter has transferred so far, in bytes.
fn transferred(guest: &mut Booted) -> Result<u64> {
    let line = guest.command("virtio gpu0", "bytes_transferred=")?.text;
    let (_, value) = line
        .split_once("bytes_transferred=")
        .context("no counter")?;
    let digits = value.split(' ').next().unwrap_or_default();
    digits.parse().with_context(|| line.clone())
}

/// As [`transferred`], once that has stayed the same for two periods of the dashboard.
fn settled(guest: &mut Booted) -> Result<u64> {
    let mut last = transferred(guest)?;
    for _ in 0..30 {
        std::thread::sleep(Duration::from_millis(2500));
        let now = transferred(guest)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    anyhow::bail!("the screen never rests")
}
