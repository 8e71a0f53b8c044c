use std::vec;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use super::*;

/// A picture of soft colors, since no two decoders agree on hard edges.
fn soft(width: u16, height: u16, channels: usize) -> Vec<u8> {
    let (width, height) = (u32::from(width), u32::from(height));
    let mut bytes = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let diagonal = (x + 2 * y) * 255 / (width + 2 * height);
            let color = [x * 255 / width, y * 255 / height, diagonal, 77];
            bytes.extend(color.iter().take(channels).map(|it| *it as u8));
        }
    }
    bytes
}

fn encode(
    (width, height): (u16, u16),
    color: ColorType,
    set: impl FnOnce(&mut Encoder<&mut Vec<u8>>),
) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 90);
    set(&mut encoder);
    let channels = match color {
        ColorType::Luma => 1,
        ColorType::Cmyk => 4,
        _ => 3,
    };
    let data = soft(width, height, channels);
    encoder.encode(&data, width, height, color).unwrap();
    file
}

/// Decodes without a fiber.
fn shown(file: &[u8]) -> Result<Vec<u32>, String> {
    let jpeg = Jpeg::read(file)?;
    let (width, height) = jpeg.dimensions();
    let len = width as usize * height as usize * jpeg.frame.components.len();
    let mut samples = vec![0; len];
    decode(jpeg.essential.clone(), &mut samples, || true)?;
    Ok(jpeg.pixels(&samples).collect())
}

