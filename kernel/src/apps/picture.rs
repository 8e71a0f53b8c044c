//! Pictures out of files: PNG, BMP and JPEG, decoded in memory that is asked for beforehand, and made to fit a display.

mod bmp;
mod jpeg;

use alloc::string::String;
use alloc::vec::Vec;

use core::convert::Infallible;

use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::OriginDimensions;
use embedded_graphics::image::ImageDrawable;
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use tinybmp::Bmp;
use vringlet::gpu::{Rect, Size};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_png::PngDecoder;

use self::jpeg::Jpeg;
use crate::devices::gpu;
use crate::platform::memory::heap;

/// More pixels than this are refused: to decode them would keep everything else waiting.
const MAX_PIXELS: u64 = 16 << 20;
/// What the decoder takes besides the picture: tables, rows.
const DECODER_BYTES: usize = 1 << 20;

/// A picture.
pub struct Picture {
    size: Size,
    /// Row by row, `0x00rrggbb`.
    pixels: Vec<u32>,
}

impl Picture {
    /// Decodes a file. What is transparent lies on black.
    ///
    /// # Errors
    ///
    /// It is no picture of a known kind, a broken one, or a larger one than there is memory for.
    pub async fn decode(file: Vec<u8>) -> Result<Self, String> {
        match file.starts_with(&jpeg::START) {
            true => Self::decode_jpeg(file).await,
            false => Self::decode_at_once(&file),
        }
    }

    async fn decode_jpeg(file: Vec<u8>) -> Result<Self, String> {
        let mut jpeg = Jpeg::read(&file)?;
        // What was essential of it is there twice.
        drop(file);
        let (width, height) = jpeg.dimensions();
        let mut picture = Self::room(width, height)?;
        let samples = jpeg.decode().await?;
        picture.fill(jpeg.pixels(&samples));
        Ok(picture)
    }

    fn decode_at_once(file: &[u8]) -> Result<Self, String> {
        match file {
            [0x89, b'P', b'N', b'G', ..] => Self::decode_png(file),
            [b'B', b'M', ..] => Self::decode_bmp(file),
            _ => Err("is no picture in PNG, BMP or JPEG".into()),
        }
    }

    fn decode_png(file: &[u8]) -> Result<Self, String> {
        let (header, essential) = Header::read(file)?;
        let mut picture = Self::room(header.width, header.height)?;
        // The decoder asks for no memory in a way that can be refused. So much is what it takes at most.
        let taken = header.decoder_bytes() + essential.len();
        drop(room::<u8>(taken)?);
        let options = DecoderOptions::default().png_set_strip_to_8bit(true);
        let mut decoder = PngDecoder::new_with_options(ZCursor::new(&essential), options);
        decoder.decode_headers().map_err(broken)?;
        let len = decoder.output_buffer_size();
        let len = len.ok_or_else(|| broken("no header"))?;
        let mut decoded = room(len)?;
        decoded.resize(len, 0);
        drop(room::<u8>(taken)?);
        decoder.decode_into(&mut decoded).map_err(broken)?;
        match decoder.colorspace() {
            Some(ColorSpace::Luma) => {
                picture.fill(decoded.iter().map(|it| on_black([*it; 3], 255)))
            }
            Some(ColorSpace::LumaA) => {
                let pixels = decoded.as_chunks().0.iter();
                picture.fill(pixels.map(|[luma, alpha]| on_black([*luma; 3], *alpha)));
            }
            Some(ColorSpace::RGB) => {
                let pixels = decoded.as_chunks().0.iter();
                picture.fill(pixels.map(|color| on_black(*color, 255)));
            }
            Some(ColorSpace::RGBA) => {
                let pixels = decoded.as_chunks().0.iter();
                picture.fill(
                    pixels.map(|[red, green, blue, alpha]| on_black([*red, *green, *blue], *alpha)),
                );
            }
            _ => return Err(broken("colors of an unknown kind")),
        }
        Ok(picture)
    }

