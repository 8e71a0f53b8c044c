//! Pictures from a disk on displays: what is seen is the picture as the host renders it.

use anyhow::{Context, Result, ensure};
use jpeg_encoder::SamplingFactor;
use vringlet_tests::cell::{Booted, Cell};
use vringlet_tests::images::{FileSystem, Files};
use vringlet_tests::pictures::{Jpeg, Kind, bmp, jpeg, masked_bmp, png};
use vringlet_tests::qemu::Image;
use vringlet_tests::screen::{Picture, Pointers, Window, windows};

use crate::Spec;

/// Room for a picture of three million pixels, its file, and what it takes to make the one of the other.
const MEMORY: &str = "256M";

pub(crate) fn cells() -> Vec<Spec> {
    let mut cells = Vec::new();
    for (machine, width, height) in [
        ("q35", 640, 480),
        ("q35", 1280, 800),
        ("q35", 1920, 1080),
        ("microvm", 800, 600),
    ] {
        let name = format!("{machine}/screen/show/{width}x{height}");
        cells.push(Spec::new(name, move |cell| {
            show(cell, machine, (width, height))
        }));
    }
    cells.push(Spec::new("q35/screen/show/two-heads-resized", heads));
    cells.push(Spec::new("q35/screen/show/broken", broken));
    cells.push(Spec::new("q35/screen/show/jpeg", show_jpeg));
    cells
}

