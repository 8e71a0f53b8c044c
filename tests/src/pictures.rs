//! Pictures as files: PNG in all its kinds of color, BMP, and JPEG.

use anyhow::{Result, ensure};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use crate::screen::Picture;

/// What a pixel is in a PNG file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Red, green, blue.
    Rgb,
    /// The same, 16 bits each, of which the upper 8 are shown.
    Rgb16,
    /// Red, green, blue, and how much it covers of what is behind: of black.
    Rgba,
    /// A number in a table of 256 colors.
    Palette,
    /// How bright it is, with 4 bits.
    Gray4,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 5] = [
        Kind::Rgb,
        Kind::Rgb16,
        Kind::Rgba,
        Kind::Palette,
        Kind::Gray4,
    ];
}

/// A picture that looks like nothing but itself, and the PNG file of it.
pub fn png(kind: Kind, width: usize, height: usize) -> Result<(Picture, Vec<u8>)> {
    let mut random = fastrand::Rng::with_seed((width * height) as u64);
    let count = width * height;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    let mut noise = |len: usize| -> Vec<u8> { (0..len).map(|_| random.u8(..)).collect() };
    let (data, bytes): (Vec<u8>, Vec<u8>) = match kind {
        Kind::Rgb => {
            encoder.set_color(png::ColorType::Rgb);
            let data = noise(3 * count);
            (data.clone(), data)
        }
        Kind::Rgb16 => {
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Sixteen);
            let data = noise(6 * count);
            let bytes = data.chunks(2).map(|it| it[0]).collect();
            (data, bytes)
        }
        Kind::Rgba => {
            encoder.set_color(png::ColorType::Rgba);
            let data = noise(4 * count);
            let covered =
                |color: u8, alpha: u8| (f64::from(color) * f64::from(alpha) / 255.0).round() as u8;
            let pixels = data.chunks(4);
            let bytes = pixels.flat_map(|it| [0, 1, 2].map(|color| covered(it[color], it[3])));
            let bytes = bytes.collect();
            (data, bytes)
        }
        Kind::Palette => {
            encoder.set_color(png::ColorType::Indexed);
            let palette = noise(3 * 256);
            encoder.set_palette(palette.clone());
            let data = noise(count);
            let colors = data.iter().map(|it| 3 * usize::from(*it));
            let bytes = colors.flat_map(|at| palette[at..at + 3].to_vec()).collect();
            (data, bytes)
        }
        Kind::Gray4 => {
            encoder.set_color(png::ColorType::Grayscale);
            encoder.set_depth(png::BitDepth::Four);
            let row = width.div_ceil(2);
            let data = noise(row * height);
            let nibble = |index: usize| {
                let byte = data[index / width * row + index % width / 2];
                if (index % width).is_multiple_of(2) {
                    byte >> 4
                } else {
                    byte & 0xf
                }
            };
            let bytes = (0..count)
                .flat_map(|index| [nibble(index) * 17; 3])
                .collect();
            (data, bytes)
        }
    };
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&data)?;
    writer.finish()?;
    Ok((Picture::new(width, height, bytes), file))
}

/// A picture as BMP: three bytes a pixel, from the last row to the first.
pub fn bmp(picture: &Picture) -> Vec<u8> {
    const HEADERS: usize = 14 + 40;
    let (width, height) = picture.size();
    let row = (3 * width).next_multiple_of(4);
    let mut file = Vec::from(*b"BM");
    for field in [HEADERS + row * height, 0, HEADERS, 40, width, height] {
        file.extend((field as u32).to_le_bytes());
    }
    file.extend(1u16.to_le_bytes());
    file.extend(24u16.to_le_bytes());
    for field in [0, row * height, 0, 0, 0, 0] {
        file.extend((field as u32).to_le_bytes());
    }
    for pixels in picture.bytes().chunks(3 * width).rev() {
        let start = file.len();
        file.extend(pixels.chunks(3).flat_map(|it| [it[2], it[1], it[0]]));
        file.resize(start + row, 0);
    }
    file
}