    fn decode_bmp(file: &[u8]) -> Result<Self, String> {
        let header = bmp::Header::read(file)?;
        let mut picture = Self::room(header.width, header.height)?;
        if let Some(pixels) = header.masked(file)? {
            picture.fill(pixels);
            return Ok(picture);
        }
        picture.fill(core::iter::empty());
        let file = header.known(file)?;
        let bmp = Bmp::<Rgb888>::from_slice(&file);
        let Ok(()) = bmp.map_err(broken)?.draw(&mut picture);
        Ok(picture)
    }

    /// A picture of this size with no pixels yet.
    fn room(width: u32, height: u32) -> Result<Self, String> {
        let count = u64::from(width) * u64::from(height);
        if count == 0 || count > MAX_PIXELS {
            return Err(alloc::format!(
                "has {width} x {height} pixels; 1 to {MAX_PIXELS} are shown"
            ));
        }
        Ok(Self {
            size: Size::new(width, height),
            pixels: room(count as usize)?,
        })
    }

    /// Takes as many pixels as there must be; those that are missing are black.
    fn fill(&mut self, pixels: impl Iterator<Item = u32>) {
        let count = self.size.width as usize * self.size.height as usize;
        self.pixels.extend(pixels.take(count));
        self.pixels.resize(count, 0);
    }

    /// Its size in pixels.
    pub fn dimensions(&self) -> Size {
        self.size
    }
}

impl gpu::Picture for Picture {
    /// Where it goes on a display: in the middle, smaller if it would not fit otherwise, never larger.
    fn place(&self, display: Size) -> Rect {
        let Size { width, height } = self.size;
        let (across, down) = (
            u64::from(display.width) * u64::from(height),
            u64::from(display.height) * u64::from(width),
        );
        let (width, height) = if width <= display.width && height <= display.height {
            (width, height)
        } else if across <= down {
            let rows = across / u64::from(width);
            (display.width, rows.max(1) as u32)
        } else {
            let columns = down / u64::from(height);
            (columns.max(1) as u32, display.height)
        };
        let (x, y) = (
            (display.width.saturating_sub(width)) / 2,
            (display.height.saturating_sub(height)) / 2,
        );
        Rect::new(x, y, width, height)
    }

    /// A row of the picture as it is with this width and height, neither of which is more than its own: each pixel is the
    /// mean of those it stands for.
    fn row(&self, y: u32, width: u32, height: u32) -> Vec<u32> {
        let rows = span(y, height, self.size.height);
        let mean = |x| {
            let columns = span(x, width, self.size.width);
            let mut sums = [0u64; 3];
            let mut count = 0;
            for row in rows.clone() {
                let start = row as usize * self.size.width as usize;
                let pixels = start + columns.start as usize..start + columns.end as usize;
                for pixel in self.pixels.get(pixels).unwrap_or_default() {
                    for (sum, shift) in sums.iter_mut().zip([16, 8, 0]) {
                        *sum += u64::from(pixel >> shift & 0xff);
                    }
                    count += 1;
                }
            }
            let [red, green, blue] = sums.map(|sum| (sum + count / 2) / count.max(1));
            (red << 16 | green << 8 | blue) as u32
        };
        (0..width).map(mean).collect()
    }
}

/// Which of `from` things stand behind thing number `index` of `to`.
fn span(index: u32, to: u32, from: u32) -> core::ops::Range<u32> {
    let edge = |index: u32| (u64::from(index) * u64::from(from) / u64::from(to.max(1))) as u32;
    edge(index)..edge(index + 1)
}

fn broken(error: impl core::fmt::Debug) -> String {
    alloc::format!("is a broken picture: {error:?}")
}

/// What a PNG file says of itself first (IHDR).
struct Header {
    width: u32,
    height: u32,
    /// Samples of a pixel in the file.
    channels: u64,
    /// Bytes of a sample as it is decoded.
    sample_len: u64,
    interlaced: bool,
}

