//! What `tinybmp` does not know of BMP files.
//!
//! It reads headers of 40, 56, 108 and 124 bytes, tables of colors of four bytes, and run-length encoding. Masks behind a
//! header of 40 bytes it does not see and shows wrong colors, and most other masks it refuses. So the header is read here
//! first. Pixels that have masks are taken apart here; for the rest, a header that `tinybmp` does not know is replaced by one
//! that it does.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;

use super::{broken, on_black, room};

/// Bytes in front of the header: `BM`, the file's length, where the pixels are.
const FILE_HEADER: usize = 14;
/// The oldest header, of OS/2 and Windows 2: sizes of 16 bits, colors of three bytes.
const CORE: u32 = 12;
/// The usual one. Masks, if there are any, follow it.
const INFO: u32 = 40;
/// With masks inside.
const MASKS: u32 = 52;
/// With one for alpha.
const ALPHA: u32 = 56;
const V4: u32 = 108;
const V5: u32 = 124;

/// Compressions that are known.
const RGB: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const ALPHA_BIT_FIELDS: u32 = 6;

/// What a file says of itself.
pub(super) struct Header {
    /// Bytes of the header.
    len: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    from_top: bool,
    bits: u16,
    compression: u32,
    /// Where the pixels are in the file.
    pixels: usize,
    /// What in a pixel is which color; `None` if it is three bytes or the number of a color in a table.
    masks: Option<Masks>,
}

impl Header {
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let cut_off = || broken("cut off");
        let len = long(file, FILE_HEADER).ok_or_else(cut_off)?;
        let mut header = match len {
            CORE => Self::core(file),
            INFO | MASKS | ALPHA | V4 | V5 => Self::info(file, len),
            other => return Err(unknown(format_args!("a header of {other} bytes"))),
        }
        .ok_or_else(cut_off)?;
        let Self {
            compression, bits, ..
        } = header;
        header.masks = match (compression, bits) {
            (RGB, 1 | 4 | 8 | 24) => None,
            // Rows from the top are for pixels that are not compressed.
            (RLE8, 8) | (RLE4, 4) if !header.from_top => None,
            (RGB, 16) => Some(Masks::RGB555),
            (RGB, 32) => Some(Masks::RGB888),
            (BIT_FIELDS | ALPHA_BIT_FIELDS, 16 | 32) => {
                let has_alpha = len >= ALPHA || compression == ALPHA_BIT_FIELDS;
                Some(Masks::read(file, has_alpha).ok_or_else(cut_off)?)
            }
            _ => {
                let what = format_args!("{bits} bits a pixel in compression {compression}");
                return Err(unknown(what));
            }
        };
        match header.masks {
            Some(masks) if !masks.are_sound() => Err(broken("masks that are no fields of bits")),
            _ => Ok(header),
        }
    }

    fn core(file: &[u8]) -> Option<Self> {
        Some(Self {
            len: CORE,
            width: short(file, 18)?.into(),
            height: short(file, 20)?.into(),
            from_top: false,
            bits: short(file, 24)?,
            compression: RGB,
            pixels: long(file, 10)? as usize,
            masks: None,
        })
    }

    fn info(file: &[u8], len: u32) -> Option<Self> {
        let height = long(file, 22)?.cast_signed();
        Some(Self {
            len,
            width: long(file, 18)?,
            height: height.unsigned_abs(),
            from_top: height < 0,
            bits: short(file, 28)?,
            compression: long(file, 30)?,
            pixels: long(file, 10)? as usize,
            masks: None,
        })
    }

    /// The pixels as they are shown, row by row from the top, if they have masks.
    pub(super) fn masked<'a>(
        &self,
        file: &'a [u8],
    ) -> Result<Option<impl Iterator<Item = u32> + use<'a>>, String> {
        let Some(masks) = self.masks else {
            return Ok(None);
        };
        let pixel = usize::from(self.bits / 8);
        let used = self.width as usize * pixel;
        let row = used.next_multiple_of(4);
        let rows = self.height as usize;
        let data = file.get(self.pixels..).unwrap_or_default();
        let data = row.checked_mul(rows).and_then(|len| data.get(..len));
        let data = data.ok_or_else(|| broken("cut off"))?;
        let from_top = self.from_top;
        let raw = (0..rows).flat_map(move |y| {
            let y = if from_top { y } else { rows - 1 - y };
            let row = data.get(y * row..y * row + used).unwrap_or_default();
            row.chunks_exact(pixel).map(|bytes| match *bytes {
                [a, b] => u16::from_le_bytes([a, b]).into(),
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                _ => 0,
            })
        });
        // Many programs have a mask for alpha and leave it at 0 everywhere. Nobody means a picture that can't be seen.
        let opaque = raw.clone().all(|pixel| pixel & masks.alpha == 0);
        Ok(Some(raw.map(move |pixel| masks.color(pixel, opaque))))
    }

    /// The file with a header that `tinybmp` knows.
    pub(super) fn known<'a>(&self, file: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        let is_packed = self.compression != RGB;
        // It believes what a packed file says of its length, which many leave at 0.
        if matches!(self.len, INFO | ALPHA | V4 | V5) && !is_packed {
            return Ok(Cow::Borrowed(file));
        }
        let cut_off = || broken("cut off");
        let pixels = file.get(self.pixels..).ok_or_else(cut_off)?;
        let table = FILE_HEADER + self.len as usize;
        let table = file.get(table..self.pixels).ok_or_else(cut_off)?;
        let entry = if self.len == CORE { 3 } else { 4 };
        let colors = match self.bits {
            24 => 0,
            bits => (1 << bits).min(table.len() / entry),
        };
        let start = FILE_HEADER + INFO as usize + 4 * colors;
        let mut known = room(start + pixels.len())?;
        let height = self.height.cast_signed();
        let height = if self.from_top { -height } else { height };
        known.extend(b"BM");
        for field in [0, 0, start as u32, INFO, self.width] {
            known.extend(field.to_le_bytes());
        }
        known.extend(height.to_le_bytes());
        known.extend(1u16.to_le_bytes());
        known.extend(self.bits.to_le_bytes());
        let (len, colors) = (pixels.len() as u32, colors as u32);
        for field in [self.compression, len, 0, 0, colors, 0] {
            known.extend(field.to_le_bytes());
        }
        for color in table.chunks_exact(entry).take(colors as usize) {
            known.extend(color.iter().chain(&[0]).take(4));
        }
        known.extend(pixels);
        Ok(Cow::Owned(known))
    }
}

