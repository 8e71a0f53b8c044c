//! What the guest shows: pictures taken by QEMU, the test pattern rendered on the host, and windows: resized, and with a
//! pointer.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::qemu::{Qemu, escape, utf8};
use crate::qmp::Qmp;

/// How long the guest may take to show something.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A picture, three bytes a pixel: red, green, blue.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "picture of {}x{}", self.width, self.height)
    }
}

impl Picture {
    /// What `screen test` shows on a scanout of this size.
    pub fn test_pattern(width: usize, height: usize, scanout: usize) -> Self {
        let mut bytes = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                let blue = x ^ y ^ (scanout * 0x55);
                bytes.extend([
                    (x * 256 / width) as u8,
                    (y * 256 / height) as u8,
                    blue as u8,
                ]);
            }
        }
        Self {
            width,
            height,
            bytes,
        }
    }

    /// A picture of these bytes, three a pixel.
    pub fn new(width: usize, height: usize, bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len(), 3 * width * height, "bytes of a picture");
        Self {
            width,
            height,
            bytes,
        }
    }

    /// Its bytes, three a pixel: red, green, blue.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As `screen show` puts it on a display: black around it if it is smaller, and smaller if it is larger, every pixel
    /// the mean of those it stands for, rounded.
    pub fn shown(&self, width: usize, height: usize) -> Self {
        let (columns, rows) = self.fitted(width, height);
        let (left, top) = ((width - columns) / 2, (height - rows) / 2);
        let mut shown = Self::new(width, height, vec![0; 3 * width * height]);
        for y in 0..rows {
            for x in 0..columns {
                let mut sums = [0; 3];
                let mut count = 0;
                for from_y in y * self.height / rows..(y + 1) * self.height / rows {
                    for from_x in x * self.width / columns..(x + 1) * self.width / columns {
                        let at = 3 * (from_y * self.width + from_x);
                        for (sum, color) in sums.iter_mut().zip(&self.bytes[at..]) {
                            *sum += usize::from(*color);
                        }
                        count += 1;
                    }
                }
                let mean = sums.map(|sum| ((2 * sum + count) / (2 * count)) as u8);
                shown.fill(left + x, top + y, 1, 1, mean);
            }
        }
        shown
    }

    /// The largest size that fits and is not larger than its own.
    fn fitted(&self, width: usize, height: usize) -> (usize, usize) {
        if self.width <= width && self.height <= height {
            (self.width, self.height)
        } else if width * self.height <= height * self.width {
            (width, (width * self.height / self.width).max(1))
        } else {
            ((height * self.width / self.height).max(1), height)
        }
    }

    /// As after `screen fill`.
    pub fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, color: [u8; 3]) {
        for row in y..y + height {
            for column in x..x + width {
                let at = 3 * (row * self.width + column);
                self.bytes[at..at + 3].copy_from_slice(&color);
            }
        }
    }

    /// Has QEMU take a picture of a head of the device with this id.
    pub fn take(qmp: &mut Qmp, device: &str, head: usize, file: &Path) -> Result<Self> {
        let arguments = json!({ "filename": utf8(file)?, "device": device, "head": head });
        qmp.execute("screendump", arguments)?;
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        Self::from_ppm(&bytes).with_context(|| format!("in {}", file.display()))
    }

    /// Reads what QEMU writes: a binary PPM, but with rows padded to a multiple of four bytes.
    fn from_ppm(bytes: &[u8]) -> Result<Self> {
        let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
        let mut line = || lines.next().context("the file ends early");
        ensure!(line()? == b"P6", "not a binary PPM");
        let size = std::str::from_utf8(line()?)?;
        let (width, height) = size.split_once(' ').context("no size")?;
        let (width, height) = (width.parse::<usize>()?, height.parse::<usize>()?);
        ensure!(line()? == b"255", "not of 8 bits");
        let pixels = line()?;
        let (row, padded) = (3 * width, (3 * width).next_multiple_of(4));
        ensure!(pixels.len() == padded * height, "{} bytes", pixels.len());
        let rows = pixels.chunks_exact(padded);
        Ok(Self {
            width,
            height,
            bytes: rows.flat_map(|bytes| &bytes[..row]).copied().collect(),
        })
    }

    /// Width and height.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// How many pixels of a rectangle are of this color.
    pub fn count(&self, x: usize, y: usize, width: usize, height: usize, color: [u8; 3]) -> usize {
        let rows = self.bytes.chunks_exact(3 * self.width).skip(y).take(height);
        let pixels = rows.flat_map(|row| row.chunks_exact(3).skip(x).take(width));
        pixels.filter(|pixel| **pixel == color).count()
    }

    /// Where this differs from another picture, by more than the tolerance in any color.
    fn difference(&self, other: &Self, tolerance: u8) -> Option<String> {
        if (self.width, self.height) != (other.width, other.height) {
            return Some(format!("{self:?}, and not {other:?}"));
        }
        let pixels = || self.bytes.chunks(3).zip(other.bytes.chunks(3)).enumerate();
        let differs = |(_, (is, should)): &(usize, (&[u8], &[u8]))| {
            let mut colors = is.iter().zip(*should);
            colors.any(|(is, should)| is.abs_diff(*should) > tolerance)
        };
        let (index, (is, should)) = pixels().find(differs)?;
        let count = pixels().filter(differs).count();
        let (x, y) = (index % self.width, index / self.width);
        Some(format!(
            "{count} pixels differ, the first at {x},{y}: {is:02x?} and not {should:02x?}"
        ))
    }

    /// Takes pictures of a head until one is this.
    pub fn expect(&self, qmp: &mut Qmp, device: &str, head: usize, file: &Path) -> Result<()> {
        self.expect_near(0, qmp, device, head, file)
    }

    /// Takes pictures of a head until one differs from this by no more than the tolerance in any color of any pixel.
    pub fn expect_near(
        &self,
        tolerance: u8,
        qmp: &mut Qmp,
        device: &str,
        head: usize,
        file: &Path,
    ) -> Result<()> {
        let mut last = None;
        let found = Self::wait(qmp, device, head, file, |shown| {
            last = shown.difference(self, tolerance);
            last.is_none()
        });
        found.map(drop).with_context(|| last.unwrap_or_default())
    }

    /// Takes pictures of a head until one is what is wanted.
    pub fn wait(
        qmp: &mut Qmp,
        device: &str,
        head: usize,
        file: &Path,
        mut wanted: impl FnMut(&Self) -> bool,
    ) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = Self::take(qmp, device, head, file)?;
            if wanted(&shown) {
                return Ok(shown);
            }
            if Instant::now() > deadline {
                bail!("head {head} shows something else, a {shown:?}");
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The picture of a pointer: 0xAARRGGBB, row after row.
#[derive(Clone, PartialEq, Eq)]
pub struct Pointer {
    size: (usize, usize),
    hot: (u16, u16),
    pixels: Vec<u32>,
}

impl Pointer {
    /// The size of all pointers (virtio spec 5.7.6.3); what is drawn on them is smaller.
    const SIDE: usize = 64;

    /// What `screen cursor` shows: a white triangle with a black edge, 12 wide and 18 high. It points with its upper left
    /// corner.
    pub fn arrow() -> Self {
        let mut pointer = Self::clear();
        for y in 0..18 {
            for x in (0..12).filter(|x| x * 3 / 2 <= y) {
                let edge = x == 0 || y == 17 || (x + 1) * 3 / 2 > y;
                let color = if edge { 0xff00_0000 } else { 0xffff_ffff };
                pointer.pixels[y * Self::SIDE + x] = color;
            }
        }
        pointer
    }

    /// One that can't be seen.
    fn clear() -> Self {
        Self {
            size: (Self::SIDE, Self::SIDE),
            hot: (0, 0),
            pixels: vec![0; Self::SIDE * Self::SIDE],
        }
    }

    /// This must be the other.
    pub fn expect(&self, other: &Self) -> Result<()> {
        ensure!(
            (self.size, self.hot) == (other.size, other.hot),
            "{self:?}, and not {other:?}"
        );
        let mut pairs = self.pixels.iter().zip(&other.pixels).enumerate();
        if let Some((index, (is, should))) = pairs.find(|(_, (is, should))| is != should) {
            let (x, y) = (index % self.size.0, index / self.size.0);
            bail!("pixel {x},{y} of the pointer is {is:08x} and not {should:08x}");
        }
        Ok(())
    }
}

impl fmt::Debug for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((width, height), (x, y)) = (self.size, self.hot);
        write!(f, "pointer of {width}x{height} with {x},{y} in front")
    }
}