impl Header {
    /// Reads it, and gives the file without all that is not needed to see the picture: texts, profiles and animations would
    /// be unpacked, however large.
    fn read(file: &[u8]) -> Result<(Self, Vec<u8>), String> {
        let mut essential = room(file.len())?;
        let (signature, mut rest) = file.split_at_checked(8).ok_or_else(|| broken("cut off"))?;
        essential.extend_from_slice(signature);
        let mut header = None;
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            // Its name before it and its checksum behind it do not count.
            let len = (u32::from_be_bytes(*len) as usize).saturating_add(8);
            let (chunk, next) = after
                .split_at_checked(len)
                .ok_or_else(|| broken("cut off"))?;
            let name = chunk.first_chunk::<4>();
            if let Some(b"IHDR" | b"PLTE" | b"tRNS" | b"IDAT" | b"IEND") = name {
                let whole = rest.get(..4 + len).unwrap_or_default();
                essential.extend_from_slice(whole);
            }
            if name == Some(b"IHDR") {
                header = header.or(Self::parse(chunk));
            }
            // The picture ends here. What other programs appended is none of it.
            if name == Some(b"IEND") {
                break;
            }
            rest = next;
        }
        let header = header.ok_or_else(|| broken("no header"))?;
        Ok((header, essential))
    }

    fn parse(chunk: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = chunk.get(at..)?.first_chunk()?;
            Some(u32::from_be_bytes(*bytes))
        };
        let [depth, color, _, _, interlace] = *chunk.get(12..)?.first_chunk::<5>()?;
        Some(Self {
            width: number(4)?,
            height: number(8)?,
            // 0 gray, 2 colors, 3 a table of colors, 4 and 6 with how much they cover.
            channels: match color {
                0 => 1,
                2 => 3,
                4 => 2,
                // At most, whatever it is: a table has entries of four.
                _ => 4,
            },
            sample_len: if depth == 16 { 2 } else { 1 },
            interlaced: interlace != 0,
        })
    }

    /// The most bytes that the decoder takes for this picture beside the file and the pixels that it gives: measured, and
    /// rounded up. The size is one that [`Picture::room`] accepted.
    fn decoder_bytes(&self) -> usize {
        let row = u64::from(self.width) * self.channels * self.sample_len + 1;
        let raw = row * u64::from(self.height);
        // Unpacked with room to double; then with 16 bits, and apart from what is interlaced.
        let copies = 3 + u64::from(self.sample_len == 2) + u64::from(self.interlaced);
        usize::try_from(copies * raw).map_or(usize::MAX, |bytes| bytes + DECODER_BYTES)
    }
}

impl OriginDimensions for Picture {
    fn size(&self) -> embedded_graphics::geometry::Size {
        let Size { width, height } = self.size;
        embedded_graphics::geometry::Size::new(width, height)
    }
}

impl DrawTarget for Picture {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        // There can't be more than there are, whatever the file has.
        for Pixel(place, color) in pixels.into_iter().take(self.pixels.len()) {
            let (Ok(x), Ok(y)) = (u32::try_from(place.x), u32::try_from(place.y)) else {
                continue;
            };
            let at = y as usize * self.size.width as usize + x as usize;
            if let Some(pixel) = self.pixels.get_mut(at).filter(|_| x < self.size.width) {
                *pixel = on_black([color.r(), color.g(), color.b()], 255);
            }
        }
        Ok(())
    }
}

fn room<T>(len: usize) -> Result<Vec<T>, String> {
    heap::room(len).ok_or_else(|| "is too large for the memory that is left".into())
}