/// What another decoder makes of it.
fn reference(file: &[u8]) -> Vec<u32> {
    let mut decoder = jpeg_decoder::Decoder::new(file);
    let bytes = decoder.decode().unwrap();
    let color = |[red, green, blue]: [u8; 3]| {
        u32::from(red) << 16 | u32::from(green) << 8 | u32::from(blue)
    };
    match decoder.info().unwrap().pixel_format {
        jpeg_decoder::PixelFormat::L8 => bytes.iter().map(|it| color([*it; 3])).collect(),
        jpeg_decoder::PixelFormat::RGB24 => {
            bytes.as_chunks().0.iter().map(|it| color(*it)).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// By how much two pictures differ in a color of a pixel, at most and on average.
fn difference(one: &[u32], other: &[u32]) -> (u32, f64) {
    assert_eq!(one.len(), other.len());
    let pairs = one.iter().zip(other);
    let each = pairs.flat_map(|(one, other)| {
        [16, 8, 0].map(|shift| (one >> shift & 0xff).abs_diff(other >> shift & 0xff))
    });
    let all: Vec<u32> = each.collect();
    let sum: u32 = all.iter().sum();
    let max = all.iter().copied().max().unwrap_or_default();
    (max, f64::from(sum) / all.len() as f64)
}

#[track_caller]
fn check(file: &[u8], name: &str) {
    let shown = shown(file).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (max, mean) = difference(&shown, &reference(file));
    // Where colors have a lower resolution each decoder has its own way at the edges, which is all there is of a small
    // picture. What is wrong is wrong by much more.
    let small = shown.len() < 500;
    let limit = if small { 12.0 } else { 1.0 };
    assert!(max <= 64 && mean <= limit, "{name}: {max} {mean}");
}

const SIZES: [(u16, u16); 8] = [
    (64, 48),
    (61, 45),
    (200, 17),
    (33, 130),
    (17, 3),
    (3, 40),
    (8, 8),
    (1, 1),
];

#[test]
fn every_kind_is_shown_as_another_decoder_shows_it() {
    use SamplingFactor as S;
    for sampling in [S::R_4_4_4, S::R_4_2_2, S::R_4_4_0, S::R_4_2_0] {
        for size in SIZES {
            for color in [ColorType::Rgb, ColorType::Luma] {
                for (progressive, restart) in [
                    (false, 0),
                    (true, 0),
                    (false, 1),
                    (false, 3),
                    (false, 5),
                    (false, 7),
                ] {
                    let file = encode(size, color, |encoder| {
                        encoder.set_sampling_factor(sampling);
                        encoder.set_progressive(progressive);
                        encoder.set_restart_interval(restart);
                    });
                    let name = std::format!(
                        "{sampling:?} {size:?} {color:?} progressive {progressive} restart {restart}"
                    );
                    check(&file, &name);
                }
            }
        }
    }
}

/// Where a scan restarts depends on how many bits its blocks have.
#[test]
fn a_scan_restarts_wherever_it_says() {
    for (width, height) in [(110, 65), (105, 134), (91, 97), (144, 90)] {
        for color in [ColorType::Rgb, ColorType::Luma] {
            let channels = if color == ColorType::Rgb { 3 } else { 1 };
            let mut data = soft(width, height, channels);
            for (index, byte) in data.iter_mut().enumerate() {
                let grain = (index as u32).wrapping_mul(2_654_435_761) >> 28;
                *byte = byte.saturating_add(grain as u8);
            }
            for restart in 1..10 {
                for quality in [30, 75] {
                    let mut file = Vec::new();
                    let mut encoder = Encoder::new(&mut file, quality);
                    encoder.set_sampling_factor(SamplingFactor::R_4_4_4);
                    encoder.set_restart_interval(restart);
                    encoder.encode(&data, width, height, color).unwrap();
                    let name = std::format!("{width} x {height} {color:?} {restart} {quality}");
                    check(&file, &name);
                }
            }
        }
    }
}

/// By libjpeg-turbo 2.1.5: `cjpeg -progressive -restart 1B`, and `cjpeg -rgb`.
const PROGRESSIVE: &[u8] = include_bytes!("progressive.jpg");
const RGB: &[u8] = include_bytes!("rgb.jpg");

#[test]
fn what_libjpeg_writes_is_shown() {
    // In scans that refine one another, which the encoder above has not.
    check(PROGRESSIVE, "progressive");
    // Adobe's header says that these are no YCbCr.
    check(RGB, "RGB");
    let jpeg = Jpeg::read(RGB).unwrap();
    assert_eq!(jpeg.colors, Colors::Rgb);
    assert_eq!(Jpeg::read(PROGRESSIVE).unwrap().colors, Colors::YCbCr);
}

/// A file with a segment more at its beginning.
fn with_segment(file: &[u8], code: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len() as u16 + 2;
    [
        &file[..2],
        &[0xff, code],
        &len.to_be_bytes(),
        content,
        &file[2..],
    ]
    .concat()
}

/// What EXIF says with this entry in its first directory, behind another one.
fn exif(little: bool, tag: u16, value: u16) -> Vec<u8> {
    let short = |it: u16| {
        if little {
            it.to_le_bytes()
        } else {
            it.to_be_bytes()
        }
    };
    let long = |it: u32| {
        if little {
            it.to_le_bytes()
        } else {
            it.to_be_bytes()
        }
    };
    let mut bytes = b"Exif\0\0".to_vec();
    bytes.extend(if little { b"II" } else { b"MM" });
    bytes.extend(short(42));
    bytes.extend(long(8));
    bytes.extend(short(2));
    for (tag, value) in [(0x0103, 6), (tag, value)] {
        bytes.extend([short(tag), short(3)].as_flattened());
        bytes.extend(long(1));
        bytes.extend([short(value), short(0)].as_flattened());
    }
    bytes.extend(long(0));
    bytes
}

#[test]
fn a_picture_is_turned_as_exif_says() {
    let file = encode((3, 2), ColorType::Luma, |_| {});
    // As it is in the file: [0, 1, 2] above [3, 4, 5].
    let pixels = shown(&file).unwrap();
    for (orientation, width, places) in [
        (1, 3, [0, 1, 2, 3, 4, 5]),
        (2, 3, [2, 1, 0, 5, 4, 3]),
        (3, 3, [5, 4, 3, 2, 1, 0]),
        (4, 3, [3, 4, 5, 0, 1, 2]),
        (5, 2, [0, 3, 1, 4, 2, 5]),
        (6, 2, [3, 0, 4, 1, 5, 2]),
        (7, 2, [5, 2, 4, 1, 3, 0]),
        (8, 2, [2, 5, 1, 4, 0, 3]),
        // None of these is one.
        (0, 3, [0, 1, 2, 3, 4, 5]),
        (9, 3, [0, 1, 2, 3, 4, 5]),
        (0x106, 3, [0, 1, 2, 3, 4, 5]),
    ] {
        for little in [false, true] {
            let file = with_segment(&file, marker::APP1, &exif(little, 0x112, orientation));
            assert_eq!(
                Jpeg::read(&file).unwrap().dimensions().0,
                width,
                "{orientation}"
            );
            let expected = places.map(|place: usize| pixels[place]);
            assert_eq!(shown(&file).unwrap(), expected, "{orientation}");
        }
    }
    let whole = exif(true, 0x112, 6);
    for len in 0..whole.len() {
        let file = with_segment(&file, marker::APP1, &whole[..len]);
        assert_eq!(shown(&file).unwrap().len(), 6, "{len}");
    }
}

#[test]
fn what_is_no_picture_does_not_count() {
    let file = encode((24, 24), ColorType::Rgb, |_| {});
    let expected = shown(&file).unwrap();
    for more in [
        &b"\0"[..],
        &[0xff; 9],
        &file,
        b"appended by another program",
    ] {
        assert!(
            shown(&[&file, more].concat()).unwrap() == expected,
            "{more:?}"
        );
    }
    for code in [0xe1, 0xe2, 0xed, 0xef, marker::COM] {
        let file = with_segment(&file, code, &[0xff, 0xd9, 0xff, 0xc0]);
        assert!(shown(&file).unwrap() == expected, "{code:#x}");
    }
    // Several bytes 0xff before a marker.
    let filled = [&file[..2], &[0xff, 0xff], &file[2..]].concat();
    assert!(shown(&filled).unwrap() == expected);
}

/// A file with other bytes somewhere in its frame header, counted from behind the marker.
fn with_frame(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let frame = file.windows(2).position(|it| it == [0xff, 0xc0]).unwrap() + 2;
    let mut file = file.to_vec();
    file[frame + at..][..bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn what_can_t_be_shown_right_is_refused_by_name() {
    let error = |file: &[u8]| Jpeg::read(file).err().unwrap();
    let plain = encode((16, 16), ColorType::Rgb, |_| {});
    let cmyk = encode((16, 16), ColorType::Cmyk, |_| {});
    assert!(error(&cmyk).contains("CMYK"), "{}", error(&cmyk));
    let rare = encode((16, 16), ColorType::Rgb, |encoder| {
        encoder.set_sampling_factor(SamplingFactor::R_4_1_1);
    });
    assert!(error(&rare).contains("rare resolution"));
    let apart = encode((16, 16), ColorType::Rgb, |encoder| {
        encoder.set_optimized_huffman_tables(true);
    });
    assert!(error(&apart).contains("one after the other"));
    // The length of the segment is before: two bytes, then depth, height, width.
    assert!(error(&with_frame(&plain, 2, &[12])).contains("12 bits"));
    assert!(error(&with_frame(&plain, 3, &[0, 0])).contains("height"));
    let huge = with_frame(&plain, 3, &[0xff; 4]);
    assert!(error(&huge).contains("65535 x 65535"), "{}", error(&huge));
    for code in [0xc3, 0xc5, 0xc9, 0xcf] {
        let other = with_frame(&plain, 0, &[]);
        let at = other.windows(2).position(|it| it == [0xff, 0xc0]).unwrap();
        let mut other = other;
        other[at + 1] = code;
        assert!(error(&other).contains("arithmetic"), "{code:#x}");
    }
    let scans: Vec<u8> = [&plain[..plain.len() - 2]; 70].concat();
    assert!(error(&scans).contains("broken"));
}

#[test]
fn no_more_scans_are_decoded_than_programs_write() {
    let file = encode((16, 16), ColorType::Rgb, |encoder| {
        encoder.set_progressive(true)
    });
    let scan = file
        .windows(2)
        .rposition(|it| it == [0xff, marker::SOS])
        .unwrap();
    let (before, last) = file.split_at(scan);
    let many = |count| {
        [
            before,
            &last[..last.len() - 2].repeat(count),
            &[0xff, marker::EOI],
        ]
        .concat()
    };
    assert!(Jpeg::read(&many(2)).is_ok());
    let error = Jpeg::read(&many(MAX_SCANS)).err().unwrap();
    assert!(error.contains("too many scans"), "{error}");
}

#[test]
fn damaged_files_are_errors_or_pictures() {
    for file in [
        encode((24, 16), ColorType::Rgb, |_| {}),
        PROGRESSIVE.to_vec(),
        RGB.to_vec(),
    ] {
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] = value;
                let Ok(jpeg) = Jpeg::read(&damaged) else {
                    continue;
                };
                // What says that it is large is not decoded here.
                if jpeg.frame.width * jpeg.frame.height < 10_000 {
                    let _ = shown(&damaged);
                }
            }
            assert!(shown(&file[..at]).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn the_decoder_ends_when_it_shall() {
    for progressive in [false, true] {
        let file = encode((1600, 900), ColorType::Rgb, |encoder| {
            encoder.set_progressive(progressive)
        });
        let jpeg = Jpeg::read(&file).unwrap();
        let mut samples = vec![0; 1600 * 900 * 3];
        let mut asked = 0;
        let decoded = decode(jpeg.essential, &mut samples, || {
            asked += 1;
            asked < 3
        });
        assert!(decoded.is_err());
        assert_eq!(asked, 3);
    }
}
