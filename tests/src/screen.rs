//! What the guest shows: pictures taken by QEMU, the test pattern rendered on the host, and windows being resized.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::qemu::utf8;
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

    /// Where this differs from another picture.
    fn difference(&self, other: &Self) -> Option<String> {
        if (self.width, self.height) != (other.width, other.height) {
            return Some(format!("{self:?}, and not {other:?}"));
        }
        let pixels = || self.bytes.chunks(3).zip(other.bytes.chunks(3)).enumerate();
        let (index, (is, should)) = pixels().find(|(_, (is, should))| is != should)?;
        let count = pixels().filter(|(_, (is, should))| is != should).count();
        let (x, y) = (index % self.width, index / self.width);
        Some(format!(
            "{count} pixels differ, the first at {x},{y}: {is:02x?} and not {should:02x?}"
        ))
    }

    /// Takes pictures of a head until one is this.
    pub fn expect(&self, qmp: &mut Qmp, device: &str, head: usize, file: &Path) -> Result<()> {
        let mut last = None;
        let found = Self::wait(qmp, device, head, file, |shown| {
            last = shown.difference(self);
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

/// A VNC client that looks at nothing, and resizes its window.
pub struct Window {
    stream: UnixStream,
}

impl Window {
    /// Opens the window that QEMU's VNC server at this socket shows.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut window = Self { stream };
        // RFC 6143, 7.1 to 7.3: the version, security "none", shared.
        ensure!(&window.read::<12>()? == b"RFB 003.008\n", "another version");
        window.stream.write_all(b"RFB 003.008\n")?;
        let [kinds] = window.read()?;
        for _ in 0..kinds {
            window.read::<1>()?;
        }
        window.stream.write_all(&[1])?;
        ensure!(window.read::<4>()? == [0; 4], "not let in");
        window.stream.write_all(&[1])?;
        window.read::<20>()?;
        let name = u32::from_be_bytes(window.read()?);
        for _ in 0..name {
            window.read::<1>()?;
        }
        // SetEncodings: only ExtendedDesktopSize, which allows a client to resize.
        window.stream.write_all(&[2, 0, 0, 1])?;
        window.stream.write_all(&(-308i32).to_be_bytes())?;
        Ok(window)
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).context("VNC server")?;
        Ok(bytes)
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
    fn a_difference_is_found_and_named() {
        let picture = Picture::test_pattern(20, 10, 1);
        let mut other = picture.clone();
        assert_eq!(picture.difference(&other), None);
        other.fill(3, 4, 2, 1, [9; 3]);
        assert_eq!(other.count(0, 4, 4, 3, [9; 3]), 1);
        let difference = picture.difference(&other).expect("a difference");
        assert!(difference.starts_with("2 pixels differ, the first at 3,4"));
        let larger = Picture::test_pattern(20, 11, 1);
        assert!(picture.difference(&larger).is_some());
    }
}