/// Gives each of the first displays of the graphics adapter with this id a window: a VNC server at the socket of its
/// number in `folder`.
pub fn windows<const N: usize>(qemu: &mut Qemu, id: &str, folder: &Path) -> Result<[PathBuf; N]> {
    let sockets = std::array::from_fn(|head| folder.join(head.to_string()));
    for (head, socket) in sockets.iter().enumerate() {
        let socket = escape(utf8(socket)?);
        qemu.arg("-vnc", &format!("unix:{socket},display={id},head={head}"));
    }
    Ok(sockets)
}

/// How a VNC client wants to get pointers (the numbers are IANA's of RFB encodings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointers {
    /// Not at all.
    None,
    /// As colors, and a bit for each pixel that is to be seen.
    Rich,
    /// With an alpha channel.
    Alpha,
}

const RAW: i32 = 0;
const RICH_CURSOR: i32 = -239;
const EXTENDED_DESKTOP_SIZE: i32 = -308;
const ALPHA_CURSOR: i32 = -314;

/// What came in a FramebufferUpdate.
#[derive(Default)]
struct Update {
    pointer: Option<Pointer>,
    /// Some of the picture.
    pixels: bool,
}

/// A VNC client that looks at no picture: it resizes its window, and it gets the pointer.
pub struct Window {
    stream: UnixStream,
}

