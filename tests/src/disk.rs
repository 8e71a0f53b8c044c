//! The test pattern, disk images and what they must contain.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The unit of virtio-blk's addresses, in bytes.
pub const SECTOR: usize = 512;

/// One MiB in sectors.
pub const MIB: u64 = (1 << 20) / SECTOR as u64;

/// The bytes of `sectors` in the test pattern with this seed: the finaliser of splitmix64 over a counter, so that no
/// two places and no two seeds look alike.
pub fn pattern(seed: u64, sectors: Range<u64>) -> impl Iterator<Item = u8> {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    const WORDS: u64 = SECTOR as u64 / 8;
    (sectors.start * WORDS..sectors.end * WORDS).flat_map(move |word| {
        let z = seed
            .wrapping_mul(STEP)
            .wrapping_add(word)
            .wrapping_add(STEP);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    })
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A raw disk image, and the bytes it must hold once the guest has done what it was told.
pub struct Disk {
    path: PathBuf,
    expected: Vec<u8>,
}

impl Disk {
    /// Makes an image that holds the test pattern with this seed all over.
    pub fn create(path: impl Into<PathBuf>, sectors: u64, seed: u64) -> Result<Self> {
        let path = path.into();
        let expected: Vec<u8> = pattern(seed, 0..sectors).collect();
        std::fs::write(&path, &expected).with_context(|| format!("making {}", path.display()))?;
        Ok(Disk { path, expected })
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub fn sectors(&self) -> u64 {
        (self.expected.len() / SECTOR) as u64
    }

    /// From now on `sectors` must hold the test pattern with this seed.
    pub fn expect_pattern(&mut self, sectors: Range<u64>, seed: u64) {
        let start = sectors.start;
        self.expect(start, &pattern(seed, sectors).collect::<Vec<_>>());
    }

    /// From now on `bytes` must be found from the start of `sector` on; an image grows as far as needed.
    pub fn expect(&mut self, sector: u64, bytes: &[u8]) {
        let start = sector as usize * SECTOR;
        let end = start + bytes.len();
        if self.expected.len() < end {
            self.expected.resize(end, 0);
        }
        self.expected[start..end].copy_from_slice(bytes);
    }

    /// The hash of what the image must hold.
    pub fn sha256(&self) -> String {
        sha256(&self.expected)
    }

    /// Compares the image with what it must hold, except for `unspecified` sectors.
    pub fn check_except(&self, unspecified: Range<u64>) -> Result<()> {
        let name = self.path.display();
        let mut found = Vec::new();
        File::open(&self.path)
            .and_then(|mut file| file.read_to_end(&mut found))
            .with_context(|| format!("reading {name}"))?;
        if found.len() != self.expected.len() {
            bail!(
                "{name} has {} bytes and not {}",
                found.len(),
                self.expected.len()
            );
        }
        let pairs = found
            .chunks(SECTOR)
            .zip(self.expected.chunks(SECTOR))
            .enumerate();
        let wrong: Vec<_> = pairs
            .filter(|(sector, (found, expected))| {
                found != expected && !unspecified.contains(&(*sector as u64))
            })
            .collect();
        if let Some((sector, (found, expected))) = wrong.first() {
            let byte = found
                .iter()
                .zip(*expected)
                .position(|(a, b)| a != b)
                .unwrap_or_default();
            bail!(
                "{name}: {} sectors are wrong; the first is {sector}, from byte {byte} on",
                wrong.len()
            );
        }
        Ok(())
    }

    /// Compares the image with what it must hold.
    pub fn check(&self) -> Result<()> {
        self.check_except(0..0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_splitmix64() {
        // With seed 0 the words of sector 0 are the outputs of splitmix64's finaliser for 0, 1, ...: the first is the
        // generator's first output from state 0.
        let first: Vec<u8> = pattern(0, 0..1).take(8).collect();
        assert_eq!(first, 0xE220_A839_7B1D_CDAF_u64.to_le_bytes());
        assert_eq!(pattern(0, 0..3).count(), 3 * SECTOR);
        assert!(pattern(7, 5..6).eq(pattern(7, 4..6).skip(SECTOR)));
        assert!(pattern(7, 5..6).ne(pattern(8, 5..6)));
    }

    #[test]
    fn a_wrong_byte_is_found_and_named() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut disk = Disk::create(directory.path().join("d.img"), 8, 1)?;
        disk.check()?;
        disk.expect(3, b"x");
        let error = disk.check().expect_err("sector 3 differs").to_string();
        assert!(error.contains("the first is 3, from byte 0"), "{error}");
        disk.check_except(3..4)?;
        disk.expect_pattern(8..9, 2);
        assert!(disk.check().is_err(), "the image is too short now");
        Ok(())
    }
}
