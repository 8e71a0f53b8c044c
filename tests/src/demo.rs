//! The disk that `make run` brings along: a text, a picture and a sound, all made here, on a FAT file system.

use std::path::Path;

use anyhow::{Context, Result};
use hadris_fat::sync::{FatFs, format};
use hadris_fat::{FatOptions, VolumeLabel};
use hadris_fs::MountOptions;
use hadris_fs::sync::Volume;

use crate::wav::Frames;

/// Bytes of the disk.
const SIZE: usize = 64 << 20;
const PICTURE: (u32, u32) = (1280, 800);
const RATE: u32 = 48000;

const WELCOME: &str = "\
Welcome. This disk was made by `make run`; it is yours, and nothing but your commands writes to it.

    ls                          what is here
    screen show picture.png     on every display; `screen dashboard` brings the dashboard back
    sound play melody.wav       on the first sound card
    sound record 3 mine.wav     from the first that can; then `sound play mine.wav`
    cp welcome.txt copy.txt     and rm, mv, mkdir: the file system is FAT
    store                       how often this guest was booted

It is target/demo.img on your machine: `mdir -i target/demo.img` lists it, and mcopy brings files of yours.
";

/// Makes the disk.
pub fn make(path: &Path) -> Result<()> {
    let disk = image().context("making a file system")?;
    // A new file by rename: who is interrupted finds no half of it the next time.
    let new = path.with_extension("new");
    std::fs::write(&new, &disk)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("making {}", path.display()))
}

/// Whether the disk still has what it was made with: it is its owner's to change.
pub fn is_whole(path: &Path) -> bool {
    let has_all = || {
        let disk = std::fs::read(path).ok()?;
        let fs = FatFs::mount(disk, MountOptions::new().read_only()).ok()?;
        let volume = Volume::new(fs);
        let mut files = ["/welcome.txt", "/picture.png", "/melody.wav"].into_iter();
        Some(files.all(|file| volume.exists(file).is_ok_and(|exists| exists)))
    };
    has_all().unwrap_or(false)
}

fn image() -> Result<Vec<u8>> {
    let mut disk = vec![0; SIZE];
    let label = VolumeLabel::new("VRINGLET").map_err(|kind| anyhow::anyhow!("{kind:?}"))?;
    format(&mut disk, &FatOptions::new().with_label(label))?;
    let volume = Volume::new(FatFs::mount(disk, MountOptions::new())?);
    volume.write("/welcome.txt", WELCOME)?;
    volume.write("/picture.png", picture()?)?;
    volume.write("/melody.wav", melody())?;
    volume.lock()?.sync()?;
    let fs = volume.into_inner();
    Ok(fs
        .map_err(|_| anyhow::anyhow!("a file is still open"))?
        .unmount()?)
}

/// A ring, as vrings are: segments around a center, the brighter the nearer the one that is next.
fn picture() -> Result<Vec<u8>> {
    const SEGMENTS: f64 = 32.0;
    let (width, height) = PICTURE;
    let mut bytes = Vec::with_capacity(3 * (width * height) as usize);
    for y in 0..height {
        for x in 0..width {
            let (dx, dy) = (
                f64::from(x) - f64::from(width) / 2.0,
                f64::from(y) - f64::from(height) / 2.0,
            );
            let radius = dx.hypot(dy) / f64::from(height);
            let turn = dy.atan2(dx) / std::f64::consts::TAU + 0.5;
            let segment = turn * SEGMENTS;
            let gap = (segment.fract() - 0.5).abs();
            let inside = |inner: f64, outer: f64| {
                let edge = (radius - inner).min(outer - radius) * f64::from(height) / 2.0;
                edge.clamp(0.0, 1.0)
            };
            let ring = inside(0.28, 0.38) * ((0.46 - gap) * 40.0).clamp(0.0, 1.0);
            let arrow = inside(0.20, 0.22) * f64::from(u8::from(turn < 0.75));
            let glow = (-((radius - 0.33) / 0.16).powi(2)).exp() * 0.25;
            let age = segment.floor() / SEGMENTS;
            let teal = ring * (0.25 + 0.75 * age) + arrow * 0.6;
            let blue = glow + ring * (1.0 - age) * 0.5;
            let color = |base: f64, of_teal: f64, of_blue: f64| {
                (base + teal * of_teal + blue * of_blue).clamp(0.0, 255.0) as u8
            };
            bytes.extend([
                color(14.0, 64.0, 60.0),
                color(18.0, 183.0, 120.0),
                color(24.0, 152.0, 220.0),
            ]);
        }
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    Ok(file)
}

/// Broken chords, plucked, from left to right.
fn melody() -> Vec<u8> {
    const CHORDS: [[f64; 4]; 4] = [
        [261.63, 329.63, 392.00, 523.25],
        [220.00, 261.63, 329.63, 440.00],
        [174.61, 220.00, 261.63, 349.23],
        [196.00, 246.94, 293.66, 392.00],
    ];
    let rate = f64::from(RATE);
    let beat = 0.22;
    let notes: Vec<f64> = CHORDS.concat();
    let seconds = beat * notes.len() as f64 + 1.5;
    let mut frames = vec![[0.0f64; 2]; (seconds * rate) as usize];
    for (number, hz) in notes.iter().enumerate() {
        let start = (number as f64 * beat * rate) as usize;
        let right = number as f64 / (notes.len() - 1) as f64;
        for (index, frame) in frames.iter_mut().skip(start).enumerate() {
            let time = index as f64 / rate;
            let pluck = (-3.5 * time).exp() * (1.0 - (-400.0 * time).exp());
            let phase = std::f64::consts::TAU * hz * time;
            let sample =
                pluck * (phase.sin() + 0.3 * (2.0 * phase).sin() + 0.1 * (3.0 * phase).sin());
            frame[0] += sample * (1.0 - 0.7 * right);
            frame[1] += sample * (0.3 + 0.7 * right);
        }
    }
    let samples = frames.as_flattened().iter();
    let bytes =
        samples.flat_map(|it| ((it * 9000.0).clamp(-32767.0, 32767.0) as i16).to_le_bytes());
    let frames = Frames {
        tag: 1,
        bits: 16,
        channels: 2,
        rate: RATE,
    };
    frames.plain_file(&bytes.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_has_what_it_says() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("demo.img");
        make(&path)?;
        assert!(is_whole(&path));
        let disk = std::fs::read(&path)?;
        assert_eq!(disk.len(), SIZE);
        let volume = Volume::new(FatFs::mount(disk, MountOptions::new().read_only())?);
        assert_eq!(volume.read("/welcome.txt")?, WELCOME.as_bytes());
        assert!(volume.read("/picture.png")?.starts_with(b"\x89PNG"));
        let wav = volume.read("/melody.wav")?;
        // Loud enough, and nowhere cut off.
        let samples = wav[44..]
            .chunks(2)
            .map(|it| i16::from_le_bytes([it[0], it[1]]).unsigned_abs());
        let loudest = samples.max().unwrap_or(0);
        assert!((8000..32767).contains(&loudest), "{loudest}");
        std::fs::write(&path, vec![0; SIZE])?;
        assert!(!is_whole(&path));
        Ok(())
    }
}