/// Which bits of a pixel are which color, and how much it covers of what is behind.
#[derive(Clone, Copy)]
struct Masks {
    colors: [u32; 3],
    alpha: u32,
}

impl Masks {
    const RGB555: Self = Self {
        colors: [0x7c00, 0x3e0, 0x1f],
        alpha: 0,
    };
    const RGB888: Self = Self {
        colors: [0xff_0000, 0xff00, 0xff],
        alpha: 0,
    };

    /// Behind a short header they are where they are in a long one.
    fn read(file: &[u8], has_alpha: bool) -> Option<Self> {
        let mask = |index: usize| long(file, FILE_HEADER + INFO as usize + 4 * index);
        Some(Self {
            colors: [mask(0)?, mask(1)?, mask(2)?],
            alpha: if has_alpha { mask(3)? } else { 0 },
        })
    }

    /// Whether each is a run of bits, and none has bits of another.
    fn are_sound(&self) -> bool {
        let [red, green, blue] = self.colors;
        let mut taken = 0;
        [red, green, blue, self.alpha].into_iter().all(|mask| {
            let run = mask.checked_shr(mask.trailing_zeros()).unwrap_or(0);
            let is_free = taken & mask == 0;
            taken |= mask;
            is_free && run & run.wrapping_add(1) == 0
        })
    }

    fn color(&self, pixel: u32, opaque: bool) -> u32 {
        let alpha = if opaque { 255 } else { part(pixel, self.alpha) };
        on_black(self.colors.map(|mask| part(pixel, mask)), alpha)
    }
}

/// What a pixel has in the place of a mask, of 255.
fn part(pixel: u32, mask: u32) -> u8 {
    let place = mask.trailing_zeros();
    let [value, most] =
        [pixel & mask, mask].map(|it| u64::from(it.checked_shr(place).unwrap_or(0)));
    ((value * 255 + most / 2) / most.max(1)) as u8
}