/// The same with four bytes a pixel, in the order that masks behind the header say: red, green, blue, and one of none.
pub fn masked_bmp(picture: &Picture) -> Vec<u8> {
    const HEADERS: usize = 14 + 40 + 12;
    let (width, height) = picture.size();
    let mut file = Vec::from(*b"BM");
    for field in [0, 0, HEADERS, 40, width, height] {
        file.extend((field as u32).to_le_bytes());
    }
    file.extend(1u16.to_le_bytes());
    file.extend(32u16.to_le_bytes());
    for field in [3, 0, 0, 0, 0, 0, 0xff, 0xff00, 0xff_0000u32] {
        file.extend(field.to_le_bytes());
    }
    for pixels in picture.bytes().chunks(3 * width).rev() {
        file.extend(pixels.chunks(3).flat_map(|it| [it[0], it[1], it[2], 0x55]));
    }
    file
}

/// How a JPEG file is made.
#[derive(Clone, Copy, Debug)]
pub struct Jpeg {
    /// The colors' resolution, against that of brightness.
    pub sampling: SamplingFactor,
    /// In several scans, each of which adds to the ones before.
    pub progressive: bool,
    /// After how many blocks the coding begins anew; 0: never.
    pub restart: u16,
    /// Brightness and no colors.
    pub gray: bool,
    /// EXIF says that the upper side of the picture is the right one of the file.
    pub turned: bool,
}

impl Default for Jpeg {
    fn default() -> Self {
        Self {
            sampling: SamplingFactor::R_4_2_0,
            progressive: false,
            restart: 0,
            gray: false,
            turned: false,
        }
    }
}

/// A picture of soft colors, no two parts of which are alike, as a JPEG file; and that as `jpeg-decoder` decodes it.
pub fn jpeg(kind: Jpeg, width: u16, height: u16) -> Result<(Picture, Vec<u8>)> {
    /// EXIF, big endian: a directory with one entry, which is the orientation, 6.
    const TURNED: &[u8] =
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut data = Vec::new();
    for y in 0..u32::from(height) {
        for x in 0..u32::from(width) {
            let (across, down) = (x * 255 / u32::from(width), y * 255 / u32::from(height));
            data.extend(match kind.gray {
                true => vec![((2 * across + down) / 3) as u8],
                false => [across, down, 255 - (across + down) / 2]
                    .map(|it| it as u8)
                    .into(),
            });
        }
    }
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 90);
    encoder.set_sampling_factor(kind.sampling);
    encoder.set_progressive(kind.progressive);
    encoder.set_restart_interval(kind.restart);
    if kind.turned {
        encoder.add_app_segment(1, TURNED.to_vec())?;
    }
    let color = if kind.gray {
        ColorType::Luma
    } else {
        ColorType::Rgb
    };
    encoder.encode(&data, width, height, color)?;
    let bytes = jpeg_decoder::Decoder::new(&*file).decode()?;
    let (width, height) = (usize::from(width), usize::from(height));
    let bytes: Vec<u8> = match kind.gray {
        true => bytes.iter().flat_map(|luma| [*luma; 3]).collect(),
        false => bytes,
    };
    ensure!(bytes.len() == 3 * width * height, "{} bytes", bytes.len());
    if !kind.turned {
        return Ok((Picture::new(width, height, bytes), file));
    }
    // Its first row is the first column of the file, from the last row up.
    let places = (0..width).flat_map(|column| (0..height).rev().map(move |row| (row, column)));
    let pixels = places.flat_map(|(row, column)| {
        let at = 3 * (row * width + column);
        bytes[at..at + 3].to_vec()
    });
    Ok((Picture::new(height, width, pixels.collect()), file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bmp_file_begins_with_the_last_row() {
        let file = bmp(&Picture::new(1, 2, vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(file.len(), 54 + 8);
        assert_eq!(file[54..], [6, 5, 4, 0, 3, 2, 1, 0]);
    }
}