/// A color that covers so much of the black behind it.
fn on_black(color: [u8; 3], alpha: u8) -> u32 {
    let [red, green, blue] = color.map(|it| (u32::from(it) * u32::from(alpha) + 127) / 255);
    red << 16 | green << 8 | blue
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::gpu::Picture as _;

    fn picture(width: u32, height: u32) -> Picture {
        let mut picture = Picture::room(width, height).unwrap();
        picture.fill(0..);
        picture
    }

    #[test]
    fn a_picture_fits_and_is_in_the_middle() {
        let place = |width, height, display| picture(width, height).place(display);
        let display = Size::new(100, 60);
        assert_eq!(place(100, 60, display), Rect::new(0, 0, 100, 60));
        assert_eq!(place(10, 20, display), Rect::new(45, 20, 10, 20));
        assert_eq!(place(200, 60, display), Rect::new(0, 15, 100, 30));
        assert_eq!(place(200, 180, display), Rect::new(17, 0, 66, 60));
        assert_eq!(place(3000, 1, display), Rect::new(0, 29, 100, 1));
        assert_eq!(place(1, 3000, display), Rect::new(49, 0, 1, 60));
    }

    #[test]
    fn a_smaller_picture_has_the_mean_of_the_pixels() {
        let mut whole = Picture::room(4, 2).unwrap();
        whole.fill(
            [
                0xff0000, 0xff0000, 0, 0x000003, //
                0xff0000, 0xff0000, 0, 0,
            ]
            .into_iter(),
        );
        assert_eq!(whole.row(0, 4, 2), [0xff0000, 0xff0000, 0, 3]);
        assert_eq!(whole.row(0, 2, 1), [0xff0000, 1]);
        // No pixel is left out, and none counts twice.
        assert_eq!(whole.row(0, 3, 2), [0xff0000, 0xff0000, 2]);
    }

    #[test]
    fn a_bmp_file_has_its_rows_from_the_last_to_the_first_or_the_other_way_round() {
        for (height, rows) in [
            (2i32, [[6, 5, 4, 0], [3, 2, 1, 0]]),
            (-2, [[3, 2, 1, 0], [6, 5, 4, 0]]),
        ] {
            let mut file = Vec::from(*b"BM");
            file.extend([62u32, 0, 54, 40, 1].map(u32::to_le_bytes).as_flattened());
            file.extend(height.to_le_bytes());
            file.extend([1, 0, 24, 0]);
            file.extend([0u32, 8, 0, 0, 0, 0].map(u32::to_le_bytes).as_flattened());
            file.extend(rows.as_flattened());
            let picture = Picture::decode_at_once(&file).unwrap();
            assert_eq!(picture.pixels, [0x010203, 0x040506], "{height}");
        }
    }

    #[test]
    fn files_that_are_not_pictures_are_refused() {
        let error = |file: &[u8]| Picture::decode_at_once(file).err().unwrap();
        assert!(error(b"").contains("no picture"));
        assert!(error(b"GIF89a").contains("no picture"));
        assert!(error(b"\x89PNG\r\n\x1a\n").contains("broken"));
        assert!(error(b"BM").contains("broken"));
        assert!(Picture::room(1 << 31, 1 << 31).is_err());
        assert!(Picture::room(0, 5).is_err());
    }

    #[test]
    fn bytes_behind_the_end_of_a_png_file_do_not_count() {
        let png = include_bytes!("picture/test.png");
        let expected = Picture::decode_at_once(png).unwrap().pixels;
        for more in [
            &b"\0"[..],
            &[0; 512],
            &[0xff; 9],
            b"appended by another program",
            png,
        ] {
            let file = [png, more].concat();
            let picture = Picture::decode_at_once(&file).unwrap();
            assert!(picture.pixels == expected, "{more:?}");
        }
    }

    #[test]
    fn damaged_files_are_errors_or_pictures() {
        let png = include_bytes!("picture/test.png");
        assert_eq!(
            Picture::decode_at_once(png).unwrap().dimensions(),
            Size::new(16, 8)
        );
        for at in 0..png.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = png.to_vec();
                damaged[at] = value;
                let _ = Picture::decode_at_once(&damaged);
            }
            let _ = Picture::decode_at_once(&png[..at]);
        }
    }
}