impl Window {
    /// Opens the window that QEMU's VNC server at this socket shows.
    pub fn open(socket: &Path, pointers: Pointers) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut window = Self { stream };
        // RFC 6143, 7.1 to 7.3: the version, security "none", shared.
        ensure!(&window.read::<12>()? == b"RFB 003.008\n", "another version");
        window.stream.write_all(b"RFB 003.008\n")?;
        let [kinds] = window.read()?;
        window.bytes(kinds.into())?;
        window.stream.write_all(&[1])?;
        ensure!(window.read::<4>()? == [0; 4], "not let in");
        window.stream.write_all(&[1])?;
        window.read::<20>()?;
        let name = u32::from_be_bytes(window.read()?);
        window.bytes(name as usize)?;
        // SetPixelFormat: 32 bits, little-endian, true color of 8 bits each, blue lowest.
        let format = [
            0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
        ];
        window.stream.write_all(&format)?;
        // SetEncodings: ExtendedDesktopSize, which allows a client to resize, and what was asked for.
        let encodings: &[i32] = match pointers {
            Pointers::None => &[EXTENDED_DESKTOP_SIZE],
            Pointers::Rich => &[EXTENDED_DESKTOP_SIZE, RICH_CURSOR],
            Pointers::Alpha => &[EXTENDED_DESKTOP_SIZE, ALPHA_CURSOR],
        };
        window.stream.write_all(&[2, 0, 0, encodings.len() as u8])?;
        for encoding in encodings {
            window.stream.write_all(&encoding.to_be_bytes())?;
        }
        // FramebufferUpdateRequest for one pixel: when that has come, the server knows the rest.
        window.stream.write_all(&[3, 0, 0, 0, 0, 0, 0, 1, 0, 1])?;
        loop {
            let [message] = window.read()?;
            if window.message(message)?.pixels {
                return Ok(window);
            }
        }
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).context("VNC server")?;
        Ok(bytes)
    }

    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).context("VNC server")?;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u16> {
        self.read().map(u16::from_be_bytes)
    }

    /// SetDesktopSize, with one screen.
    pub fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let ([w0, w1], [h0, h1]) = (width.to_be_bytes(), height.to_be_bytes());
        let message = [
            &[251, 0, w0, w1, h0, h1, 1, 0][..],
            &[0, 0, 0, 0, 0, 0, 0, 0, w0, w1, h0, h1, 0, 0, 0, 0],
        ];
        Ok(self.stream.write_all(&message.concat())?)
    }

    /// Waits for the next pointer.
    pub fn pointer(&mut self) -> Result<Pointer> {
        loop {
            let [message] = self.read()?;
            if let Some(pointer) = self.message(message)?.pointer {
                return Ok(pointer);
            }
        }
    }

    /// How many pointers come before the server ends.
    pub fn pointers_left(mut self) -> Result<usize> {
        let mut count = 0;
        let mut message = [0];
        while self.stream.read(&mut message).context("VNC server")? > 0 {
            count += usize::from(self.message(message[0])?.pointer.is_some());
        }
        Ok(count)
    }

    /// Reads the rest of a message. No other than FramebufferUpdate is expected.
    fn message(&mut self, message: u8) -> Result<Update> {
        ensure!(message == 0, "VNC message {message}");
        self.read::<1>()?;
        let mut update = Update::default();
        for _ in 0..self.word()? {
            let hot = (self.word()?, self.word()?);
            let size = (self.word()?.into(), self.word()?.into());
            match i32::from_be_bytes(self.read()?) {
                EXTENDED_DESKTOP_SIZE => {
                    let [screens, _, _, _] = self.read()?;
                    self.bytes(16 * usize::from(screens))?;
                }
                RAW => {
                    self.pixels(size)?;
                    update.pixels = true;
                }
                RICH_CURSOR => update.pointer = Some(self.rich(size, hot)?),
                ALPHA_CURSOR => update.pointer = Some(self.alpha(size, hot)?),
                other => bail!("VNC encoding {other}"),
            }
        }
        Ok(update)
    }

    fn pixels(&mut self, (width, height): (usize, usize)) -> Result<Vec<u32>> {
        let bytes = self.bytes(4 * width * height)?;
        let (pixels, _) = bytes.as_chunks();
        Ok(pixels.iter().copied().map(u32::from_le_bytes).collect())
    }

    /// A pointer without shades: each pixel is there or not.
    fn rich(&mut self, size: (usize, usize), hot: (u16, u16)) -> Result<Pointer> {
        let mut pixels = self.pixels(size)?;
        let stride = size.0.div_ceil(8);
        let mask = self.bytes(stride * size.1)?;
        for (index, pixel) in pixels.iter_mut().enumerate() {
            let (x, y) = (index % size.0, index / size.0);
            let seen = mask[y * stride + x / 8] & (0x80 >> (x % 8)) != 0;
            *pixel = if seen { *pixel | 0xff00_0000 } else { 0 };
        }
        Ok(Pointer { size, hot, pixels })
    }

    /// A pointer as QEMU sends it: its own pixels, whatever pixel format was set.
    fn alpha(&mut self, size: (usize, usize), hot: (u16, u16)) -> Result<Pointer> {
        let encoding = i32::from_be_bytes(self.read()?);
        ensure!(encoding == 0, "a pointer in encoding {encoding}, not raw");
        let pixels = self.pixels(size)?;
        Ok(Pointer { size, hot, pixels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_picture_are_padded() {
        let picture = Picture::from_ppm(b"P6\n1 2\n255\nabc\0\ndf\0").expect("a picture");
        assert_eq!((picture.width, picture.height), (1, 2));
        assert_eq!(picture.bytes, b"abc\ndf");
        assert!(Picture::from_ppm(b"P6\n1 2\n255\nabcdef").is_err());
        assert!(Picture::from_ppm(b"P6\n1 2\n").is_err());
    }

    #[test]
    fn pointers_are_read_from_what_a_vnc_server_sends() -> Result<()> {
        let (client, mut server) = UnixStream::pair()?;
        let mut window = Window { stream: client };
        let rect = |x: u8, width: u8, encoding: i32| {
            let [a, b, c, d] = encoding.to_be_bytes();
            vec![0, x, 0, 0, 0, width, 0, 1, a, b, c, d]
        };
        let rich = [3, 2, 1, 0, 6, 5, 4, 0, 0x40];
        let alpha = [0, 0, 0, 0, 3, 2, 1, 0x80];
        let size = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 9, 0, 0, 0, 0];
        let parts = [
            vec![0, 0, 0, 2],
            rect(0, 9, EXTENDED_DESKTOP_SIZE),
            size.to_vec(),
            rect(1, 2, RICH_CURSOR),
            rich.to_vec(),
            vec![0, 0, 0, 1],
            rect(0, 1, ALPHA_CURSOR),
            alpha.to_vec(),
        ];
        server.write_all(&parts.concat())?;
        let pointer = |width, hot, pixels: &[u32]| Pointer {
            size: (width, 1),
            hot: (hot, 0),
            pixels: pixels.to_vec(),
        };
        assert_eq!(window.pointer()?, pointer(2, 1, &[0, 0xff04_0506]));
        assert_eq!(window.pointer()?, pointer(1, 0, &[0x8001_0203]));
        server.write_all(&[2])?;
        assert!(window.pointer().is_err());
        drop(server);
        assert_eq!(window.pointers_left()?, 0);
        Ok(())
    }

    #[test]
    fn a_pointer_that_is_not_the_arrow_is_told_from_it() {
        let arrow = Pointer::arrow();
        assert!(arrow.expect(&arrow).is_ok());
        let error = Pointer::clear().expect(&arrow).expect_err("another");
        assert_eq!(
            error.to_string(),
            "pixel 0,0 of the pointer is 00000000 and not ff000000"
        );
        let mut other = arrow.clone();
        other.hot = (1, 0);
        assert!(other.expect(&arrow).is_err());
    }

    #[test]
    fn a_difference_is_found_and_named() {
        let picture = Picture::test_pattern(20, 10, 1);
        let mut other = picture.clone();
        assert_eq!(picture.difference(&other, 0), None);
        other.fill(3, 4, 2, 1, [9; 3]);
        assert_eq!(other.count(0, 4, 4, 3, [9; 3]), 1);
        let difference = picture.difference(&other, 0).expect("a difference");
        assert!(difference.starts_with("2 pixels differ, the first at 3,4"));
        let mut near = picture.clone();
        let [red, green, blue] = [0, 1, 2].map(|color| picture.bytes()[color]);
        near.fill(0, 0, 1, 1, [red, green + 2, blue]);
        assert_eq!(picture.difference(&near, 2), None);
        assert!(picture.difference(&near, 1).is_some());
        let larger = Picture::test_pattern(20, 11, 1);
        assert!(picture.difference(&larger, 0).is_some());
    }
}