fn long(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

fn short(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*file.get(at..)?.first_chunk()?))
}

fn unknown(what: core::fmt::Arguments<'_>) -> String {
    format!("is a BMP file with {what}, which is not known")
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::Picture;
    use super::*;

    /// A file of two by two pixels.
    struct File {
        header: u32,
        from_top: bool,
        bits: u16,
        compression: u32,
        /// What the header says of the pixels' length.
        stated: u32,
        masks: Vec<u32>,
        table: Vec<u8>,
        pixels: Vec<u8>,
    }

    impl File {
        fn new(header: u32, bits: u16, compression: u32) -> Self {
            Self {
                header,
                from_top: false,
                bits,
                compression,
                stated: 0,
                masks: Vec::new(),
                table: Vec::new(),
                pixels: Vec::new(),
            }
        }

        fn masks(mut self, masks: &[u32]) -> Self {
            self.masks = masks.to_vec();
            self
        }

        /// Blue, green, red, as the table has them, with what each entry has besides.
        fn table(mut self, rest: &[u8]) -> Self {
            let colors = [[3, 2, 1], [6, 5, 4], [9, 8, 7], [12, 11, 10]];
            let entries = colors.iter().flat_map(|color| [color, rest].concat());
            self.table = entries.collect();
            self
        }

        fn pixels<const N: usize>(mut self, pixels: [[u8; N]; 2]) -> Self {
            self.pixels = pixels.concat();
            self
        }

        fn long_pixels(self, pixels: [[u32; 2]; 2]) -> Self {
            let bytes = pixels.map(|row| row.map(u32::to_le_bytes).as_flattened().to_vec());
            let rows = bytes.map(|row| <[u8; 8]>::try_from(row).unwrap());
            self.pixels(rows)
        }

        fn bytes(&self) -> Vec<u8> {
            let mut header = self.header.to_le_bytes().to_vec();
            if self.header == CORE {
                header.extend([2, 2, 1, self.bits].map(u16::to_le_bytes).as_flattened());
            } else {
                let height: i32 = if self.from_top { -2 } else { 2 };
                header.extend(2u32.to_le_bytes());
                header.extend(height.to_le_bytes());
                header.extend([1, self.bits].map(u16::to_le_bytes).as_flattened());
                let fields = [self.compression, self.stated, 0, 0, 0, 0];
                header.extend(fields.map(u32::to_le_bytes).as_flattened());
                header.extend(self.masks.iter().flat_map(|mask| mask.to_le_bytes()));
            }
            let rest = (self.header as usize).saturating_sub(header.len());
            header.extend(core::iter::repeat_n(0, rest));
            header.extend(&self.table);
            let mut file = Vec::from(*b"BM");
            let start = (FILE_HEADER + header.len()) as u32;
            file.extend([0, 0, start].map(u32::to_le_bytes).as_flattened());
            file.extend(header);
            file.extend(&self.pixels);
            file
        }

        fn shown(&self) -> Vec<u32> {
            Picture::decode_at_once(&self.bytes()).unwrap().pixels
        }

        fn error(&self) -> String {
            Picture::decode_at_once(&self.bytes()).err().unwrap()
        }
    }

    const SHOWN: [u32; 4] = [0x010203, 0x040506, 0x070809, 0x0a0b0c];
    const INFOS: [u32; 5] = [INFO, MASKS, ALPHA, V4, V5];

    #[test]
    fn every_header_has_its_colors() {
        let rgb = [[9, 8, 7, 12, 11, 10, 0, 0], [3, 2, 1, 6, 5, 4, 0, 0]];
        for header in [CORE].into_iter().chain(INFOS) {
            let file = File::new(header, 24, RGB).pixels(rgb);
            assert_eq!(file.shown(), SHOWN, "24 bits, header {header}");
            let rest: &[u8] = if header == CORE { &[] } else { &[0] };
            for (bits, rows) in [
                (1, [[0x80, 0, 0, 0], [0x40, 0, 0, 0]]),
                (4, [[0x23, 0, 0, 0], [0x01, 0, 0, 0]]),
                (8, [[2, 3, 0, 0], [0, 1, 0, 0]]),
            ] {
                let mut file = File::new(header, bits, RGB).table(rest).pixels(rows);
                let mut expected = SHOWN;
                if bits == 1 {
                    file.table.truncate(2 * (3 + rest.len()));
                    expected = [SHOWN[0], SHOWN[1], SHOWN[1], SHOWN[0]];
                } else {
                    file.table.resize((3 + rest.len()) << bits, 0);
                }
                assert_eq!(file.shown(), expected, "{bits} bits, header {header}");
            }
        }
    }

    #[test]
    fn masks_say_which_bits_are_which_color() {
        let pixels = [
            [0x07_08_09, 0x0a_0b_0c].map(|it: u32| it << 8 | 0x55),
            [0x01_02_03, 0x04_05_06].map(|it: u32| it << 8 | 0x55),
        ];
        let masks = [0xff << 24, 0xff << 16, 0xff << 8, 0];
        for header in INFOS {
            let masks = if header >= ALPHA {
                &masks[..]
            } else {
                &masks[..3]
            };
            let file = File::new(header, 32, BIT_FIELDS).masks(masks);
            assert_eq!(file.long_pixels(pixels).shown(), SHOWN, "header {header}");
        }
        // Red is the lowest byte, as in the file that others showed with red and blue exchanged.
        let masks = [0xff, 0xff00, 0xff_0000];
        let file = File::new(INFO, 32, BIT_FIELDS).masks(&masks);
        let file = file.long_pixels([[0x09_08_07, 0x0c_0b_0a], [0x03_02_01, 0x06_05_04]]);
        assert_eq!(file.shown(), SHOWN);
        // Ten bits each, of which 255 parts are made.
        let file = File::new(V4, 32, BIT_FIELDS).masks(&[0x3ff << 20, 0x3ff << 10, 0x3ff, 0]);
        let file = file.long_pixels([[0x3ff << 20, 0x3ff], [0x3fff_ffff, 512 << 10 | 2]]);
        assert_eq!(file.shown(), [0xffffff, 0x008000, 0xff0000, 0x0000ff]);
    }

    #[test]
    fn pixels_of_16_bits_have_5_or_6_for_a_color() {
        let rows = |pixels: [u16; 4]| {
            let [a, b, c, d] = pixels.map(u16::to_le_bytes);
            [[a[0], a[1], b[0], b[1]], [c[0], c[1], d[0], d[1]]]
        };
        let five = rows([0x7c00, 0x03e0, 0x001f, 0xffff]);
        let expected = [0x0000ff, 0xffffff, 0xff0000, 0x00ff00];
        for header in INFOS {
            let file = File::new(header, 16, RGB).pixels(five);
            assert_eq!(file.shown(), expected, "header {header}");
        }
        let six = rows([0xf800, 0x07e0, 0x001f, 0xffff]);
        let file = File::new(INFO, 16, BIT_FIELDS).masks(&[0xf800, 0x07e0, 0x001f]);
        assert_eq!(file.pixels(six).shown(), expected);
        let four = rows([0xff00, 0xf0f0, 0xf00f, 0x7fff]);
        let file = File::new(V4, 16, BIT_FIELDS).masks(&[0xf00, 0xf0, 0xf, 0xf000]);
        let expected = [0x0000ff, 0x777777, 0xff0000, 0x00ff00];
        assert_eq!(file.pixels(four).shown(), expected);
    }

    #[test]
    fn what_is_transparent_lies_on_black_unless_all_is() {
        let masks = [0xff_0000, 0xff00, 0xff, 0xff00_0000];
        let rows = [[0xff01_0203, 0x80ff_ff00], [0x00ff_ffff, 0xffff_ffff]];
        let expected = [0, 0xffffff, 0x010203, 0x808000];
        for (header, compression) in [(V4, BIT_FIELDS), (V5, BIT_FIELDS), (INFO, ALPHA_BIT_FIELDS)]
        {
            let file = File::new(header, 32, compression).masks(&masks);
            assert_eq!(file.long_pixels(rows).shown(), expected);
            let unused = rows.map(|row: [u32; 2]| row.map(|pixel| pixel & 0xff_ffff));
            let file = File::new(header, 32, compression).masks(&masks);
            let expected = [0xffffff, 0xffffff, 0x010203, 0xffff00];
            assert_eq!(file.long_pixels(unused).shown(), expected);
        }
        // Without a mask the upper byte says nothing.
        let file = File::new(INFO, 32, RGB).long_pixels(rows);
        assert_eq!(file.shown(), [0xffffff, 0xffffff, 0x010203, 0xffff00]);
    }

    #[test]
    fn rows_may_begin_at_the_top() {
        for bits in [24, 32] {
            let mut file = File::new(INFO, bits, RGB);
            file.from_top = true;
            let file = match bits {
                24 => file.pixels([[3, 2, 1, 6, 5, 4, 0, 0], [9, 8, 7, 12, 11, 10, 0, 0]]),
                _ => file.long_pixels([[SHOWN[0], SHOWN[1]], [SHOWN[2], SHOWN[3]]]),
            };
            assert_eq!(file.shown(), SHOWN);
        }
    }

    #[test]
    fn runs_are_unpacked_whether_their_length_is_stated_or_not() {
        let packed = [
            (8, RLE8, [[2, 2, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]]),
            // Two colors in a run, one after the other.
            (4, RLE4, [[2, 0x22, 0, 0, 1, 0], [1, 0x10, 0, 0, 0, 1]]),
        ];
        for (bits, compression, rows) in packed {
            let expected = [SHOWN[0], SHOWN[1], SHOWN[2], SHOWN[2]];
            for (header, stated) in [(INFO, 0), (INFO, 12), (MASKS, 12), (V5, 0)] {
                let mut file = File::new(header, bits, compression)
                    .table(&[0])
                    .pixels(rows);
                file.table.resize(4 << bits, 0);
                file.stated = stated;
                assert_eq!(file.shown(), expected, "{bits} bits, header {header}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for header in [0, 16, 41, 64, 125, u32::MAX] {
            let mut file = File::new(INFO, 24, RGB).pixels([[0; 8]; 2]).bytes();
            file[14..18].copy_from_slice(&header.to_le_bytes());
            let error = Picture::decode_at_once(&file).err().unwrap();
            let expected = format!("a header of {header} bytes, which is not known");
            assert!(error.contains(&expected), "{error}");
        }
        for (bits, compression) in [(2, RGB), (24, BIT_FIELDS), (32, 4), (0, 5), (24, 4)] {
            let error = File::new(INFO, bits, compression).error();
            let expected = format!("{bits} bits a pixel in compression {compression}, which");
            assert!(error.contains(&expected), "{error}");
        }
        let mut packed = File::new(INFO, 8, RLE8).table(&[0]);
        packed.from_top = true;
        assert!(packed.error().contains("compression 1, which is not known"));
        for masks in [[0x5, 0xf0, 0xf00], [0xff, 0xf0, 0xf00]] {
            let file = File::new(INFO, 32, BIT_FIELDS).masks(&masks);
            assert!(file.error().contains("masks"));
        }
    }

    #[test]
    fn damaged_files_are_errors_or_pictures() {
        let masks = [0xff, 0xff00, 0xff_0000];
        for file in [
            File::new(CORE, 8, RGB).table(&[]).pixels([[1; 4]; 2]),
            File::new(INFO, 8, RLE8).table(&[0]).pixels([[1; 4]; 2]),
            File::new(V4, 16, BIT_FIELDS)
                .masks(&masks)
                .pixels([[1; 4]; 2]),
        ] {
            let file = file.bytes();
            for at in 0..file.len() {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut damaged = file.clone();
                    damaged[at] = value;
                    let _ = Picture::decode_at_once(&damaged);
                }
            }
        }
    }

    #[test]
    fn cut_off_files_are_refused() {
        let masks = [0xff, 0xff00, 0xff_0000];
        for file in [
            File::new(CORE, 24, RGB).pixels([[1; 8]; 2]),
            File::new(INFO, 24, RGB).pixels([[1; 8]; 2]),
            File::new(INFO, 32, BIT_FIELDS)
                .masks(&masks)
                .pixels([[1; 8]; 2]),
        ] {
            let file = file.bytes();
            assert!(Picture::decode_at_once(&file).is_ok());
            for len in 2..file.len() {
                let error = Picture::decode_at_once(&file[..len]).err();
                assert!(error.is_some_and(|error| error.contains("broken")), "{len}");
            }
        }
    }
}