/// A guest with a graphics adapter and these files on blk0.
fn boot(cell: &Cell, machine: &str, properties: &str, files: &Files) -> Result<Booted> {
    let path = cell.file("disk.img");
    FileSystem::Fat(32).make(&path, 64, "PICTURES", files)?;
    let mut qemu = cell.qemu(&machine.parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", properties);
    qemu.drive("d0", &path, Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    Ok(guest)
}

/// Pictures smaller, larger, wider and higher than the display, in every kind of file.
fn show(cell: &Cell, machine: &str, (width, height): (usize, usize)) -> Result<()> {
    let mut files = Files::new();
    let mut pictures = Vec::new();
    for kind in Kind::ALL {
        let (picture, file) = png(kind, 301, 199)?;
        files.insert(format!("{kind:?}.png"), file);
        pictures.push((format!("{kind:?}.png"), picture));
    }
    for (width, height) in [(1280, 800), (2001, 1499), (3000, 50), (45, 2000)] {
        let (picture, file) = png(Kind::Rgb, width, height)?;
        let name = format!("{width}x{height}.png");
        files.insert(name.clone(), file);
        pictures.push((name, picture));
    }
    let (picture, _) = png(Kind::Rgb, 1023, 767)?;
    files.insert("windows.bmp".into(), bmp(&picture));
    files.insert("masks.bmp".into(), masked_bmp(&picture));
    pictures.push(("windows.bmp".into(), picture.clone()));
    pictures.push(("masks.bmp".into(), picture));
    let (picture, mut file) = png(Kind::Rgb, 301, 199)?;
    file.extend([0; 512]);
    files.insert("more.png".into(), file);
    pictures.push(("more.png".into(), picture));

    let properties = format!("xres={width},yres={height}");
    let mut guest = boot(cell, machine, &properties, &files)?;
    let file = cell.file("screen.ppm");
    for (name, picture) in pictures {
        let (columns, rows) = picture.size();
        let said = format!(
            "picture={columns}x{rows} transferred={}",
            4 * width * height
        );
        guest.command(&format!("screen show {name}"), &said)?;
        let shown = picture.shown(width, height);
        let seen = shown.expect(&mut guest.process().qmp, "g", 0, &file);
        seen.with_context(|| name.clone())?;
    }
    guest.command("virtio gpu0", " errors=0")?;
    guest.power_off()
}

/// Two displays show it, and go on doing so when a window of either changes its size.
fn heads(cell: &Cell) -> Result<()> {
    let (picture, file) = png(Kind::Rgb, 900, 650)?;
    let path = cell.file("disk.img");
    let files = Files::from([("picture.png".to_string(), file)]);
    FileSystem::Ext(4).make(&path, 16, "PICTURES", &files)?;
    let sockets = tempfile::tempdir().context("a directory for sockets")?;
    let mut qemu = cell.qemu(&"q35".parse()?, MEMORY)?;
    qemu.virtio("gpu", "g", "max_outputs=2");
    let [first, second] = windows(&mut qemu, "g", sockets.path())?;
    qemu.drive("d0", &path, Image::RAW)?;
    qemu.virtio("blk", "disk0", "drive=d0");
    let mut guest = cell.boot(qemu)?;
    guest.expect_prompt()?;
    let mut first = Window::open(&first, Pointers::None)?;
    let mut second = Window::open(&second, Pointers::None)?;
    second.resize(641, 479)?;
    guest.expect("display 1 is there: 641x479")?;
    let expect = |guest: &mut Booted, head: usize, (width, height)| {
        let file = cell.file("screen.ppm");
        let shown: Picture = picture.shown(width, height);
        let seen = shown.expect(&mut guest.process().qmp, "g", head, &file);
        seen.with_context(|| format!("head {head} of {width}x{height}"))
    };
    guest.command("screen show picture.png", "picture=900x650")?;
    expect(&mut guest, 0, (1280, 800))?;
    expect(&mut guest, 1, (641, 479))?;
    first.resize(500, 701)?;
    second.resize(1000, 700)?;
    expect(&mut guest, 0, (500, 701))?;
    expect(&mut guest, 1, (1000, 700))?;
    guest.command("virtio gpu0", " errors=0")?;
    guest.power_off()
}

/// JPEG files of every kind: what is seen is what another decoder makes of them, as near as two decoders are.
fn show_jpeg(cell: &Cell) -> Result<()> {
    const TOLERANCE: u8 = 16;
    let plain = Jpeg::default();
    let progressive = Jpeg {
        progressive: true,
        ..plain
    };
    let (gray, turned) = (
        Jpeg {
            gray: true,
            ..plain
        },
        Jpeg {
            turned: true,
            ..plain
        },
    );
    let restart = Jpeg {
        restart: 5,
        sampling: SamplingFactor::R_4_4_4,
        ..plain
    };
    let wide = Jpeg {
        sampling: SamplingFactor::R_4_2_2,
        ..progressive
    };
    let kinds = [
        ("plain", plain, (301, 199)),
        ("progressive", progressive, (640, 480)),
        ("gray", gray, (123, 231)),
        ("restart", restart, (333, 222)),
        ("turned", turned, (500, 100)),
        ("wide", wide, (99, 98)),
        // Much work, and more memory than any other code on a fiber gets.
        ("large", progressive, (2400, 1600)),
    ];
    let (mut files, mut pictures) = (Files::new(), Vec::new());
    for (name, kind, (width, height)) in kinds {
        let (picture, file) = jpeg(kind, width, height)?;
        files.insert(format!("{name}.jpg"), file);
        pictures.push((name, picture));
    }
    let (_, file) = jpeg(plain, 301, 199)?;
    files.insert("more.jpg".into(), [&file[..], &file].concat());
    let mut huge = file.clone();
    let frame = huge.windows(2).position(|it| it == [0xff, 0xc0]);
    let frame = frame.context("no frame header")?;
    huge[frame + 5..][..4].fill(0x3f);
    files.insert("cut.jpg".into(), file[..file.len() / 2].to_vec());
    files.insert("huge.jpg".into(), huge);
    files.insert("noise.jpg".into(), [&file[..3], &[0x5a; 4000]].concat());

    let mut guest = boot(cell, "q35", "xres=640,yres=480", &files)?;
    for (name, reason) in [
        ("cut", "is a broken picture: \"cut off\""),
        ("huge", "has 16191 x 16191 pixels"),
        ("noise", "is a broken picture"),
    ] {
        let line = guest
            .command(&format!("screen show {name}.jpg"), "error: ")?
            .text;
        ensure!(line.contains(reason), "{name}: {line:?} and not {reason:?}");
    }
    pictures.push(("more", pictures[0].1.clone()));
    let file = cell.file("screen.ppm");
    for (name, picture) in pictures {
        let (columns, rows) = picture.size();
        let said = format!("picture={columns}x{rows} transferred={}", 4 * 640 * 480);
        guest.command(&format!("screen show {name}.jpg"), &said)?;
        let shown = picture.shown(640, 480);
        let seen = shown.expect_near(TOLERANCE, &mut guest.process().qmp, "g", 0, &file);
        seen.context(name)?;
    }
    guest.command("virtio gpu0", " errors=0")?;
    guest.power_off()
}

/// What is no picture is refused with a reason, and the display shows what it showed.
fn broken(cell: &Cell) -> Result<()> {
    let (_, good) = png(Kind::Rgb, 301, 199)?;
    let mut huge = good.clone();
    // Width and height of the header, which its checksum does not fit any more, so that too is right.
    huge[16..24].copy_from_slice(&[0, 0, 0x3f, 0xff, 0, 0, 0x3f, 0xff]);
    let checksum = crc32(&huge[12..29]).to_be_bytes();
    huge[29..33].copy_from_slice(&checksum);
    let mut damaged = good.clone();
    for byte in damaged.iter_mut().skip(100).step_by(7) {
        *byte ^= 0x55;
    }
    let files = Files::from([
        ("text.png".to_string(), b"no picture at all".to_vec()),
        ("empty.png".into(), Vec::new()),
        ("cut.png".into(), good[..good.len() / 2].to_vec()),
        ("huge.png".into(), huge),
        ("damaged.png".into(), damaged),
        ("cut.bmp".into(), b"BM not much".to_vec()),
    ]);
    let mut guest = boot(cell, "q35", "xres=640,yres=480", &files)?;
    let pattern = Picture::test_pattern(640, 480, 0);
    guest.command("screen test", "transferred=")?;
    for (name, reason) in [
        ("text.png", "is no picture in PNG, BMP or JPEG"),
        ("empty.png", "is no picture in PNG, BMP or JPEG"),
        ("cut.png", "is a broken picture"),
        ("huge.png", "has 16383 x 16383 pixels"),
        ("damaged.png", "is a broken picture"),
        ("cut.bmp", "is a broken picture"),
        ("nothing.png", "no such file"),
    ] {
        let line = guest
            .command(&format!("screen show {name}"), "error: ")?
            .text;
        ensure!(line.contains(reason), "{name}: {line:?} and not {reason:?}");
        ensure!(line.contains(&format!("/blk0/{name}")), "{line:?}");
    }
    let file = cell.file("screen.ppm");
    pattern.expect(&mut guest.process().qmp, "g", 0, &file)?;
    guest.power_off()
}

/// The checksum of a PNG file's chunks: CRC-32 as in IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}
